"""What goes into the engine and what comes out: frozen, picklable, no torch."""

from dataclasses import dataclass, field
from enum import StrEnum

from octavo.engine.sampling_params import SamplingParams


class FinishReason(StrEnum):
    """Why a completion ended, in the OpenAI API's words."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt in token ids and how to continue it."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0
    """Lower runs first and is preempted last."""
    cache_salt: str = ""
    """Requests share cached prompt blocks only under the same salt."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithm of the raw model's probability of one token, and of the likeliest ones."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, logprob), likeliest first."""


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """The numbers of one completion, known when it ends."""

    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens whose keys and values came from the prefix cache."""
    output_tokens: int
    queue_s: float
    time_to_first_token_s: float
    total_s: float

    @property
    def time_per_output_token_s(self) -> float | None:
        """Mean gap between tokens after the first; None below two tokens."""
        if self.output_tokens < 2:
            return None
        return (self.total_s - self.time_to_first_token_s) / (self.output_tokens - 1)

    @property
    def tokens_per_second(self) -> float | None:
        """Decode rate after the first token; None below two tokens."""
        gap = self.time_per_output_token_s
        return None if not gap else 1.0 / gap


@dataclass(frozen=True, slots=True)
class GenerationDelta:
    """What one step added to one completion of a request.

    `text` may lag behind `token_ids`: incomplete UTF-8 and possible stop strings are held back.
    """

    request_id: str
    index: int = 0
    """Which of the request's n completions."""
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    """With the first delta, if asked for; None for the first prompt token."""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended it; None for end of text."""
    metrics: RequestMetrics | None = None
    """With the last delta."""
    error: Exception | None = None
    """With finish reason `error` or a refusal: what to tell the person (an OctavoError)."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine at the end of a step."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    """Blocks that can be handed out; the null block is not counted. This and the next two count the
    first KV group: the layers that see the whole context, where there are such."""
    num_used_blocks: int = 0
    num_cached_blocks: int = 0
    """Free blocks that still hold a cached prefix."""
    block_size: int = 0
    prefix_queried_tokens: int = 0
    prefix_hit_tokens: int = 0
    num_steps: int = 0
    prompt_tokens_computed: int = 0
    output_tokens: int = 0

    @property
    def num_free_blocks(self) -> int:
        return self.num_blocks - self.num_used_blocks
