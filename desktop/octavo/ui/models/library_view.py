"""The models on this machine: what fits, where each came from, loading and removing it."""

import asyncio
from pathlib import Path

from PySide6.QtCore import QPoint, Qt, QUrl, Signal
from PySide6.QtGui import QDesktopServices, QShowEvent
from PySide6.QtWidgets import QHBoxLayout, QLabel, QMenu, QVBoxLayout, QWidget

from octavo.core import Core
from octavo.errors import OctavoError
from octavo.host import HostState, HostStatus
from octavo.hub.library import LibraryModel
from octavo.ui.models.loading import load_model
from octavo.ui.models.model_row import (
    ACTIONS_WIDTH,
    COLUMN_GAP,
    COLUMNS,
    FIT_WIDTH,
    VERDICT_PADDING,
    ModelRow,
)
from octavo.ui.models.origin import describe_origin, describe_removal
from octavo.ui.models.starter_card import StarterCard, centred
from octavo.ui.tasks import spawn
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import SPACE_GROUP, SPACE_INSET, SPACE_TIGHT, SPACE_WITHIN, scaled
from octavo.ui.widgets.buttons import Button, IconButton
from octavo.ui.widgets.cards import EmptyState, ErrorCard, Notice
from octavo.ui.widgets.dialogs import confirm
from octavo.ui.widgets.labels import ElidedLabel, hairline, label
from octavo.ui.widgets.toast import find_toast
from octavo.units import format_bytes


class LibraryView(QWidget):
    """Lists the library; scans and memory plans run on workers, loading in the host."""

    add_file_asked = Signal()
    add_folder_asked = Signal()
    find_asked = Signal()

    def __init__(self, core: Core, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._core = core
        self._models: list[LibraryModel] = []
        self._is_wide = self._is_narrow = False
        self._load_task: asyncio.Task[None] | None = None
        self._scan_task: asyncio.Task[None] | None = None
        self._is_stale = True
        self.rows: list[ModelRow] = []
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(SPACE_GROUP)
        column.addLayout(self._build_head())
        self.notice = Notice("triangle-alert", "caution")
        self.error_card = ErrorCard()
        self.scanning = label("Reading the model folders…", "soft")
        self._table = self._build_table()
        self._table.hide()
        self.empty = self._build_empty()
        self.empty.hide()
        for part in (self.notice, self.error_card, self.scanning, self._table):
            column.addWidget(part)
        column.addWidget(self.empty, 1)
        column.addStretch(1)
        disconnects = [
            core.library.changed.connect(lambda _: self.refresh()),
            core.host.state_changed.connect(self._show_host),
        ]
        self.destroyed.connect(lambda _=None: [disconnect() for disconnect in disconnects])

    def refresh(self) -> None:
        """Scans the library again; while the view is hidden, at its next showing."""
        self._is_stale = True
        if self.isVisible():
            self._is_stale = False
            self._refresh_button.setEnabled(False)
            if self._scan_task is not None:
                self._scan_task.cancel()
            self._scan_task = spawn(self._scan(), self.error_card.show_error)

    def set_layout(self, *, is_wide: bool, is_narrow: bool) -> None:
        """Follows the width and the scale of the page."""
        self._is_wide, self._is_narrow = is_wide, is_narrow
        scale = ThemeController.current().scale
        self._header.setVisible(is_wide)
        for text, width in self._header_labels:
            text.setFixedWidth(scaled(width, scale))
        for row in self.rows:
            row.set_layout(is_wide=is_wide, is_narrow=is_narrow)

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        if self._is_stale:
            self.refresh()

    def _build_head(self) -> QHBoxLayout:
        head = QHBoxLayout()
        head.setSpacing(SPACE_WITHIN)
        self.summary = ElidedLabel("", "soft")
        head.addWidget(self.summary, 1)
        add = Button("Add", icon_name="plus")
        add.setAccessibleName("Add a model from this machine")
        menu = QMenu(add)
        menu.addAction("Add a file…", self.add_file_asked.emit)
        menu.addAction("Add a folder…", self.add_folder_asked.emit)
        # Not setMenu, which draws an arrow of the style's own into the button.
        add.clicked.connect(
            lambda: menu.popup(add.mapToGlobal(QPoint(0, add.height() + SPACE_TIGHT)))
        )
        self._refresh_button = IconButton("refresh-cw", "Read the folders again")
        self._refresh_button.clicked.connect(self.refresh)
        folder = IconButton("folder-open", "Open the models folder")
        folder.clicked.connect(lambda: self._open_folder(self._core.models_dir))
        for button in (add, self._refresh_button, folder):
            head.addWidget(button)
        return head

    def _build_table(self) -> QWidget:
        table = QWidget()
        column = QVBoxLayout(table)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        self._header = QWidget()
        row = QHBoxLayout(self._header)
        row.setContentsMargins(0, 0, 0, SPACE_WITHIN)
        row.setSpacing(COLUMN_GAP)
        row.addWidget(label("Name", "caption"), 1)
        self._header_labels: list[tuple[QLabel, int]] = []
        for title, width in (*COLUMNS, ("Fit", FIT_WIDTH), ("", ACTIONS_WIDTH)):
            text = label(title, "caption")
            if (title, width) in COLUMNS:
                text.setAlignment(Qt.AlignmentFlag.AlignRight)
            else:
                text.setContentsMargins(VERDICT_PADDING, 0, 0, 0)
            self._header_labels.append((text, width))
            row.addWidget(text)
        column.addWidget(self._header)
        column.addWidget(hairline())
        self._row_column = QVBoxLayout()
        self._row_column.setSpacing(0)
        column.addLayout(self._row_column)
        return table

    def _build_empty(self) -> QWidget:
        empty = QWidget()
        column = QVBoxLayout(empty)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(SPACE_INSET)
        find = Button("Find one on the hub", icon_name="search")
        find.clicked.connect(self.find_asked)
        column.addWidget(
            EmptyState(
                "boxes",
                "No models yet",
                "Start with the small model below, find one on the hub, or drop a GGUF file or"
                " a folder of safetensors here.",
                find,
            )
        )
        self.starter_card = StarterCard(self._core)
        column.addLayout(centred(self.starter_card))
        column.addStretch(1)
        return empty

    async def _scan(self) -> None:
        try:
            models = await asyncio.to_thread(self._core.library.scan)
        finally:
            self._refresh_button.setEnabled(True)
            self.scanning.hide()
        self.notice.set_text("\n".join(self._core.library.problems))
        if models != self._models or not self.rows:
            self._show_models(models)
        await self._plan_all()

    async def _plan_all(self) -> None:
        """Works out row after row whether it fits; one that cannot be planned says why."""
        for row in self.rows:
            if row.model.problem:
                continue
            try:
                row.show_plan(await asyncio.to_thread(self._core.host.plan, row.model))
            except OctavoError as error:
                row.show_plan(None, str(error))

    def _show_models(self, models: list[LibraryModel]) -> None:
        self._models = models
        while (item := self._row_column.takeAt(0)) is not None:
            if (widget := item.widget()) is not None:
                widget.hide()
                widget.deleteLater()
        self.rows = []
        for model in models:
            row = ModelRow(model, describe_origin(model, self._core.models_dir))
            row.load_asked.connect(lambda model=model: self._load(model))
            row.unload_asked.connect(self._unload)
            row.cancel_asked.connect(self._cancel_load)
            row.remove_asked.connect(lambda model=model: self._ask_remove(model))
            row.show_folder_asked.connect(lambda model=model: self._open_folder(model.path.parent))
            row.show_host(self._core.host.state, can_cancel=self._can_cancel)
            row.set_layout(is_wide=self._is_wide, is_narrow=self._is_narrow)
            self.rows.append(row)
            self._row_column.addWidget(row)
            self._row_column.addWidget(hairline())
        self._table.setVisible(bool(models))
        self.empty.setVisible(not models)
        self.summary.setText(_summarise(models))

    def _show_host(self, state: HostState) -> None:
        for row in self.rows:
            row.show_host(state, can_cancel=self._can_cancel)
        if state.status is HostStatus.FAILED and state.error is not None:
            self.error_card.show_error(state.error)
        elif state.status is HostStatus.READY:
            self.error_card.clear()
            # What is free has changed, and with it what fits.
            self.refresh()

    @property
    def _can_cancel(self) -> bool:
        """A load begun elsewhere is cancelled where it was begun."""
        return self._load_task is not None and not self._load_task.done()

    def _load(self, model: LibraryModel) -> None:
        self.error_card.clear()
        self._load_task = spawn(load_model(self._core, model), self.error_card.show_error)

    def _unload(self) -> None:
        spawn(self._core.host.unload(), self.error_card.show_error)

    def _cancel_load(self) -> None:
        if self._load_task is not None:
            self._load_task.cancel()

    def _ask_remove(self, model: LibraryModel) -> None:
        spawn(self._remove(model), self.error_card.show_error)

    async def _remove(self, model: LibraryModel) -> None:
        agreed = await confirm(
            self, f"Remove {model.title}?", describe_removal(model), "Remove", is_danger=True
        )
        if not agreed:
            return
        # Not on a worker: the library tells of it, and its listeners belong to this thread.
        freed_bytes = self._core.library.remove(model)
        if (toast := find_toast(self)) is not None:
            freed = f"; {format_bytes(freed_bytes)} are free again" if freed_bytes else ""
            toast.show_message(f"Removed {model.title}{freed}.")

    def _open_folder(self, folder: Path) -> None:
        is_open = QDesktopServices.openUrl(QUrl.fromLocalFile(str(folder)))
        if not is_open and (toast := find_toast(self)) is not None:
            toast.show_message(f"No file manager could be opened for {folder}.")


def _summarise(models: list[LibraryModel]) -> str:
    if not models:
        return ""
    count = "1 model" if len(models) == 1 else f"{len(models)} models"
    return f"{count}, {format_bytes(sum(model.size_bytes for model in models))}"
