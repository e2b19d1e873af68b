"""`Sampler`: from logits to the next token of each sequence.

Stateless: the random numbers of a token are a function of its sequence's seed and its position,
so a result depends neither on the other sequences of the batch nor on preemption.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from octavo.engine.memory import SAMPLED_ROWS
from octavo.engine.request import TokenLogprob
from octavo.engine.sampling_params import SamplingParams
from octavo.engine.sequence import Sequence as TokenSequence
from octavo.errors import EngineError

_CANDIDATES = (64, 1024)
"""Truncation looks at this many of the likeliest tokens before it sorts the whole vocabulary."""


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What one call of the sampler chose, in the order of its rows."""

    token_ids: list[int]
    logprobs: dict[int, TokenLogprob]
    """By row, for the sequences that ask."""


class Sampler:
    """Applies each sequence's sampling parameters to its row of logits.

    The steps, in this order; a row that asks for none of them only pays for its argmax:
    logit bias, min_tokens, penalties; then greedy, or temperature, top-k, top-p, min-p, draw.
    """

    def __init__(self, vocab_size: int, stop_token_ids: frozenset[int] = frozenset()) -> None:
        self._vocab_size = vocab_size
        self._stop_token_ids = stop_token_ids

    def sample(self, logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> SampledTokens:
        """Chooses one token per row.

        Args:
            logits: [num_rows, vocab_size], float32; changed in place.
            sequences: one per row.

        Raises:
            EngineError: the model returned NaN.
        """
        assert logits.shape == (len(sequences), self._vocab_size)
        if not sequences:
            return SampledTokens([], {})
        params = [sequence.sampling_params for sequence in sequences]
        asking = [row for row, item in enumerate(params) if item.logprobs is not None]
        raw = logits[asking].log_softmax(-1) if asking else None
        _add_logit_bias(logits, params)
        self._mask_stop_tokens(logits, sequences)
        _apply_penalties(logits, sequences)
        best = logits.max(-1)
        # A row with any NaN has NaN as its maximum; one with an infinity cannot be normalised.
        if not bool(best.values.isfinite().all()):
            raise EngineError(
                "The model returned logits that are not finite numbers.",
                hint="The file may be damaged; remove the model and download it again. If dtype is"
                " float16, try bfloat16 or float32.",
            )
        token_ids: list[int] = best.indices.tolist()
        random_rows = [row for row, item in enumerate(params) if not item.is_greedy]
        for start in range(0, len(random_rows), SAMPLED_ROWS):
            rows = random_rows[start : start + SAMPLED_ROWS]
            drawn = _draw(logits[rows], [sequences[row] for row in rows])
            for row, token_id in zip(rows, drawn, strict=True):
                token_ids[row] = token_id
        logprobs: dict[int, TokenLogprob] = {}
        if raw is not None:
            chosen = [token_ids[row] for row in asking]
            counts = [params[row].logprobs or 0 for row in asking]
            logprobs = dict(zip(asking, gather_logprobs(raw, chosen, counts), strict=True))
        return SampledTokens(token_ids, logprobs)

    def _mask_stop_tokens(self, logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> None:
        for row, sequence in enumerate(sequences):
            params = sequence.sampling_params
            if sequence.num_output_tokens < params.min_tokens:
                banned = sorted(self._stop_token_ids.union(params.stop_token_ids))
                logits[row, banned] = -math.inf


def gather_logprobs(
    logprobs: torch.Tensor, token_ids: Sequence[int], num_top: Sequence[int]
) -> list[TokenLogprob]:
    """Reads the chosen tokens' and the likeliest tokens' logprobs, a row each.

    Args:
        logprobs: [num_rows, vocab_size], float32.
        token_ids: the chosen ones.
        num_top: how many of the likeliest each row wants.
    """
    rows = torch.arange(len(token_ids), device=logprobs.device)
    chosen = logprobs[rows, torch.tensor(token_ids, device=logprobs.device)].tolist()
    width = min(max(num_top), logprobs.shape[-1])
    top = logprobs.topk(width)
    top_ids, top_values = top.indices.tolist(), top.values.tolist()
    return [
        TokenLogprob(
            token_id=token_ids[row],
            logprob=chosen[row],
            top=tuple(zip(top_ids[row][:count], top_values[row][:count], strict=True)),
        )
        for row, count in enumerate(num_top)
    ]


def _add_logit_bias(logits: torch.Tensor, params: Sequence[SamplingParams]) -> None:
    for row, item in enumerate(params):
        if item.logit_bias:
            token_ids = list(item.logit_bias)
            assert max(token_ids) < logits.shape[-1]
            biases = torch.tensor(list(item.logit_bias.values()), dtype=torch.float32)
            logits[row, token_ids] += biases.to(logits.device)


def _apply_penalties(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> None:
    """Repetition (prompt and output), then frequency and presence (output alone).

    Source: Keskar et al. 2019, arXiv:1909.05858, section 4.1; OpenAI API reference.
    """
    for row, sequence in enumerate(sequences):
        params = sequence.sampling_params
        if params.repetition_penalty != 1.0:
            seen = _to_device(np.unique(np.asarray(sequence.token_ids)), logits.device)
            values = logits[row, seen]
            penalty = params.repetition_penalty
            logits[row, seen] = torch.where(values > 0, values / penalty, values * penalty)
        if params.presence_penalty or params.frequency_penalty:
            output = np.asarray(sequence.token_ids[sequence.num_prompt_tokens :], dtype=np.int64)
            unique, counts = np.unique(output, return_counts=True)
            penalties = params.presence_penalty + params.frequency_penalty * counts
            logits[row, _to_device(unique, logits.device)] -= _to_device(
                penalties.astype(np.float32), logits.device
            )


def _to_device(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values).to(device)


def _draw(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> list[int]:
    """Draws a token per row of logits, which may be changed."""
    params = [sequence.sampling_params for sequence in sequences]
    keys = [_noise_key(sequence.seed, sequence.num_tokens) for sequence in sequences]
    scores = logits.div_(_column([item.temperature for item in params], logits.device))
    if not any(_is_truncated(item) for item in params):
        token_ids = torch.arange(logits.shape[-1], device=logits.device)
        drawn: list[int] = scores.add_(gumbel_noise(keys, token_ids)).argmax(-1).tolist()
        return drawn
    ordered, token_ids = _likeliest(scores, params)
    best = ordered.add_(gumbel_noise(keys, token_ids)).argmax(-1, keepdim=True)
    picked: list[int] = token_ids.gather(-1, best).flatten().tolist()
    return picked


def _is_truncated(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


def _likeliest(
    scores: torch.Tensor, params: Sequence[SamplingParams]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What top-k, then top-p, then min-p leave: scores, likeliest first, and their token ids.

    Left-out candidates have -inf. Each step finds a lowest score per row instead of a set, so
    that ties at the edge stay together and the result does not hang on how they were ordered.
    Few candidates are enough for most rows; the vocabulary is sorted only if they are not.

    Source of top-p: Holtzman et al. 2019, arXiv:1904.09751, section 3.1.
    """
    device, vocab_size = scores.device, scores.shape[-1]
    top_ks = [item.top_k if 0 < item.top_k < vocab_size else vocab_size for item in params]
    top_k = torch.tensor(top_ks, device=device).unsqueeze(1)
    top_p = _column([item.top_p for item in params], device)
    min_p = _column([math.log(item.min_p) if item.min_p else -math.inf for item in params], device)
    has_top_k = top_k < vocab_size
    total = scores.logsumexp(-1, keepdim=True)
    for width in (*(size for size in _CANDIDATES if size < vocab_size), vocab_size):
        ordered, token_ids = scores.topk(width)
        last = ordered[:, -1:]
        top_k_edge = ordered.gather(-1, top_k.clamp(max=width) - 1)
        top_k_edge = top_k_edge.masked_fill(~has_top_k, -math.inf)
        kept = ordered.masked_fill(ordered < top_k_edge, -math.inf)
        mass = torch.where(has_top_k, kept.logsumexp(-1, keepdim=True), total)
        cumulative = (kept - mass).exp().cumsum(-1)
        top_p_edge = ordered.gather(-1, (cumulative < top_p).sum(-1, True).clamp(max=width - 1))
        # A row with top_p = 1 keeps everything, whatever rounding made of its sum.
        top_p_edge = top_p_edge.masked_fill(top_p >= 1.0, -math.inf)
        edge = top_k_edge.maximum(top_p_edge).maximum(ordered[:, :1] + min_p)
        is_complete = (last < edge) & ((last < top_k_edge) | ~has_top_k)
        if width == vocab_size or bool(is_complete.all()):
            break
    return ordered.masked_fill(ordered < edge, -math.inf), token_ids


def _column(values: Sequence[float], device: torch.device) -> torch.Tensor:
    """[num_rows, 1], float32."""
    return torch.tensor(values, dtype=torch.float32, device=device).unsqueeze(1)


def gumbel_noise(keys: Sequence[int], token_ids: torch.Tensor) -> torch.Tensor:
    """Gumbel(0, 1) noise, float32: a pure function of a row's key and the token id.

    Adding it to logits and taking the argmax draws from their softmax. The random bits are those
    of SplitMix64 at token id + 1 steps after the key, the same on every device.

    Args:
        keys: one per row.
        token_ids: [num_candidates] or [num_rows, num_candidates], int64.

    Returns:
        [num_rows, num_candidates].

    Source: Steele et al. 2014, "Fast splittable pseudorandom number generators"; Maddison et al.
    2014, arXiv:1411.0030.
    """
    rows = torch.tensor([[_signed(key)] for key in keys], device=token_ids.device)
    bits = (token_ids + 1) * _signed(0x9E3779B97F4A7C15) + rows
    bits ^= _shift_right(bits, 30)
    bits *= _signed(0xBF58476D1CE4E5B9)
    bits ^= _shift_right(bits, 27)
    bits *= _signed(0x94D049BB133111EB)
    bits ^= _shift_right(bits, 31)
    # 52 bits and a half: the number is exact, above 0 and below 1, so both logarithms are finite.
    uniform = _shift_right(bits, 12).double().add_(0.5).mul_(2.0**-52)
    noise: torch.Tensor = uniform.log_().neg_().log_().neg_()
    return noise.float()


def _noise_key(seed: int, position: int) -> int:
    """Mixes both, so that neighbouring seeds and positions have unrelated streams."""
    key = seed & (2**64 - 1)
    for value in (0x9E3779B97F4A7C15, position):
        key = (key + value) & (2**64 - 1)
        key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        key ^= key >> 31
    return key


def _signed(value: int) -> int:
    """The same 64 bits as torch's int64 holds them."""
    return value - 2**64 if value >= 2**63 else value


def _shift_right(bits: torch.Tensor, count: int) -> torch.Tensor:
    """Shifts without the sign."""
    shifted: torch.Tensor = bits >> count
    return shifted.bitwise_and_(2 ** (64 - count) - 1)
