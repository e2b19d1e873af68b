"""Workloads on shapes with random weights: every figure is printed when it has been measured."""

import dataclasses
import json

import pytest

from octavo.cli import dummy_bench
from octavo.engine import dummy_model
from octavo.engine.dummy_model import dummy_shapes
from octavo.errors import EngineError
from tests.cli.conftest import Cli

SHAPE = ("--dummy-weights", "Llama-3.2-1B", "--device", "cpu", "--batch-sizes", "2")
SHORT = {
    "_PROMPT_TOKENS": 6,
    "_OUTPUT_TOKENS": 3,
    "_SINGLE_OUTPUT_TOKENS": 5,
    "_LONG_PROMPT_TOKENS": 40,
    "_PREFIX_TOKENS": 20,
    "_PREFIX_OWN_TOKENS": 3,
    "_PREFIX_REQUESTS": 3,
    "_PREFIX_OUTPUT_TOKENS": 2,
    "_NUM_STREAMS": 2,
    "_STEPS_BEFORE": 2,
}
NUM_FIGURES = 9


@pytest.fixture(autouse=True)
def short_work_on_a_small_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = dummy_shapes()["Llama-3.2-1B"]
    small = dataclasses.replace(
        shape,
        num_layers=1,
        hidden_size=64,
        intermediate_size=64,
        num_heads=2,
        num_kv_heads=1,
        head_dim=32,
        rope=dataclasses.replace(shape.rope, rotary_dim=32),
        vocab_size=512,
    )
    monkeypatch.setattr(dummy_model, "dummy_shapes", lambda: {"Llama-3.2-1B": small})
    for name, value in SHORT.items():
        monkeypatch.setattr(dummy_bench, name, value)


def test_a_line_for_each_figure(cli: Cli) -> None:
    outcome = cli("bench", *SHAPE)
    assert outcome.status == 0, outcome.err
    title, header, *lines = outcome.out.splitlines()
    assert title.startswith("Llama-3.2-1B · bf16")
    assert header.split() == ["CASE", "MEASURED", "RUNS"]
    assert len(lines) == NUM_FIGURES
    ends = {line[header.index("RUNS") - 2 : header.index("RUNS")] for line in lines}
    assert ends == {"  "}, "columns stand below each other"


def test_json_has_the_same_figures(cli: Cli) -> None:
    outcome = cli("bench", *SHAPE, "--json")
    assert outcome.status == 0, outcome.err
    figures = json.loads(outcome.out)["figures"]
    assert len(figures) == NUM_FIGURES
    assert all(figure["value"] > 0 and figure["runs"] for figure in figures)


def test_what_was_measured_stays_if_the_rest_fails(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_workloads: dummy_bench.Workloads, _size: int) -> list[dummy_bench.Figure]:
        raise EngineError("Out of luck.")

    monkeypatch.setattr(dummy_bench.Workloads, "throughput", fail)
    outcome = cli("bench", *SHAPE)
    assert outcome.status != 0
    assert "one stream: decode" in outcome.out
    assert "Out of luck." in outcome.err
