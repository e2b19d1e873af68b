"""Rows follow their sequences: gathered inputs equal what the sequences say, at any moment."""

import random

import numpy as np

from octavo.engine.batch import PersistentBatch, StepInputs
from octavo.engine.sequence import ScheduledBatch, ScheduledSequence
from octavo.engine.sequence import Sequence as TokenSequence
from tests.support.tiny_decoders import make_sequence

BLOCK_SIZE = 4


def prepare(batch: PersistentBatch, *work: tuple[TokenSequence, int, int]) -> StepInputs:
    return batch.prepare(ScheduledBatch(tuple(ScheduledSequence(*item) for item in work)))


def assert_inputs_say_what_sequences_say(inputs: StepInputs) -> None:
    for index, item in enumerate(inputs.sequences):
        sequence, start, num_tokens = item.sequence, item.start, item.num_tokens
        tokens = slice(int(inputs.cu_seqlens_q[index]), int(inputs.cu_seqlens_q[index + 1]))
        positions = range(start, start + num_tokens)
        assert inputs.token_ids[tokens].tolist() == sequence.token_ids[start : start + num_tokens]
        assert inputs.positions[tokens].tolist() == list(positions)
        assert inputs.groups[0].slot_mapping[tokens].tolist() == [
            sequence.block_table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
            for position in positions
        ]
        assert inputs.context_lens[index] == start + num_tokens
        num_blocks = -(-(start + num_tokens) // BLOCK_SIZE)
        table = inputs.groups[0].block_tables[index].tolist()
        assert table[:num_blocks] == sequence.block_table[:num_blocks]
    sampled = [
        int(inputs.cu_seqlens_q[index + 1]) - 1
        for index, item in enumerate(inputs.sequences)
        if item.needs_sample
    ]
    assert inputs.logits_indices.tolist() == sampled


def test_one_step() -> None:
    batch = PersistentBatch(4, 64, BLOCK_SIZE)
    prefill, decode = make_sequence(0, range(10, 20)), make_sequence(1, range(30, 36))
    prefill.block_table, decode.block_table = [7, 3], [5, 9]
    inputs = prepare(batch, (prefill, 0, 7), (decode, 5, 1))
    assert_inputs_say_what_sequences_say(inputs)
    assert [item.sequence for item in inputs.sequences] == [decode, prefill]
    assert inputs.num_decode == 1
    assert inputs.cu_seqlens_q.tolist() == [0, 1, 8]
    assert inputs.token_ids.tolist() == [35, *range(10, 17)]
    assert inputs.groups[0].slot_mapping.tolist() == [37, 28, 29, 30, 31, 12, 13, 14]
    assert inputs.groups[0].block_tables.tolist() == [[5, 9], [7, 3]]
    assert inputs.logits_indices.tolist() == [0]
    assert inputs.token_ids.dtype == inputs.groups[0].slot_mapping.dtype == np.int64
    assert inputs.groups[0].block_tables.dtype == inputs.cu_seqlens_q.dtype == np.int32


def test_last_tokens_of_prompts_come_between_decodes_and_longer_parts() -> None:
    batch = PersistentBatch(4, 64, BLOCK_SIZE)
    long, last, decode = (make_sequence(number, range(6)) for number in range(3))
    decode.num_prompt_tokens = 5
    for number, sequence in enumerate((long, last, decode)):
        sequence.block_table = [1 + 2 * number, 2 + 2 * number]
    inputs = prepare(batch, (long, 0, 6), (last, 5, 1), (decode, 5, 1))
    assert [item.sequence for item in inputs.sequences] == [decode, last, long]
    assert [item.is_prompt for item in inputs.sequences] == [False, True, True]
    assert inputs.num_decode == 2


def test_copy_on_write_exchanges_the_block_that_is_written() -> None:
    batch = PersistentBatch(4, 64, BLOCK_SIZE)
    sequence = make_sequence(0, range(7))
    sequence.block_table = [1, 2]
    prepare(batch, (sequence, 0, 6))
    sequence.block_table = [1, 5]
    inputs = prepare(batch, (sequence, 6, 1))
    assert inputs.groups[0].slot_mapping.tolist() == [22]
    assert_inputs_say_what_sequences_say(inputs)


def test_rows_are_reused_and_clean() -> None:
    batch = PersistentBatch(1, 64, BLOCK_SIZE)
    first, second = make_sequence(0, range(20)), make_sequence(1, [5])
    first.block_table, second.block_table = [1, 2, 3, 4, 5], [6]
    prepare(batch, (first, 0, 20))
    assert batch.num_free_rows == 0
    batch.remove(first)
    batch.remove(first)
    assert first.row is None
    assert batch.num_free_rows == 1
    inputs = prepare(batch, (second, 0, 1))
    assert_inputs_say_what_sequences_say(inputs)
    assert inputs.groups[0].block_tables.tolist() == [[6]]


def test_many_random_steps() -> None:
    chance = random.Random(4)
    batch = PersistentBatch(5, 64, BLOCK_SIZE)
    free_blocks = list(range(1, 200))
    running: list[TokenSequence] = []
    for step in range(300):
        if len(running) < 5:
            length = chance.randrange(1, 20)
            running.append(make_sequence(step, [chance.randrange(1000) for _ in range(length)]))
        work = []
        for sequence in chance.sample(running, chance.randrange(1, len(running) + 1)):
            start = sequence.num_computed_tokens
            num_tokens = chance.randint(1, sequence.num_tokens - start)
            while len(sequence.block_table) * BLOCK_SIZE < start + num_tokens:
                sequence.block_table.append(free_blocks.pop(chance.randrange(len(free_blocks))))
            work.append((sequence, start, num_tokens))
        assert_inputs_say_what_sequences_say(prepare(batch, *work))
        for sequence, start, num_tokens in work:
            sequence.num_computed_tokens = start + num_tokens
            if sequence.num_computed_tokens == sequence.num_tokens:
                sequence.append_token(chance.randrange(1000))
            fate = chance.random()
            if fate < 0.1 or sequence.num_tokens >= 60:
                running.remove(sequence)
            if fate < 0.2 or sequence.num_tokens >= 60:  # finished, or preempted: it comes back
                free_blocks += sequence.block_table
                sequence.block_table = []
                sequence.num_computed_tokens = 0
                batch.remove(sequence)


def test_blocks_that_left_a_window_are_the_null_block() -> None:
    batch = PersistentBatch(2, 64, BLOCK_SIZE, windows=(None, 6))
    sequence = make_sequence(0, range(30))
    for start, num_tokens in ((0, 7), (7, 6), (13, 1), (14, 10), (24, 6)):
        first_held = max(0, start - 6) // BLOCK_SIZE
        num_blocks = -(-(start + num_tokens) // BLOCK_SIZE)
        sequence.block_tables = [
            list(range(1, num_blocks + 1)),
            [0] * first_held + list(range(31 + first_held, num_blocks + 31)),
        ]
        full, windowed = prepare(batch, (sequence, start, num_tokens)).groups
        assert full.block_tables.tolist() == [sequence.block_tables[0]]
        assert windowed.block_tables.tolist() == [sequence.block_tables[1]]
        assert (windowed.slot_mapping - full.slot_mapping).tolist() == [120] * num_tokens
    batch.remove(sequence)
    other = make_sequence(1, range(9))
    other.block_tables = [[3, 1, 2], [5, 7, 4]]
    _, windowed = prepare(batch, (other, 0, 9)).groups
    assert windowed.block_tables.tolist() == [[5, 7, 4]]
