"""`Sampler`: from logits to the next token of each sequence.

Stateless: the random numbers of a token are a function of its sequence's seed and its position,
so a result depends neither on the other sequences of the batch nor on preemption.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from octavo.engine.logits_processing import process_logits
from octavo.engine.request import TokenLogprob
from octavo.engine.sampling_params import SamplingParams
from octavo.engine.sequence import Sequence as TokenSequence
from octavo.engine.step_memory import SAMPLED_ROWS
from octavo.engine.truncation import column, exclude_top_choices, likeliest
from octavo.errors import EngineError

_XTC_STREAM = 0x7C1D5B4F3A2E9687
"""Sets the coins of XTC apart from the noise of the draw."""
_LOWEST_TEMPERATURE = 1e-30
"""As good as greedy, and float32 can divide by it."""


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What one call of the sampler chose, in the order of its rows."""

    token_ids: list[int]
    logprobs: dict[int, TokenLogprob]
    """By row, for the sequences that ask."""


class Sampler:
    """Applies each sequence's sampling parameters to its row of logits.

    The steps, in this order; a row that asks for none of them only pays for its argmax:
    those of `process_logits`; then greedy, or temperature, top-k, top-p, min-p, XTC, draw.
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
        process_logits(logits, sequences, self._stop_token_ids)
        best = logits.max(-1)
        # A row with any NaN has NaN as its maximum; one with an infinity cannot be normalised.
        if not bool(best.values.isfinite().all()):
            raise not_finite_error()
        token_ids: list[int] = best.indices.tolist()
        # Apart, for truncation would sort the vocabulary for a row that keeps all of it.
        whole = [row for row, one in enumerate(params) if not (one.is_greedy or one.truncates)]
        cut = [row for row, one in enumerate(params) if one.truncates and not one.is_greedy]
        for kind in (whole, cut):
            for start in range(0, len(kind), SAMPLED_ROWS):
                rows = kind[start : start + SAMPLED_ROWS]
                scores = logits[rows].sub_(best.values[rows].unsqueeze(1))
                drawn = self._draw(scores, [sequences[row] for row in rows])
                for row, token_id in zip(rows, drawn, strict=True):
                    token_ids[row] = token_id
        logprobs: dict[int, TokenLogprob] = {}
        if raw is not None:
            chosen = [token_ids[row] for row in asking]
            counts = [params[row].logprobs or 0 for row in asking]
            logprobs = dict(zip(asking, gather_logprobs(raw, chosen, counts), strict=True))
        return SampledTokens(token_ids, logprobs)

    def _draw(self, scores: torch.Tensor, sequences: Sequence[TokenSequence]) -> list[int]:
        """Draws a token per row; either all rows truncate or none does.

        Args:
            scores: [num_rows, vocab_size], logits less their maximum; may be changed.
            sequences: one per row.
        """
        params = [sequence.sampling_params for sequence in sequences]
        temperatures = [draw_temperature(item) for item in params]
        scores.div_(column(temperatures, scores.device))
        if params[0].truncates:
            scores, token_ids = likeliest(scores, params)
        else:
            token_ids = torch.arange(scores.shape[-1], device=scores.device).unsqueeze(0)
        thresholds = [_xtc_threshold(sequence) for sequence in sequences]
        if min(thresholds) < 1.0:
            exclude_top_choices(scores, token_ids, thresholds, self._stop_token_ids)
        keys = [noise_key(sequence.seed, sequence.num_tokens) for sequence in sequences]
        best = scores.add_(gumbel_noise(keys, token_ids)).argmax(-1, keepdim=True)
        drawn: list[int] = token_ids.expand(len(keys), -1).gather(-1, best).flatten().tolist()
        return drawn


def draw_temperature(params: SamplingParams) -> float:
    """The temperature, such that float32 can divide by it; 0: greedy."""
    return 0.0 if params.is_greedy else max(params.temperature, _LOWEST_TEMPERATURE)


def not_finite_error() -> EngineError:
    """The error for logits that are NaN or infinite."""
    return EngineError(
        "The model returned logits that are not finite numbers.",
        hint="The file may be damaged; remove the model and download it again. If dtype is"
        " float16, try bfloat16 or float32.",
    )


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


def _xtc_threshold(sequence: TokenSequence) -> float:
    """The threshold if XTC's coin falls for it at this position, else 1, above which is nothing."""
    params = sequence.sampling_params
    if params.xtc_probability == 0.0:
        return 1.0
    coin = noise_key(sequence.seed ^ _XTC_STREAM, sequence.num_tokens) / 2**64
    return params.xtc_threshold if coin < params.xtc_probability else 1.0


def gumbel_noise(keys: Sequence[int], token_ids: torch.Tensor) -> torch.Tensor:
    """Gumbel(0, 1) noise, float32: a pure function of a row's key and the token id.

    Adding it to logits and taking the argmax draws from their softmax. The random bits are those
    of SplitMix64 at token id + 1 steps after the key, the same on every device.

    Args:
        keys: one per row.
        token_ids: [num_candidates], [1 or num_rows, num_candidates], int64.

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


def noise_key(seed: int, position: int) -> int:
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
