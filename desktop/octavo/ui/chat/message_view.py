"""`MessageView`: one message on the page, made of segments; used again for other messages."""

from PySide6.QtCore import QEvent, QRect, QUrl, Signal
from PySide6.QtGui import (
    QColor,
    QContextMenuEvent,
    QEnterEvent,
    QGuiApplication,
    QPainter,
    QPaintEvent,
)
from PySide6.QtWidgets import QMenu, QWidget

from octavo.chats.message import Message, MessageStatus, Role
from octavo.ui.chat.chat_style import OVERHANG, ChatStyle
from octavo.ui.chat.code_segment import CodeSegment
from octavo.ui.chat.message_content import CodeRun, MessageContent, Run, TextRun
from octavo.ui.chat.message_footer import ActionButton, MessageFooter
from octavo.ui.chat.text_segment import TextSegment
from octavo.ui.tokens import RADIUS_CARD, SPACE_INSET, SPACE_TIGHT, SPACE_WITHIN

CURRENT_RULE_WIDTH = 2

Segment = TextSegment | CodeSegment


class MessageView(QWidget):
    """Shows one message at a width; the person's on a card, the model's as text on the paper."""

    link_activated = Signal(QUrl)
    regenerate_requested = Signal()

    def __init__(self, parent: QWidget, style: ChatStyle) -> None:
        super().__init__(parent)
        self._style = style
        self._message: Message | None = None
        self._content = MessageContent(Role.ASSISTANT)
        self._num_final_segments = 0
        self._segments: list[Segment] = []
        self._settled = (0, 0, 0)
        """Width, number and bottom of the segments that keep their place while others grow."""
        self._is_last = False
        self._is_hovered = False
        self._is_current = False
        self._footer = MessageFooter(self, style)
        self._footer.copy_requested.connect(self.copy_message)
        self._footer.regenerate_requested.connect(self.regenerate_requested)
        self._card_copy = ActionButton("copy", "Copy this message", style, self)
        self._card_copy.clicked.connect(self.copy_message)

    @property
    def message(self) -> Message | None:
        return self._message

    @property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(self._segments)

    @property
    def footer(self) -> MessageFooter:
        return self._footer

    @property
    def selected_text(self) -> str:
        """What is selected in this message."""
        for segment in self._segments:
            if isinstance(segment, TextSegment) and segment.textCursor().hasSelection():
                return segment.textCursor().selection().toPlainText()
            if isinstance(segment, CodeSegment) and segment.selected_text:
                return segment.selected_text
        return ""

    def show_message(self, message: Message, *, is_last: bool) -> None:
        """Shows a message; a newer snapshot of the same one only renders what is new."""
        is_same = self._message is not None and self._message.id == message.id
        if not is_same or not self._content.show(message):
            self._content = MessageContent(message.role)
            self._content.show(message)
            self._num_final_segments = 0
            self._settled = (0, 0, 0)
        self._message = message
        self._is_last = is_last
        self._show_runs(self._content.runs())
        self._num_final_segments = self._content.num_frozen_runs
        is_answer = message.role is Role.ASSISTANT
        self._footer.setVisible(is_answer)
        self._card_copy.setVisible(not is_answer)
        self._card_copy.raise_()
        if is_answer:
            self._footer.show_message(message, is_last=is_last)
        if not is_same:
            name = f"Answer of {message.model or 'the model'}" if is_answer else "Your message"
            self.setAccessibleName(name)
        self._reveal()

    def set_style(self, style: ChatStyle) -> None:
        self._style = style
        self._settled = (0, 0, 0)
        for segment in self._segments:
            segment.set_style(style)
        self._footer.set_style(style)
        self._card_copy.set_style(style)
        self.update()

    def set_current(self, current: bool) -> None:
        """Marks the message the keyboard acts on."""
        self._is_current = current
        self._reveal()
        self.update()

    def height_for(self, width: int) -> int:
        """Lays the message out at this width and returns its height."""
        inner = width - 2 * OVERHANG
        is_card = self._is_card
        settled_width, num_settled, top = self._settled
        if settled_width != width:
            num_settled, top = 0, SPACE_INSET if is_card else 0
        for index in range(num_settled, len(self._segments)):
            segment = self._segments[index]
            if index:
                top += self._style.paragraph_space
                if isinstance(segment, TextSegment) and segment.begins_with_heading:
                    top += SPACE_WITHIN
            height = segment.height_for(inner)
            geometry = QRect(OVERHANG, top, inner, height)
            if segment.geometry() != geometry:
                segment.setGeometry(geometry)
            top += height
            if isinstance(segment, TextSegment):
                top -= segment.trailing_space
            if index < self._num_final_segments:
                self._settled = (width, index + 1, top)
        if is_card:
            button = self._card_copy
            button.move(width - button.width() - SPACE_TIGHT, SPACE_TIGHT)
            return top + SPACE_INSET
        if self._segments:
            top += SPACE_INSET
        height = self._footer.height_for(inner)
        self._footer.setGeometry(OVERHANG, top, inner, height)
        return top + height

    def copy_message(self) -> None:
        """Puts the message, as markdown, on the clipboard."""
        if self._message is not None:
            QGuiApplication.clipboard().setText(self._message.content)

    def copy_selection(self) -> None:
        """Puts the selected text on the clipboard, or the whole message if nothing is selected."""
        if selected := self.selected_text:
            QGuiApplication.clipboard().setText(selected)
        else:
            self.copy_message()

    def paintEvent(self, _event: QPaintEvent) -> None:
        if not self._is_card and not self._is_current:
            return
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        theme = self._style.theme
        if self._is_card:
            painter.setPen(QColor(theme.rule))
            painter.setBrush(QColor(theme.sheet))
            area = self.rect().toRectF().adjusted(0.5, 0.5, -0.5, -0.5)
            painter.drawRoundedRect(area, RADIUS_CARD, RADIUS_CARD)
        if self._is_current:
            inset = RADIUS_CARD if self._is_card else 0
            rule = QRect(0, inset, CURRENT_RULE_WIDTH, self.height() - 2 * inset)
            painter.fillRect(rule, QColor(theme.accent))
        painter.end()

    def enterEvent(self, _event: QEnterEvent) -> None:
        self._is_hovered = True
        self._reveal()

    def leaveEvent(self, _event: QEvent) -> None:
        self._is_hovered = False
        self._reveal()

    def contextMenuEvent(self, event: QContextMenuEvent) -> None:
        menu = QMenu(self)
        selected = self.selected_text
        if selected:
            menu.addAction("Copy selection", self.copy_selection)
        menu.addAction("Copy message", self.copy_message)
        if not self._footer.regenerate_button.isHidden() and not self._is_card:
            menu.addAction("Answer again", self.regenerate_requested.emit)
        menu.aboutToHide.connect(menu.deleteLater)
        menu.popup(event.globalPos())

    @property
    def _is_card(self) -> bool:
        return self._message is not None and self._message.role is not Role.ASSISTANT

    def _reveal(self) -> None:
        is_shown = self._is_hovered or self._is_current
        self._card_copy.set_revealed(is_shown)
        is_streaming = self._message is not None and self._message.status is MessageStatus.STREAMING
        self._footer.set_revealed(is_shown or (self._is_last and not is_streaming))

    def _show_runs(self, runs: list[Run]) -> None:
        """Gives each run its segment; those that were final before stay as they are."""
        for index in range(self._num_final_segments, len(runs)):
            run = runs[index]
            kind = TextSegment if isinstance(run, TextRun) else CodeSegment
            if index < len(self._segments) and not isinstance(self._segments[index], kind):
                self._remove_segments(index)
            if index == len(self._segments):
                self._segments.append(self._new_segment(kind))
            segment = self._segments[index]
            if isinstance(run, TextRun) and isinstance(segment, TextSegment):
                segment.set_html(run.html)
            elif isinstance(run, CodeRun) and isinstance(segment, CodeSegment):
                segment.set_code(run.language, run.code, is_growing=run.is_growing)
        self._remove_segments(len(runs))

    def _new_segment(self, kind: type[TextSegment] | type[CodeSegment]) -> Segment:
        segment: Segment = kind(self, self._style)
        if isinstance(segment, TextSegment):
            segment.link_activated.connect(self.link_activated)
        segment.show()
        return segment

    def _remove_segments(self, first: int) -> None:
        for segment in self._segments[first:]:
            segment.hide()
            segment.deleteLater()
        del self._segments[first:]
