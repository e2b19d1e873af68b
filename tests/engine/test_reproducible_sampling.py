"""A request's tokens are its own: alone, among others, in small chunks and after preemption."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.engine.engine import Engine
from octavo.engine.sequence import ScheduledBatch, StepOutput
from tests.support.engines import make_engine, request, run_all
from tests.support.gguf_files import write_tiny_llama

PROMPT = list(b"hello the quick hello the")
NUM_MATES = 8


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Engine, Engine]:
    """With room for all, with small chunks, and with so few blocks that sequences are preempted."""
    path: Path = write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")
    return (
        make_engine(path, num_kv_blocks=128, block_size=4),
        make_engine(path, num_kv_blocks=128, block_size=4, max_num_batched_tokens=11),
        make_engine(path, num_kv_blocks=16, block_size=4, max_num_batched_tokens=13),
    )


@contextlib.contextmanager
def watched_preemptions(engine: Engine, request_ids: list[str]) -> Iterator[None]:
    """Notes whose sequences lose their blocks."""
    execute = engine._runner.execute

    def noting(batch: ScheduledBatch) -> StepOutput:
        request_ids.extend(sequence.request_id for sequence in batch.preempted)
        return execute(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._runner, "execute", noting)
        yield


SAMPLING = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.6, 1.0, 2.0]),
        "seed": st.integers(0, 2**32),
    },
    optional={
        "top_k": st.sampled_from([1, 3, 40]),
        "top_p": st.sampled_from([0.2, 0.9]),
        "min_p": st.sampled_from([0.02, 0.3]),
        "repetition_penalty": st.sampled_from([0.8, 1.3]),
        "frequency_penalty": st.sampled_from([-0.5, 0.7]),
        "dry_multiplier": st.sampled_from([0.8, 5.0]),
        "dry_allowed_length": st.integers(1, 3),
        "dry_range": st.sampled_from([0, 6]),
        "xtc_probability": st.sampled_from([0.5, 1.0]),
        "xtc_threshold": st.sampled_from([0.01, 0.1]),
        "allowed_token_ids": st.just(list(range(60, 120))),
        "bad_words": st.just(["e", "the"]),
        "min_tokens": st.just(4),
        "logprobs": st.just(2),
    },
)


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(asked=SAMPLING, mates=st.lists(SAMPLING, min_size=NUM_MATES, max_size=NUM_MATES))
def test_alone_among_others_and_preempted(
    engines: tuple[Engine, Engine, Engine], asked: dict[str, Any], mates: list[dict[str, Any]]
) -> None:
    length = {"max_tokens": 10, "ignore_eos": True}
    roomy, chunked, tight = engines
    # Least urgent, and sharing no block with the others: it is the one that loses its blocks.
    mine = dataclasses.replace(request("r", PROMPT, **length, **asked), priority=1)
    crowd = [
        request(str(index), PROMPT[index:], **length, **mate)
        for index, mate in enumerate(mates, start=1)
    ]
    expected = run_all(roomy, [mine])["r", 0].token_ids
    for engine in (roomy, chunked):
        assert run_all(engine, [*crowd, mine])["r", 0].token_ids == expected
    preempted: list[str] = []
    with watched_preemptions(tight, preempted):
        tight.add_request(mine)
        token_ids: list[int] = []
        while len(token_ids) < 2:
            for delta in tight.step():
                token_ids += delta.token_ids
        token_ids += run_all(tight, crowd)["r", 0].token_ids
    assert token_ids == expected
    assert "r" in preempted, "the test must see what it is about"
