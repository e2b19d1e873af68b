"""`LiteralTokens`: finds the tokens that stand in text exactly as they are written."""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

# White space and parts of words as the tokenizers library has them, which Python sees otherwise.
_BLANKS: Final = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
_JOINERS: Final = "\u200c\u200d"
_WORD_CATEGORIES: Final = frozenset({"Nd", "Nl", "Pc"})


@dataclass(frozen=True, slots=True)
class Manners:
    """What a token does to the text beside it."""

    strips_left: bool = False
    """It swallows the blanks before it."""
    strips_right: bool = False
    is_whole_word: bool = False
    """It counts only where no letter or digit touches it."""


_PLAIN: Final = Manners()


class LiteralTokens:
    """Tokens that text contains as they are written: the leftmost, the longest of several.

    A search costs the same however many tokens there are; some models have thousands.
    """

    def __init__(self, ids: Mapping[str, int], manners: Mapping[str, Manners]) -> None:
        self.ids = ids
        self._manners = {token: manner for token, manner in manners.items() if manner != _PLAIN}
        lengths: dict[str, set[int]] = {}
        for token in ids:
            lengths.setdefault(token[0], set()).add(len(token))
        self._lengths = {first: sorted(known, reverse=True) for first, known in lengths.items()}
        """Of the tokens with this first character, the longest first."""
        letters = "".join(map(re.escape, lengths))
        self._begin = re.compile(f"[{letters}]") if letters else None

    @property
    def longest(self) -> int:
        return max(map(len, self.ids), default=0)

    def find(self, text: str, start: int) -> tuple[int, int] | None:
        """Begin and end of the first token at or after `start`, whatever its manners."""
        if self._begin is None:
            return None
        for match in self._begin.finditer(text, start):
            begin = match.start()
            for length in self._lengths[match[0]]:
                if text[begin : begin + length] in self.ids and begin + length <= len(text):
                    return begin, begin + length
        return None

    def starts(self, text: str) -> Iterator[int]:
        """Where tokens begin, those that overlap included."""
        found = self.find(text, 0)
        while found is not None:
            yield found[0]
            found = self.find(text, found[0] + 1)

    def split(self, text: str) -> list[str | int]:
        """The ids of the tokens and the stretches of text between them, none of them empty."""
        pieces: list[str | int] = []
        done = 0
        found = self.find(text, 0)
        while found is not None:
            begin, end = found
            token = text[begin:end]
            manners = self._manners.get(token, _PLAIN)
            if not manners.is_whole_word or _stands_alone(text, begin, end):
                while manners.strips_left and begin > done and text[begin - 1] in _BLANKS:
                    begin -= 1
                while manners.strips_right and end < len(text) and text[end] in _BLANKS:
                    end += 1
                if begin > done:
                    pieces.append(text[done:begin])
                pieces.append(self.ids[token])
                done = end
            found = self.find(text, end)
        if done < len(text):
            pieces.append(text[done:])
        return pieces


def _stands_alone(text: str, begin: int, end: int) -> bool:
    return not (_is_of_word(text[begin - 1 : begin]) or _is_of_word(text[end : end + 1]))


def _is_of_word(character: str) -> bool:
    if not character:
        return False
    category = unicodedata.category(character)
    return category[0] in "LM" or category in _WORD_CATEGORIES or character in _JOINERS
