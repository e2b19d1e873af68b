"""What a request does to its row of logits before a token is drawn: bias, penalties, masks."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from octavo.engine.dry import dry_penalties
from octavo.engine.sampling_params import SamplingParams
from octavo.engine.sequence import Sequence as TokenSequence

_LARGEST_LOGIT = 1e30
"""So that no penalty, however extreme, makes an infinity of a logit."""


def process_logits(
    logits: torch.Tensor, sequences: Sequence[TokenSequence], stop_token_ids: frozenset[int]
) -> None:
    """Changes, in place, the rows of the sequences that ask for it.

    The steps, in this order: logit bias; repetition, presence and frequency penalty; DRY; allowed
    tokens and min_tokens; bad words.

    Args:
        logits: [num_rows, vocab_size], float32.
        sequences: one per row.
        stop_token_ids: the model's own, which min_tokens holds back.
    """
    for index, sequence in enumerate(sequences):
        params = sequence.sampling_params
        holds_back = sequence.num_output_tokens < params.min_tokens
        if not (params.changes_logits or holds_back):
            continue
        row = logits[index]
        _add_bias(row, params)
        _apply_penalties(row, sequence)
        if params.dry_multiplier > 0.0:
            token_ids, penalties = dry_penalties(sequence)
            row[_on(row.device, token_ids)] -= _on(row.device, penalties)
        if params.allowed_token_ids is not None:
            _keep_only(row, list(params.allowed_token_ids))
        if holds_back:
            row[sorted(stop_token_ids.union(params.stop_token_ids))] = -math.inf
        if params.bad_words:
            _ban_words(row, sequence)


def _add_bias(logits: torch.Tensor, params: SamplingParams) -> None:
    if params.logit_bias:
        biases = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32)
        logits[list(params.logit_bias)] += biases.to(logits.device)


def _apply_penalties(logits: torch.Tensor, sequence: TokenSequence) -> None:
    """Repetition (prompt and output), then frequency and presence (output alone).

    Source: Keskar et al. 2019, arXiv:1909.05858, section 4.1; OpenAI API reference.
    """
    params = sequence.sampling_params
    if params.repetition_penalty != 1.0:
        seen = _on(logits.device, np.unique(np.asarray(sequence.token_ids)))
        values = logits[seen]
        penalty = params.repetition_penalty
        changed = torch.where(values > 0, values / penalty, values * penalty)
        logits[seen] = changed.clamp_(max=_LARGEST_LOGIT)
    if params.presence_penalty or params.frequency_penalty:
        output = np.asarray(sequence.token_ids[sequence.num_prompt_tokens :], dtype=np.int64)
        unique, counts = np.unique(output, return_counts=True)
        penalties = params.presence_penalty + params.frequency_penalty * counts
        logits[_on(logits.device, unique)] -= _on(logits.device, penalties.astype(np.float32))


def _keep_only(logits: torch.Tensor, token_ids: list[int]) -> None:
    kept = logits[token_ids]
    logits.fill_(-math.inf)
    logits[token_ids] = kept


def _ban_words(logits: torch.Tensor, sequence: TokenSequence) -> None:
    """Masks the last token of each bad word whose other tokens the completion ends with.

    Where that would leave no token at all, the words may come after all: something must.
    """
    assert sequence.token_rules is not None, "the engine makes rules where there are bad words"
    output = sequence.token_ids[sequence.num_prompt_tokens :]
    banned = {
        last
        for *begin, last in sequence.token_rules.bad_words
        if not begin or output[-len(begin) :] == begin
    }
    if not banned:
        return
    token_ids = sorted(banned)
    kept = logits[token_ids]
    logits[token_ids] = -math.inf
    if bool(logits.isneginf().all()):
        logits[token_ids] = kept


def _on(device: torch.device, values: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(values).to(device)
