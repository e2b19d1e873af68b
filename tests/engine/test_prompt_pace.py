"""How much of a prompt a step takes while others' answers are streamed."""

from octavo.engine.prompt_pace import STREAMED_STEP_S, PromptPace
from tests.engine.fake_model import FakeEngine


def beside_one(pace: PromptPace) -> int:
    return pace.step_budget(1) - 1


def test_alone_a_prompt_gets_the_whole_budget() -> None:
    pace = PromptPace(16384)
    pace.note(16384, 10.0)
    assert pace.step_budget(0) == 16384


def test_beside_streams_a_step_takes_as_many_tokens_as_fit_its_time() -> None:
    pace = PromptPace(16384)
    assert beside_one(pace) == 2048
    for rate, expected in ((44_000, 4400), (9_000, 900), (100, 128), (1e6, 16383)):
        pace.note(4096, 4096 / rate)
        assert beside_one(pace) == expected, rate


def test_small_steps_say_nothing_about_prompts() -> None:
    pace = PromptPace(16384)
    pace.note(64, 5.0)
    pace.note(4096, 0.0)
    assert beside_one(pace) == 2048


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


def test_a_machine_that_slows_down_with_the_context_keeps_its_time() -> None:
    """Seconds grow with the tokens before, as attention does; chunks become smaller."""
    pace, computed, times = PromptPace(16384), 0, []
    while computed < 100_000:
        num_tokens = beside_one(pace)
        seconds = 0.005 + num_tokens / 44_000 * (1 + computed / 50_000)
        pace.note(num_tokens, seconds)
        times.append(seconds)
        computed += num_tokens
    assert max(times) < 1.2 * STREAMED_STEP_S
    assert min(times[2:]) > 0.7 * STREAMED_STEP_S


def test_the_scheduler_cuts_prompts_beside_streams_only() -> None:
    engine = FakeEngine(num_blocks=1000, max_num_batched_tokens=1024, max_model_len=4000)
    engine.add(list(range(100, 1100)), max_tokens=30)
    assert engine.step().num_tokens == 1000
    engine.scheduler.pace.note(1000, 1000 * STREAMED_STEP_S / 200)
    engine.add(list(range(500, 1300)), max_tokens=2)
    assert [engine.step().num_tokens for _ in range(4)] == [201, 201, 201, 201]
    engine.run()
    engine.check_done()
