"""Who runs, who waits, who is preempted, refused and ended: one case at a time.

What holds for any requests at all is in `test_scheduler_properties`.
"""

import pytest

from octavo.engine.request import FinishReason
from octavo.engine.sequence import ScheduledBatch, Sequence, SequenceStatus
from octavo.errors import InvalidRequestError, PromptTooLongError
from tests.engine.fake_model import FakeEngine


def numbers(count: int, first: int = 1) -> list[int]:
    return list(range(first, first + count))


def shares(batch: ScheduledBatch) -> dict[str, int]:
    """Tokens each sequence got in the step."""
    return {f"{one.sequence.request_id}": one.num_tokens for one in batch.sequences}


def never_stopping(prompt: list[int], max_tokens: int) -> int:
    """A seed under which the fake model does not stop before `max_tokens`."""
    for seed in range(1000):
        probe = FakeEngine(num_blocks=200)
        (sequence,) = probe.add(prompt, seed=seed, max_tokens=max_tokens)
        probe.run()
        if sequence.num_output_tokens == max_tokens:
            return seed
    raise AssertionError("no such seed")


def add_lasting(
    engine: FakeEngine, prompt: list[int], max_tokens: int, priority: int = 0
) -> Sequence:
    """Adds a sequence that surely generates `max_tokens` tokens."""
    seed = never_stopping(prompt, max_tokens)
    (sequence,) = engine.add(prompt, seed=seed, max_tokens=max_tokens, priority=priority)
    return sequence


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks() -> None:
    engine = FakeEngine(max_num_batched_tokens=16)
    (sequence,) = engine.add(numbers(40))
    assert [engine.step().num_tokens for _ in range(3)] == [16, 16, 8]
    assert sequence.num_output_tokens == 1
    assert engine.step().num_tokens == 1
    engine.run()
    engine.check_done()


def test_running_decodes_get_their_token_while_a_long_prompt_is_computed() -> None:
    engine = FakeEngine(max_num_batched_tokens=8)
    decoding = [add_lasting(engine, numbers(2, first), 12) for first in (1, 5)]
    engine.step()
    engine.add(numbers(30))
    for _ in range(5):
        before = [sequence.num_output_tokens for sequence in decoding]
        batch = engine.step()
        assert [sequence.num_output_tokens for sequence in decoding] == [n + 1 for n in before]
        assert shares(batch)["request-2"] == 6


def test_a_better_ranked_prompt_does_not_stall_decodes_either() -> None:
    engine = FakeEngine(max_num_batched_tokens=8, max_num_seqs=2)
    decoding = add_lasting(engine, numbers(3), 12, priority=5)
    engine.step()
    engine.add(numbers(30), priority=0)
    for expected in ({"request-0": 1, "request-1": 7},) * 3:
        assert shares(engine.step()) == expected
    assert decoding.num_output_tokens == 4


@pytest.mark.parametrize("budget", [1, 4, 8])
def test_a_stream_of_short_requests_does_not_starve_a_long_prompt(budget: int) -> None:
    engine = FakeEngine(max_num_batched_tokens=budget, max_num_seqs=8)
    for first in range(8):
        engine.add(numbers(2, first), max_tokens=6)
    (long,) = engine.add(numbers(40, 100))
    for step in range(200):
        if long.num_output_tokens:
            break
        engine.step()
        engine.add(numbers(2, step), max_tokens=6)
    assert long.num_output_tokens == 1


def test_waiting_requests_start_by_priority_then_arrival() -> None:
    engine = FakeEngine(max_num_seqs=1)
    for priority in (1, 0, 1, 0):
        engine.add(numbers(3), max_tokens=1, priority=priority)
    order = [next(iter(shares(engine.step()))) for _ in range(4)]
    assert order == ["request-1", "request-3", "request-0", "request-2"]


def test_nobody_overtakes_a_prompt_that_waits_for_blocks() -> None:
    engine = FakeEngine(num_blocks=9, block_size=4, max_num_batched_tokens=64)
    first = add_lasting(engine, numbers(15), 8)
    engine.step()
    engine.add(numbers(20, 50))
    engine.add(numbers(2, 90))
    assert shares(engine.step()) == {"request-0": 1}
    assert (engine.scheduler.num_running, engine.scheduler.num_waiting) == (1, 2)
    while not first.is_finished:
        engine.step()
    assert set(shares(engine.step())) == {"request-1", "request-2"}


def test_the_worst_ranked_is_preempted_and_computes_all_its_tokens_again() -> None:
    engine = FakeEngine(num_blocks=7, block_size=2, enable_prefix_caching=False)
    first = add_lasting(engine, numbers(3), 6)
    last = add_lasting(engine, numbers(3, 50), 6)
    preempting = None
    while preempting is None:
        known = last.num_tokens
        batch = engine.step()
        preempting = batch if batch.preempted else None
    assert preempting.preempted == (last,)
    assert last.status is SequenceStatus.PREEMPTED
    assert last.block_table == []
    assert last.num_computed_tokens == 0
    assert last.num_tokens == known > last.num_prompt_tokens
    assert first.status is SequenceStatus.RUNNING

    while last.status is SequenceStatus.PREEMPTED:
        batch = engine.step()
    assert shares(batch) == {"request-1": known}
    engine.run()
    engine.check_done()


def test_cached_tokens_are_those_found_when_it_first_started() -> None:
    engine = FakeEngine(num_blocks=7, block_size=2)
    add_lasting(engine, numbers(3), 6)
    last = add_lasting(engine, numbers(3, 50), 6)
    while last.status is not SequenceStatus.PREEMPTED:
        engine.step()
    while last.status is SequenceStatus.PREEMPTED:
        batch = engine.step()
    assert batch.sequences[0].start > 0
    assert last.num_cached_tokens == 0


def test_priority_decides_who_is_preempted() -> None:
    engine = FakeEngine(num_blocks=7, block_size=2, enable_prefix_caching=False)
    first = add_lasting(engine, numbers(3), 6, priority=1)
    add_lasting(engine, numbers(3, 50), 6, priority=0)
    preempted: list[Sequence] = []
    while not preempted:
        preempted += engine.step().preempted
    assert preempted == [first]


def test_nobody_is_admitted_in_a_step_that_preempted() -> None:
    engine = FakeEngine(num_blocks=7, block_size=2, enable_prefix_caching=False)
    add_lasting(engine, numbers(3), 6)
    add_lasting(engine, numbers(3, 50), 6)
    engine.step()
    engine.add([9])
    while True:
        batch = engine.step()
        if batch.preempted:
            break
    assert set(shares(batch)) == {"request-0"}
    assert engine.scheduler.num_waiting == 2


def test_a_preempted_sequence_waits_before_those_that_came_later() -> None:
    engine = FakeEngine(num_blocks=7, block_size=2, enable_prefix_caching=False, max_num_seqs=2)
    add_lasting(engine, numbers(3), 6)
    last = add_lasting(engine, numbers(3, 50), 6)
    (newcomer,) = engine.add([9])
    while not newcomer.num_output_tokens:
        engine.step()
        if last.status is SequenceStatus.PREEMPTED:
            assert newcomer.status is SequenceStatus.WAITING
    assert engine.num_preemptions > 0


def test_a_sequence_that_outgrows_the_whole_cache_ends_with_length() -> None:
    engine = FakeEngine(num_blocks=4, block_size=2)
    sequence = add_lasting(engine, numbers(3), 50)
    ended: list[Sequence] = []
    while engine.scheduler.has_work:
        ended += engine.step().finished
    assert ended == [sequence]
    assert sequence.finish_reason is FinishReason.LENGTH
    assert sequence.num_tokens == engine.blocks.capacity_tokens + 1
    assert engine.num_preemptions == 0
    engine.check_done()


def test_the_largest_prompt_that_fits_gets_one_token() -> None:
    engine = FakeEngine(num_blocks=4, block_size=2)
    (sequence,) = engine.add(numbers(6))
    engine.run()
    assert sequence.num_output_tokens == 1
    engine.check_done()


def test_a_prompt_that_fills_the_context_is_refused_with_numbers() -> None:
    engine = FakeEngine(max_model_len=20)
    with pytest.raises(PromptTooLongError, match=r"20 tokens.*holds 20") as caught:
        engine.add(numbers(20))
    assert (caught.value.prompt_tokens, caught.value.limit_tokens) == (20, 19)
    assert "Shorten" in caught.value.hint
    assert not engine.scheduler.has_work
    engine.add(numbers(19))


def test_a_prompt_larger_than_the_cache_is_refused_with_numbers() -> None:
    engine = FakeEngine(num_blocks=4, block_size=2)
    with pytest.raises(PromptTooLongError, match=r"7 tokens.*holds 6") as caught:
        engine.add(numbers(7), n=3)
    assert (caught.value.prompt_tokens, caught.value.limit_tokens) == (7, 6)
    assert "larger KV cache" in caught.value.hint
    assert engine.scheduler.num_waiting == 0


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        FakeEngine().add([])


def test_a_request_id_in_use_is_refused() -> None:
    engine = FakeEngine()
    sequences = engine.add([1, 2])
    with pytest.raises(InvalidRequestError, match="request-0"):
        engine.scheduler.add(sequences)
    assert engine.scheduler.num_waiting == 1


def test_siblings_compute_only_the_last_prompt_token() -> None:
    engine = FakeEngine(enable_prefix_caching=False)
    sequences = engine.add(numbers(10), n=3, max_tokens=5)
    assert [one.sequence.index for one in engine.step().sequences] == [0]
    batch = engine.step()
    computed = {one.sequence.index: one.num_tokens for one in batch.sequences}
    assert computed[1] == computed[2] == 1
    assert len(batch.block_copies) == 2
    assert [sequence.num_cached_tokens for sequence in sequences] == [0, 9, 9]
    engine.run()
    engine.check_done()


def test_others_start_while_siblings_wait_for_their_parent() -> None:
    engine = FakeEngine(max_num_batched_tokens=8)
    engine.add(numbers(6), n=2, max_tokens=1)
    engine.add(numbers(4, 50))
    assert shares(engine.step()) == {"request-0": 6, "request-1": 2}
    assert engine.scheduler.num_waiting == 1


def test_siblings_of_a_prompt_of_one_token_need_no_parent() -> None:
    engine = FakeEngine(max_num_batched_tokens=1, max_num_seqs=3)
    engine.add([7], n=3)
    engine.run()
    engine.check_done()


def test_siblings_go_on_alone_when_their_parent_ended_first() -> None:
    for enable_prefix_caching in (True, False):
        engine = FakeEngine(max_num_batched_tokens=8, enable_prefix_caching=enable_prefix_caching)
        parent, *siblings = engine.add(numbers(20), n=3)
        engine.step()
        assert engine.scheduler.num_waiting == 2
        engine.scheduler.finish(parent, FinishReason.ABORT)
        batch = engine.step()
        assert {one.sequence.sequence_id for one in batch.sequences} == {1}
        assert siblings[0].num_cached_tokens == (8 if enable_prefix_caching else 0)
        engine.run()
        engine.check_done()


def test_siblings_wait_for_a_preempted_parent_to_come_back() -> None:
    engine = FakeEngine(
        num_blocks=9, block_size=2, max_num_batched_tokens=2, enable_prefix_caching=False
    )
    add_lasting(engine, numbers(3), 9, priority=-1)
    engine.step()
    engine.step()
    parent, sibling = engine.add(numbers(9, 50), n=2, max_tokens=3)
    while parent.status is not SequenceStatus.PREEMPTED:
        engine.step()
        assert not parent.can_fork
        assert sibling.status is SequenceStatus.WAITING
    engine.run()
    assert sibling.num_cached_tokens == 8
    engine.check_done()


def test_abort_ends_sequences_in_every_state() -> None:
    engine = FakeEngine(num_blocks=9, block_size=2, max_num_seqs=2, max_num_batched_tokens=8)
    running = add_lasting(engine, numbers(3), 9)
    engine.step()
    prefilling = engine.add(numbers(9, 50), n=3)  # with siblings held back
    waiting = engine.add(numbers(3, 80), n=2)
    engine.step()
    assert engine.scheduler.num_running == 2
    for request_id, expected in (
        ("request-1", prefilling),
        ("request-2", waiting),
        ("request-0", [running]),
    ):
        assert engine.scheduler.abort(request_id) == expected
        for sequence in expected:
            assert sequence.finish_reason is FinishReason.ABORT
            assert sequence.block_table == []
        assert engine.scheduler.abort(request_id) == []
    engine.check_done()
    assert engine.scheduler.schedule() == ScheduledBatch(())


def test_abort_ends_a_preempted_sequence() -> None:
    engine = FakeEngine(num_blocks=7, block_size=2, enable_prefix_caching=False)
    add_lasting(engine, numbers(3), 6)
    last = add_lasting(engine, numbers(3, 50), 6)
    while last.status is not SequenceStatus.PREEMPTED:
        engine.step()
    assert engine.scheduler.abort("request-1") == [last]
    engine.run()
    engine.check_done()


def test_abort_while_the_step_runs_drops_its_result() -> None:
    engine = FakeEngine()
    (aborted,) = engine.add(numbers(5))
    (other,) = engine.add(numbers(5, 50))
    batch = engine.scheduler.schedule()
    sampled = engine.model.execute(batch)
    engine.scheduler.abort("request-0")
    engine.complete(batch, sampled)
    assert aborted.num_output_tokens == 0
    assert aborted.block_table == []
    assert other.num_output_tokens == 1
    engine.run()
    engine.check_done()


def test_finish_frees_at_once_and_counts_once() -> None:
    engine = FakeEngine()
    (sequence,) = engine.add(numbers(5))
    engine.step()
    for reason in (FinishReason.STOP, FinishReason.ERROR):
        engine.scheduler.finish(sequence, reason)
        assert sequence.finish_reason is FinishReason.STOP
        assert engine.blocks.num_used_blocks == 0
        assert not engine.scheduler.has_work


def test_a_prompt_seen_before_is_not_computed_again() -> None:
    engine = FakeEngine(max_num_batched_tokens=64)
    engine.add(numbers(32), max_tokens=1)
    engine.run()
    (again,) = engine.add(numbers(32), max_tokens=1)
    (salted,) = engine.add(numbers(32), max_tokens=1, cache_salt="other")
    (whole,) = engine.add(numbers(32), max_tokens=1, use_prefix_cache=False)
    batch = engine.scheduler.schedule()
    assert shares(batch) == {"request-1": 1, "request-2": 32, "request-3": 31}
    assert (again.num_cached_tokens, salted.num_cached_tokens) == (31, 0)
    assert whole.num_cached_tokens == 0
    engine.complete(batch, engine.model.execute(batch))
    engine.run()
    engine.check_done()


def test_two_full_hits_on_a_running_prompt_write_into_copies() -> None:
    engine = FakeEngine(max_num_batched_tokens=64, block_size=4)
    add_lasting(engine, numbers(8), 8)
    engine.step()
    engine.add(numbers(8), seed=1)
    engine.add(numbers(8), seed=2, n=2)
    batch = engine.step()
    assert len(batch.block_copies) == 3
    assert len({source for _, source, _ in batch.block_copies}) == 1
    engine.run()
    engine.check_done()
