"""Sequences count their tokens, and know when their siblings can fork."""

import pytest

from octavo.engine.sampling_params import SamplingParams
from octavo.engine.sequence import ScheduledBatch, ScheduledSequence, Sequence, SequenceStatus


def make_sequence(prompt: tuple[int, ...] = (5, 6, 7)) -> Sequence:
    return Sequence(1, "request", 0, prompt, SamplingParams(), seed=0)


def test_a_new_sequence_has_everything_to_compute() -> None:
    sequence = make_sequence()
    assert sequence.status is SequenceStatus.WAITING
    assert sequence.num_tokens == sequence.num_prompt_tokens == sequence.num_remaining_tokens == 3
    assert sequence.num_output_tokens == sequence.num_computed_tokens == 0
    assert sequence.output_token_ids == []
    assert sequence.block_table == []


def test_appended_tokens_belong_to_the_completion() -> None:
    sequence = make_sequence()
    sequence.num_computed_tokens = 3
    sequence.append_token(8)
    assert sequence.token_ids == [5, 6, 7, 8]
    assert sequence.prompt_token_ids == [5, 6, 7]
    assert sequence.output_token_ids == [8]
    assert sequence.num_output_tokens == sequence.num_remaining_tokens == 1


def test_the_prompt_is_copied() -> None:
    prompt = [5, 6]
    sequence = Sequence(1, "request", 0, prompt, SamplingParams(), seed=0)
    sequence.append_token(7)
    assert prompt == [5, 6]


@pytest.mark.parametrize(
    ("status", "num_computed", "can_fork"),
    [
        (SequenceStatus.WAITING, 0, False),
        (SequenceStatus.RUNNING, 1, False),
        (SequenceStatus.RUNNING, 2, True),
        (SequenceStatus.RUNNING, 3, True),
        (SequenceStatus.PREEMPTED, 0, False),
        (SequenceStatus.FINISHED, 3, False),
    ],
)
def test_siblings_fork_once_all_but_the_last_prompt_token_are_computed(
    status: SequenceStatus, num_computed: int, can_fork: bool
) -> None:
    parent, sibling = make_sequence(), make_sequence()
    sibling.parent = parent
    parent.status = status
    parent.num_computed_tokens = num_computed
    assert parent.can_fork is can_fork
    assert sibling.waits_for_parent is (not can_fork and status is not SequenceStatus.FINISHED)
    assert not parent.waits_for_parent


def test_only_the_last_known_token_needs_a_sample() -> None:
    sequence = make_sequence()
    first, rest = ScheduledSequence(sequence, 0, 2), ScheduledSequence(sequence, 2, 1)
    assert not first.needs_sample
    assert rest.needs_sample
    assert ScheduledBatch((first, rest)).num_tokens == 3
