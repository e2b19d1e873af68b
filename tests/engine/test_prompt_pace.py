"""How much of a prompt a step takes while others' answers are streamed."""

import pytest

from octavo.engine.prompt_pace import (
    STREAMED_CPU_STEP_S,
    STREAMED_STEP_S,
    PromptPace,
    attention_reach,
)
from tests.engine.fake_model import FakeEngine
from tests.support.model_shapes import LLAMA_8B


def test_alone_a_prompt_gets_the_whole_budget() -> None:
    pace = PromptPace(16384)
    pace.note(16384, 10.0)
    assert pace.step_budget(0) == 16384


def test_beside_streams_a_step_takes_as_many_tokens_as_fit_its_time() -> None:
    pace = PromptPace(16384)
    assert pace.step_budget(1) == 2048
    for rate, expected in ((44_000, 4352), (9_000, 896), (100, 129), (1e6, 16384)):
        pace.note(4096, 4096 / rate)
        assert pace.step_budget(1) == expected, rate


def test_a_processor_may_take_longer() -> None:
    pace = PromptPace(512, step_s=STREAMED_CPU_STEP_S)
    for rate, expected in ((1200, 512), (500, 251), (100, 129)):
        pace.note(512, 512 / rate)
        assert pace.step_budget(1) == expected, rate


def test_small_steps_say_nothing_about_prompts() -> None:
    pace = PromptPace(16384)
    pace.note(64, 5.0)
    pace.note(4096, 0.0)
    assert pace.step_budget(1) == 2048


def test_a_small_budget_is_given_out_whole() -> None:
    pace = PromptPace(16)
    pace.note(16, 60.0)
    assert pace.step_budget(3) == 16


def test_less_from_now_on_where_memory_is_short() -> None:
    pace = PromptPace(512)
    pace.lower(40)
    assert pace.step_budget(0) == 40
    assert pace.step_budget(3) == 40
    assert pace.step_budget(60) == 61, "every stream goes on"
    pace.note(400, 0.001)
    assert pace.step_budget(3) == 40
    assert PromptPace(512).step_budget(600) == 512


def test_the_end_of_a_long_prompt_takes_no_longer_steps_than_its_beginning() -> None:
    reach = attention_reach(LLAMA_8B)
    assert 10_000 < reach < 15_000
    pace, computed, times = PromptPace(16384, reach=reach), 0, []
    pace.note(4096, 4096 / 44_000)
    while computed < 100_000:
        num_tokens = pace.step_budget(1, computed) - 1
        weight = 1 + (computed + num_tokens / 2) / 12_000
        seconds = 0.005 + num_tokens * weight / 44_000
        pace.note(num_tokens * weight, seconds)
        times.append(seconds)
        computed += num_tokens
    assert max(times) < 1.3 * STREAMED_STEP_S
    assert min(times) > 0.6 * STREAMED_STEP_S


def test_a_crowd_that_waits_is_served_in_large_steps() -> None:
    engine = FakeEngine(
        num_blocks=2000, max_num_batched_tokens=1024, max_model_len=4000, max_num_seqs=100
    )
    engine.add(list(range(100, 1100)), max_tokens=60)
    engine.step()
    engine.scheduler.pace.note(1000, 1000 * STREAMED_STEP_S / 200)
    for index in range(12):
        engine.add([index + 1, *range(500, 900)], max_tokens=40)
    large = [engine.step().num_tokens for _ in range(2)]
    assert large == [1024, 1024]
    assert engine.scheduler.num_waiting == 6
    assert engine.step().num_tokens < 300
    engine.run()
    engine.check_done()


@pytest.mark.parametrize(("num_streams", "is_crowd"), [(36, True), (37, False)])
def test_a_crowd_is_a_quarter_of_the_streams_that_would_wait_for_it(
    num_streams: int, is_crowd: bool
) -> None:
    engine = FakeEngine(
        num_blocks=4000, max_num_batched_tokens=1024, max_model_len=4000, max_num_seqs=100
    )
    for _ in range(num_streams):
        engine.add([1], max_tokens=20)
    engine.step()
    assert engine.scheduler.num_running == num_streams
    engine.scheduler.pace.note(1000, 1000 * STREAMED_STEP_S / 200)
    for index in range(9):
        engine.add([index + 1, *range(500, 900)], max_tokens=5)
    num_tokens = engine.step().num_tokens
    assert num_tokens == 1024 if is_crowd else num_tokens < 300
    engine.run()
    engine.check_done()


def test_the_scheduler_cuts_prompts_beside_streams_only() -> None:
    engine = FakeEngine(num_blocks=1000, max_num_batched_tokens=1024, max_model_len=4000)
    engine.add(list(range(100, 1100)), max_tokens=30)
    assert engine.step().num_tokens == 1000
    engine.scheduler.pace.note(1000, 1000 * STREAMED_STEP_S / 200)
    engine.add(list(range(500, 1300)), max_tokens=2)
    assert [engine.step().num_tokens for _ in range(4)] == [201, 201, 201, 201]
    engine.run()
    engine.check_done()
