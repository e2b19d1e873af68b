"""`PersistentBatch`: token ids and block tables of running sequences, as rows that stay in place.

Numpy only. A step's inputs are gathered from the rows; between steps a row grows by what is new.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.engine.kv_groups import first_visible_block
from octavo.engine.sequence import ScheduledBatch, ScheduledSequence, Sequence

IntArray = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class GroupInputs:
    """Where one step's tokens lie in one KV group."""

    slot_mapping: IntArray
    """[num_tokens], int64: where each token's keys and values go."""
    block_tables: IntArray
    """[num_seqs, max_blocks], int32; unused entries are 0, the null block."""


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What one forward pass reads, all sequences one after the other.

    Sequences that compute a single token come first, so that attention can take them together,
    and of these the last tokens of prompts come last.
    """

    sequences: tuple[ScheduledSequence, ...]
    """In the order of the arrays."""
    num_decode: int
    """Sequences at the front with one token each."""
    token_ids: IntArray
    """[num_tokens], int64."""
    positions: IntArray
    """[num_tokens], int64."""
    cu_seqlens_q: IntArray
    """[num_seqs + 1], int32."""
    context_lens: IntArray
    """[num_seqs], int32: includes this step's tokens."""
    logits_indices: IntArray
    """[num_sampled], int64: the last token of each sequence that samples."""
    groups: tuple[GroupInputs, ...]
    """Of each KV group."""


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """A step of one token per sequence, for an executor that keeps block tables on its device.

    It knows them but for what is new: a decode adds at most one block, which comes along.
    """

    sequences: tuple[ScheduledSequence, ...]
    packed: IntArray
    """[3 + num_groups, num_seqs], int32. The sequences' rows; their tokens, or -1 - i for the one
    chosen at index i in the step before, which only the device knows; their positions; and for
    each KV group the blocks of these positions."""
    stale_rows: IntArray
    """[num_stale], int64: rows whose block tables the device has not, or no longer."""
    stale_tables: IntArray
    """[num_groups, num_stale, max_blocks], int32: those tables, as far as they are in use."""


class _BlockRows:
    """The block tables of one KV group, a row for each sequence."""

    def __init__(
        self, max_num_seqs: int, max_blocks: int, block_size: int, window: int | None
    ) -> None:
        self._block_size = block_size
        self._window = window
        # Zeroed memory costs nothing until it is touched, so rows can be as long as they may get.
        self._tables = np.zeros((max_num_seqs, max_blocks), dtype=np.int32)
        self._num_blocks = [0] * max_num_seqs
        self._last_block = [0] * max_num_seqs
        # Leading entries that are known to be the null block, because they left the window.
        self._num_dropped = [0] * max_num_seqs

    def update(self, row: int, table: list[int], start: int) -> None:
        """Takes over what of a block table is new in a step that computes from `start` on."""
        if self._window is not None:
            dropped = first_visible_block(start - 1, self._window, self._block_size)
            known = self._num_dropped[row]
            self._tables[row, known:dropped] = table[known:dropped]
            self._num_dropped[row] = dropped
        num_blocks = self._num_blocks[row]
        # Copy-on-write exchanges a block only where it is written, so from this step's first on.
        first = min(start // self._block_size, num_blocks)
        if first == num_blocks - 1 == len(table) - 1 and table[first] == self._last_block[row]:
            return  # as in most steps of a decode
        self._tables[row, first : len(table)] = table[first:]
        self._num_blocks[row], self._last_block[row] = len(table), table[-1]

    def clear(self, row: int) -> None:
        self._tables[row, : self._num_blocks[row]] = 0
        self._num_blocks[row] = self._num_dropped[row] = 0

    def tables(self, rows: IntArray, max_blocks: int) -> IntArray:
        """[num_rows, max_blocks], int32."""
        return self._tables[rows, :max_blocks]

    def gather(
        self, rows: IntArray, max_blocks: int, token_rows: IntArray, positions: IntArray
    ) -> GroupInputs:
        blocks = self._tables[token_rows, positions // self._block_size].astype(np.int64)
        return GroupInputs(
            slot_mapping=blocks * self._block_size + positions % self._block_size,
            block_tables=self._tables[rows, :max_blocks],
        )


class PersistentBatch:
    """Rows for sequences, from their first step until they finish or are preempted.

    Invariant: row r's first `_num_tokens[r]` token ids and its block ids are those of the sequence
    whose `row` is r, as of its last step.
    """

    def __init__(
        self,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        *,
        windows: Iterable[int | None] = (None,),
    ) -> None:
        """Makes rows.

        Args:
            max_num_seqs: how many.
            max_model_len: the longest sequence.
            block_size: tokens of a block.
            windows: of each KV group.
        """
        self._block_size = block_size
        max_blocks = -(-max_model_len // block_size)
        self._token_ids = np.zeros((max_num_seqs, max_model_len), dtype=np.int32)
        self._groups = [
            _BlockRows(max_num_seqs, max_blocks, block_size, window) for window in windows
        ]
        self._num_tokens = [0] * max_num_seqs
        # Rows that changed in more than the block of their latest position since `prepare_decode`.
        self._stale_rows: set[int] = set()
        self._free_rows = list(reversed(range(max_num_seqs)))

    @property
    def num_free_rows(self) -> int:
        return len(self._free_rows)

    def add(self, sequence: Sequence) -> None:
        """Gives a sequence a row; it keeps it until `remove`."""
        assert sequence.row is None
        assert self._free_rows
        sequence.row = self._free_rows.pop()
        self._stale_rows.add(sequence.row)

    def remove(self, sequence: Sequence) -> None:
        """Frees a sequence's row; one without a row is left alone."""
        if sequence.row is None:
            return
        row = sequence.row
        for group in self._groups:
            group.clear(row)
        self._num_tokens[row] = 0
        self._free_rows.append(row)
        sequence.row = None

    def prepare(self, batch: ScheduledBatch, chosen: Mapping[int, int] | None = None) -> StepInputs:
        """Brings the rows up to date and gathers one step's inputs from them.

        Args:
            batch: the step.
            chosen: as in `prepare_decode`.
        """
        scheduled = sorted(batch.sequences, key=lambda item: (item.num_tokens > 1, item.is_prompt))
        for item in scheduled:
            self._update_row(item)
        rows = np.array([item.sequence.row for item in scheduled], dtype=np.int64)
        self._stale_rows.update(rows.tolist())
        starts = np.array([item.start for item in scheduled], dtype=np.int64)
        lengths = np.array([item.num_tokens for item in scheduled], dtype=np.int64)
        cu_seqlens_q = np.zeros(len(scheduled) + 1, dtype=np.int64)
        np.cumsum(lengths, out=cu_seqlens_q[1:])
        context_lens = starts + lengths
        token_rows = np.repeat(rows, lengths)
        positions = np.arange(cu_seqlens_q[-1]) + np.repeat(starts - cu_seqlens_q[:-1], lengths)
        max_blocks = -(-int(context_lens.max()) // self._block_size)
        token_ids = self._token_ids[token_rows, positions].astype(np.int64)
        for index, item in enumerate(scheduled):
            sequence = item.sequence
            if item.start == sequence.num_tokens:  # only the device knows this token
                assert chosen is not None
                token_ids[cu_seqlens_q[index]] = -1 - chosen[sequence.sequence_id]
        samples = np.array([item.needs_sample for item in scheduled], dtype=bool)
        return StepInputs(
            sequences=tuple(scheduled),
            num_decode=int((lengths == 1).sum()),
            token_ids=token_ids,
            positions=positions,
            cu_seqlens_q=cu_seqlens_q.astype(np.int32),
            context_lens=context_lens.astype(np.int32),
            logits_indices=(cu_seqlens_q[1:] - 1)[samples],
            groups=tuple(
                group.gather(rows, max_blocks, token_rows, positions) for group in self._groups
            ),
        )

    def prepare_decode(
        self, batch: ScheduledBatch, chosen: Mapping[int, int] | None = None
    ) -> DecodeStep:
        """Gathers a step of one token per sequence.

        Args:
            batch: the step.
            chosen: where the step before chose each sequence's token, by sequence id, if the host
                does not know the tokens yet.
        """
        columns: list[list[int]] = []
        max_blocks = 1
        for item in batch.sequences:
            sequence, start = item.sequence, item.start
            if sequence.row is None:
                self.add(sequence)
            row = sequence.row
            assert row is not None
            known = sequence.token_ids
            if start < len(known):
                token_id = known[start]
            else:
                assert chosen is not None
                token_id = -1 - chosen[sequence.sequence_id]
            index = start // self._block_size
            max_blocks = max(max_blocks, index + 1)
            column = [row, token_id, start]
            for group, table in zip(self._groups, sequence.block_tables, strict=True):
                group.update(row, table, start)
                column.append(table[index])
            columns.append(column)
        stale = self._stale_rows.intersection(column[0] for column in columns)
        self._stale_rows -= stale
        stale_rows = np.array(sorted(stale), dtype=np.int64)
        tables = [group.tables(stale_rows, max_blocks) for group in self._groups]
        return DecodeStep(
            sequences=batch.sequences,
            packed=np.array(columns, dtype=np.int32).T,
            stale_rows=stale_rows,
            stale_tables=np.stack(tables),
        )

    def _update_row(self, item: ScheduledSequence) -> None:
        sequence = item.sequence
        if sequence.row is None:
            self.add(sequence)
        row = sequence.row
        assert row is not None
        known = self._num_tokens[row]
        if known < len(sequence.token_ids):
            self._token_ids[row, known : len(sequence.token_ids)] = sequence.token_ids[known:]
            self._num_tokens[row] = len(sequence.token_ids)
        for group, table in zip(self._groups, sequence.block_tables, strict=True):
            group.update(row, table, item.start)
