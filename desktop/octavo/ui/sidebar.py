"""The sidebar: the pages, the page's own list below them, and what the engine does at the foot."""

from collections.abc import Sequence
from dataclasses import dataclass

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QButtonGroup, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from octavo.errors import DeviceLostError
from octavo.host import HostState, HostStatus
from octavo.ui.icons import app_mark
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import SPACE_GROUP, SPACE_INSET, SPACE_TIGHT, SPACE_WITHIN, scaled
from octavo.ui.widgets.buttons import Button, IconButton
from octavo.ui.widgets.labels import ElidedLabel, hairline, label, set_tone

WIDTH = 264
RAIL_WIDTH = 56
MARK_PIXELS = 24


@dataclass(frozen=True, slots=True)
class SidebarEntry:
    """A page as the sidebar names it."""

    key: str
    title: str
    icon_name: str
    shortcuts: tuple[str, ...]
    """Any of them leads there; the tool tip names the first."""


class Sidebar(QWidget):
    """Expanded, or a rail of icons where the window is narrow."""

    page_chosen = Signal(str)
    toggle_asked = Signal()
    status_clicked = Signal()

    def __init__(self, entries: Sequence[SidebarEntry], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("sidebar")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self._entries = {entry.key: entry for entry in entries}
        self._is_rail = False
        self._list: QWidget | None = None
        self._column = QVBoxLayout(self)
        self._column.setSpacing(SPACE_TIGHT)
        self._column.addLayout(self._build_head())
        self._column.addSpacing(SPACE_WITHIN)
        self._buttons = self._build_navigation()
        self._column.addSpacing(SPACE_WITHIN)
        self._line = hairline()
        self._column.addWidget(self._line)
        self._list_index = self._column.count()
        self._column.addStretch(1)
        self._status = _StatusStrip()
        self._status.clicked.connect(self.status_clicked)
        self._column.addWidget(self._status)
        ThemeController.current().changed.connect(self._apply_scale)
        self._apply_scale()

    @property
    def is_rail(self) -> bool:
        return self._is_rail

    def set_list(self, widget: QWidget) -> None:
        """Mounts a list below the pages; a rail has no room for it and hides it."""
        self._list = widget
        self._column.insertWidget(self._list_index, widget, 1)
        # The stretch that held the place of the list.
        self._column.takeAt(self._list_index + 1)
        self._column.insertStretch(self._list_index + 1, 0)
        self._apply_rail()

    def set_rail(self, is_rail: bool) -> None:
        if is_rail != self._is_rail:
            self._is_rail = is_rail
            self._apply_rail()

    def show_page(self, key: str) -> None:
        """Marks a page as the one that is shown."""
        self._buttons[key].setChecked(True)

    def show_host(self, state: HostState) -> None:
        self._status.show_host(state)

    def width_at(self, *, is_rail: bool) -> int:
        """Pixels the sidebar needs."""
        return scaled(RAIL_WIDTH if is_rail else WIDTH, ThemeController.current().scale)

    def _build_head(self) -> QHBoxLayout:
        head = QHBoxLayout()
        head.setSpacing(SPACE_WITHIN)
        self._mark = QLabel()
        self._name = label("Octavo", "mark")
        self._toggle = IconButton("panel-left", "Show or hide the sidebar (Ctrl+B)")
        self._toggle.clicked.connect(self.toggle_asked)
        head.addWidget(self._mark)
        head.addWidget(self._name, 1)
        head.addWidget(self._toggle)
        return head

    def _build_navigation(self) -> dict[str, Button]:
        group = QButtonGroup(self)
        buttons = {}
        for entry in self._entries.values():
            button = Button(entry.title, variant="nav", icon_name=entry.icon_name)
            button.setCheckable(True)
            button.setToolTip(f"{entry.title} ({entry.shortcuts[0]})")
            button.setAccessibleName(entry.title)
            button.clicked.connect(lambda _=False, key=entry.key: self.page_chosen.emit(key))
            group.addButton(button)
            buttons[entry.key] = button
            self._column.addWidget(button)
        return buttons

    def _apply_rail(self) -> None:
        for key, button in self._buttons.items():
            button.setText("" if self._is_rail else self._entries[key].title)
            button.set_variant("rail" if self._is_rail else "nav")
        self._mark.setVisible(not self._is_rail)
        self._name.setVisible(not self._is_rail)
        self._line.setVisible(not self._is_rail)
        if self._list is not None:
            self._list.setVisible(not self._is_rail)
        self._status.set_rail(self._is_rail)
        side = SPACE_INSET - 1 if self._is_rail else SPACE_INSET
        self._column.setContentsMargins(side, SPACE_GROUP, side, SPACE_INSET)

    def _apply_scale(self) -> None:
        pixels = scaled(MARK_PIXELS, ThemeController.current().scale)
        self._mark.setPixmap(app_mark(pixels, self.devicePixelRatioF()))
        self._apply_rail()


class _StatusStrip(QWidget):
    """The loaded model, its device and state; a click leads to the models."""

    clicked = Signal()

    def __init__(self) -> None:
        super().__init__()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, SPACE_WITHIN, 0, 0)
        column.setSpacing(SPACE_WITHIN)
        self._line = hairline()
        column.addWidget(self._line)
        row = QHBoxLayout()
        row.setSpacing(SPACE_WITHIN)
        self._button = IconButton("cpu", "Models")
        self._button.clicked.connect(self.clicked)
        row.addWidget(self._button)
        texts = QVBoxLayout()
        texts.setSpacing(0)
        self._model = ElidedLabel("", "")
        self._state = ElidedLabel("", "caption")
        texts.addWidget(self._model)
        texts.addWidget(self._state)
        self._texts = QWidget()
        self._texts.setLayout(texts)
        texts.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._texts, 1)
        column.addLayout(row)
        self.show_host(HostState())

    def show_host(self, state: HostState) -> None:
        title, sentence, tone = describe_host(state)
        self._model.setText(title)
        self._state.setText(sentence)
        set_tone(self._state, tone)
        self._button.set_name(f"{title}. {sentence}. Open the models")

    def set_rail(self, is_rail: bool) -> None:
        self._texts.setVisible(not is_rail)
        self._line.setVisible(not is_rail)


def describe_host(state: HostState) -> tuple[str, str, str]:
    """Model and device, the state in words, and its tone."""
    title = state.model.title if state.model is not None else "No model loaded"
    match state.status:
        case HostStatus.READY:
            device = state.report.plan.device if state.report is not None else None
            if device is not None:
                title = f"{title} · {'CPU' if device.kind == 'cpu' else device.name}"
            if (progress := state.progress) is not None:
                # Only kernels are prepared beside a model that answers already.
                return title, f"Compiling kernels, {progress.done} of {progress.total}", "soft"
            return title, "Ready", "good"
        case HostStatus.LOADING:
            fraction = state.progress.fraction if state.progress is not None else None
            stage = state.progress.stage if state.progress is not None else "Loading"
            # The figure comes first: the end is cut off where there is no room.
            done = "" if fraction is None else f"{100 * fraction:.0f} % · "
            return title, f"{done}{stage}", "soft"
        case HostStatus.UNLOADING:
            return title, "Unloading", "soft"
        case HostStatus.FAILED:
            is_lost = isinstance(state.error, DeviceLostError)
            return title, "The engine has ended" if is_lost else "Could not be loaded", "bad"
        case _:
            return "No model loaded", "Choose one under Models", "soft"
