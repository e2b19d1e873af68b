"""The downloads under way, above both views of the models page; hidden while there are none."""

from collections.abc import Callable

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QHBoxLayout, QVBoxLayout, QWidget

from octavo.core import Core
from octavo.errors import OctavoError
from octavo.hub.download_queue import Download, DownloadState
from octavo.ui.models.download_row import DownloadRow
from octavo.ui.tasks import spawn
from octavo.ui.tokens import SPACE_GROUP, SPACE_TIGHT
from octavo.ui.widgets.buttons import Button
from octavo.ui.widgets.cards import Card, Notice
from octavo.ui.widgets.dialogs import confirm
from octavo.ui.widgets.labels import label
from octavo.units import format_bytes


class DownloadList(Card):
    """Follows the queue of the core; its buttons pause, resume and end downloads."""

    chat_asked = Signal(object)
    """The path of the model to chat with."""
    failed = Signal(object)
    """An OctavoError: why a download cannot be changed."""

    def __init__(self, core: Core, parent: QWidget | None = None) -> None:
        super().__init__(parent=parent)
        self._core = core
        self.rows: dict[str, DownloadRow] = {}
        """By the download's id, in the order of the queue."""
        self.body.setSpacing(SPACE_TIGHT)
        head = QHBoxLayout()
        head.addWidget(label("Downloads", "strong"), 1)
        self.clear_button = Button("Clear finished", variant="link")
        self.clear_button.clicked.connect(lambda: self._act(core.downloads.clear_done))
        policy = self.clear_button.sizePolicy()
        # The heading stands at the same place with the button and without it.
        policy.setRetainSizeWhenHidden(True)
        self.clear_button.setSizePolicy(policy)
        head.addWidget(self.clear_button)
        self.body.addLayout(head)
        self.notice = Notice()
        self.body.addWidget(self.notice)
        self._column = QVBoxLayout()
        self._column.setSpacing(0)
        self.body.addLayout(self._column)
        self.body.setContentsMargins(SPACE_GROUP, SPACE_TIGHT, SPACE_GROUP, SPACE_TIGHT)
        disconnect = core.downloads.changed.connect(lambda _: self.refresh())
        self.destroyed.connect(lambda _=None: disconnect())
        self.refresh()

    def refresh(self) -> None:
        """Shows the queue as it is now."""
        queue = self._core.downloads
        downloads = queue.downloads
        ids = [download.id for download in downloads]
        if ids != list(self.rows):
            self._arrange_rows(downloads)
        for download in downloads:
            self.rows[download.id].show_download(download, can_act=queue.is_owner)
        is_done = any(download.state is DownloadState.DONE for download in downloads)
        self.clear_button.setVisible(is_done)
        self.clear_button.setEnabled(queue.is_owner)
        self.notice.set_text(queue.problem)
        self.setVisible(bool(downloads) or bool(queue.problem))

    def _arrange_rows(self, downloads: tuple[Download, ...]) -> None:
        """Makes and drops rows; one that stays keeps its place under the keyboard."""
        rows = {
            download.id: self.rows.get(download.id) or self._make_row(download)
            for download in downloads
        }
        for download_id, row in self.rows.items():
            if download_id not in rows:
                self._column.removeWidget(row)
                row.hide()
                row.deleteLater()
        for place, row in enumerate(rows.values()):
            if self._column.indexOf(row) != place:
                self._column.insertWidget(place, row)
        self.rows = rows

    def _make_row(self, download: Download) -> DownloadRow:
        row, queue, download_id = DownloadRow(download), self._core.downloads, download.id
        row.pause_asked.connect(lambda: self._act(lambda: queue.pause(download_id)))
        row.resume_asked.connect(lambda: self._act(lambda: queue.resume(download_id)))
        row.cancel_asked.connect(lambda: spawn(self._cancel(row), self.failed.emit))
        row.chat_asked.connect(lambda: self.chat_asked.emit(row.download.path))
        return row

    def _act(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OctavoError as error:
            self.failed.emit(error)

    async def _cancel(self, row: DownloadRow) -> None:
        """Asks first where something would be lost."""
        download = row.download
        if download.state is not DownloadState.DONE and download.done_bytes:
            arrived = format_bytes(download.done_bytes)
            agreed = await confirm(
                self,
                f"Stop the download of {download.title}?",
                f"The {arrived} that have arrived are deleted. To keep them, pause it instead.",
                "Stop and delete",
                is_danger=True,
            )
            if not agreed or download.id not in self.rows:
                return
            # It may have been done while the question stood.
            if row.download.state is DownloadState.DONE:
                return
        self._core.downloads.cancel(download.id)
