"""The whole engine on a tiny random checkpoint: what a request asks is what it gets."""

import random
from pathlib import Path

import pytest

from octavo.engine.engine import Engine
from octavo.engine.request import FinishReason, GenerationRequest
from octavo.engine.sampling_params import SamplingParams
from octavo.errors import InvalidRequestError, OctavoError, PromptTooLongError
from tests.support.engines import Result, drain, make_engine, request, run_all
from tests.support.gguf_files import write_tiny_llama

PROMPT = list(b"hello the quick")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def engine(checkpoint: Path) -> Engine:
    return make_engine(checkpoint, num_kv_blocks=64, block_size=4, max_num_batched_tokens=16)


def one(engine: Engine, prompt: list[int], **sampling: object) -> Result:
    sampling = {"max_tokens": 12, "ignore_eos": True, **sampling}
    return run_all(engine, [request("r", prompt, **sampling)])["r", 0]


def assert_all_free(engine: Engine) -> None:
    stats = engine.stats()
    assert stats.num_used_blocks == 0
    assert stats.num_running == stats.num_waiting == 0


def test_length(engine: Engine) -> None:
    result = one(engine, PROMPT)
    assert len(result.token_ids) == 12
    assert result.finish_reason is FinishReason.LENGTH
    assert result.metrics is not None
    assert result.metrics.prompt_tokens == len(PROMPT)
    assert result.metrics.output_tokens == 12
    assert result.metrics.total_s >= result.metrics.time_to_first_token_s >= result.metrics.queue_s
    assert_all_free(engine)


def test_stop_token_ends_and_its_text_is_hidden(engine: Engine) -> None:
    token_ids = one(engine, PROMPT).token_ids
    stop = token_ids[5]
    position = token_ids.index(stop)
    result = one(engine, PROMPT, stop_token_ids=[stop])
    assert result.token_ids == token_ids[: position + 1]
    assert result.finish_reason is FinishReason.STOP
    assert result.stop_reason == stop
    shown = one(engine, PROMPT, max_tokens=position) if position else Result()
    assert result.text == shown.text


def test_min_tokens_outlasts_a_stop_token(engine: Engine) -> None:
    stop = one(engine, PROMPT).token_ids[1]
    result = one(engine, PROMPT, stop_token_ids=[stop], min_tokens=6)
    assert len(result.token_ids) > 6
    assert stop not in result.token_ids[:6]


def test_stop_string_cuts_the_text(engine: Engine) -> None:
    full = one(engine, PROMPT, max_tokens=30).text
    stop = full[7:9]
    result = one(engine, PROMPT, max_tokens=30, stop=[stop])
    assert result.text == full[: full.index(stop)]
    assert result.finish_reason is FinishReason.STOP
    assert result.stop_reason == stop
    kept = one(engine, PROMPT, max_tokens=30, stop=[stop], include_stop_str_in_output=True)
    assert kept.text == full[: full.index(stop) + len(stop)]


def test_logprobs_of_the_chosen_and_the_likeliest(engine: Engine) -> None:
    result = one(engine, PROMPT, logprobs=3)
    assert len(result.logprobs) == len(result.token_ids)
    for token_id, entry in zip(result.token_ids, result.logprobs, strict=True):
        assert entry.token_id == token_id == entry.top[0][0]
        assert entry.logprob == pytest.approx(entry.top[0][1])
        assert len(entry.top) == 3
        assert entry.top[0][1] >= entry.top[1][1] >= entry.top[2][1]
        assert entry.logprob <= 0


@pytest.mark.parametrize("budget", [3, 7, 64])
def test_prompt_logprobs_do_not_depend_on_chunks(checkpoint: Path, budget: int) -> None:
    whole = make_engine(checkpoint, num_kv_blocks=64, block_size=4)
    chunked = make_engine(checkpoint, num_kv_blocks=64, block_size=4, max_num_batched_tokens=budget)
    first = one(whole, PROMPT, prompt_logprobs=0).prompt_logprobs
    one(chunked, PROMPT)  # fills the prefix cache, which must not be used now
    second = one(chunked, PROMPT, prompt_logprobs=0).prompt_logprobs
    assert first[0] is second[0] is None
    assert len(first) == len(second) == len(PROMPT)
    for token_id, a, b in zip(PROMPT[1:], first[1:], second[1:], strict=True):
        assert a is not None
        assert b is not None
        assert a.token_id == b.token_id == token_id
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


def test_n_completions_share_the_prompt(engine: Engine) -> None:
    prompt = PROMPT * 3
    params = {"n": 4, "temperature": 1.0, "seed": 7, "max_tokens": 8, "ignore_eos": True}
    engine.add_request(request("r", prompt, **params))
    most_used = 0
    results: dict[int, Result] = {}
    while engine.has_work:
        for delta in engine.step():
            results.setdefault(delta.index, Result()).add(delta)
        most_used = max(most_used, engine.stats().num_used_blocks)
    assert sorted(results) == [0, 1, 2, 3]
    assert all(len(result.token_ids) == 8 for result in results.values())
    assert len({tuple(result.token_ids) for result in results.values()}) > 1
    shared = len(prompt) // 4
    assert most_used <= shared + 4 * (8 // 4 + 2)
    assert_all_free(engine)
    first = one(engine, prompt, temperature=1.0, seed=7, max_tokens=8)
    assert first.token_ids == results[0].token_ids


def test_prefix_cache_counts_what_it_saves(engine: Engine) -> None:
    cold = one(engine, PROMPT)
    warm = one(engine, PROMPT)
    assert warm.token_ids == cold.token_ids
    assert cold.metrics is not None
    assert warm.metrics is not None
    assert cold.metrics.cached_tokens == 0
    assert warm.metrics.cached_tokens == (len(PROMPT) - 1) // 4 * 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_result_does_not_depend_on_batch_mates(checkpoint: Path, temperature: float) -> None:
    prompts = [PROMPT[: 3 + i] for i in range(8)]
    sampling = {"temperature": temperature, "seed": 11, "max_tokens": 10, "ignore_eos": True}
    alone = make_engine(checkpoint, num_kv_blocks=64, block_size=4)
    expected = [run_all(alone, [request("r", p, **sampling)])["r", 0].token_ids for p in prompts]
    # So few blocks that some are preempted and computed again.
    together = make_engine(checkpoint, num_kv_blocks=14, block_size=4, max_num_batched_tokens=9)
    results = run_all(together, [request(str(i), p, **sampling) for i, p in enumerate(prompts)])
    assert [results[str(i), 0].token_ids for i in range(8)] == expected
    assert_all_free(together)


@pytest.mark.parametrize("steps_before", [0, 1, 2, 5])
def test_abort_frees_everything_at_once(engine: Engine, steps_before: int) -> None:
    engine.add_request(request("r", PROMPT * 3, n=2, temperature=1.0, max_tokens=50))
    for _ in range(steps_before):
        engine.step()
    deltas = engine.abort("r")
    assert sorted(delta.index for delta in deltas) == [0, 1]
    assert all(delta.finish_reason is FinishReason.ABORT for delta in deltas)
    assert_all_free(engine)
    assert not engine.has_work
    assert engine.abort("r") == []


def test_failure_frees_everything_and_forgets_the_cache(engine: Engine) -> None:
    expected = one(engine, PROMPT).token_ids
    for index in range(3):
        engine.add_request(request(str(index), PROMPT, max_tokens=50))
    engine.step()
    error = OctavoError("broken")
    deltas = engine.fail_all(error)
    assert [delta.error for delta in deltas] == [error] * 3
    assert_all_free(engine)
    again = one(engine, PROMPT)
    assert again.token_ids == expected
    assert again.metrics is not None
    assert again.metrics.cached_tokens == 0


def test_refusals(engine: Engine) -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        engine.add_request(request("r", []))
    with pytest.raises(InvalidRequestError, match="100000"):
        engine.add_request(request("r", [100_000]))
    with pytest.raises(InvalidRequestError, match="logit_bias"):
        engine.add_request(request("r", PROMPT, logit_bias={100_000: 1.0}))
    with pytest.raises(PromptTooLongError) as caught:
        engine.add_request(request("r", PROMPT * 100))
    assert caught.value.prompt_tokens == len(PROMPT) * 100
    assert caught.value.hint
    engine.add_request(request("r", PROMPT))
    with pytest.raises(InvalidRequestError, match="in use"):
        engine.add_request(request("r", PROMPT))
    drain(engine)
    assert_all_free(engine)


def test_a_sequence_grows_until_the_pool_is_full(checkpoint: Path) -> None:
    engine = make_engine(checkpoint, num_kv_blocks=9, block_size=4)
    result = one(engine, PROMPT, max_tokens=None)
    assert result.finish_reason is FinishReason.LENGTH
    assert len(PROMPT) + len(result.token_ids) >= 8 * 4
    assert_all_free(engine)


def test_a_sequence_ends_at_the_models_context(checkpoint: Path) -> None:
    engine = make_engine(checkpoint, num_kv_blocks=64, block_size=4, max_model_len=40)
    result = one(engine, PROMPT, max_tokens=None)
    assert len(PROMPT) + len(result.token_ids) == 40
    assert result.finish_reason is FinishReason.LENGTH


def test_two_hundred_random_requests_with_aborts_in_a_tiny_pool(checkpoint: Path) -> None:
    """Everything finishes or is refused with a reason, and every block is free at the end."""
    engine = make_engine(checkpoint, num_kv_blocks=16, block_size=4, max_num_batched_tokens=24)
    chance = random.Random(5)
    ended: dict[tuple[str, int], Result] = {}
    refused = 0
    expected: set[tuple[str, int]] = set()
    for number in range(200):
        params = SamplingParams(
            n=chance.choice([1, 1, 1, 2, 3]),
            temperature=chance.choice([0.0, 0.8]),
            top_k=chance.choice([0, 5]),
            repetition_penalty=chance.choice([1.0, 1.2]),
            max_tokens=chance.randint(1, 12),
        )
        prompt = tuple(chance.randrange(200) for _ in range(chance.randint(1, 80)))
        name = f"r{number}"
        try:
            engine.add_request(
                GenerationRequest(name, prompt, params, priority=chance.choice([0, 0, 1]))
            )
        except PromptTooLongError as error:
            refused += bool(error.hint)
            continue
        expected |= {(name, index) for index in range(params.n)}
        for _ in range(chance.randint(0, 2)):
            for delta in engine.step():
                ended.setdefault((delta.request_id, delta.index), Result()).add(delta)
        if chance.random() < 0.15:
            for delta in engine.abort(f"r{chance.randrange(number + 1)}"):
                ended.setdefault((delta.request_id, delta.index), Result()).add(delta)
    for key, result in drain(engine).items():
        if key in ended:
            ended[key].finish_reason = result.finish_reason
        else:
            ended[key] = result
    assert set(ended) == expected
    assert all(result.finish_reason is not None for result in ended.values())
    assert all(result.error is None for result in ended.values())
    assert 0 < refused < 100
    assert_all_free(engine)
