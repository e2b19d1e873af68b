"""`PersistentBatch`: token ids and block tables of running sequences, as rows that stay in place.

Numpy only. A step's inputs are gathered from the rows; between steps a row grows by what is new.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.engine.sequence import ScheduledBatch, ScheduledSequence, Sequence

IntArray = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What one forward pass reads, all sequences one after the other.

    Sequences that compute a single token come first, so that attention can take them together.
    """

    sequences: tuple[ScheduledSequence, ...]
    """In the order of the arrays."""
    num_decode: int
    """Sequences at the front with one token each."""
    token_ids: IntArray
    """[num_tokens], int64."""
    positions: IntArray
    """[num_tokens], int64."""
    slot_mapping: IntArray
    """[num_tokens], int64: where each token's keys and values go."""
    cu_seqlens_q: IntArray
    """[num_seqs + 1], int32."""
    context_lens: IntArray
    """[num_seqs], int32: includes this step's tokens."""
    block_tables: IntArray
    """[num_seqs, max_blocks], int32; unused entries are 0, the null block."""
    logits_indices: IntArray
    """[num_sampled], int64: the last token of each sequence that samples."""


class PersistentBatch:
    """Rows for sequences, from their first step until they finish or are preempted.

    Invariant: row r's first `_num_tokens[r]` token ids and `_num_blocks[r]` block ids are those of
    the sequence whose `row` is r, as of its last step.
    """

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int) -> None:
        self._block_size = block_size
        max_blocks = -(-max_model_len // block_size)
        # Zeroed memory costs nothing until it is touched, so rows can be as long as they may get.
        self._token_ids = np.zeros((max_num_seqs, max_model_len), dtype=np.int32)
        self._block_tables = np.zeros((max_num_seqs, max_blocks), dtype=np.int32)
        self._num_tokens = [0] * max_num_seqs
        self._num_blocks = [0] * max_num_seqs
        self._free_rows = list(reversed(range(max_num_seqs)))

    @property
    def num_free_rows(self) -> int:
        return len(self._free_rows)

    def add(self, sequence: Sequence) -> None:
        """Gives a sequence a row; it keeps it until `remove`."""
        assert sequence.row is None
        assert self._free_rows
        sequence.row = self._free_rows.pop()

    def remove(self, sequence: Sequence) -> None:
        """Frees a sequence's row; one without a row is left alone."""
        if sequence.row is None:
            return
        row = sequence.row
        self._block_tables[row, : self._num_blocks[row]] = 0
        self._num_tokens[row] = self._num_blocks[row] = 0
        self._free_rows.append(row)
        sequence.row = None

    def prepare(self, batch: ScheduledBatch) -> StepInputs:
        """Brings the rows up to date and gathers one step's inputs from them."""
        scheduled = sorted(batch.sequences, key=lambda item: item.num_tokens > 1)
        for item in scheduled:
            self._update_row(item)
        rows = np.array([item.sequence.row for item in scheduled], dtype=np.int64)
        starts = np.array([item.start for item in scheduled], dtype=np.int64)
        lengths = np.array([item.num_tokens for item in scheduled], dtype=np.int64)
        cu_seqlens_q = np.zeros(len(scheduled) + 1, dtype=np.int64)
        np.cumsum(lengths, out=cu_seqlens_q[1:])
        context_lens = starts + lengths
        token_rows = np.repeat(rows, lengths)
        positions = np.arange(cu_seqlens_q[-1]) + np.repeat(starts - cu_seqlens_q[:-1], lengths)
        blocks = self._block_tables[token_rows, positions // self._block_size].astype(np.int64)
        max_blocks = -(-int(context_lens.max()) // self._block_size)
        samples = np.array([item.needs_sample for item in scheduled], dtype=bool)
        return StepInputs(
            sequences=tuple(scheduled),
            num_decode=int((lengths == 1).sum()),
            token_ids=self._token_ids[token_rows, positions].astype(np.int64),
            positions=positions,
            slot_mapping=blocks * self._block_size + positions % self._block_size,
            cu_seqlens_q=cu_seqlens_q.astype(np.int32),
            context_lens=context_lens.astype(np.int32),
            block_tables=self._block_tables[rows, :max_blocks],
            logits_indices=(cu_seqlens_q[1:] - 1)[samples],
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
        # Copy-on-write exchanges a block only where it is written, so from this step's first on.
        first = min(item.start // self._block_size, self._num_blocks[row])
        table = sequence.block_table
        self._block_tables[row, first : len(table)] = table[first:]
        self._num_blocks[row] = len(table)
