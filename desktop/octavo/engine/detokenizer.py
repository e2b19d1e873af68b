"""`IncrementalDetokenizer`: the text of a completion as its tokens arrive.

Only text that can no longer change goes out: bytes that do not make a character yet and ends that
may be the beginning of a stop string wait for the next token.
"""

import codecs
from collections.abc import Sequence

from octavo.engine.harmony import HarmonyChannels, is_harmony
from octavo.engine.tokenizer import Tokenizer

_LONGEST_CHARACTER_BYTES = 4


class IncrementalDetokenizer:
    """Turns one completion's tokens into text and looks for stop strings in it.

    What `push` and `finish` return, put together, is what `Tokenizer.decode` gives for the
    prompt and the completion, without the prompt's part, cut at the stop string that is complete
    first. If two are complete at the same character, the longer one counts.

    Of an answer in channels (gpt-oss), only what is meant for the person is text, unless special
    tokens are to be seen.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int],
        *,
        stop: tuple[str, ...] = (),
        min_tokens: int = 0,
        include_stop_str_in_output: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        self.stopped_by: str | None = None
        """The stop string that ended the text; None while none is complete."""
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_token_ids if skip_special_tokens else frozenset()
        self._channels = None
        ids = tokenizer.vocabulary.ids
        if skip_special_tokens and is_harmony(ids):
            self._channels = HarmonyChannels(ids, tokenizer.token_bytes, prompt_token_ids)
        self._stop = tuple(text for text in stop if text)
        self._min_tokens = min_tokens
        self._include_stop = include_stop_str_in_output
        self._num_tokens = 0
        self._held = ""
        # A stop string must end behind these first characters of `_held`, which min_tokens covers.
        self._num_exempt = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        end_of_prompt = self._end_of(prompt_token_ids)
        self._decoder.decode(end_of_prompt)
        self._strips_space = tokenizer.strips_leading_space and not end_of_prompt

    def push(self, token_id: int) -> str:
        """Takes the next token; returns the text that is certain now, often none."""
        if self.stopped_by is not None:
            return ""
        self._num_tokens += 1
        return self._release(self._decoder.decode(self._bytes_of(token_id)), final=False)

    def finish(self) -> str:
        """Returns what was held back; bytes that never became a character are one U+FFFD."""
        if self.stopped_by is not None:
            return ""
        return self._release(self._decoder.decode(b"", final=True), final=True)

    def _end_of(self, token_ids: Sequence[int]) -> bytes:
        """The prompt's last bytes: enough to know whether they end inside a character."""
        end = b""
        for token_id in reversed(token_ids):
            if len(end) >= _LONGEST_CHARACTER_BYTES:
                break
            if token_id not in self._hidden:
                end = self._tokenizer.token_bytes(token_id) + end
        return end

    def _bytes_of(self, token_id: int) -> bytes:
        is_shown = self._channels is None or self._channels.is_shown(token_id)
        if not is_shown or token_id in self._hidden:
            return b""
        encoded = self._tokenizer.token_bytes(token_id)
        if self._strips_space and encoded:
            self._strips_space = False
            return encoded.removeprefix(b" ")
        return encoded

    def _release(self, text: str, *, final: bool) -> str:
        if not self._stop:
            return text
        self._held += text
        if self._num_tokens <= self._min_tokens:
            self._num_exempt = len(self._held)
        elif (found := self._first_stop()) is not None:
            start, stop = found
            self.stopped_by = stop
            text = self._held[: start + len(stop) if self._include_stop else start]
            self._held = ""
            return text
        num_held = 0 if final else self._num_possible_stop()
        certain = len(self._held) - num_held
        text, self._held = self._held[:certain], self._held[certain:]
        self._num_exempt = max(0, self._num_exempt - certain)
        return text

    def _first_stop(self) -> tuple[int, str] | None:
        """Where the stop string that is complete first begins, and which it is."""
        found = []
        for stop in self._stop:
            start = self._held.find(stop, max(0, self._num_exempt - len(stop) + 1))
            if start >= 0:
                found.append((start + len(stop), start, stop))
        if not found:
            return None
        _, start, stop = min(found)
        return start, stop

    def _num_possible_stop(self) -> int:
        """Length of the longest end that is the beginning of a stop string."""
        longest = min(len(self._held), max(map(len, self._stop)) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
