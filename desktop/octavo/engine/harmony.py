"""The message format of gpt-oss (Harmony): which tokens of an answer are meant for the person.

An answer is several messages, each with a header that names a channel: `analysis` is what the
model thinks, `commentary` what it says to tools, `final` what it says. Only the last is shown.

Source: https://cookbook.openai.com/articles/openai-harmony
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

START: Final = "<|start|>"
CHANNEL: Final = "<|channel|>"
MESSAGE: Final = "<|message|>"
END: Final = "<|end|>"
MARKERS: Final = (START, CHANNEL, MESSAGE, END, "<|constrain|>")
"""What stands between the parts of messages; `<|return|>` and `<|call|>` end the answer."""

_SHOWN: Final = "final"
_MAX_NAME_BYTES: Final = 256


def is_harmony(token_texts: Collection[str]) -> bool:
    """Whether a vocabulary is one of this format. `<|end|>` ends a message then, and no answer."""
    return all(text in token_texts for text in (START, CHANNEL, MESSAGE, "<|return|>"))


class HarmonyChannels:
    """Follows an answer token by token."""

    def __init__(
        self,
        ids: Mapping[str, int],
        token_bytes: Callable[[int], bytes],
        prompt_token_ids: Sequence[int],
    ) -> None:
        """Args:
        ids: of a vocabulary that `is_harmony`.
        token_bytes: a token's bytes.
        prompt_token_ids: what comes before; its last header may be still open.
        """
        self._token_bytes = token_bytes
        self._starts, self._channel = ids[START], ids[CHANNEL]
        self._message, self._ends = ids[MESSAGE], ids.get(END)
        # Text without any marker is no message of this format, but plain text.
        self._is_shown = True
        self._name: bytes | None = None
        """Of the header's channel, as far as it is known; None before a channel is named."""
        self._is_header = False
        last = len(prompt_token_ids) - 1
        while last > 0 and prompt_token_ids[last] != self._starts:
            last -= 1
        for token_id in prompt_token_ids[max(0, last) :]:
            self.is_shown(token_id)

    def is_shown(self, token_id: int) -> bool:
        """Takes the next token; whether its text is part of the answer."""
        if token_id in (self._starts, self._ends):
            self._is_header, self._name, self._is_shown = True, None, False
        elif token_id == self._channel:
            self._is_header, self._name, self._is_shown = True, b"", False
        elif token_id == self._message:
            # A message that names no channel is an answer, too.
            words = (_SHOWN.encode() if self._name is None else self._name).split()
            self._is_shown = words[:1] == [_SHOWN.encode()]
            self._is_header = False
        elif self._is_header and self._name is not None and len(self._name) < _MAX_NAME_BYTES:
            self._name += self._token_bytes(token_id)
        return self._is_shown
