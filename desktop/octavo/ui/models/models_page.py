"""The models page: what is on this machine, what the hub has, and what is on its way."""

import asyncio
from pathlib import Path

from PySide6.QtCore import QEvent, Qt, Signal
from PySide6.QtGui import (
    QDragEnterEvent,
    QDragLeaveEvent,
    QDropEvent,
    QKeyEvent,
    QKeySequence,
)
from PySide6.QtWidgets import QBoxLayout, QWidget

from octavo.core import Core
from octavo.errors import OctavoError
from octavo.host import HostState, HostStatus
from octavo.hub.hub_files import HubRepository, HubVariant
from octavo.ui.models.download_list import DownloadList
from octavo.ui.models.find_view import FindView
from octavo.ui.models.library_view import LibraryView
from octavo.ui.models.model_adding import AddModel, ModelAdding, add_by_import, droppable
from octavo.ui.models.variant_checks import Inspect, inspect_on_hub
from octavo.ui.shortcuts import Shortcut
from octavo.ui.tasks import spawn
from octavo.ui.tokens import SPACE_WITHIN
from octavo.ui.widgets.buttons import SegmentedChoice
from octavo.ui.widgets.cards import ErrorCard, Notice
from octavo.ui.widgets.labels import label
from octavo.ui.widgets.page import ScrolledPage

WIDE_FROM = 820
NARROW_BELOW = 560
MAX_WIDTH = 1120
LIBRARY = "library"
FIND = "find"
SHORTCUTS = (
    Shortcut("Search the hub", ("Ctrl+F",)),
    Shortcut("Back from a repository", ("Esc",)),
)


class ModelsPage(ScrolledPage):
    """Two views under one list of downloads; files dropped on it become models."""

    chat_asked = Signal(object)
    """The LibraryModel to load and to chat with."""
    settings_asked = Signal()

    def __init__(
        self,
        core: Core,
        parent: QWidget | None = None,
        *,
        inspect: Inspect = inspect_on_hub,
        add_model: AddModel = add_by_import,
    ) -> None:
        """Args:
        inspect: reads a variant's header on the hub; called on a worker.
        add_model: makes a file or folder a model of the library; called on a worker.
        """
        super().__init__(MAX_WIDTH, parent)
        self._core = core
        self.setAcceptDrops(True)
        self.column.addLayout(self._build_head())
        self.drop_note = Notice("download", "accent")
        self.error_card = ErrorCard()
        self.downloads = DownloadList(core)
        self.downloads.chat_asked.connect(self._chat)
        self.downloads.failed.connect(self.error_card.show_error)
        self.adding = ModelAdding(core, add_model)
        self.adding.failed.connect(self.error_card.show_error)
        self.library = LibraryView(core)
        self.library.add_file_asked.connect(self.adding.ask_for_file)
        self.library.add_folder_asked.connect(self.adding.ask_for_folder)
        self.library.find_asked.connect(self.open_search)
        self.finder = FindView(core, inspect)
        self.finder.settings_asked.connect(self.settings_asked)
        self.finder.chat_asked.connect(self._chat)
        self.finder.download_asked.connect(self._download)
        for part in (self.drop_note, self.error_card, self.downloads, self.adding):
            self.column.addWidget(part)
        self.column.addWidget(self.library, 1)
        self.column.addWidget(self.finder, 1)
        disconnect = core.host.state_changed.connect(self._follow_host)
        self.destroyed.connect(lambda _=None: disconnect())
        self.show_view(LIBRARY)

    @property
    def view(self) -> str:
        """`LIBRARY` or `FIND`."""
        return self._choice.value

    def show_view(self, view: str) -> None:
        """Shows what is on this machine or what the hub has."""
        self._choice.set_value(view)
        self.library.setVisible(view == LIBRARY)
        self.finder.setVisible(view == FIND)

    def open_search(self) -> None:
        """Shows the search, ready to write in."""
        self.show_view(FIND)
        self.finder.focus_field()

    def open_asked(self, argument: str) -> None:
        """Opens what the app was started with: a model on this machine, or an address of a hub."""
        path = Path(argument)
        if path.is_absolute() or path.exists():
            self.show_view(LIBRARY)
            self.adding.add([path])
        else:
            self.show_view(FIND)
            self.finder.search_for(argument)

    def arrange(self) -> None:
        is_wide = self.is_at_least(WIDE_FROM)
        is_narrow = not self.is_at_least(NARROW_BELOW)
        direction = QBoxLayout.Direction
        self._head.setDirection(direction.TopToBottom if is_narrow else direction.LeftToRight)
        for view in (self.library, self.finder):
            view.set_layout(is_wide=is_wide, is_narrow=is_narrow)

    def event(self, event: QEvent) -> bool:
        # Elsewhere the keys search the chats: whoever accepts the override gets them.
        if event.type() is QEvent.Type.ShortcutOverride and _asks_for_search(event):
            event.accept()
            return True
        return super().event(event)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if _asks_for_search(event):
            self.open_search()
        elif self.view == FIND and _is_written(event):
            # Whoever writes where no field is writes into the search.
            self.finder.write(event.text())
        else:
            super().keyPressEvent(event)

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        paths = droppable(event.mimeData())
        if paths:
            event.acceptProposedAction()
            names = ", ".join(path.name for path in paths)
            self.drop_note.set_text(f"Drop it here to add {names} to the models.")

    def dragLeaveEvent(self, _event: QDragLeaveEvent) -> None:
        self.drop_note.set_text("")

    def dropEvent(self, event: QDropEvent) -> None:
        self.drop_note.set_text("")
        paths = droppable(event.mimeData())
        if paths:
            event.acceptProposedAction()
            self.show_view(LIBRARY)
            self.adding.add(paths)

    def _build_head(self) -> QBoxLayout:
        self._head = QBoxLayout(QBoxLayout.Direction.LeftToRight)
        self._head.setSpacing(SPACE_WITHIN)
        self._head.addWidget(label("Models", "title"))
        self._head.addStretch(1)
        self._choice = SegmentedChoice(
            "Models to show", [(LIBRARY, "On this machine"), (FIND, "Find")]
        )
        self._choice.chosen.connect(self._choose_view)
        left = Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter
        self._head.addWidget(self._choice, 0, left)
        return self._head

    def _choose_view(self, view: str) -> None:
        self.show_view(view)

    def _download(self, repository: HubRepository, variant: HubVariant) -> None:
        self.error_card.clear()
        try:
            self._core.downloads.add(
                repository.name, variant.label, repository.revision, variant.size_bytes
            )
        except OctavoError as error:
            self.error_card.show_error(error)

    def _chat(self, path: Path) -> None:
        self.error_card.clear()
        spawn(self._find_and_chat(path), self.error_card.show_error)

    async def _find_and_chat(self, path: Path) -> None:
        self.chat_asked.emit(await asyncio.to_thread(self._core.library.find, str(path)))

    def _follow_host(self, state: HostState) -> None:
        if state.status in (HostStatus.READY, HostStatus.EMPTY):
            self.finder.check_again()


def _is_written(event: QKeyEvent) -> bool:
    return event.text().isprintable() and bool(event.text().strip())


def _asks_for_search(event: QEvent) -> bool:
    return isinstance(event, QKeyEvent) and event.matches(QKeySequence.StandardKey.Find)
