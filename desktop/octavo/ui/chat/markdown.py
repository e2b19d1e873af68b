"""Markdown for the transcript: text split into top-level blocks as it grows, and blocks as HTML.

Nothing here knows Qt. A text is cut into blocks line by line, so that the same text gives the same
blocks however it arrives; all blocks but the last are final and never have to be rendered again.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

_OPENING_FENCE = re.compile(
    r"^(?P<indent> {0,3})(?P<fence>`{3,}(?=[^`]*$)|~{3,})[ \t]*(?P<language>[^\s`{]*)"
)
_UNDECIDED_LINE = re.compile(r"^[ \t]*(?:[-=*_+#>|:`~. \t]+|\d{1,9}[.)]?)$")
"""A last line that may still turn the text before it into a heading, a table or a list."""


@dataclass(frozen=True, slots=True)
class TextBlock:
    """One top-level block that is shown as text: paragraph, heading, list, quote, table, rule."""

    source: str


@dataclass(frozen=True, slots=True)
class CodeBlock:
    """One fenced block of code."""

    source: str
    language: str
    """As written after the fence, lower case; empty if nothing is."""
    code: str
    """What stands between the fences, without the last line's end."""


Block = TextBlock | CodeBlock


class BlockStream:
    """Cuts a growing text into top-level blocks.

    Invariant: the sources of all blocks, joined, are the text with its line ends as `\\n`.
    """

    def __init__(self) -> None:
        self._tail = ""
        self._ended_with_return = False

    @property
    def tail(self) -> str:
        """The source of the last block, which may still change."""
        return self._tail

    def feed(self, text: str) -> list[Block]:
        """Adds text and returns the blocks that became final by it."""
        self._tail += self._with_newlines(text)
        if "\n" not in text and "\r" not in text:
            return []
        lines = self._tail.split("\n")
        partial = lines.pop()
        if self._is_inside_fence(lines):
            return []
        starts = _block_starts("".join(f"{line}\n" for line in lines))
        if len(starts) < 2:
            return []
        finished: list[Block] = []
        begin = 0
        for start in starts[1:]:
            finished.append(_block("".join(f"{line}\n" for line in lines[begin:start])))
            begin = start
        self._tail = "".join(f"{line}\n" for line in lines[begin:]) + partial
        return finished

    def last_block(self) -> Block | None:
        """The block that still grows; None while nothing of it can be shown.

        A fence is shown from the end of its first line on: before that its language is not known.
        """
        if not self._tail.strip():
            return None
        lines = self._tail.split("\n")
        first = _first_text_line(lines)
        if first == len(lines) - 1 and _OPENING_FENCE.match(lines[first]):
            return None
        return _block(self._tail)

    def finish(self) -> list[Block]:
        """Ends the text and returns the blocks that were not final before."""
        blocks = self.feed("" if self._tail.endswith("\n") else "\n")
        last = self.last_block()
        return blocks if last is None else [*blocks, last]

    def growing_block(self) -> Block | None:
        """As `last_block`, without a last line that is not yet known to be text.

        Otherwise a dash that begins a list would show its paragraph as a heading for one frame.
        """
        block = self.last_block()
        if not isinstance(block, TextBlock):
            return block
        settled, newline, line = block.source.rpartition("\n")
        if not _UNDECIDED_LINE.match(line):
            return block
        return TextBlock(settled + newline) if settled.strip() else None

    def _with_newlines(self, text: str) -> str:
        """All line ends as `\\n`, also where a chunk ends between `\\r` and `\\n`."""
        if self._ended_with_return and text.startswith("\n"):
            text = text[1:]
            self._ended_with_return = False
        if text:
            self._ended_with_return = text.endswith("\r")
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def _is_inside_fence(self, lines: Sequence[str]) -> bool:
        """Whether the tail is one fence that no complete line has closed: nothing to parse then."""
        first = _first_text_line(lines)
        opening = _OPENING_FENCE.match(lines[first]) if lines else None
        return opening is not None and not any(
            _closes(opening["fence"], line) for line in lines[first + 1 :]
        )


def split_blocks(text: str) -> list[Block]:
    """All blocks of a finished text."""
    stream = BlockStream()
    return [*stream.feed(text), *stream.finish()]


def render_html(source: str) -> str:
    """One or more text blocks as HTML, for a QTextDocument; HTML in the source stays text."""
    # Loaded with the first message: the window is painted without it.
    from octavo.ui.chat.markdown_parsers import full_parser

    rendered: str = full_parser().render(source)
    # Qt shows the last line's end as a space.
    return rendered.rstrip("\n")


def render_plain_html(source: str) -> str:
    """Text as a person typed it: nothing is markup, line ends and spaces stay."""
    return f'<p style="white-space: pre-wrap">{html.escape(source.strip(chr(10)))}</p>'


def _block_starts(source: str) -> list[int]:
    """The line each top-level block begins with."""
    from octavo.ui.chat.markdown_parsers import block_parser

    return [
        token.map[0]
        for token in block_parser().parse(source)
        if token.level == 0 and token.map is not None and token.nesting >= 0
    ]


def _block(source: str) -> Block:
    lines = source.split("\n")
    first = _first_text_line(lines)
    opening = _OPENING_FENCE.match(lines[first])
    if opening is None:
        return TextBlock(source)
    fence = opening["fence"]
    body = lines[first + 1 :]
    end = next((number for number, line in enumerate(body) if _closes(fence, line)), None)
    if end is None:
        # The fence is still open: an empty last line, or one that begins to close it, is not code.
        end = len(body) - 1 if body and _may_close(fence, body[-1]) else len(body)
    indent = len(opening["indent"])
    code = "\n".join(_without_indent(line, indent) for line in body[:end])
    return CodeBlock(source, opening["language"].lower(), code)


def _first_text_line(lines: Sequence[str]) -> int:
    return next((number for number, line in enumerate(lines) if line.strip()), 0)


def _closes(fence: str, line: str) -> bool:
    stripped = line.strip()
    indent = len(line) - len(line.lstrip(" "))
    return indent < 4 and len(stripped) >= len(fence) and stripped == fence[0] * len(stripped)


def _may_close(fence: str, line: str) -> bool:
    stripped = line.strip()
    return stripped == fence[0] * len(stripped)


def _without_indent(line: str, indent: int) -> str:
    return line[min(indent, len(line) - len(line.lstrip(" "))) :]
