"""What is promised of sampling, through the whole engine: raw logprobs, allowed tokens, n seeds."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from octavo.engine.engine import Engine
from octavo.engine.request import FinishReason, TokenLogprob
from tests.engine.test_reproducible_sampling import watched_preemptions
from tests.support.engines import Result, make_engine, request, run_all
from tests.support.gguf_files import write_tiny_llama

PROMPT = list(b"the quick brown the hello")
DISTORTED: dict[str, Any] = {
    "temperature": 1.4,
    "seed": 5,
    "top_k": 20,
    "min_p": 0.01,
    "repetition_penalty": 1.5,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "logit_bias": {70: 8.0},
    "dry_multiplier": 2.0,
    "xtc_probability": 1.0,
    "xtc_threshold": 0.05,
    "allowed_token_ids": list(range(60, 120)),
    "bad_words": ["the"],
}
MATES = [request(f"mate {i}", PROMPT[i : i + 3], max_tokens=20, ignore_eos=True) for i in range(6)]


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path: Path = write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")
    return make_engine(path, num_kv_blocks=128, block_size=4)


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Of the same model, with so few blocks and small chunks that sequences are preempted."""
    path: Path = write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")
    return make_engine(path, num_kv_blocks=16, block_size=4, max_num_batched_tokens=6)


def assert_near(
    found: Sequence[TokenLogprob | None], expected: Sequence[TokenLogprob | None]
) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        assert other is not None
        assert one.token_id == other.token_id
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [value for _, value in one.top] == pytest.approx(
            [value for _, value in other.top], abs=1e-4
        )


def test_logprobs_are_of_the_raw_model_whatever_distorts_the_draw(roomy: Engine) -> None:
    asked = request("r", PROMPT, max_tokens=10, logprobs=4, ignore_eos=True, **DISTORTED)
    result = run_all(roomy, [asked])["r", 0]
    whole = PROMPT + result.token_ids
    raw = run_all(roomy, [request("raw", whole, max_tokens=1, prompt_logprobs=4)])["raw", 0]
    assert_near(result.logprobs, raw.prompt_logprobs[len(PROMPT) :])
    greedy = [entry.top[0][0] for entry in result.logprobs]
    assert result.token_ids != greedy, "the draw must be distorted"


def test_only_allowed_tokens_come(roomy: Engine) -> None:
    allowed = [65, 66, 97, 98, 99]
    sampling = {"temperature": 3.0, "seed": 1, "allowed_token_ids": allowed, "ignore_eos": True}
    result = run_all(roomy, [request("r", PROMPT, max_tokens=40, **sampling)])["r", 0]
    assert set(result.token_ids) == set(allowed)


def test_stop_token_ids_end_each_completion_by_itself(roomy: Engine) -> None:
    sampling: dict[str, Any] = {"n": 3, "temperature": 2.0, "seed": 3, "ignore_eos": True}
    free = run_all(roomy, [request("r", PROMPT, max_tokens=12, **sampling)])
    stops = [free["r", index].token_ids[4] for index in range(3)]
    asked = request("r", PROMPT, max_tokens=12, stop_token_ids=stops, **sampling)
    for (_, index), result in run_all(roomy, [asked]).items():
        token_ids = free["r", index].token_ids
        end = next(place for place, token_id in enumerate(token_ids) if token_id in stops)
        assert result.token_ids == token_ids[: end + 1]
        assert result.finish_reason is FinishReason.STOP
        assert result.stop_reason == token_ids[end]


def interrupted(engine: Engine, asked: Any, num_tokens: int) -> dict[int, Result]:
    """The request's results, with more urgent mates that come when it has so many tokens."""
    preempted: list[str] = []
    results: dict[int, Result] = {}
    mine = dataclasses.replace(asked, priority=1)
    with watched_preemptions(engine, preempted):
        engine.add_request(mine)
        for _ in range(2):
            for delta in engine.step():
                results.setdefault(delta.index, Result()).add(delta)
        while sum(len(result.token_ids) for result in results.values()) < num_tokens:
            for delta in engine.step():
                results.setdefault(delta.index, Result()).add(delta)
        for mate in MATES:
            engine.add_request(mate)
        while engine.has_work:
            for delta in engine.step():
                if delta.request_id == mine.request_id:
                    results.setdefault(delta.index, Result()).add(delta)
    assert mine.request_id in preempted, "the test must see what it is about"
    return results


@pytest.mark.parametrize("num_tokens", [0, 2], ids=["while it prefills", "while it answers"])
def test_prompt_logprobs_after_preemption(roomy: Engine, tight: Engine, num_tokens: int) -> None:
    asked = request("r", PROMPT * 2, max_tokens=9, ignore_eos=True, prompt_logprobs=2, logprobs=2)
    expected = run_all(roomy, [asked])["r", 0]
    found = interrupted(tight, asked, num_tokens)[0]
    assert found.token_ids == expected.token_ids
    assert found.prompt_logprobs[0] is expected.prompt_logprobs[0] is None
    assert_near(found.prompt_logprobs[1:], expected.prompt_logprobs[1:])
    assert_near(found.logprobs, expected.logprobs)


def test_each_of_n_completions_repeats(roomy: Engine, tight: Engine) -> None:
    sampling = {**DISTORTED, "n": 3, "max_tokens": 8, "ignore_eos": True}
    asked = request("r", PROMPT, **sampling)
    expected = {index: one.token_ids for (_, index), one in run_all(roomy, [asked]).items()}
    assert len(set(map(tuple, expected.values()))) == 3
    again = run_all(roomy, [*MATES, asked])
    assert {index: again["r", index].token_ids for index in range(3)} == expected
    found = interrupted(tight, asked, 4)
    assert {index: one.token_ids for index, one in found.items()} == expected
