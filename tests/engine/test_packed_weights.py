"""A model whose weights stay packed says what the same model says unpacked, whatever stores it."""

from pathlib import Path
from typing import Any

import pytest

from octavo.engine.engine import Engine
from tests.support.engines import Result, make_engine, request, run_all
from tests.support.quantized_folders import (
    KINDS,
    QuantizedKind,
    write_quantized_folder,
)

PROMPT = [1, *range(40, 110, 3)]


def run(path: Path, weights: str, **config: Any) -> tuple[Engine, Result]:
    engine = make_engine(path, weights=weights, **config)
    params = {"prompt_logprobs": 1, "max_tokens": 3, "ignore_eos": True, "logprobs": 1}
    return engine, run_all(engine, [request("one", PROMPT, **params)])[("one", 0)]


def assert_same(path: Path) -> Engine:
    """Packed as unpacked."""
    _, expected = run(path, "unpacked")
    engine, result = run(path, "packed")
    assert result.token_ids == expected.token_ids
    for ours, theirs in zip(result.prompt_logprobs[1:], expected.prompt_logprobs[1:], strict=True):
        assert ours is not None and theirs is not None
        assert ours.logprob == pytest.approx(theirs.logprob, abs=2e-5)
    return engine


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_folders(tmp_path: Path, kind: QuantizedKind) -> None:
    write_quantized_folder(tmp_path, kind)
    assert_same(tmp_path)
