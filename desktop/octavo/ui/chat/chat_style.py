"""How messages are set: type, measures and colours of the transcript, derived from the theme."""

import functools
from dataclasses import dataclass

from PySide6.QtGui import QFont, QFontMetrics

from octavo.ui.fonts import mono_font, ui_font, without_ligatures
from octavo.ui.tokens import (
    FONT_BODY,
    FONT_HEADING,
    FONT_MONO,
    FONT_READING,
    FONT_SMALL,
    RADIUS_CARD,
    SPACE_GROUP,
    SPACE_INSET,
    SPACE_TIGHT,
    SPACE_WITHIN,
    Theme,
    mix,
    scaled,
)

OVERHANG = SPACE_GROUP
"""How far a person's card reaches beyond the column, so that all text has one left edge."""
_MEASURE = "The quick brown fox jumps over the lazy dog, and then it rests a while."
"""72 characters of English: the width of a line of reading text."""
LINE_HEIGHT_PERCENT = 125
"""Inter's own lines are 1.21 of its size, so this sets prose at 1.5."""


@dataclass(frozen=True, slots=True)
class CodeColors:
    """Ink of highlighted code; every one readable on the well."""

    text: str
    comment: str
    keyword: str
    string: str
    number: str
    name: str
    builtin: str


@dataclass(frozen=True, slots=True)
class ChatStyle:
    """A theme at a type scale, as the transcript needs it."""

    theme: Theme
    scale: float = 1.0

    @property
    def reading_font(self) -> QFont:
        """Its code spans inherit what it does about ligatures."""
        return without_ligatures(ui_font(self.scale, FONT_READING))

    @property
    def code_font(self) -> QFont:
        return mono_font(self.scale, FONT_BODY)

    @property
    def paragraph_space(self) -> int:
        """Between the blocks of a message."""
        return scaled(SPACE_INSET, self.scale)

    @property
    def reading_width(self) -> int:
        return _reading_width(self.scale)

    @property
    def code_colors(self) -> CodeColors:
        """Hues of the data series, moved towards the ink until they are readable as text."""
        theme = self.theme
        accent, orange, blue, violet, olive, _ = (
            mix(color, theme.ink, 0.18) for color in theme.series
        )
        return CodeColors(theme.ink, theme.ink_soft, accent, orange, blue, violet, olive)

    @property
    def document_css(self) -> str:
        """The style sheet of a text segment's QTextDocument."""
        return _document_css(self.theme, self.scale)

    @property
    def transcript_css(self) -> str:
        """The Qt style sheet of the transcript: its editors stand on the ground they are put on."""
        theme = self.theme
        return f"""
        QPlainTextEdit#code, QPlainTextEdit#code:hover, QPlainTextEdit#code:focus {{
            background: transparent; border: none; padding: 0px; color: {theme.ink};
            font-family: "{FONT_MONO}"; font-size: {scaled(FONT_BODY, self.scale)}px;
        }}
        QToolButton#action {{
            padding: 0px; border: 2px solid transparent; color: {theme.ink_soft};
            font-size: {scaled(FONT_SMALL, self.scale)}px;
        }}
        QToolButton#action:focus {{ border-color: {theme.accent}; padding: 0px; }}
        """


@functools.cache
def _reading_width(scale: float) -> int:
    return QFontMetrics(ui_font(scale, FONT_READING)).horizontalAdvance(_MEASURE)


@functools.cache
def _document_css(theme: Theme, scale: float) -> str:
    def px(value: int) -> str:
        return f"{scaled(value, scale)}px"

    paragraph = px(SPACE_INSET)
    code = f"font-family: '{FONT_MONO}'; font-size: {px(FONT_BODY)}; background: {theme.well};"
    return f"""
    a {{ color: {theme.accent}; text-decoration: underline; }}
    p {{ margin-top: 0px; margin-bottom: {paragraph}; line-height: {LINE_HEIGHT_PERCENT}%; }}
    ul, ol {{ margin-top: 0px; margin-bottom: {paragraph}; }}
    li {{ margin-bottom: {px(SPACE_TIGHT)}; line-height: {LINE_HEIGHT_PERCENT}%; }}
    .h1 {{ font-size: {px(FONT_HEADING + 3)}; }}
    .h2 {{ font-size: {px(FONT_HEADING)}; }}
    .h3 {{ font-size: {px(FONT_READING + 1)}; }}
    .h1, .h2 {{ font-weight: 600; margin-top: {px(20)}; margin-bottom: {px(SPACE_WITHIN)}; }}
    .h3, .h4, .h5, .h6 {{ font-weight: 600; margin-top: {paragraph}; margin-bottom: {px(6)}; }}
    strong, th {{ font-weight: 600; }}
    code {{ {code} }}
    pre {{ {code} margin-top: 0px; margin-bottom: {paragraph}; line-height: 130%; }}
    blockquote {{
        color: {theme.ink_soft}; margin-top: 0px; margin-bottom: 0px; margin-right: 0px;
        margin-left: {px(quote_indent())};
    }}
    table {{ margin-top: {px(SPACE_TIGHT)}; margin-bottom: {paragraph}; }}
    th, td {{ padding: {px(6)} {px(20)} {px(6)} 2px; }}
    hr {{ background-color: {theme.rule}; }}
    """


def quote_indent() -> int:
    """Pixels at scale 1 that a quotation stands to the right of its rule."""
    return RADIUS_CARD * 2
