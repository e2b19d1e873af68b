"""`CodeSegment`: one fenced block of code, highlighted, with its language and a Copy button."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping

from PySide6.QtCore import QSize, Qt, QTimer
from PySide6.QtGui import (
    QColor,
    QGuiApplication,
    QPainter,
    QPaintEvent,
    QResizeEvent,
    QSyntaxHighlighter,
    QTextCharFormat,
    QTextCursor,
    QTextDocument,
    QWheelEvent,
)
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QPlainTextEdit, QToolButton, QWidget

from octavo.ui.chat.chat_style import ChatStyle, CodeColors
from octavo.ui.icons import icon
from octavo.ui.tokens import RADIUS_CARD, SPACE_INSET, SPACE_TIGHT, SPACE_WITHIN, scaled

RELEX_INTERVAL_MS = 250
"""Growing code is lexed as a whole, so not at every frame."""
RELEX_COST_SHARE = 0.05
"""Lexing code that is so long that it takes more of the time than this waits longer."""
IMMEDIATE_LEX_CHARACTERS = 4000
COPIED_NOTE_MS = 1500
HEADER_HEIGHT = 32
SCROLL_BAR_HEIGHT = 12

_Formats = list[tuple[int, int, str]]
"""Of one line: (column, length, name of a field of CodeColors)."""
Lex = Callable[[str, str], Mapping[int, _Formats]]

_TOKEN_COLORS = (
    ("Token.Comment", "comment"),
    ("Token.Keyword.Constant", "number"),
    ("Token.Keyword.Type", "builtin"),
    ("Token.Keyword", "keyword"),
    ("Token.Operator.Word", "keyword"),
    ("Token.Literal.String", "string"),
    ("Token.Literal.Number", "number"),
    ("Token.Name.Builtin", "builtin"),
    ("Token.Name.Class", "name"),
    ("Token.Name.Function", "name"),
    ("Token.Name.Decorator", "name"),
    ("Token.Name.Tag", "keyword"),
    ("Token.Name.Attribute", "name"),
    ("Token.Generic.Deleted", "string"),
    ("Token.Generic.Inserted", "keyword"),
    ("Token.Generic.Heading", "name"),
)


class CodeHighlighter(QSyntaxHighlighter):
    """Colours code by pygments' tokens; lines whose tokens did not change are left alone."""

    def __init__(self, document: QTextDocument, colors: CodeColors, lex: Lex | None = None) -> None:
        super().__init__(document)
        self._lex = lex or lex_code
        self._language = ""
        self._lines: Mapping[int, _Formats] = {}
        self._lexed: tuple[str, str] | None = None
        self._formats: dict[str, QTextCharFormat] = {}
        self._timer = QTimer(self, singleShot=True, interval=RELEX_INTERVAL_MS)
        self._timer.timeout.connect(self.relex)
        self.set_colors(colors)

    def set_colors(self, colors: CodeColors) -> None:
        self._formats = {}
        for name in CodeColors.__dataclass_fields__:
            char_format = QTextCharFormat()
            char_format.setForeground(QColor(getattr(colors, name)))
            self._formats[name] = char_format
        if self._lines:
            self.rehighlight()

    def set_language(self, language: str) -> None:
        self._language = language

    def text_changed(self, *, is_growing: bool) -> None:
        """Lexes now, or soon while the code grows."""
        if is_growing or self.document().characterCount() > IMMEDIATE_LEX_CHARACTERS:
            if not self._timer.isActive():
                self._timer.start()
        else:
            self._timer.stop()
            self.relex()

    def relex(self) -> None:
        """Lexes the whole code and colours the lines that came out differently."""
        source = (self._language, self.document().toPlainText())
        if source == self._lexed:
            return
        began = time.perf_counter()
        self._lexed = source
        before, self._lines = self._lines, self._lex(*source)
        block = self.document().begin()
        while block.isValid():
            number = block.blockNumber()
            if before.get(number) != self._lines.get(number):
                self.rehighlightBlock(block)
            block = block.next()
        cost_ms = (time.perf_counter() - began) * 1000
        self._timer.setInterval(max(RELEX_INTERVAL_MS, int(cost_ms / RELEX_COST_SHARE)))

    def highlightBlock(self, _text: str) -> None:
        for column, length, name in self._lines.get(self.currentBlock().blockNumber(), ()):
            self.setFormat(column, length, self._formats[name])


def lex_code(language: str, source: str) -> Mapping[int, _Formats]:
    """Lines and the colours in them; nothing for a language pygments does not know."""
    # Imported at the first block of code: the window's start does not wait for it.
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    if not language:
        return {}
    try:
        lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return {}
    lines: defaultdict[int, _Formats] = defaultdict(list)
    number = column = 0
    for token, value in lexer.get_tokens(source):
        name = _color_name(str(token))
        for index, part in enumerate(value.split("\n")):
            if index:
                number, column = number + 1, 0
            length = utf16_length(part)
            if name and part.strip():
                lines[number].append((column, length, name))
            column += length
    return lines


def utf16_length(text: str) -> int:
    """Qt counts in UTF-16: an emoji is two columns."""
    return len(text) + sum(character > "\uffff" for character in text)


def _color_name(token: str) -> str:
    return next((name for prefix, name in _TOKEN_COLORS if token.startswith(prefix)), "")


class CodeSegment(QFrame):
    """A frame on the well: a header with language and Copy, under it the code, never wrapped."""

    def __init__(self, parent: QWidget, style: ChatStyle) -> None:
        super().__init__(parent)
        self._style = style
        self._code = ""
        self._header = QWidget(self)
        self._language_label = QLabel(self._header)
        self._language_label.setProperty("role", "caption")
        self.copy_button = QToolButton(self._header)
        self.copy_button.setObjectName("action")
        self.copy_button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.copy_button.setToolTip("Copy this code")
        self.copy_button.clicked.connect(self.copy_code)
        row = QHBoxLayout(self._header)
        row.setContentsMargins(SPACE_INSET, 0, SPACE_TIGHT, 0)
        row.addWidget(self._language_label)
        row.addStretch(1)
        row.addWidget(self.copy_button)
        self.editor = _CodeEdit(self)
        self.highlighter = CodeHighlighter(self.editor.document(), style.code_colors)
        self._note_timer = QTimer(self, singleShot=True, interval=COPIED_NOTE_MS)
        self._note_timer.timeout.connect(self._show_copy)
        self.set_style(style)

    @property
    def code(self) -> str:
        return self._code

    @property
    def language(self) -> str:
        return self._language_label.text()

    @property
    def selected_text(self) -> str:
        return self.editor.textCursor().selection().toPlainText()

    def set_style(self, style: ChatStyle) -> None:
        self._style = style
        self.editor.setFont(style.code_font)
        self.highlighter.set_colors(style.code_colors)
        self._show_copy()
        self.update()

    def set_code(self, language: str, code: str, *, is_growing: bool = False) -> None:
        """Shows code; where it only grew, the text before stays as it is."""
        if language != self.language:
            self._language_label.setText(language or "text")
            self.highlighter.set_language(language)
            self.editor.setAccessibleName(f"{language} code".strip().capitalize())
            self.copy_button.setAccessibleName(f"Copy {language} code".replace("  ", " "))
        if code != self._code:
            if self._code and code.startswith(self._code):
                cursor = QTextCursor(self.editor.document())
                cursor.movePosition(QTextCursor.MoveOperation.End)
                cursor.insertText(code[len(self._code) :])
            else:
                self.editor.setPlainText(code)
            self._code = code
        self.highlighter.text_changed(is_growing=is_growing)

    def height_for(self, width: int) -> int:
        """The height of header and all lines, with room for a scroll bar where it is needed."""
        # The style sheet sets the font; before it does, lines have another height.
        self.editor.ensurePolished()
        document = self.editor.document()
        layout = document.documentLayout()
        # Lines are never wrapped, so all have the height of the first.
        line_height = layout.blockBoundingRect(document.begin()).height()
        lines = math.ceil(line_height * self.editor.blockCount())
        margin = 2 * int(document.documentMargin()) + SPACE_WITHIN
        inner = width - 2 * self._inset
        # Qt's width of the document is never below what the editor had at its last layout.
        needs_bar = layout.documentSize().width() > inner and self._has_line_beyond(inner)
        bar = SCROLL_BAR_HEIGHT if needs_bar else 0
        # Decided here: left to Qt, the bar comes and goes after the height has been taken.
        policy = Qt.ScrollBarPolicy
        self.editor.setHorizontalScrollBarPolicy(
            policy.ScrollBarAlwaysOn if needs_bar else policy.ScrollBarAlwaysOff
        )
        return self._header_height + lines + margin + bar + 2

    def copy_code(self) -> None:
        """Puts the code, as the model wrote it, on the clipboard."""
        QGuiApplication.clipboard().setText(self._code)
        self.copy_button.setText("Copied")
        self.copy_button.setIcon(icon("check", self._style.theme.good))
        self._note_timer.start()

    def resizeEvent(self, _event: QResizeEvent) -> None:
        width, height = self.width(), self.height()
        self._header.setGeometry(1, 1, width - 2, self._header_height)
        top = self._header_height + 1
        self.editor.setGeometry(self._inset, top, width - 2 * self._inset, max(0, height - top - 1))

    def paintEvent(self, _event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QColor(self._style.theme.rule))
        painter.setBrush(QColor(self._style.theme.well))
        area = self.rect().toRectF().adjusted(0.5, 0.5, -0.5, -0.5)
        painter.drawRoundedRect(area, RADIUS_CARD, RADIUS_CARD)
        painter.end()

    def _has_line_beyond(self, width: int) -> bool:
        document = self.editor.document()
        free = width - 2 * document.documentMargin()
        block = document.begin()
        while block.isValid():
            # Asking for its place is what lays a line out.
            document.documentLayout().blockBoundingRect(block)
            if block.layout().lineAt(0).naturalTextWidth() > free:
                return True
            block = block.next()
        return False

    @property
    def _header_height(self) -> int:
        return scaled(HEADER_HEIGHT, self._style.scale)

    @property
    def _inset(self) -> int:
        return SPACE_INSET

    def _show_copy(self) -> None:
        size = scaled(14, self._style.scale)
        self.copy_button.setIconSize(QSize(size, size))
        self.copy_button.setIcon(icon("copy", self._style.theme.ink_soft))
        self.copy_button.setText("Copy")


class _CodeEdit(QPlainTextEdit):
    """Read-only code that scrolls sideways only; the wheel scrolls the transcript."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setObjectName("code")
        self.setReadOnly(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.setTabChangesFocus(True)
        self.setUndoRedoEnabled(False)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse
            | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )
        self.document().setDocumentMargin(SPACE_WITHIN // 2)
        self.viewport().setAutoFillBackground(False)

    def wheelEvent(self, event: QWheelEvent) -> None:
        is_sideways = (
            abs(event.angleDelta().x()) > abs(event.angleDelta().y())
            or event.modifiers() & Qt.KeyboardModifier.ShiftModifier
        )
        if is_sideways:
            super().wheelEvent(event)
        else:
            event.ignore()
