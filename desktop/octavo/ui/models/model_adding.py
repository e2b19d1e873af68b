"""Adding models that are on this machine already: chosen in a dialog or dropped on the page."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from PySide6.QtCore import QMimeData, Signal
from PySide6.QtWidgets import QFileDialog, QHBoxLayout, QWidget

from octavo.core import Core
from octavo.engine.checkpoint_parts import read_model_config
from octavo.hub.model_import import LinkKind, import_model
from octavo.ui.tasks import spawn
from octavo.ui.widgets.dialogs import ask, choose_folder
from octavo.ui.widgets.labels import ElidedLabel
from octavo.ui.widgets.toast import find_toast

AddModel = Callable[[Core, Path], str]
"""Makes a file or a folder a model of the library and says in a sentence what was done."""


def add_by_import(core: Core, path: Path) -> str:
    """Puts a link into Octavo's folder; blocks."""
    added = import_model(path, core.models_dir, check=read_model_config)
    if added.was_here:
        return f"{path.name} was here already."
    if added.kind is LinkKind.COPY:
        return f"Added a copy of {path.name}."
    return f"Added {path.name}; the files stay where they are."


class ModelAdding(QWidget):
    """Says what is being added; hidden while nothing is."""

    failed = Signal(object)
    """An OctavoError: why something cannot be added."""

    def __init__(self, core: Core, add_model: AddModel, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._core = core
        self._add_model = add_model
        self._task: asyncio.Task[None] | None = None
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self._text = ElidedLabel("", "soft")
        row.addWidget(self._text)
        self.hide()

    def ask_for_file(self) -> None:
        """Lets the person pick a GGUF file."""
        spawn(self._ask_for_file(), self.failed.emit)

    def ask_for_folder(self) -> None:
        """Lets the person pick a folder with config.json and safetensors."""
        spawn(self._ask_for_folder(), self.failed.emit)

    def add(self, paths: Sequence[Path]) -> None:
        """Adds one after the other; what cannot be added says why."""
        spawn(self._add(paths), self.failed.emit)

    async def _ask_for_file(self) -> None:
        dialog = QFileDialog(self.window(), "Add a model file", str(Path.home()))
        dialog.setFileMode(QFileDialog.FileMode.ExistingFiles)
        dialog.setNameFilters(["Models (*.gguf *.GGUF)", "All files (*)"])
        chosen: list[str] = []
        dialog.filesSelected.connect(chosen.extend)
        if await ask(dialog) and chosen:
            await self._add([Path(path) for path in chosen])

    async def _ask_for_folder(self) -> None:
        folder = await choose_folder(self.window(), "Add a model's folder", str(Path.home()))
        if folder:
            await self._add([Path(folder)])

    async def _add(self, paths: Sequence[Path]) -> None:
        try:
            for path in paths:
                self._text.setText(f"Adding {path.name}…")
                self.show()
                said = await asyncio.to_thread(self._add_model, self._core, path)
                self._core.library.changed.emit(None)
                if (toast := find_toast(self)) is not None:
                    toast.show_message(said)
        finally:
            self.hide()


def droppable(data: QMimeData) -> list[Path]:
    """The GGUF files and the folders among what is dragged; nothing else can be a model."""
    paths = [Path(url.toLocalFile()) for url in data.urls() if url.isLocalFile()]
    return [path for path in paths if path.suffix.lower() == ".gguf" or path.is_dir()]
