"""What a message consists of on the page: runs of text and blocks of code, kept up as it grows."""

from dataclasses import dataclass

from octavo.chats.message import Message, MessageStatus, Role
from octavo.ui.chat.markdown import (
    Block,
    BlockStream,
    CodeBlock,
    TextBlock,
    render_html,
    render_plain_html,
)

MAX_RUN_CHARACTERS = 3000
"""A longer run of text is continued in a new one, so that a frame never renders more than this
and the block that grows."""


@dataclass(frozen=True, slots=True)
class TextRun:
    """Consecutive text blocks that one document shows."""

    html: str


@dataclass(frozen=True, slots=True)
class CodeRun:
    """A block of code of its own."""

    language: str
    code: str
    is_growing: bool


Run = TextRun | CodeRun


class MessageContent:
    """The runs of one message. Blocks that are final are rendered once; the last as it grows.

    Invariant: the runs depend on the text alone, not on the pieces it came in.
    """

    def __init__(self, role: Role) -> None:
        self._render = render_html if role is Role.ASSISTANT else render_plain_html
        self._stream = BlockStream()
        self._text = ""
        self._is_finished = False
        self._frozen: list[Run] = []
        self._open_html = ""
        """Of the text run that still takes blocks."""
        self._open_characters = 0

    def show(self, message: Message) -> bool:
        """Takes a newer snapshot; False if it does not continue the text shown so far."""
        if self._is_finished:
            return message.content == self._text
        if not message.content.startswith(self._text):
            return False
        for block in self._stream.feed(message.content[len(self._text) :]):
            self._freeze(block)
        self._text = message.content
        if message.status is not MessageStatus.STREAMING:
            self._is_finished = True
            for block in self._stream.finish():
                self._freeze(block)
        return True

    def runs(self) -> list[Run]:
        """Everything that can be shown by now."""
        runs = list(self._frozen)
        block = None if self._is_finished else self._stream.growing_block()
        open_html = self._open_html
        if isinstance(block, TextBlock):
            open_html += self._render(block.source)
        if open_html:
            runs.append(TextRun(open_html))
        if isinstance(block, CodeBlock):
            runs.append(CodeRun(block.language, block.code, is_growing=True))
        return runs

    @property
    def num_frozen_runs(self) -> int:
        """How many of the runs will never change again."""
        return len(self._frozen)

    def _freeze(self, block: Block) -> None:
        if isinstance(block, CodeBlock):
            self._close_run()
            self._frozen.append(CodeRun(block.language, block.code, is_growing=False))
            return
        self._open_html += self._render(block.source)
        self._open_characters += len(block.source)
        if self._open_characters > MAX_RUN_CHARACTERS:
            self._close_run()

    def _close_run(self) -> None:
        if self._open_html.strip():
            self._frozen.append(TextRun(self._open_html))
        self._open_html = ""
        self._open_characters = 0
