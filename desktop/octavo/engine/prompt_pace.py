"""`PromptPace`: how much of prompts a step may compute while others' answers are being streamed."""

STREAMED_STEP_S = 0.1
"""What a step beside running streams may take: ten tokens a second, faster than people read."""
_LEAST_TOKENS = 128
"""Less than this a step takes no less time, as weights are read all the same."""


class PromptPace:
    """Learns from steps how many tokens this machine computes within `STREAMED_STEP_S`.

    Alone, a prompt gets the whole token budget of a step: the more tokens at once, the faster. But
    a step of 16,384 tokens can take half a second, in which no stream gets a token.
    """

    def __init__(self, max_num_batched_tokens: int) -> None:
        self._configured = self._most = max_num_batched_tokens
        self._least = min(_LEAST_TOKENS, max_num_batched_tokens)
        # A guess, until something has been measured.
        self._tokens = max(self._least, max_num_batched_tokens // 8)

    def step_budget(self, num_decodes: int) -> int:
        """Tokens of the next step, if so many sequences get one token each."""
        if num_decodes == 0:
            return self._most
        budget = min(self._most, num_decodes + self._tokens)
        # However short memory is, nobody who runs is left out.
        return max(budget, min(num_decodes + 1, self._configured))

    def lower(self, num_tokens: int) -> None:
        """Makes every step smaller from now on, also without streams: memory is short."""
        self._most = max(1, min(self._most, num_tokens))
        self._least = min(self._least, self._most)
        self._tokens = min(self._tokens, self._most)

    def note(self, num_tokens: int, seconds: float) -> None:
        """Takes in how long the device was busy with so many tokens."""
        if num_tokens < self._least or seconds <= 0:
            return
        fitting = int(num_tokens * STREAMED_STEP_S / seconds)
        self._tokens = max(self._least, min(self._most, fitting))
