"""Every family says the same after its keys and values were thrown away and computed anew."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from octavo.engine import checkpoint_parts
from octavo.engine.engine import Engine
from octavo.engine.families import FAMILIES
from octavo.engine.request import TokenLogprob
from octavo.engine.sequence import ScheduledBatch, StepOutput
from octavo.engine.tokenizer import tokenizer_from_metadata
from tests.engine.test_tokenizer import byte_level
from tests.support.engines import Result, drain, make_engine, request
from tests.support.family_folders import (
    VARIANTS,
    VOCAB_SIZE,
    variant_ids,
    write_family_folder,
)
from tests.support.tiny_decoders import transformers_logits

BLOCK_SIZE = 4
NUM_TOKENS = 16
PROMPTS = {"long": range(40, 77), "short": range(90, 95)}
"""Longer and shorter than the windows of `VARIANTS`."""
FAMILY_VARIANTS = tuple(
    max(
        (variant for variant in VARIANTS if variant[0] == family.model_type),
        key=lambda variant: variant[1].get("sliding_window", 0) in range(1, 30),
    )
    for family in FAMILIES
)
"""Of each family one: with a window shorter than the long prompt where there is such. The others
are computed anew by the same code, and only slow runs check them."""
MATES = {f"mate {i}": range(100 + 7 * i, 106 + 7 * i) for i in range(6)}
NUM_TOP = 20
MAX_MODEL_LEN = 64


class WatchedEngine:
    """An engine, and whose sequences it preempted."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.engine: Engine = make_engine(
            folder,
            block_size=BLOCK_SIZE,
            max_model_len=MAX_MODEL_LEN,
            enable_prefix_caching=False,
            **config,
        )
        self.preempted: list[str] = []
        execute = self.engine._runner.execute

        def noting(batch: ScheduledBatch) -> StepOutput:
            self.preempted += [sequence.request_id for sequence in batch.preempted]
            return execute(batch)

        self.engine._runner.execute = noting  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        pytest.param(*variant, marks=[] if variant in FAMILY_VARIANTS else [pytest.mark.slow])
        for variant in VARIANTS
    ],
    ids=variant_ids(VARIANTS),
)
def test_preempted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, options: dict[str, Any]
) -> None:
    twin = write_family_folder(tmp_path, model_type, **options)
    tokenizer = tokenizer_from_metadata(byte_level())
    assert tokenizer.vocab_size >= VOCAB_SIZE
    monkeypatch.setattr(checkpoint_parts, "read_tokenizer", lambda header: tokenizer)
    # Room for one long sequence, and for the mates only as long as they are short.
    tight = WatchedEngine(tmp_path, num_kv_blocks=14, max_num_batched_tokens=16)
    for request_id, prompt in PROMPTS.items():
        wanted = {"max_tokens": NUM_TOKENS, "ignore_eos": True, "logprobs": NUM_TOP}
        mine = dataclasses.replace(request(request_id, prompt, **wanted), priority=1)
        assert_as_twin(run_preempted(tight, mine), list(prompt), twin)
        assert request_id in tight.preempted, "the test must see what it is about"


def run_preempted(watched: WatchedEngine, mine: Any) -> Result:
    """The request's result, with mates that come when it has begun to answer."""
    engine = watched.engine
    engine.add_request(mine)
    result = Result()
    while len(result.token_ids) < 3:
        for delta in engine.step():
            result.add(delta)
    for request_id, prompt in MATES.items():
        engine.add_request(request(request_id, prompt, max_tokens=16, ignore_eos=True))
    rest = drain(engine)[mine.request_id, 0]
    result.token_ids += rest.token_ids
    result.logprobs += rest.logprobs
    return result


def assert_as_twin(result: Result, prompt: list[int], twin: PreTrainedModel) -> None:
    """All that was reported of each token's distribution is what transformers says at once."""
    assert len(result.token_ids) == len(result.logprobs) == NUM_TOKENS
    # What follows changes nothing, but transformers then stretches positions as a load does that
    # allows so many tokens.
    token_ids = prompt + result.token_ids
    filled = token_ids + [3] * (MAX_MODEL_LEN - len(token_ids))
    logits = transformers_logits(twin, filled)[len(prompt) - 1 :][:NUM_TOKENS]
    expected = logits.log_softmax(-1)
    tolerance = 1e-4 * float(logits.abs().max())
    for entry, token_id, row in zip(result.logprobs, result.token_ids, expected, strict=True):
        assert entry.token_id == token_id
        assert row.max() - row[token_id] <= tolerance
        assert_near(entry, row, tolerance)


def assert_near(entry: TokenLogprob, row: torch.Tensor, tolerance: float) -> None:
    assert len(entry.top) == NUM_TOP
    for token_id, logprob in entry.top:
        assert abs(float(row[token_id]) - logprob) <= tolerance
