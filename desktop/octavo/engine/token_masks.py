"""`TokenMasks`: which tokens may come next, as bits for a device that chooses them by itself.

Numpy only. What it forbids is what `logits_processing` does with allowed tokens, min_tokens and bad
words of one token; longer bad words hang on the tokens before, which the device alone may know.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.engine.sequence import Sequence

IntArray = npt.NDArray[Any]


class TokenMasks:
    """Keeps in mind which masks a device has: one for each row of `PersistentBatch`."""

    def __init__(self, vocab_size: int, stop_token_ids: frozenset[int]) -> None:
        self._vocab_size = vocab_size
        self._stop_token_ids = stop_token_ids
        # By row: the sequence whose mask it is, and whether that holds stop tokens back.
        self._present: dict[int, tuple[int, bool]] = {}

    def number(
        self, sequence: Sequence, num_output_tokens: int, changed: dict[int, IntArray]
    ) -> int:
        """The number of the mask for a sequence's next token; 0 where every token may come.

        Args:
            sequence: has a row, whose mask it may change.
            num_output_tokens: before the next one.
            changed: is given the mask if the device has not got it.
        """
        params = sequence.sampling_params
        holds_back = num_output_tokens < params.min_tokens
        if not (params.allowed_token_ids is not None or params.bad_words or holds_back):
            return 0
        assert sequence.row is not None
        wanted = sequence.sequence_id, holds_back
        number = sequence.row + 1
        if self._present.get(number) != wanted:
            self._present[number] = wanted
            changed[number] = self._make(sequence, holds_back=holds_back)
        return number

    def _make(self, sequence: Sequence, *, holds_back: bool) -> IntArray:
        """[ceil(vocab_size / 32)], int32."""
        params = sequence.sampling_params
        may_come = np.zeros(-(-self._vocab_size // 32) * 32, dtype=bool)
        if params.allowed_token_ids is None:
            may_come[: self._vocab_size] = True
        else:
            may_come[list(params.allowed_token_ids)] = True
        if holds_back:
            may_come[list(self._stop_token_ids.union(params.stop_token_ids))] = False
        if params.bad_words:
            assert sequence.token_rules is not None
            banned = [word[0] for word in sequence.token_rules.bad_words]
            left = may_come.copy()
            left[banned] = False
            # Where that would leave no token at all, the words may come after all.
            may_come = left if left.any() else may_come
        return np.packbits(may_come, bitorder="little").view(np.dtype("<i4"))
