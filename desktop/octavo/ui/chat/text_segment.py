"""`TextSegment`: a run of text blocks of one message, as one document that can be selected in."""

import math
from collections.abc import Iterator

from PySide6.QtCore import QPoint, QRectF, Qt, QUrl, Signal
from PySide6.QtGui import (
    QBrush,
    QColor,
    QPainter,
    QPaintEvent,
    QTextBlock,
    QTextBlockFormat,
    QTextCursor,
    QTextFrame,
    QTextFrameFormat,
    QTextTable,
    QWheelEvent,
)
from PySide6.QtWidgets import QFrame, QTextBrowser, QWidget

from octavo.ui.chat.chat_style import LINE_HEIGHT_PERCENT, ChatStyle, quote_indent
from octavo.ui.tokens import scaled

LIST_INDENT = 24
QUOTE_RULE_WIDTH = 2


class TextSegment(QTextBrowser):
    """Shows HTML of ours at the full height it needs; fetches nothing, opens nothing by itself."""

    link_activated = Signal(QUrl)

    def __init__(self, parent: QWidget, style: ChatStyle) -> None:
        super().__init__(parent)
        self._style = style
        self._html = ""
        self._laid_out: tuple[str, int] | None = None
        self._height = 0
        self._has_quote = False
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setOpenLinks(False)
        # Else Qt lays out at the width of its viewport, which a hidden widget does not have yet.
        self.setLineWrapMode(QTextBrowser.LineWrapMode.FixedPixelWidth)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setAccessibleName("Message text")
        self.viewport().setAutoFillBackground(False)
        self.anchorClicked.connect(self.link_activated)
        self.highlighted.connect(self._show_address)
        document = self.document()
        document.setUndoRedoEnabled(False)
        document.setDocumentMargin(0)
        self.set_style(style)

    @property
    def begins_with_heading(self) -> bool:
        return self._html.startswith('<p class="h')

    @property
    def trailing_space(self) -> int:
        """Leading that Qt puts below the last line, too, where the eye takes it for a margin."""
        last = self.document().lastBlock()
        proportional = QTextBlockFormat.LineHeightTypes.ProportionalHeight.value
        if last.blockFormat().lineHeightType() != proportional or not last.layout().lineCount():
            return 0
        line = last.layout().lineAt(last.layout().lineCount() - 1)
        return round(line.height() * (LINE_HEIGHT_PERCENT - 100) / 100)

    def set_style(self, style: ChatStyle) -> None:
        """Sets the text anew in another theme or scale."""
        self._style = style
        document = self.document()
        # Qt takes the widget's font over into the document whenever a style sheet is applied.
        self.setFont(style.reading_font)
        document.setDefaultFont(style.reading_font)
        document.setDefaultStyleSheet(style.document_css)
        document.setIndentWidth(scaled(LIST_INDENT, style.scale))
        html, self._html = self._html, ""
        self._laid_out = None
        self.set_html(html)

    def set_html(self, html: str) -> None:
        """Replaces the text; a selection stays where the text before it is the same."""
        if html == self._html:
            return
        self._html = html
        cursor = self.textCursor()
        anchor, position = cursor.anchor(), cursor.position()
        self.setHtml(html)
        self._has_quote = "<blockquote" in html
        if "<table" in html:
            self._rule_tables()
        self._trim_margins()
        # Text that only holds links for the keyboard is worth a stop of the Tab key.
        has_link = "<a href" in html
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus if has_link else Qt.FocusPolicy.ClickFocus)
        if anchor != position:
            self._select(anchor, position)

    def height_for(self, width: int) -> int:
        """Lays the text out at this width, if it is not yet, and returns its height."""
        if self._laid_out != (self._html, width):
            self.setLineWrapColumnOrWidth(width)
            self._height = math.ceil(self.document().size().height())
            self._laid_out = (self._html, width)
        return self._height

    def loadResource(self, _kind: int, _name: QUrl | str) -> object:
        """Nothing is loaded for a message: no pictures, no style sheets, no files."""
        return None

    def wheelEvent(self, event: QWheelEvent) -> None:
        event.ignore()

    def paintEvent(self, event: QPaintEvent) -> None:
        if self._has_quote:
            self._paint_quote_rules()
        super().paintEvent(event)

    def _paint_quote_rules(self) -> None:
        layout = self.document().documentLayout()
        indent = scaled(quote_indent(), self._style.scale)
        painter = QPainter(self.viewport())
        offset = QPoint(self.horizontalScrollBar().value(), self.verticalScrollBar().value())
        painter.translate(-offset)
        for block in _blocks(self.document().begin()):
            area: QRectF = layout.blockBoundingRect(block)
            following = block.next()
            num_shared = int(following.blockFormat().leftMargin()) // indent
            next_top = layout.blockBoundingRect(following).top()
            for level in range(int(block.blockFormat().leftMargin()) // indent):
                bottom = next_top if level < num_shared else area.bottom()
                rule = QRectF(level * indent, area.top(), QUOTE_RULE_WIDTH, bottom - area.top())
                painter.fillRect(rule, QColor(self._style.theme.edge))
        painter.end()

    def _rule_tables(self) -> None:
        """Hairlines under the rows, a stronger line above and below: Qt's HTML cannot say it."""
        strong, hairline = (
            QBrush(QColor(self._style.theme.ink_faint)),
            QBrush(QColor(self._style.theme.edge)),
        )
        solid = QTextFrameFormat.BorderStyle.BorderStyle_Solid
        for table in _tables(self.document().rootFrame()):
            table_format = table.format()
            table_format.setBorderCollapse(True)
            table.setFormat(table_format)
            last_row = table.rows() - 1
            for row in range(table.rows()):
                for column in range(table.columns()):
                    cell = table.cellAt(row, column)
                    cell_format = cell.format().toTableCellFormat()
                    cell_format.setBottomBorder(1)
                    cell_format.setBottomBorderStyle(solid)
                    cell_format.setBottomBorderBrush(strong if row in (0, last_row) else hairline)
                    if row == 0:
                        cell_format.setTopBorder(1)
                        cell_format.setTopBorderStyle(solid)
                        cell_format.setTopBorderBrush(strong)
                    cell.setFormat(cell_format)

    def _trim_margins(self) -> None:
        """The space around segments is the message's, not the first or last paragraph's."""
        document = self.document()
        for block, is_first in ((document.begin(), True), (document.lastBlock(), False)):
            block_format = block.blockFormat()
            if is_first:
                block_format.setTopMargin(0)
            else:
                block_format.setBottomMargin(0)
                if self._html.endswith("</table>"):
                    # Qt ends every document with a paragraph: after a table it is an empty one.
                    fixed = QTextBlockFormat.LineHeightTypes.FixedHeight.value
                    block_format.setLineHeight(1, fixed)
            QTextCursor(block).setBlockFormat(block_format)

    def _select(self, anchor: int, position: int) -> None:
        last = max(0, self.document().characterCount() - 1)
        cursor = self.textCursor()
        cursor.setPosition(min(anchor, last))
        cursor.setPosition(min(position, last), QTextCursor.MoveMode.KeepAnchor)
        self.setTextCursor(cursor)

    def _show_address(self, url: QUrl) -> None:
        self.setToolTip(url.toDisplayString())


def _blocks(first: QTextBlock) -> Iterator[QTextBlock]:
    block = first
    while block.isValid():
        yield block
        block = block.next()


def _tables(frame: QTextFrame) -> Iterator[QTextTable]:
    for child in frame.childFrames():
        if isinstance(child, QTextTable):
            yield child
        yield from _tables(child)
