"""`StepArrays`: what a program's operations read about a step, kept where they find it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.engine.kernels.cpu import step_words as words
from octavo.engine.kernels.cpu.attention import TILE_ROWS

IntArray = npt.NDArray[Any]

_LEAST_SPLIT_KEYS = 256
"""Fewer keys are done before another thread has come."""


class StepArrays:
    """The words of a step, and the arrays that they point at."""

    def __init__(
        self,
        num_groups: int,
        group_size: int,
        max_rows: int,
        *,
        max_split_tiles: int = 1,
    ) -> None:
        """Args:
        num_groups: KV groups of the model.
        group_size: query heads that share a key head; one decode is one tile.
        max_rows: the most tokens that are chosen.
        max_split_tiles: the most parts of tiles, where the contexts of few decodes are split.
        """
        self._max_split_tiles = max_split_tiles
        assert group_size <= TILE_ROWS
        self.last_program = 0
        """The number of the program that read them last."""
        self.chosen = np.zeros(max_rows, dtype=np.int64)
        """[max_rows]: the tokens that the step chooses."""
        self._temperatures = np.zeros(max_rows, dtype=np.float32)
        self._noise_keys = np.zeros(max_rows, dtype=np.uint64)
        self._top_ks = np.zeros(max_rows, dtype=np.int64)
        self._top_ps = np.ones(max_rows, dtype=np.float32)
        self._min_ps = np.zeros(max_rows, dtype=np.float32)
        self._masks = np.zeros(max_rows, dtype=np.uint64)
        self._group_size = group_size
        self._words = np.zeros(words.num_step_words(num_groups), dtype=np.int64)
        self._words[words.ONE] = 1
        for word, array in (
            (words.CHOSEN, self.chosen),
            (words.TEMPERATURES, self._temperatures),
            (words.NOISE_KEYS, self._noise_keys),
            (words.TOP_KS, self._top_ks),
            (words.TOP_PS, self._top_ps),
            (words.MIN_PS, self._min_ps),
            (words.MASKS, self._masks),
        ):
            self._words[word] = array.ctypes.data
        # Tiles of steps in which every sequence has one token, made once.
        self._decode_tiles = _tiles(np.ones(0, dtype=np.int64), group_size)
        self._kept: list[IntArray] = []
        self._kept_masks: Sequence[IntArray | None] = ()

    @property
    def address(self) -> int:
        return self._words.ctypes.data

    def fill(
        self,
        token_ids: IntArray,
        positions: IntArray,
        cu_seqlens_q: IntArray,
        num_decode: int,
        groups: Sequence[tuple[IntArray, IntArray]],
        *,
        taken: IntArray,
        chosen_before: IntArray,
    ) -> None:
        """Takes over a step's arrays, which are kept until the next step's.

        Args:
            token_ids: [num_tokens], int64; -1 - i stands for `chosen_before[i]`.
            positions: [num_tokens], int64.
            cu_seqlens_q: [num_seqs + 1], int32.
            num_decode: sequences at the front with one token each, which are no prompts.
            groups: slot mapping, [num_tokens] int64, and block tables, [num_seqs, max_blocks]
                int32, of each KV group.
            taken: [num_taken], int64: the rows of hidden states that are put together.
            chosen_before: [num_rows], int64: written by the step before.
        """
        num_seqs = len(cu_seqlens_q) - 1
        tiles = self._tiles(cu_seqlens_q, num_decode == num_seqs)
        self._kept = [token_ids, positions, cu_seqlens_q, *tiles, taken, chosen_before]
        step = self._words
        step[words.NUM_TOKENS] = len(token_ids)
        num_splits = 1
        if num_decode == num_seqs:
            num_splits = self._num_splits(num_seqs, int(positions.max()) + 1)
        # Attention turns what it decodes; parts of one decode would do it several times.
        num_turned = num_decode if num_splits == 1 else 0
        step[words.NUM_DECODE] = num_turned
        step[words.NUM_PREFILL_TOKENS] = len(token_ids) - num_turned
        step[words.NUM_TILES] = len(tiles[0]) * num_splits
        step[words.NUM_SPLITS] = num_splits
        step[words.NUM_JOINED] = 0 if num_splits == 1 else len(tiles[0])
        step[words.NUM_TAKEN] = len(taken)
        for word, array in zip(
            (
                words.TOKEN_IDS,
                words.POSITIONS,
                words.FIRST_TOKENS,
                words.TILE_SEQUENCES,
                words.TILE_STARTS,
                words.TAKEN,
                words.CHOSEN_BEFORE,
            ),
            self._kept,
            strict=True,
        ):
            assert array.flags.c_contiguous
            step[word] = array.ctypes.data
        for number, (slots, tables) in enumerate(groups):
            tables = np.ascontiguousarray(tables)
            first = words.FIRST_GROUP + words.GROUP_WORDS * number
            step[first + words.SLOTS] = slots.ctypes.data
            step[first + words.TABLES] = tables.ctypes.data
            step[first + words.TABLE_BYTES] = tables.strides[0]
            self._kept += [slots, tables]

    def want_rows(self, num_rows: int) -> None:
        """Says of how many rows logits are wanted, and nothing else."""
        self._words[words.NUM_ROWS] = num_rows
        for word in (words.NUM_CHOICES, words.NUM_DRAWS, words.NUM_CUTS):
            self._words[word] = 0

    def want_tokens(
        self,
        temperatures: Sequence[float],
        noise_keys: Sequence[int],
        truncation: Sequence[tuple[int, float, float]] = (),
        masks: Sequence[IntArray | None] = (),
    ) -> None:
        """Says how the tokens of all rows are chosen.

        Args:
            temperatures: of each row; 0: its likeliest token.
            noise_keys: of each row, from 0 to 2 ** 64 - 1.
            truncation: top-k, top-p and min-p of each row; empty: no row leaves anything out.
            masks: of each row, bits of the tokens that may come, kept until the next step's; None:
                all may; empty: in every row.
        """
        num_rows = len(temperatures)
        self._temperatures[:num_rows] = temperatures
        self._noise_keys[:num_rows] = noise_keys
        step = self._words
        step[words.NUM_ROWS] = step[words.NUM_CHOICES] = num_rows
        step[words.NUM_DRAWS] = num_rows if any(temperatures) else 0
        step[words.NUM_CUTS] = len(truncation)
        if truncation:
            top_ks, top_ps, min_ps = zip(*truncation, strict=True)
            self._top_ks[:num_rows], self._top_ps[:num_rows] = top_ks, top_ps
            self._min_ps[:num_rows] = [math.log(one) if one else -math.inf for one in min_ps]
        self._kept_masks = masks
        self._masks[:num_rows] = 0
        for row, mask in enumerate(masks):
            self._masks[row] = 0 if mask is None else mask.ctypes.data

    def _num_splits(self, num_seqs: int, context_len: int) -> int:
        """How many threads should share the context of a decode."""
        return max(1, min(self._max_split_tiles // num_seqs, context_len // _LEAST_SPLIT_KEYS))

    def _tiles(self, cu_seqlens_q: IntArray, is_decode: bool) -> tuple[IntArray, IntArray]:
        if not is_decode:
            return _tiles(np.diff(cu_seqlens_q), self._group_size)
        num_seqs = len(cu_seqlens_q) - 1
        if len(self._decode_tiles[0]) < num_seqs:
            self._decode_tiles = _tiles(np.ones(2 * num_seqs, dtype=np.int64), self._group_size)
        sequences, starts = self._decode_tiles
        return sequences[:num_seqs], starts[:num_seqs]


def _tiles(query_lens: IntArray, group_size: int) -> tuple[IntArray, IntArray]:
    """Whose tile it is and where it begins: [num_tiles], int32 each.

    Args:
        query_lens: [num_seqs]; tokens of each sequence.
        group_size: rows of each token.
    """
    counts = -(-query_lens * group_size // TILE_ROWS)
    sequences = np.repeat(np.arange(len(query_lens)), counts)
    first_tiles = np.cumsum(counts) - counts
    starts = (np.arange(len(sequences)) - first_tiles[sequences]) * TILE_ROWS
    return sequences.astype(np.int32), starts.astype(np.int32)
