"""A short message at the foot of the window, with one action such as undo."""

from collections.abc import Callable

from PySide6.QtCore import QEvent, QObject, Qt, QTimer
from PySide6.QtWidgets import QApplication, QFrame, QHBoxLayout, QVBoxLayout, QWidget

from octavo.errors import OctavoError
from octavo.ui.tokens import SPACE_GROUP, SPACE_INSET, SPACE_TIGHT, SPACE_WITHIN
from octavo.ui.widgets.buttons import Button, IconButton
from octavo.ui.widgets.labels import label

MESSAGE_MS = 6_000
UNDO_MS = 10_000
ERROR_MS = 15_000
MAX_WIDTH = 560
ABOVE_FOOT = 120
"""Pixels left free below: what a person writes in stays in sight."""


class Toast(QFrame):
    """Lies over the lower edge of its parent; a new message takes the place of the old one."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self._owner = parent
        self.setProperty("surface", "card")
        self._action: Callable[[], None] | None = None
        row = QHBoxLayout(self)
        row.setContentsMargins(SPACE_GROUP, SPACE_WITHIN, SPACE_WITHIN, SPACE_WITHIN)
        row.setSpacing(SPACE_INSET)
        column = QVBoxLayout()
        column.setSpacing(SPACE_TIGHT)
        self._message = label("", wrap=True)
        self._hint = label("", "soft", wrap=True)
        column.addWidget(self._message)
        column.addWidget(self._hint)
        row.addLayout(column, 1)
        self.action_button = Button("", variant="link")
        self.action_button.clicked.connect(self._run_action)
        row.addWidget(self.action_button)
        close = IconButton("x", "Close this message")
        close.clicked.connect(self.hide)
        row.addWidget(close)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self._time_out)
        parent.installEventFilter(self)
        self.hide()

    @property
    def text(self) -> str:
        return f"{self._message.text()} {self._hint.text()}".strip()

    def show_message(
        self,
        message: str,
        *,
        hint: str = "",
        action_text: str = "",
        action: Callable[[], None] | None = None,
        duration_ms: int | None = None,
    ) -> None:
        """Shows a message; the action, if any, ends it."""
        self._message.setText(message)
        self._hint.setText(hint)
        self._hint.setVisible(bool(hint))
        self.action_button.setText(action_text)
        self.action_button.setVisible(action is not None)
        self._action = action
        self.setAccessibleName(f"{message} {hint}".strip())
        self.show()
        self._place()
        self.raise_()
        self._timer.start(duration_ms or (MESSAGE_MS if action is None else UNDO_MS))

    def show_error(self, error: OctavoError) -> None:
        self.show_message(error.message, hint=error.hint, duration_ms=ERROR_MS)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() is QEvent.Type.Resize and self.isVisible():
            self._place()
        return super().eventFilter(watched, event)

    def _run_action(self) -> None:
        self.hide()
        if self._action is not None:
            self._action()

    def _time_out(self) -> None:
        """Stays while somebody is on it with the pointer or the keyboard."""
        focused = QApplication.focusWidget()
        if self.underMouse() or (focused is not None and self.isAncestorOf(focused)):
            self._timer.start(MESSAGE_MS)
        else:
            self.hide()

    def _place(self) -> None:
        width = min(MAX_WIDTH, self._owner.width() - 2 * SPACE_GROUP)
        self.setFixedWidth(width)
        layout = self.layout()
        assert layout is not None
        # A button that was hidden a moment ago is still in the layout's reckoning.
        layout.invalidate()
        layout.activate()
        height = max(layout.totalHeightForWidth(width), self.minimumSizeHint().height())
        self.setFixedHeight(height)
        self.move(
            (self._owner.width() - width) // 2, max(0, self._owner.height() - height - ABOVE_FOOT)
        )


def find_toast(widget: QWidget) -> Toast | None:
    """The toast of the window that holds this widget."""
    return widget.window().findChild(Toast, options=Qt.FindChildOption.FindChildrenRecursively)
