"""The models page: the library on this machine, what fits, and loading it."""

import asyncio
from pathlib import Path

from PySide6.QtCore import Qt, QUrl
from PySide6.QtGui import QDesktopServices, QResizeEvent, QShowEvent
from PySide6.QtWidgets import QHBoxLayout, QScrollArea, QVBoxLayout, QWidget

from octavo.core import Core
from octavo.errors import OctavoError
from octavo.host import HostState, HostStatus
from octavo.hub.library import LibraryModel
from octavo.ui.models.loading import load_model
from octavo.ui.models.model_row import ACTIONS_WIDTH, COLUMNS, FIT_WIDTH, VERDICT_PADDING, ModelRow
from octavo.ui.models.starter_card import StarterCard, centred
from octavo.ui.tasks import spawn
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import SPACE_GROUP, SPACE_INSET, SPACE_PAGE, SPACE_WITHIN, scaled
from octavo.ui.widgets.buttons import IconButton
from octavo.ui.widgets.cards import EmptyState, ErrorCard, Notice
from octavo.ui.widgets.dialogs import confirm
from octavo.ui.widgets.labels import ElidedLabel, hairline, label
from octavo.ui.widgets.toast import find_toast
from octavo.units import format_bytes

WIDE_FROM = 820
NARROW_BELOW = 520
MAX_WIDTH = 1120


class ModelsPage(QWidget):
    """Lists the library; scans and memory plans run on workers, loading in the host."""

    def __init__(self, core: Core, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._core = core
        self._rows: list[ModelRow] = []
        self._models: list[LibraryModel] = []
        self._load_task: asyncio.Task[None] | None = None
        self._scan_task: asyncio.Task[None] | None = None
        self._is_stale = True
        self._build()
        connections = [
            core.library.changed.connect(lambda _: self.refresh()),
            core.host.state_changed.connect(self._show_host),
        ]
        self.destroyed.connect(lambda _=None: [disconnect() for disconnect in connections])
        ThemeController.current().changed.connect(self._arrange)

    def refresh(self) -> None:
        """Scans the library again; while the page is hidden, at its next showing."""
        self._is_stale = True
        if self.isVisible():
            self._is_stale = False
            self._refresh_button.setEnabled(False)
            if self._scan_task is not None:
                self._scan_task.cancel()
            self._scan_task = spawn(self._scan(), self._error.show_error)

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        if self._is_stale:
            self.refresh()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._arrange()

    def _build(self) -> None:
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        self._scroll = QScrollArea()
        self._scroll.setWidgetResizable(True)
        self._scroll.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self._scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        outer.addWidget(self._scroll)
        body = QWidget()
        body.setProperty("surface", "paper")
        body.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self._scroll.setWidget(body)
        centre = QHBoxLayout(body)
        centre.setContentsMargins(SPACE_PAGE, SPACE_PAGE, SPACE_PAGE, SPACE_PAGE)
        self._sheet = QWidget()
        self._sheet.setMaximumWidth(MAX_WIDTH)
        centre.addWidget(self._sheet)
        column = QVBoxLayout(self._sheet)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(SPACE_GROUP)
        column.addLayout(self._build_head())
        self._notice = Notice("triangle-alert", "caution")
        self._error = ErrorCard()
        column.addWidget(self._notice)
        column.addWidget(self._error)
        self._scanning = label("Reading the model folders…", "soft")
        column.addWidget(self._scanning)
        self._table = self._build_table()
        self._table.hide()
        column.addWidget(self._table)
        self._empty = self._build_empty()
        self._empty.hide()
        column.addWidget(self._empty, 1)
        column.addStretch(1)

    def _build_head(self) -> QHBoxLayout:
        head = QHBoxLayout()
        head.setSpacing(SPACE_WITHIN)
        titles = QVBoxLayout()
        titles.setSpacing(2)
        titles.addWidget(label("Models", "title"))
        self._summary = ElidedLabel("", "soft", mode=Qt.TextElideMode.ElideMiddle)
        titles.addWidget(self._summary)
        head.addLayout(titles, 1)
        self._refresh_button = IconButton("refresh-cw", "Read the folders again")
        self._refresh_button.clicked.connect(self.refresh)
        folder = IconButton("folder-open", "Open the models folder")
        folder.clicked.connect(lambda: self._open_folder(self._core.models_dir))
        for button in (self._refresh_button, folder):
            head.addWidget(button, 0, Qt.AlignmentFlag.AlignTop)
        return head

    def _build_table(self) -> QWidget:
        table = QWidget()
        column = QVBoxLayout(table)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        self._header = QWidget()
        row = QHBoxLayout(self._header)
        row.setContentsMargins(0, 0, 0, SPACE_WITHIN)
        row.setSpacing(SPACE_GROUP)
        row.addWidget(label("Name", "caption"), 1)
        self._header_labels = []
        right = Qt.AlignmentFlag.AlignRight
        for title, width in (*COLUMNS, ("Fit", FIT_WIDTH), ("", ACTIONS_WIDTH)):
            text = label(title, "caption")
            if (title, width) in COLUMNS:
                text.setAlignment(right)
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
        column.addWidget(
            EmptyState(
                "boxes",
                "No models yet",
                "Start with the small model below, or put GGUF files into the models folder.",
            )
        )
        self._starter_card = StarterCard(self._core)
        column.addLayout(centred(self._starter_card))
        column.addStretch(1)
        return empty

    async def _scan(self) -> None:
        try:
            models = await asyncio.to_thread(self._core.library.scan)
        finally:
            self._refresh_button.setEnabled(True)
            self._scanning.hide()
        self._notice.set_text("\n".join(self._core.library.problems))
        if models != self._models or not self._rows:
            self._show_models(models)
        await self._plan_all()

    async def _plan_all(self) -> None:
        """Works out row after row whether it fits; one that cannot be planned says why."""
        for row in self._rows:
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
        self._rows = []
        for model in models:
            row = ModelRow(model)
            row.load_asked.connect(lambda model=model: self._load(model))
            row.unload_asked.connect(self._unload)
            row.cancel_asked.connect(self._cancel_load)
            row.remove_asked.connect(lambda model=model: self._ask_remove(model))
            row.show_folder_asked.connect(lambda model=model: self._open_folder(model.path.parent))
            row.show_host(self._core.host.state, can_cancel=self._can_cancel)
            self._rows.append(row)
            self._row_column.addWidget(row)
            self._row_column.addWidget(hairline())
        self._table.setVisible(bool(models))
        self._empty.setVisible(not models)
        self._summary.setText(_summarise(models))
        self._arrange()

    def _arrange(self) -> None:
        scale = ThemeController.current().scale
        is_wide = self._scroll.width() >= scaled(WIDE_FROM, scale)
        is_narrow = self._scroll.width() < scaled(NARROW_BELOW, scale)
        self._sheet.setMaximumWidth(scaled(MAX_WIDTH, scale))
        self._header.setVisible(is_wide)
        for text, width in self._header_labels:
            text.setFixedWidth(scaled(width, scale))
        for row in self._rows:
            row.set_layout(is_wide=is_wide, is_narrow=is_narrow)

    def _show_host(self, state: HostState) -> None:
        for row in self._rows:
            row.show_host(state, can_cancel=self._can_cancel)
        if state.status is HostStatus.FAILED and state.error is not None:
            self._error.show_error(state.error)
        elif state.status is HostStatus.READY:
            self._error.clear()
            # What is free has changed, and with it what fits.
            self.refresh()

    @property
    def _can_cancel(self) -> bool:
        """A load begun elsewhere is cancelled where it was begun."""
        return self._load_task is not None and not self._load_task.done()

    def _load(self, model: LibraryModel) -> None:
        self._error.clear()
        self._load_task = spawn(load_model(self._core, model), self._error.show_error)

    def _unload(self) -> None:
        spawn(self._core.host.unload(), self._error.show_error)

    def _cancel_load(self) -> None:
        if self._load_task is not None:
            self._load_task.cancel()

    def _ask_remove(self, model: LibraryModel) -> None:
        spawn(self._remove(model), self._error.show_error)

    async def _remove(self, model: LibraryModel) -> None:
        agreed = await confirm(
            self,
            f"Remove {model.title}?",
            f"{model.path.name} is deleted from {model.path.parent}. That frees"
            f" {format_bytes(model.size_bytes)}. It cannot be undone.",
            "Remove",
            is_danger=True,
        )
        if not agreed:
            return
        # Not on a worker: the library tells of it, and its listeners belong to this thread.
        freed_bytes = self._core.library.remove(model)
        if (toast := find_toast(self)) is not None:
            toast.show_message(
                f"Removed {model.title}; {format_bytes(freed_bytes)} are free again."
            )

    def _open_folder(self, folder: Path) -> None:
        is_open = QDesktopServices.openUrl(QUrl.fromLocalFile(str(folder)))
        if not is_open and (toast := find_toast(self)) is not None:
            toast.show_message(f"No file manager could be opened for {folder}.")


def _summarise(models: list[LibraryModel]) -> str:
    if not models:
        return ""
    count = "1 model" if len(models) == 1 else f"{len(models)} models"
    return f"{count}, {format_bytes(sum(model.size_bytes for model in models))} together"
