"""Engines for tests: loaded from a file, run to the end, results by request."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo.engine.config import EngineConfig
from octavo.engine.engine import Engine
from octavo.engine.loading import load_engine
from octavo.engine.request import (
    FinishReason,
    GenerationDelta,
    GenerationRequest,
    RequestMetrics,
    TokenLogprob,
)
from octavo.engine.sampling_params import SamplingParams
from octavo.jobs import JobControl


@dataclass
class Result:
    """A completion put together from its deltas."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: Sequence[TokenLogprob | None] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    metrics: RequestMetrics | None = None
    error: Exception | None = None

    def add(self, delta: GenerationDelta) -> None:
        assert self.finish_reason is None, "nothing comes after the last delta"
        self.token_ids += delta.token_ids
        self.text += delta.text
        self.logprobs += delta.logprobs or ()
        self.prompt_logprobs = delta.prompt_logprobs or self.prompt_logprobs
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason
        self.metrics = delta.metrics
        self.error = delta.error


def make_engine(path: Path, *, device: str = "cpu", **config: Any) -> Engine:
    """Loads an engine in float32."""
    engine, _ = load_engine(
        path, EngineConfig(device=device, dtype="float32", **config), JobControl()
    )
    return engine


def request(request_id: str, prompt_token_ids: Sequence[int], **sampling: Any) -> GenerationRequest:
    """A greedy request unless `sampling` says otherwise."""
    params = SamplingParams.from_mapping({"temperature": 0.0, **sampling})
    return GenerationRequest(request_id, tuple(prompt_token_ids), params)


def run_all(engine: Engine, requests: Sequence[GenerationRequest]) -> dict[tuple[str, int], Result]:
    """Adds all requests, then steps until nothing is left; keys are (request id, index)."""
    for item in requests:
        engine.add_request(item)
    return drain(engine)


def drain(engine: Engine, *, max_steps: int = 100_000) -> dict[tuple[str, int], Result]:
    """Steps until nothing is left."""
    results: dict[tuple[str, int], Result] = {}
    for _ in range(max_steps):
        if not engine.has_work:
            return results
        for delta in engine.step():
            results.setdefault((delta.request_id, delta.index), Result()).add(delta)
    raise AssertionError(f"the engine still has work after {max_steps} steps")


def mean_nll(prompt_logprobs: Sequence[TokenLogprob | None]) -> float:
    """Mean negative log-likelihood of a prompt's tokens, the first left out."""
    scored = [-entry.logprob for entry in prompt_logprobs if entry is not None]
    return math.fsum(scored) / len(scored)
