"""DRY ("don't repeat yourself"): which tokens would go on with a repetition, and how long it is."""

import numpy as np
import numpy.typing as npt

from octavo.engine.sequence import Sequence

_MAX_COUNTED_TOKENS = 50
"""Beyond the allowed length; the penalty has long outgrown every logit there."""
_MAX_PENALTY = 1e4
"""Forbids in effect, and float32 still tells the logits of two such tokens apart."""

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


def dry_penalties(sequence: Sequence) -> tuple[IntArray, FloatArray]:
    """Token ids, each once, and what to subtract from their logits.

    A token is penalised if the end of the sequence stands earlier in it, for at least the
    allowed length and without a breaker, and the token came next there. The longest match counts.

    Source: p-e-w 2024, github.com/oobabooga/text-generation-webui, pull request 5677.
    """
    params, rules = sequence.sampling_params, sequence.token_rules
    assert rules is not None, "the engine makes rules where DRY is on"
    token_ids = np.asarray(sequence.token_ids[-params.dry_range :], dtype=np.int64)
    most = params.dry_allowed_length + _MAX_COUNTED_TOKENS
    end = token_ids[: -most - 1 : -1]
    breaks = [rules.is_breaker(token_id) for token_id in end.tolist()]
    longest = breaks.index(True) if True in breaks else len(breaks)
    if longest < params.dry_allowed_length:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    matches = np.arange(len(token_ids) - 1)
    lengths = np.zeros(len(matches), dtype=np.int64)
    for length in range(longest):
        matches = matches[token_ids[matches - length] == end[length]]
        lengths[matches] = length + 1
        matches = matches[matches > length]
        if not matches.size:
            break
    ends = np.flatnonzero(lengths >= params.dry_allowed_length)
    candidates, which = np.unique(token_ids[ends + 1], return_inverse=True)
    matched = np.zeros(len(candidates), dtype=np.int64)
    np.maximum.at(matched, which, lengths[ends])
    counts = np.array([not rules.is_breaker(token_id) for token_id in candidates.tolist()], bool)
    excess = matched[counts] - params.dry_allowed_length
    penalties = np.minimum(params.dry_multiplier * float(params.dry_base) ** excess, _MAX_PENALTY)
    return candidates[counts], penalties.astype(np.float32)
