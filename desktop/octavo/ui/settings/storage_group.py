"""The groups of the settings page that deal with folders: where models lie, and the log."""

import dataclasses
from pathlib import Path

from PySide6.QtCore import QUrl
from PySide6.QtGui import QDesktopServices

from octavo import __version__
from octavo.settings import Settings
from octavo.ui.settings.folders import FolderLine, FolderList
from octavo.ui.settings.groups import Save
from octavo.ui.settings.rows import SettingGroup, SettingRow
from octavo.ui.tasks import spawn
from octavo.ui.widgets.buttons import Button, IconButton
from octavo.ui.widgets.dialogs import choose_folder
from octavo.ui.widgets.labels import label


class StorageGroup(SettingGroup):
    """The models folder and further ones to search."""

    def __init__(self, save: Save, default_dir: Path) -> None:
        super().__init__("Models")
        self._save = save
        self._default_dir = default_dir
        self._models_dir = default_dir
        change = Button("Change…")
        change.setAccessibleName("Change the models folder")
        change.clicked.connect(lambda: spawn(self._choose_models_dir()))
        self.default_button = Button("Use default", variant="quiet")
        self.default_button.clicked.connect(lambda: self._change(models_dir=""))
        self._line = FolderLine("", [self.default_button, change])
        self.add_row(SettingRow("Models folder", "Downloads go here.", self._line, is_below=True))
        self.folders = FolderList()
        self.folders.add_asked.connect(lambda: spawn(self._choose_folder()))
        self.folders.remove_asked.connect(self.remove_folder)
        sentence = "Searched for GGUF files and never written to, as the folders of other programs."
        self.add_row(SettingRow("Further folders", sentence, self.folders, is_below=True))
        self._extra: tuple[str, ...] = ()

    def show_settings(self, settings: Settings) -> None:
        chosen = settings.storage.models_dir
        self._models_dir = Path(chosen).expanduser() if chosen else self._default_dir
        self._line.set_path(str(self._models_dir))
        self.default_button.setVisible(bool(chosen))
        if settings.storage.extra_folders != self._extra:
            self._extra = settings.storage.extra_folders
            self.folders.show_folders(self._extra)

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

    def _change(self, **fields: str | tuple[str, ...]) -> None:
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
        line = FolderLine(str(log_file), [button])
        sentence = "Errors and numbers; never what you or a model wrote."
        self.add_row(SettingRow("Log file", sentence, line, is_below=True))
