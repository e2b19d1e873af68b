"""`octavo quantize`: writes a smaller form of a model and says what it cost."""

import argparse
import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path

from octavo.cli.terminal import ProgressLine, find_model, make_core, print_table
from octavo.hub.library import LibraryModel
from octavo.jobs import JobControl
from octavo.paths import AppPaths
from octavo.quantize.job import quantize
from octavo.quantize.methods import find_method
from octavo.quantize.recipe import QuantizeRecipe, default_output, source_name
from octavo.quantize.report import QuantizeReport
from octavo.units import format_bytes, format_seconds


def quantize_verb(options: argparse.Namespace, paths: AppPaths) -> int:
    """`octavo quantize MODEL METHOD`."""
    method = find_method(options.method)
    core = make_core(options, paths)
    model = find_model(core, options.model)
    if options.output:
        output = Path(options.output).expanduser().absolute()
    else:
        output = default_output(core.models_dir, source_name(model.path, model.name), method)
    recipe = QuantizeRecipe(model.path, method.id, output)
    if not output.exists():
        # Before the work, so that it can be stopped; beside the JSON, which is one object.
        for remark in recipe.check().remarks:
            print(remark, file=sys.stderr)
    line = ProgressLine()
    try:
        report = asyncio.run(
            quantize(recipe, JobControl(line.show), evaluates=not options.no_evaluate)
        )
    finally:
        line.clear()
    if options.json:
        print(json.dumps({"output": str(output), **asdict(report)}, indent=2))
        return 0
    _print_report(report, model, output)
    return 0


def _print_report(report: QuantizeReport, model: LibraryModel, output: Path) -> None:
    original_bits = 8 * report.source_bytes / max(1, model.num_parameters)
    before, after = report.perplexity_before, report.perplexity_after
    rows = [
        ("size", format_bytes(report.source_bytes), format_bytes(report.output_bytes)),
        ("bits a weight", f"{original_bits:.2f}", f"{report.bits_per_weight:.2f}"),
    ]
    if before is not None and after is not None:
        rows.append(("perplexity", f"{before:.4f}", f"{after:.4f}"))
    print_table(("", "ORIGINAL", report.method.upper()), rows)
    if report.kl_divergence is not None and report.top1_agreement is not None:
        print(comparison_sentence(report.kl_divergence, report.top1_agreement))
        print(f"Measured in {report.dtype} on {report.num_tokens:,} tokens of {report.text_name}.")
    for sentence in filter(None, (report.note, report.remark)):
        print(sentence)
    print(f"Written in {format_seconds(report.seconds)}: {output}")


def comparison_sentence(
    kl_divergence: float, top1_agreement: float, other: str = "the original"
) -> str:
    """How far a model is from another, in a sentence."""
    return (
        f"Divergence from {other}: {kl_divergence:.5f} nats a token;"
        f" the same likeliest token in {top1_agreement:.2%} of places."
    )
