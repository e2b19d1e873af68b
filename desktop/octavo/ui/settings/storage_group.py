"""The groups of the settings page that deal with folders: where models lie, and the log."""

import asyncio
import dataclasses
from pathlib import Path

from PySide6.QtCore import QUrl
from PySide6.QtGui import QDesktopServices

from octavo import __version__
from octavo.core import Core
from octavo.hub.hub_cache import default_hub_cache_dir
from octavo.paths import short_path
from octavo.settings import Settings
from octavo.ui.log_view import show_log
from octavo.ui.settings.folders import FolderLine, FolderList
from octavo.ui.settings.groups import Save
from octavo.ui.settings.rows import SettingGroup, SettingRow
from octavo.ui.tasks import spawn
from octavo.ui.widgets.buttons import Button, IconButton
from octavo.ui.widgets.dialogs import choose_folder
from octavo.ui.widgets.labels import label
from octavo.ui.widgets.switch import Switch
from octavo.units import format_bytes


class StorageGroup(SettingGroup):
    """The models folder, the hub's cache, further folders to search, and what loads keep."""

    def __init__(self, save: Save, core: Core) -> None:
        super().__init__("Models")
        self._save = save
        self._core = core
        self._models_dir = core.models_dir
        change = Button("Change…")
        change.setAccessibleName("Change the models folder")
        change.clicked.connect(lambda: spawn(self._choose_models_dir()))
        self.default_button = Button("Use default", variant="quiet")
        self.default_button.clicked.connect(lambda: self._change(models_dir=""))
        self._line = FolderLine("", [self.default_button, change])
        sentence = "Imported models, the starter model and, if you choose a folder, downloads."
        self.add_row(SettingRow("Models folder", sentence, self._line, is_below=True))
        self.cache_line = FolderLine("", [])
        self._cache_row = SettingRow("Models of the hub", " ", self.cache_line, is_below=True)
        self.add_row(self._cache_row)
        self.shows_cache = Switch("List the models of other programs")
        self.shows_cache.clicked.connect(lambda is_on: self._change(shows_hub_cache=is_on))
        self.shared_row = SettingRow("Models of other programs", "", self.shows_cache)
        self.shared_row.sentence.show()
        self.add_row(self.shared_row)
        self.folders = FolderList()
        self.folders.add_asked.connect(lambda: spawn(self._choose_folder()))
        self.folders.remove_asked.connect(self.remove_folder)
        sentence = "Searched for models and never downloaded to, as the folders of other programs."
        self.add_row(SettingRow("Further folders", sentence, self.folders, is_below=True))
        self.remove_kept = Button("Remove")
        self.remove_kept.setAccessibleName("Remove the weights kept for the processor")
        self.remove_kept.clicked.connect(lambda: spawn(self._remove_kept()))
        self.kept_row = SettingRow("Weights kept for the processor", " ", self.remove_kept)
        self.add_row(self.kept_row)
        self._extra: tuple[str, ...] = ()

    def show_settings(self, settings: Settings) -> None:
        chosen = settings.storage.models_dir
        self._models_dir = self._core.models_dir
        cache, shared = self._core.hub_cache.root, default_hub_cache_dir()
        self.cache_line.set_path(str(cache))
        is_own = cache != shared
        self._cache_row.sentence.setText(
            "Models of the hub, in the layout that other programs read, too."
            if is_own
            else "Models of the hub; other programs that use the hub's cache share them."
        )
        # Where downloads go to the shared cache, it is always listed.
        self.shared_row.setVisible(is_own)
        self.shared_row.sentence.setText(
            f"Lists what they have put into the hub's own cache, {short_path(str(shared))}."
        )
        self.shows_cache.setChecked(settings.storage.shows_hub_cache)
        self._line.set_path(str(self._models_dir))
        self.default_button.setVisible(bool(chosen))
        if settings.storage.extra_folders != self._extra:
            self._extra = settings.storage.extra_folders
            self.show_folders()

    def show_folders(self) -> None:
        """Shows the further folders, and which of them are not there now."""
        self.folders.show_folders(self._extra)

    async def show_kept(self) -> None:
        """Shows what the weights take that are kept as the processor's kernels read them."""
        num_bytes = await asyncio.to_thread(self._core.tile_store.num_bytes)
        taken = f"Now {format_bytes(num_bytes)}." if num_bytes else "There are none now."
        self.kept_row.sentence.setText(
            f"So that a model loads at once the next time. {taken} Removed, they come back with the"
            " next load."
        )
        self.remove_kept.setEnabled(num_bytes > 0)

    async def _remove_kept(self) -> None:
        self.remove_kept.setEnabled(False)
        await asyncio.to_thread(self._core.tile_store.clear)
        await self.show_kept()

    def add_folder(self, folder: str) -> None:
        """Adds a folder; one that is there already stays once."""
        if folder and folder not in self._extra:
            self._change(extra_folders=(*self._extra, folder))

    def remove_folder(self, folder: str) -> None:
        self._change(extra_folders=tuple(other for other in self._extra if other != folder))

    async def _choose_models_dir(self) -> None:
        folder = await choose_folder(self, "Models folder", str(self._models_dir))
        if folder:
            self._change(models_dir=folder)

    async def _choose_folder(self) -> None:
        self.add_folder(await choose_folder(self, "Folder with models", str(Path.home())))

    def _change(self, **fields: str | bool | tuple[str, ...]) -> None:
        self._save(
            lambda now: dataclasses.replace(
                now,
                storage=dataclasses.replace(now.storage, **fields),  # type: ignore[arg-type]
            )
        )


class AboutGroup(SettingGroup):
    """Version and log file."""

    def __init__(self, log_file: Path) -> None:
        super().__init__("About")
        self.add_row(SettingRow("Version", "", label(f"Octavo {__version__}", "figure")))
        button = IconButton("folder-open", "Open the folder of the log file")
        url = QUrl.fromLocalFile(str(log_file.parent))
        button.clicked.connect(lambda: QDesktopServices.openUrl(url))
        show = Button("Show the log")
        show.clicked.connect(lambda: show_log(self, log_file))
        line = FolderLine(str(log_file), [button, show])
        sentence = "Errors and numbers; never what you or a model wrote."
        self.add_row(SettingRow("Log file", sentence, line, is_below=True))
