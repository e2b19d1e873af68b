"""The Markdown library as the transcript uses it: what it understands, and the HTML it makes."""

import functools
import html
from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict


class _Renderer(RendererHTML):
    """HTML with the attributes QTextDocument needs where it does not know the style sheet's."""

    def heading_open(
        self, tokens: Sequence[Token], index: int, _options: OptionsDict, _env: EnvType
    ) -> str:
        """A paragraph of a class: QTextDocument enlarges its own headings on top of any size."""
        return f'<p class="{tokens[index].tag}">'

    def heading_close(
        self, _tokens: Sequence[Token], _index: int, _options: OptionsDict, _env: EnvType
    ) -> str:
        return "</p>\n"

    def table_open(
        self, _tokens: Sequence[Token], _index: int, _options: OptionsDict, _env: EnvType
    ) -> str:
        return '<table border="0" cellspacing="0">\n'

    def fence(
        self, tokens: Sequence[Token], index: int, _options: OptionsDict, _env: EnvType
    ) -> str:
        """A fence inside a list or quote: without the last line's end, which Qt shows as a line."""
        return f"<pre>{html.escape(tokens[index].content.rstrip(chr(10)))}</pre>\n"

    def image(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        """An image is never fetched: its description and address are shown as a link."""
        token = tokens[index]
        label = self.renderInlineAsText(token.children or [], options, env) or "image"
        address = html.escape(str(token.attrs.get("src", "")))
        return f'<a href="{address}">{html.escape(label)}</a>'


@functools.cache
def full_parser() -> MarkdownIt:
    """Makes HTML of a whole text."""
    parser = MarkdownIt("commonmark", {"html": False}, renderer_cls=_Renderer)
    return parser.enable(["table", "strikethrough"])


@functools.cache
def block_parser() -> MarkdownIt:
    """Finds block starts only.

    Without link definitions: one that spans lines would join blocks that are already final.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    return parser.disable(["inline", "reference"])
