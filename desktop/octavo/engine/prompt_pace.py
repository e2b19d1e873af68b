"""`PromptPace`: how much of prompts a step may compute while others' answers are being streamed."""

from octavo.engine.model_config import ModelConfig
from octavo.engine.sequence import ScheduledBatch

STREAMED_STEP_S = 0.1
"""What a step beside running streams may take: ten tokens a second, faster than people read."""
STREAMED_CPU_STEP_S = 0.5
"""The same on a processor, where small steps of prompts cost everybody more."""
_LEAST_TOKENS = 128
"""Less than this a step takes no less time, as weights are read all the same. Products are fastest
with multiples of it."""
_ATTENTION_FACTOR = 2.5
"""So many times as long as a product an operation of attention to cached tokens takes."""


def attention_reach(model: ModelConfig) -> int:
    """Tokens of context to which attention takes as long as all products together."""
    query_size = model.num_heads * model.head_dim * model.num_layers
    return max(1, int(model.num_parameters / (2 * query_size * _ATTENTION_FACTOR)))


class PromptPace:
    """Learns from steps how many tokens this machine computes within a time.

    Alone, a prompt gets the whole token budget of a step: the more tokens at once, the faster. But
    a step of 16,384 tokens can take half a second, in which no stream gets a token.

    Tokens count the more the more context they have, so that the end of a long prompt takes no
    longer steps than its beginning.
    """

    def __init__(
        self,
        max_num_batched_tokens: int,
        *,
        reach: int | None = None,
        step_s: float = STREAMED_STEP_S,
    ) -> None:
        """Args:
        max_num_batched_tokens: of any step.
        reach: the model's `attention_reach`; None: context costs nothing.
        step_s: what a step beside streams may take.
        """
        self._step_s = step_s
        self._configured = self._most = max_num_batched_tokens
        self._least = min(_LEAST_TOKENS, max_num_batched_tokens)
        self._reach = reach
        # Of tokens without context. A guess, until something has been measured.
        self._tokens: float = max(self._least, max_num_batched_tokens // 8)

    def step_budget(self, num_decodes: int, num_context_tokens: int = 0) -> int:
        """Tokens of the next step.

        Args:
            num_decodes: sequences that get one token each.
            num_context_tokens: what the prompt that comes first has behind it.
        """
        if num_decodes == 0:
            return self._most
        budget = num_decodes + int(self._tokens / self._weight(num_context_tokens))
        if budget >= num_decodes + 2 * self._least:
            budget -= budget % self._least
        budget = min(self._most, max(budget, num_decodes + self._least))
        # However short memory is, nobody who runs is left out.
        return max(budget, min(num_decodes + 1, self._configured))

    def lower(self, num_tokens: int) -> None:
        """Makes every step smaller from now on, also without streams: memory is short."""
        self._most = max(1, min(self._most, num_tokens))
        self._least = min(self._least, self._most)

    def work(self, batch: ScheduledBatch) -> float:
        """How many tokens without context would take as long."""
        return sum(
            item.num_tokens * self._weight(item.start + item.num_tokens // 2)
            for item in batch.sequences
        )

    def note(self, work: float, seconds: float) -> None:
        """Takes in how long the device was busy with so much work."""
        if work >= self._least and seconds > 0:
            self._tokens = work * self._step_s / seconds

    def _weight(self, num_context_tokens: int) -> float:
        return 1.0 if self._reach is None else 1.0 + num_context_tokens / self._reach
