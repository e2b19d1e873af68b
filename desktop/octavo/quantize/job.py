"""`quantize` and `evaluate`: the long works of this package, as coroutines around a child."""

import asyncio
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.errors import ResourceError
from octavo.jobs import JobControl
from octavo.quantize.child import run_child
from octavo.quantize.interrupted import note_recipe
from octavo.quantize.recipe import QuantizeRecipe
from octavo.quantize.report import (
    Evaluation,
    QuantizeReport,
    read_report,
    weights_bytes,
    write_report,
)
from octavo.quantize.worker import EVALUATE, QUANTIZE


async def quantize(
    recipe: QuantizeRecipe, control: JobControl, *, evaluates: bool = True
) -> QuantizeReport:
    """Quantises a model in a process of its own, evaluates it, and writes the report beside it.

    A run that was killed or cancelled goes on where it stopped. Once the model is written it
    stays with a report that lacks the evaluation, and if that was stopped, too, the same recipe
    goes on with it. Where a model is too large to be evaluated on this machine the report says
    so. Progress is reported on a worker's thread.

    Raises:
        OctavoError: as `QuantizeRecipe.check`, or a weight is damaged, or the process died.
        JobCancelled: `control` was cancelled.
    """
    report = await asyncio.to_thread(_unmeasured_report, recipe) if evaluates else None
    if report is None:
        report = await _write(recipe, control)
    return await _measure(report, recipe, control) if evaluates else report


def _unmeasured_report(recipe: QuantizeRecipe) -> QuantizeReport | None:
    """Of a run of this recipe that came as far as the evaluation."""
    report = read_report(recipe.output)
    if report is None or report.is_measured:
        return None
    is_same = (report.source, report.method) == (str(recipe.source.absolute()), recipe.method)
    return report if is_same else None


async def _write(recipe: QuantizeRecipe, control: JobControl) -> QuantizeReport:
    started_at = time.perf_counter()
    await asyncio.to_thread(recipe.check)
    remark = await asyncio.to_thread(recipe.check_tokens)
    await asyncio.to_thread(note_recipe, recipe)
    result = await _run(
        {
            "kind": QUANTIZE,
            "source": str(recipe.source),
            "method": recipe.method,
            "output": str(recipe.output),
        },
        control,
    )
    report = QuantizeReport(
        source_name=recipe.source.name,
        source=str(recipe.source.absolute()),
        method=recipe.method,
        source_bytes=await asyncio.to_thread(weights_bytes, recipe.source),
        output_bytes=await asyncio.to_thread(weights_bytes, recipe.output),
        bits_per_weight=result["bits_per_weight"],
        seconds=time.perf_counter() - started_at,
        remark=remark,
    )
    await asyncio.to_thread(write_report, report, recipe.output)
    return report


async def _measure(
    report: QuantizeReport, recipe: QuantizeRecipe, control: JobControl
) -> QuantizeReport:
    try:
        evaluation = await evaluate(recipe.output, recipe.source, control)
    except ResourceError as error:
        note = f"The model is finished, but was not evaluated: {error}"
        measured = dataclasses.replace(report, note=note)
    else:
        measured = dataclasses.replace(
            report,
            perplexity_before=evaluation.against_perplexity,
            perplexity_after=evaluation.perplexity,
            kl_divergence=evaluation.kl_divergence,
            top1_agreement=evaluation.top1_agreement,
            num_tokens=evaluation.num_tokens,
            text_name=evaluation.text_name,
            dtype=evaluation.dtype,
            note="",
        )
    await asyncio.to_thread(write_report, measured, recipe.output)
    return measured


async def evaluate(
    model: Path, against: Path | None, control: JobControl, *, text: Path | None = None
) -> Evaluation:
    """Reads a text with a model, and compares it with another one there, in a process of its own.

    Args:
        model: a .gguf file or a folder.
        against: the one it was made from; None: perplexity alone.
        control: hears of the progress on a worker's thread, and cancels.
        text: UTF-8; None: the text that comes with Octavo.

    Raises:
        OctavoError: as `evaluation.evaluate_models`, or the process died.
        JobCancelled: `control` was cancelled.
    """
    task = {
        "kind": EVALUATE,
        "model": str(model),
        "against": None if against is None else str(against),
        "text": None if text is None else str(text),
    }
    return Evaluation(**await _run(task, control))


async def _run(task: Mapping[str, Any], control: JobControl) -> dict[str, Any]:
    try:
        return await asyncio.to_thread(run_child, task, control)
    except asyncio.CancelledError:
        # The thread cannot be interrupted; it sees this and kills the process.
        control.cancel()
        raise
