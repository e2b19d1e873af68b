"""Text and code segments: exact height, nothing fetched, colours that can be read."""

from collections.abc import Mapping

import pytest
from PySide6.QtCore import QUrl
from PySide6.QtGui import (
    QColor,
    QFont,
    QFontMetrics,
    QGuiApplication,
    QTextCursor,
    QTextDocument,
    QTextTable,
)
from PySide6.QtWidgets import QApplication, QWidget

from octavo.ui.chat.chat_style import ChatStyle, CodeColors
from octavo.ui.chat.code_segment import CodeHighlighter, CodeSegment, lex_code
from octavo.ui.chat.markdown import render_html
from octavo.ui.chat.text_segment import TextSegment
from octavo.ui.tokens import DARK, LIGHT, Theme
from tests.ui.conftest import until


@pytest.fixture
def parent(app: QApplication) -> QWidget:
    return QWidget()


def luminance(color: str) -> float:
    channels = [QColor(color).redF(), QColor(color).greenF(), QColor(color).blueF()]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_code_can_be_read(theme: Theme) -> None:
    colors = ChatStyle(theme).code_colors
    for name in CodeColors.__dataclass_fields__:
        dark, light = sorted((luminance(getattr(colors, name)), luminance(theme.well)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, name


def test_signs_stay_as_they_were_written(app: QApplication, parent: QWidget) -> None:
    style = ChatStyle(LIGHT)
    calt = QFont.Tag("calt")
    segment = CodeSegment(parent, style)
    segment.set_code("python", "a != b -> c")
    segment.height_for(400)
    assert segment.editor.document().defaultFont().featureValue(calt) == 0
    assert segment.editor.document().defaultFont().isFeatureSet(calt)
    text = TextSegment(parent, style)
    text.set_html("<p>Is <code>a != b</code> true?</p>")
    cursor = QTextCursor(text.document())
    cursor.setPosition(5)
    font = cursor.charFormat().font().resolve(text.document().defaultFont())
    assert font.isFeatureSet(calt)
    assert font.featureValue(calt) == 0


def test_reading_width_is_that_of_print(app: QApplication) -> None:
    style = ChatStyle(LIGHT)
    text = "It was the best of times, it was the worst of times, it was the age of wisdom."
    per_character = QFontMetrics(style.reading_font).horizontalAdvance(text) / len(text)
    assert 68 <= style.reading_width / per_character <= 76


@pytest.mark.parametrize("width", [200, 516])
def test_text_takes_the_height_it_needs(parent: QWidget, width: int) -> None:
    segment = TextSegment(parent, ChatStyle(LIGHT))
    segment.set_html(render_html("word " * 300))
    height = segment.height_for(width)
    reference = QTextDocument()
    reference.setDocumentMargin(0)
    reference.setDefaultFont(ChatStyle(LIGHT).reading_font)
    reference.setDefaultStyleSheet(ChatStyle(LIGHT).document_css)
    reference.setHtml(render_html("word " * 300))
    reference.setTextWidth(width)
    margin = ChatStyle(LIGHT).paragraph_space
    assert abs(height - (reference.size().height() - margin)) <= margin


def test_text_fetches_nothing(parent: QWidget) -> None:
    segment = TextSegment(parent, ChatStyle(LIGHT))
    assert segment.loadResource(2, QUrl("file:///etc/passwd")) is None
    assert not segment.openLinks()


def test_tables_have_rules(parent: QWidget) -> None:
    segment = TextSegment(parent, ChatStyle(LIGHT))
    segment.set_html(render_html("| a | b |\n|---|---|\n| 1 | 2 |\n"))
    (table,) = segment.document().rootFrame().childFrames()
    assert isinstance(table, QTextTable)
    for row in range(2):
        cell = table.cellAt(row, 0).format().toTableCellFormat()
        assert cell.bottomBorder() == 1
        assert cell.topPadding() > 0


def test_selection_survives_text_that_grows(parent: QWidget) -> None:
    segment = TextSegment(parent, ChatStyle(LIGHT))
    segment.set_html("<p>One two</p>")
    cursor = segment.textCursor()
    cursor.setPosition(4)
    cursor.setPosition(7, QTextCursor.MoveMode.KeepAnchor)
    segment.setTextCursor(cursor)
    segment.set_html("<p>One two three</p>")
    assert segment.textCursor().selectedText() == "two"


def test_theme_and_scale_set_text_anew(parent: QWidget) -> None:
    segment = TextSegment(parent, ChatStyle(LIGHT))
    segment.set_html(render_html("[A link](http://example.org) and *text*"))
    before = segment.height_for(400)
    segment.set_style(ChatStyle(DARK, 1.5))
    assert segment.height_for(400) > before
    cursor = segment.textCursor()
    cursor.setPosition(1)
    assert cursor.charFormat().foreground().color() == QColor(DARK.accent)


def test_code_is_copied_as_it_was_written(parent: QWidget) -> None:
    segment = CodeSegment(parent, ChatStyle(LIGHT))
    code = "if x:\n\tprint('ä🙂')\n"
    segment.set_code("python", code)
    segment.copy_button.click()
    assert QGuiApplication.clipboard().text() == code
    assert segment.copy_button.text() == "Copied"
    assert segment.copy_button.accessibleName() == "Copy python code"


def test_code_shows_all_lines_without_a_vertical_bar(parent: QWidget) -> None:
    parent.setStyleSheet(ChatStyle(LIGHT).transcript_css)
    parent.show()
    segment = CodeSegment(parent, ChatStyle(LIGHT))
    segment.set_code("python", "\n".join(f"line_{n} = {n}" for n in range(40)))
    segment.resize(500, segment.height_for(500))
    segment.show()
    editor = segment.editor
    assert editor.verticalScrollBar().maximum() == 0
    low = segment.height_for(500)
    segment.set_code("python", segment.code + "\n" + "wide " * 100)
    line = editor.fontMetrics().lineSpacing()
    assert segment.height_for(500) > low + line, "room for the scroll bar below"


def test_unknown_language_is_plain() -> None:
    assert lex_code("no-such-language", "x = 1") == {}
    assert lex_code("", "x = 1") == {}


def test_columns_are_counted_as_qt_does() -> None:
    assert lex_code("python", "'🙂' + 1")[0][-1] == (7, 1, "number")


async def test_growing_code_is_lexed_now_and_then(app: QApplication) -> None:
    sources = []

    def lex(language: str, source: str) -> Mapping[int, list[tuple[int, int, str]]]:
        sources.append(source)
        return lex_code(language, source)

    document = QTextDocument()
    highlighter = CodeHighlighter(document, ChatStyle(LIGHT).code_colors, lex)
    highlighter.set_language("python")
    for number in range(50):
        document.setPlainText(f"x = {number}")
        highlighter.text_changed(is_growing=True)
    assert sources == []
    await until(lambda: bool(sources))
    assert sources == ["x = 49"]
