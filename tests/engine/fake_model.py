"""A model without weights whose every token depends on every slot of the cache it should read.

It writes one number per token and KV group into a simulated KV cache and reads the context back
through the block tables only. A block shared wrongly, handed out too early, not copied, given up
while a window still sees it, or written at the wrong slot therefore shows as a wrong token, and
`continue_alone` says without any cache what is right.
"""

import random
from collections import Counter
from collections.abc import Iterable

from octavo.engine.block_manager import BlockManager
from octavo.engine.block_pool import NULL_BLOCK
from octavo.engine.kv_groups import first_visible_block
from octavo.engine.request import FinishReason
from octavo.engine.sampling_params import SamplingParams
from octavo.engine.scheduler import Scheduler
from octavo.engine.sequence import ScheduledBatch, ScheduledSequence, Sequence

VOCAB_SIZE = 40
STOP_TOKEN = 0


Windows = tuple[int | None, ...]


def _cached_value(token_id: int, context: Iterable[int]) -> int:
    """Stands for the keys and values of one token; deep layers' depend on all they see."""
    return hash((token_id, *context))


def _sample(values: Iterable[int], seed: int) -> int:
    return hash((seed, *values)) % VOCAB_SIZE


def _first_seen(position: int, window: int | None) -> int:
    return 0 if window is None else max(0, position - window + 1)


def continue_alone(
    prompt: Iterable[int],
    seed: int,
    max_tokens: int,
    longest: int,
    windows: Windows = (None,),
) -> list[int]:
    """The completion as it must be, whatever else runs; at most `longest` tokens are computed."""
    token_ids = list(prompt)
    values: list[int] = []
    output: list[int] = []
    while True:
        for token_id in token_ids[len(values) :]:
            context = [
                value for window in windows for value in values[_first_seen(len(values), window) :]
            ]
            values.append(_cached_value(token_id, context))
        last = len(values) - 1
        seen = [value for window in windows for value in values[_first_seen(last, window) :]]
        output.append(_sample(seen, seed))
        token_ids.append(output[-1])
        if output[-1] == STOP_TOKEN or len(output) == max_tokens or len(token_ids) > longest:
            return output


class FakeModel:
    """Computes batches on a simulated KV cache and checks how they use it."""

    def __init__(self, block_manager: BlockManager, *, seed: int = 0) -> None:
        self._block_size = block_manager.block_size
        self._windows = block_manager.windows
        self.slots: list[list[int | None]] = [
            [None] * (pool.num_blocks * self._block_size) for pool in block_manager.pools
        ]
        self._random = random.Random(seed)
        self.num_computed_tokens = 0
        self.num_copies = 0

    def execute(self, batch: ScheduledBatch) -> dict[int, int]:
        """Returns the sampled token by sequence id."""
        self._copy_blocks(batch.block_copies)
        self._check_written_blocks(batch)
        # No sequence may depend on when another of the same step writes.
        order = list(batch.sequences)
        self._random.shuffle(order)
        values = {one.sequence.sequence_id: self._compute(one) for one in order}
        for one in order:
            assert (
                self._read(one.sequence, one.start + one.num_tokens - 1)
                == (values[one.sequence.sequence_id])
            )
        self.num_computed_tokens += batch.num_tokens
        return {
            one.sequence.sequence_id: _sample(values[one.sequence.sequence_id], one.sequence.seed)
            for one in order
            if one.needs_sample
        }

    def _copy_blocks(self, copies: tuple[tuple[int, int, int], ...]) -> None:
        sources = {(group, source) for group, source, _ in copies}
        destinations = [(group, destination) for group, _, destination in copies]
        assert len(set(destinations)) == len(destinations)
        assert not sources & set(destinations)
        size = self._block_size
        for group, source, destination in copies:
            self.num_copies += 1
            slots = self.slots[group]
            slots[destination * size : (destination + 1) * size] = slots[
                source * size : (source + 1) * size
            ]

    def _check_written_blocks(self, batch: ScheduledBatch) -> None:
        """A written block stands in one block table of the step, once, and no other is written."""
        for group, window in enumerate(self._windows):
            uses = Counter(
                block_id for one in batch.sequences for block_id in one.sequence.block_tables[group]
            )
            for one in batch.sequences:
                table = one.sequence.block_tables[group]
                first = one.start // self._block_size
                last = (one.start + one.num_tokens - 1) // self._block_size
                written = table[first : last + 1]
                assert len(written) == last - first + 1, "a token has no block"
                assert all(uses[block_id] == 1 for block_id in written)
                dropped = first_visible_block(one.start - 1, window, self._block_size)
                assert set(table[:dropped]) <= {NULL_BLOCK}, "a block is held that nobody sees"

    def _compute(self, scheduled: ScheduledSequence) -> list[int]:
        sequence = scheduled.sequence
        for position in range(scheduled.start, scheduled.start + scheduled.num_tokens):
            context = self._read(sequence, position, with_own=False)
            value = _cached_value(sequence.token_ids[position], context)
            for group, slots in enumerate(self.slots):
                slots[self._slot(sequence, group, position)] = value
        return self._read(sequence, scheduled.start + scheduled.num_tokens - 1)

    def _read(self, sequence: Sequence, position: int, *, with_own: bool = True) -> list[int]:
        """All that the query at a position sees, group by group."""
        values: list[int] = []
        for group, window in enumerate(self._windows):
            for seen in range(_first_seen(position, window), position + with_own):
                value = self.slots[group][self._slot(sequence, group, seen)]
                assert value is not None, "a slot is read that was never written"
                values.append(value)
        return values

    def _slot(self, sequence: Sequence, group: int, position: int) -> int:
        block_id = sequence.block_tables[group][position // self._block_size]
        assert block_id != NULL_BLOCK, "the null block is read or written"
        return block_id * self._block_size + position % self._block_size


class FakeEngine:
    """Scheduler and fake model put together as the engine does it, with checks in every step."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 16,
        max_model_len: int = 1000,
        enable_prefix_caching: bool = True,
        seed: int = 0,
        windows: Windows = (None,),
        num_window_blocks: int = 0,
    ) -> None:
        """Puts them together.

        Args:
            num_window_blocks: of the groups after the first.
        """
        self.blocks = BlockManager(
            [num_blocks] + [num_window_blocks] * (len(windows) - 1),
            block_size,
            windows=windows,
            max_step_tokens=max_num_batched_tokens,
            enable_prefix_caching=enable_prefix_caching,
        )
        self.scheduler = Scheduler(
            self.blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=max_model_len,
        )
        self.model = FakeModel(self.blocks, seed=seed)
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.sequences: dict[str, list[Sequence]] = {}
        self.num_preemptions = 0
        self._num_sequences = 0

    @property
    def longest(self) -> int:
        """The most tokens of a sequence that may be computed."""
        return min(self.blocks.capacity_tokens, self.max_model_len - 1)

    def add(
        self,
        prompt: list[int],
        *,
        n: int = 1,
        max_tokens: int = 8,
        seed: int = 0,
        priority: int = 0,
        cache_salt: str = "",
        use_prefix_cache: bool = True,
    ) -> list[Sequence]:
        request_id = f"request-{len(self.sequences)}"
        sequences = [
            Sequence(
                self._num_sequences + index,
                request_id,
                index,
                prompt,
                SamplingParams(n=n, max_tokens=max_tokens),
                seed=seed + index,
                priority=priority,
                cache_salt=cache_salt,
                use_prefix_cache=use_prefix_cache,
            )
            for index in range(n)
        ]
        self.scheduler.add(sequences)
        self._num_sequences += n
        self.sequences[request_id] = sequences
        return sequences

    def step(self) -> ScheduledBatch:
        batch = self.scheduler.schedule()
        self.check(batch)
        self.complete(batch, self.model.execute(batch))
        return batch

    def complete(self, batch: ScheduledBatch, sampled: dict[int, int]) -> None:
        """Takes in the step's tokens and ends what has come to its end."""
        self.scheduler.update(batch, sampled)
        for scheduled in batch.sequences:
            sequence = scheduled.sequence
            if sequence.is_finished or sequence.sequence_id not in sampled:
                continue
            if sequence.token_ids[-1] == STOP_TOKEN:
                self.scheduler.finish(sequence, FinishReason.STOP)
            elif (
                sequence.num_output_tokens == sequence.sampling_params.max_tokens
                or sequence.num_tokens >= self.max_model_len
            ):
                self.scheduler.finish(sequence, FinishReason.LENGTH)

    def run(self) -> None:
        """Steps until nothing is left; no step may be idle."""
        while self.scheduler.has_work:
            batch = self.step()
            assert batch.sequences or batch.finished

    def check(self, batch: ScheduledBatch) -> None:
        assert batch.num_tokens <= self.max_num_batched_tokens
        assert len({one.sequence.sequence_id for one in batch.sequences}) == len(batch.sequences)
        assert all(one.num_tokens > 0 for one in batch.sequences)
        assert not any(one.sequence in batch.preempted for one in batch.sequences)
        self.num_preemptions += len(batch.preempted)
        for sequence in batch.preempted:
            assert not sequence.is_finished
        self.check_blocks()

    def check_blocks(self) -> None:
        """Exactly the blocks that stand in block tables are in use."""
        everyone = [one for sequences in self.sequences.values() for one in sequences]
        for group, pool in enumerate(self.blocks.pools):
            tables = [one.block_tables[group] for one in everyone if one.block_table]
            in_use = {block_id for table in tables for block_id in table} - {NULL_BLOCK}
            if self.blocks.windows[group] is None:
                assert not any(NULL_BLOCK in table for table in tables)
            assert pool.num_used_blocks == len(in_use)
            assert pool.num_free_blocks + len(in_use) == pool.num_blocks - 1
            assert 0 <= pool.num_cached_blocks <= pool.num_free_blocks

    def check_done(self) -> None:
        """Everything has ended, every block is free, and all that was generated is right."""
        assert not self.scheduler.has_work
        assert self.scheduler.num_waiting == self.scheduler.num_running == 0
        assert [pool.num_used_blocks for pool in self.blocks.pools] == [0] * len(self.blocks.pools)
        for sequences in self.sequences.values():
            for sequence in sequences:
                self.check_output(sequence)

    def check_output(self, sequence: Sequence) -> None:
        max_tokens = sequence.sampling_params.max_tokens
        assert max_tokens is not None
        expected = continue_alone(
            sequence.prompt_token_ids,
            sequence.seed,
            max_tokens,
            self.longest,
            self.blocks.windows,
        )
        output = sequence.output_token_ids
        if sequence.finish_reason is FinishReason.ABORT:
            assert output == expected[: len(output)]
        else:
            assert output == expected
            stopped = output[-1] == STOP_TOKEN
            assert sequence.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
