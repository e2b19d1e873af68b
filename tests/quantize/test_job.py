"""The child process: its errors, its end, and its death at any moment."""

import asyncio
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from octavo.checkpoint.header import read_checkpoint
from octavo.engine.checkpoint_parts import read_tokenizer
from octavo.errors import (
    CheckpointError,
    EngineError,
    InsufficientMemoryError,
    OctavoError,
    StorageError,
    UnsupportedModelError,
)
from octavo.jobs import JobCancelled, JobControl, Progress
from octavo.quantize.error_lines import error_from_json, error_to_json
from octavo.quantize.job import evaluate, quantize
from octavo.quantize.recipe import QuantizeRecipe
from octavo.quantize.report import read_report, report_file
from octavo.quantize.writing import write_model
from tests.support.gguf_files import write_tiny_llama
from tests.support.model_folders import change_json, write_model_folder

pytestmark = pytest.mark.usefixtures("paths")

_LONG = {"num_layers": 40, "hidden_size": 256, "num_heads": 16, "intermediate_size": 768}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "Tiny.gguf", hidden_size=128, num_heads=8)


@pytest.fixture
def long_source(tmp_path: Path) -> Path:
    """Some hundred weights, so that there is something to interrupt."""
    return write_tiny_llama(tmp_path / "Long.gguf", **_LONG)


def children() -> list[psutil.Process]:
    """Processes of ours that quantise."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "octavo.quantize.worker" in process.cmdline():
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_until(is_so: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("module", ["quantize.job", "cli.quantize", "cli.evaluate"])
def test_torch_stays_in_the_child(module: str) -> None:
    code = f"import octavo.{module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_report_says_what_it_cost(source: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    recipe = QuantizeRecipe(source, "q8_0", tmp_path / "out" / "Tiny-q8_0.gguf")
    report = await quantize(recipe, JobControl(seen.append))
    assert report.output_bytes == recipe.output.stat().st_size < report.source_bytes
    assert 8.5 < report.bits_per_weight < 9.5
    assert report.kl_divergence is not None
    assert 0 < report.kl_divergence < 0.01
    assert report.perplexity_before != report.perplexity_after
    assert report.num_tokens > 2000
    assert read_report(recipe.output) == report
    stages = list(dict.fromkeys(progress.stage for progress in seen))
    assert [stages[0], stages[-1]] == ["Quantising", "Reading with the result"]
    assert [seen[0].unit, seen[-1].unit] == ["bytes", "tokens"]
    assert seen[-1].done == seen[-1].total
    assert not children()
    # Of another file under this name the report says nothing.
    recipe.output.write_bytes(b"something else")
    assert read_report(recipe.output) is None


async def test_measuring_that_was_stopped_goes_on(source: Path, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.stage == "Reading with the original":
            control.cancel()

    control = JobControl(stop)
    recipe = QuantizeRecipe(source, "q4_0", tmp_path / "Tiny-q4_0.gguf")
    with pytest.raises(JobCancelled):
        await quantize(recipe, control)
    unmeasured = read_report(recipe.output)
    assert unmeasured is not None
    assert not unmeasured.is_measured
    written_at = recipe.output.stat().st_mtime_ns
    seen: list[Progress] = []
    report = await quantize(recipe, JobControl(seen.append))
    assert {progress.stage.partition(" ")[0] for progress in seen} == {"Loading", "Reading"}
    assert recipe.output.stat().st_mtime_ns == written_at
    assert report.is_measured
    assert read_report(recipe.output) == report
    assert (report.seconds, report.bits_per_weight) == (
        unmeasured.seconds,
        unmeasured.bits_per_weight,
    )
    # With its report whole there is nothing to go on with.
    with pytest.raises(StorageError, match="exists already"):
        await quantize(recipe, JobControl())


async def test_what_no_other_file_can_say_leaves_nothing_behind(tmp_path: Path) -> None:
    write_model_folder(tmp_path / "Tiny", hidden_size=64, num_attention_heads=4)
    change_json(tmp_path / "Tiny" / "tokenizer.json", model={"type": "Unigram"})
    recipe = QuantizeRecipe(tmp_path / "Tiny", "q8_0", tmp_path / "out" / "Tiny.gguf")
    with pytest.raises(UnsupportedModelError, match="Unigram"):
        await quantize(recipe, JobControl())
    assert not recipe.partial.exists()


async def test_tokenizer_that_gguf_cannot_say_is_carried_and_remarked(tmp_path: Path) -> None:
    write_model_folder(tmp_path / "Tiny", hidden_size=64, num_attention_heads=4)
    recipe = QuantizeRecipe(tmp_path / "Tiny", "q8_0", tmp_path / "out" / "Tiny.gguf")
    report = await quantize(recipe, JobControl(), evaluates=False)
    assert "swallows blanks" in report.remark
    assert read_report(recipe.output) == report
    source, result = (
        read_tokenizer(read_checkpoint(path)) for path in (recipe.source, recipe.output)
    )
    text = "<|pad|>   x"
    assert result.encode(text, parse_special=True) == source.encode(text, parse_special=True)


def spoil_last_weight(source: Path) -> None:
    """Puts NaNs there, which no header shows."""
    broken = bytearray(source.read_bytes())
    broken[-64:] = b"\xff" * 64
    source.write_bytes(broken)


async def test_error_of_the_child_is_raised_here(source: Path, tmp_path: Path) -> None:
    spoil_last_weight(source)
    recipe = QuantizeRecipe(source, "int8", tmp_path / "out")
    with pytest.raises(CheckpointError, match="NaN or infinite") as caught:
        await quantize(recipe, JobControl())
    assert caught.value.path == source
    assert caught.value.tensor
    assert not recipe.output.exists()


async def test_death_of_the_child_is_an_error(long_source: Path, tmp_path: Path) -> None:
    recipe = QuantizeRecipe(long_source, "int4-g64", tmp_path / "out")

    def kill() -> None:
        wait_until((recipe.partial / "journal.jsonl").exists)
        for process in children():
            process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(EngineError, match="signal 9"):
        await quantize(recipe, JobControl(), evaluates=False)
    killer.join()


async def test_cancelling_ends_the_child_where_it_is(long_source: Path, tmp_path: Path) -> None:
    recipe = QuantizeRecipe(long_source, "int4-g64", tmp_path / "out")
    control = JobControl()
    task = asyncio.create_task(quantize(recipe, control, evaluates=False))
    journal = recipe.partial / "journal.jsonl"
    await asyncio.to_thread(wait_until, _has_lines(journal, 0))
    control.cancel()
    with pytest.raises(JobCancelled):
        await task
    assert not children()
    assert not recipe.output.exists(), "it did not go on to its end"
    assert _num_lines(journal) > 0, "what is finished is kept"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends signals")
def test_killed_at_random_moments_it_goes_on_to_the_same_bytes(
    long_source: Path, tmp_path: Path
) -> None:
    whole = QuantizeRecipe(long_source, "int4-g64", tmp_path / "whole")
    write_model(whole, JobControl())
    recipe = QuantizeRecipe(long_source, "int4-g64", tmp_path / "out")
    journal = recipe.partial / "journal.jsonl"
    code = (
        "import asyncio, pathlib, sys; from octavo.jobs import JobControl;"
        "from octavo.quantize.job import quantize; from octavo.quantize.recipe import *;"
        "recipe = QuantizeRecipe(*map(pathlib.Path, sys.argv[1:2]), 'int4-g64',"
        " pathlib.Path(sys.argv[2]));"
        "asyncio.run(quantize(recipe, JobControl(), evaluates=False))"
    )
    chance = random.Random(7)
    num_finished = [0]
    for _ in range(2):
        before = num_finished[-1]
        parent = subprocess.Popen([sys.executable, "-c", code, long_source, recipe.output])
        try:
            wanted = before + chance.randint(1, 60)
            wait_until(_has_lines(journal, wanted))
            (child,) = children()
        finally:
            # The parent: its child must go by itself.
            parent.kill()
            parent.wait()
        psutil.wait_procs([child], timeout=30.0)
        assert not child.is_running()
        num_finished.append(_num_lines(journal))
        assert not recipe.output.exists()
    asyncio.run(quantize(recipe, JobControl(), evaluates=False))
    for file in sorted(whole.output.iterdir()):
        assert (recipe.output / file.name).read_bytes() == file.read_bytes(), file.name
    assert not recipe.partial.exists()


def _has_lines(path: Path, num_lines: int) -> Callable[[], bool]:
    return lambda: _num_lines(path) > num_lines


def _num_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def header_bytes(source: Path) -> int:
    return read_checkpoint(source).tensor_bytes


async def test_memory_stays_with_what_is_unpacked(tmp_path: Path) -> None:
    """A model of 380 MB, of which 17 MB are unpacked at a time; torch takes 250 MB or more."""
    code = "import torch, psutil; print(psutil.Process().memory_info().rss)"
    shown = await asyncio.to_thread(subprocess.check_output, [sys.executable, "-c", code])
    torch_bytes = int(shown)
    source = write_tiny_llama(
        tmp_path / "Wide.gguf", num_layers=6, hidden_size=1024, num_heads=64, intermediate_size=4096
    )
    assert header_bytes(source) > 330e6
    peak = 0

    def measure(_: Progress) -> None:
        nonlocal peak
        for process in children():
            peak = max(peak, process.memory_info().rss)

    recipe = QuantizeRecipe(source, "int4-g128", tmp_path / "out")
    await quantize(recipe, JobControl(measure), evaluates=False)
    assert 0 < peak < torch_bytes + 200e6


async def test_evaluating_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"damaged|incomplete"):
        await evaluate(tmp_path / "a.gguf", None, JobControl())


@pytest.mark.parametrize(
    "error",
    [
        OctavoError("a", hint="b"),
        CheckpointError("a", hint="b", path=Path("c"), tensor="d"),
        InsufficientMemoryError("a", needed_bytes=1, free_bytes=2),
        JobCancelled(),
    ],
)
def test_errors_survive_the_way_through_json(error: OctavoError) -> None:
    again = error_from_json(error_to_json(error))
    assert type(again) is type(error)
    assert vars(again) == vars(error)


def test_error_of_a_class_we_do_not_know() -> None:
    error = error_from_json({"class": "OSError", "message": "a", "hint": "b"})
    assert type(error) is EngineError
    assert str(error) == "a b"


def test_report_lies_beside(tmp_path: Path) -> None:
    assert report_file(tmp_path / "a.gguf").name == "a.gguf.report.json"
    assert read_report(tmp_path / "a.gguf") is None
