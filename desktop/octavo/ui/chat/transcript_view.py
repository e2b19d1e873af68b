"""`TranscriptView`: a conversation of any length; only the messages in sight have widgets."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from PySide6.QtCore import QRect, Qt, QUrl, Signal
from PySide6.QtGui import QFocusEvent, QKeyEvent, QKeySequence, QResizeEvent
from PySide6.QtWidgets import QAbstractScrollArea, QFrame, QWidget

from octavo.chats.message import Message, Role
from octavo.ui.chat.chat_style import OVERHANG, ChatStyle
from octavo.ui.chat.transcript_model import TranscriptModel
from octavo.ui.tokens import FONT_READING, SPACE_INSET, SPACE_PAGE, scaled
from octavo.ui.widgets.buttons import Button

if TYPE_CHECKING:
    from octavo.ui.chat.message_view import MessageView

OVERSCAN = 200
"""Pixels beyond the viewport in which messages are already set."""
STICK_DISTANCE = 8
"""This near to the end counts as at the end: new text scrolls along."""
SCROLL_STEP = 48
MAX_PASSES = 5
"""Measuring may move messages into sight that have to be measured, too."""
ESTIMATED_FOOTER = 40


class TranscriptView(QAbstractScrollArea):
    """Lays out messages of measured or estimated height and scrolls along with one that grows.

    The place that is read stays where it is, whatever is measured or added above or below: it is
    kept as a message and an offset into it, and the scroll bar follows. At the end of the
    conversation the end is kept instead.
    """

    link_activated = Signal(QUrl)
    regenerate_requested = Signal()

    def __init__(
        self, model: TranscriptModel, style: ChatStyle, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self._model = model
        self._style = style
        self._heights: list[int] = []
        self._measured: set[int] = set()
        self._views: dict[int, MessageView] = {}
        self._pool: list[MessageView] = []
        self._width = 0
        self._sticks = True
        self._anchor = (0, 0)
        self._current: int | None = None
        self._is_laying_out = False
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setAccessibleName("Conversation")
        self.verticalScrollBar().setSingleStep(SCROLL_STEP)
        self.viewport().setAutoFillBackground(False)
        self.jump_button = Button("Jump to latest", icon_name="arrow-down", parent=self)
        self.jump_button.setToolTip("Scroll to the end of the conversation (End)")
        self.jump_button.clicked.connect(self.jump_to_latest)
        self.jump_button.hide()
        self.setStyleSheet(style.transcript_css)
        model.reset.connect(self._show_all)
        model.appended.connect(self._show_appended)
        model.changed.connect(self._show_changed)

    @property
    def is_at_end(self) -> bool:
        """Whether new text scrolls along."""
        return self._sticks

    @property
    def num_widgets(self) -> int:
        """Message widgets made so far, in sight or waiting for their next message."""
        return len(self._views) + len(self._pool)

    @property
    def current(self) -> int | None:
        """Index of the message the keyboard acts on."""
        return self._current

    def view_of(self, index: int) -> "MessageView | None":
        """The widget of a message in sight."""
        return self._views.get(index)

    def set_style(self, style: ChatStyle) -> None:
        """Sets all messages anew in another theme or scale."""
        if style == self._style:
            return
        self._style = style
        self.setStyleSheet(style.transcript_css)
        for view in (*self._views.values(), *self._pool):
            view.set_style(style)
        self._measured.clear()
        self._lay_out()

    def jump_to_latest(self) -> None:
        self._sticks = True
        self._lay_out()

    def move_current(self, step: int) -> None:
        """Makes the next or previous message the one the keyboard acts on, and shows it."""
        if not len(self._model):
            return
        self._anchor = self._anchor_at(self.verticalScrollBar().value(), self._tops())
        if self._current is None:
            index = self._anchor[0] if step > 0 else self._last_in_sight()
        else:
            index = min(len(self._model) - 1, max(0, self._current + step))
        self._set_current(index)
        self._sticks = False
        tops = self._tops()
        page = self.viewport().height()
        offset = self.verticalScrollBar().value()
        bottom = tops[index] + self._heights[index]
        if tops[index] < offset or self._heights[index] > page:
            self._anchor = (index, -SPACE_INSET)
        elif bottom > offset + page:
            self._anchor = self._anchor_at(bottom + SPACE_INSET - page, tops)
        self._lay_out()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        step = {Qt.Key.Key_Up: -1, Qt.Key.Key_Down: 1}.get(Qt.Key(event.key()), 0)
        if step and event.modifiers() & Qt.KeyboardModifier.AltModifier:
            self.move_current(step)
        elif event.matches(QKeySequence.StandardKey.Copy):
            self._copy()
        elif event.key() == Qt.Key.Key_Home:
            self.verticalScrollBar().setValue(0)
        elif event.key() == Qt.Key.Key_End:
            self.jump_to_latest()
        else:
            super().keyPressEvent(event)

    def focusOutEvent(self, event: QFocusEvent) -> None:
        super().focusOutEvent(event)
        if event.reason() is not Qt.FocusReason.PopupFocusReason:
            self._set_current(None)

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._lay_out()

    def scrollContentsBy(self, _dx: int, _dy: int) -> None:
        if self._is_laying_out:
            return
        bar = self.verticalScrollBar()
        self._sticks = bar.value() >= bar.maximum() - STICK_DISTANCE
        self._anchor = self._anchor_at(bar.value(), self._tops())
        self._lay_out()

    def _show_all(self) -> None:
        for index in list(self._views):
            self._recycle(index)
        self._set_current(None)
        self._heights = [self._estimate(message) for message in self._messages()]
        self._measured.clear()
        self._sticks = True
        self._lay_out()

    def _show_appended(self) -> None:
        index = len(self._model) - 1
        self._heights.append(self._estimate(self._model[index]))
        if (before := self._views.get(index - 1)) is not None and before.message is not None:
            # Only the last answer can be written again.
            before.show_message(before.message, is_last=False)
            self._measured.discard(index - 1)
        self._lay_out()

    def _show_changed(self, index: int) -> None:
        began = time.perf_counter()
        view = self._views.get(index)
        if view is None:
            # Out of sight: the text is kept by the model, and only the scroll bar follows.
            self._heights[index] = self._estimate(self._model[index])
        else:
            view.show_message(self._model[index], is_last=index == len(self._model) - 1)
        self._measured.discard(index)
        self._lay_out()
        self._model.set_frame_cost((time.perf_counter() - began) * 1000)

    def _lay_out(self) -> None:
        """Measures what is in sight, sets the scroll bar and puts the widgets in their places."""
        if self._is_laying_out:
            return
        self._is_laying_out = True
        page = self.viewport().height()
        width = min(self._style.reading_width, self.viewport().width() - 2 * SPACE_PAGE)
        if width != self._width:
            self._width = width
            self._measured.clear()
        bar = self.verticalScrollBar()
        for _ in range(MAX_PASSES):
            tops = self._tops()
            end = max(0, tops[-1] - page)
            index, offset = self._anchor
            wanted = end if self._sticks or not len(self._model) else tops[index] + offset
            value = min(end, max(0, wanted))
            in_sight = self._in_sight(tops, value - OVERSCAN, value + page + OVERSCAN)
            if not self._measure(in_sight):
                break
        bar.setPageStep(page)
        bar.setRange(0, end)
        bar.setValue(value)
        for index in [index for index in self._views if index not in in_sight]:
            self._recycle(index)
        left = (self.viewport().width() - width) // 2 - OVERHANG
        for index in in_sight:
            geometry = QRect(left, tops[index] - value, width + 2 * OVERHANG, self._heights[index])
            self._views[index].setGeometry(geometry)
            self._views[index].show()
        if not self._sticks:
            self._anchor = self._anchor_at(value, tops)
        self._place_jump_button(end - value)
        self._is_laying_out = False

    def _measure(self, indexes: range) -> bool:
        """Gives each message a widget and its true height; True if a height came out new."""
        is_new = False
        for index in indexes:
            if index not in self._views:
                self._realise(index)
            if index in self._measured:
                continue
            height = self._views[index].height_for(self._width + 2 * OVERHANG)
            self._measured.add(index)
            if height != self._heights[index]:
                self._heights[index] = height
                is_new = True
        return is_new

    def _realise(self, index: int) -> None:
        view = self._pool.pop() if self._pool else self._new_view()
        self._views[index] = view
        view.show_message(self._model[index], is_last=index == len(self._model) - 1)
        view.set_current(index == self._current)
        self._measured.discard(index)

    def _new_view(self) -> "MessageView":
        # With Markdown and all: loaded with the first message, and not before the first paint.
        from octavo.ui.chat.message_view import MessageView

        view = MessageView(self.viewport(), self._style)
        view.link_activated.connect(self.link_activated)
        view.regenerate_requested.connect(self.regenerate_requested)
        return view

    def _recycle(self, index: int) -> None:
        view = self._views.pop(index)
        focused = view.focusWidget()
        if focused is not None and focused.hasFocus():
            self.setFocus()
        view.hide()
        self._pool.append(view)

    def _messages(self) -> Iterator[Message]:
        return (self._model[index] for index in range(len(self._model)))

    def _tops(self) -> list[int]:
        """Where each message begins, and after the last where the page ends."""
        tops = []
        top = SPACE_PAGE
        for height in self._heights:
            tops.append(top)
            top += height + SPACE_PAGE
        tops.append(top)
        return tops

    def _in_sight(self, tops: list[int], begin: int, end: int) -> range:
        indexes = [
            index
            for index, height in enumerate(self._heights)
            if tops[index] + height > begin and tops[index] < end
        ]
        return range(indexes[0], indexes[-1] + 1) if indexes else range(0)

    def _anchor_at(self, value: int, tops: list[int]) -> tuple[int, int]:
        """The message at this height of the page, and how far into it."""
        for index in range(len(self._heights)):
            if tops[index + 1] > value:
                return index, value - tops[index]
        return 0, 0

    def _last_in_sight(self) -> int:
        bottom = self.verticalScrollBar().value() + self.viewport().height()
        tops = self._tops()
        return max((i for i in range(len(self._heights)) if tops[i] < bottom), default=0)

    def _estimate(self, message: Message) -> int:
        """A height that is near enough for the scroll bar, from the number of characters."""
        line = scaled(FONT_READING, self._style.scale) * 3 // 2
        per_line = 72 * max(1, self._width) // max(1, self._style.reading_width)
        lines = message.content.count("\n") // 2 + len(message.content) // max(20, per_line) + 1
        is_answer = message.role is Role.ASSISTANT
        return lines * line + (ESTIMATED_FOOTER if is_answer else 2 * SPACE_INSET)

    def _set_current(self, index: int | None) -> None:
        if self._current == index:
            return
        if self._current is not None and (view := self._views.get(self._current)) is not None:
            view.set_current(False)
        self._current = index
        if index is not None and (view := self._views.get(index)) is not None:
            view.set_current(True)

    def _copy(self) -> None:
        """Copies the selection in sight, else the message the keyboard acts on."""
        selecting = [view for view in self._views.values() if view.selected_text]
        current = None if self._current is None else self._views.get(self._current)
        if selecting:
            selecting[0].copy_selection()
        elif current is not None:
            current.copy_message()

    def _place_jump_button(self, distance: int) -> None:
        button = self.jump_button
        is_away = not self._sticks and distance > SCROLL_STEP
        button.setVisible(is_away)
        if is_away:
            button.adjustSize()
            area = self.viewport().geometry()
            button.move(
                area.center().x() - button.width() // 2,
                area.bottom() - button.height() - SPACE_INSET,
            )
            button.raise_()
