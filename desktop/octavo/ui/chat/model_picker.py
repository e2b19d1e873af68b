"""`ModelPicker`: the model that answers next; chooses and loads one, and shows the load."""

import asyncio
from collections.abc import Sequence

from PySide6.QtCore import QPoint, Qt, Signal
from PySide6.QtGui import QAction, QActionGroup
from PySide6.QtWidgets import QHBoxLayout, QMenu, QVBoxLayout, QWidget

from octavo.core import Core
from octavo.errors import DeviceLostError, OctavoError
from octavo.host import HostState, HostStatus
from octavo.hub.library import LibraryModel
from octavo.jobs import Progress
from octavo.ui.models.loading import load_model
from octavo.ui.tasks import spawn
from octavo.ui.tokens import SPACE_PAGE, SPACE_TIGHT, SPACE_WITHIN
from octavo.ui.widgets.buttons import Button
from octavo.ui.widgets.cards import ErrorCard
from octavo.ui.widgets.progress import ProgressLine
from octavo.units import format_bytes

NO_MODEL = "Choose a model"


def describe_model(model: LibraryModel) -> str:
    """`SmolLM2 135M Instruct · Q4_1 · 93.8 MiB`."""
    return f"{model.title} · {model.quantization} · {format_bytes(model.size_bytes)}"


class ModelPicker(QWidget):
    """A button with the model's name and a menu of the library; under it load and errors."""

    models_changed = Signal()
    """The list of models was read anew."""
    models_asked = Signal()
    restart_asked = Signal()
    """CUDA lets this process use its card no more; another one might."""

    def __init__(self, core: Core, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._core = core
        self._models: list[LibraryModel] | None = None
        self._task: asyncio.Task[None] | None = None
        # Whether the engine has been restarted since a card failed, and no model was loaded.
        self._was_restarted = False
        self.button = Button(NO_MODEL, variant="quiet", icon_name="chevron-down")
        self.button.setLayoutDirection(Qt.LayoutDirection.RightToLeft)
        self.button.setToolTip("Choose the model that answers (Ctrl+M)")
        self.button.clicked.connect(self.open_menu)
        self.progress = ProgressLine("Loading the model")
        self.cancel_button = Button("Cancel")
        self.cancel_button.setToolTip("Stop loading")
        self.cancel_button.clicked.connect(self.cancel)
        self._loading = QWidget()
        loading_row = QHBoxLayout(self._loading)
        # Under the words of the button, not under its edge.
        loading_row.setContentsMargins(SPACE_PAGE, 0, SPACE_PAGE, SPACE_WITHIN)
        loading_row.setSpacing(SPACE_WITHIN)
        loading_row.addWidget(self.progress, 1)
        loading_row.addWidget(self.cancel_button)
        self.error_card = ErrorCard("Try again")
        self.error_card.retry.clicked.connect(self._retry)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(SPACE_TIGHT)
        # Absolute: the button's layout direction, which puts its icon right, must not move it.
        left = Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignAbsolute
        column.addWidget(self.button, 0, left)
        column.addWidget(self._loading)
        column.addWidget(self.error_card)
        disconnects = (
            core.host.state_changed.connect(self._show_state),
            core.library.changed.connect(self._read_library),
        )
        self.destroyed.connect(lambda _=None: [disconnect() for disconnect in disconnects])
        self._show_state(core.host.state)

    @property
    def models(self) -> Sequence[LibraryModel] | None:
        """The library as it was read last; None before that."""
        return self._models

    def refresh(self) -> None:
        """Reads the library in the background."""
        spawn(self._scan())

    def choose(self, model: LibraryModel) -> None:
        """Loads a model; the one that is being loaded is given up."""
        self.cancel()
        self.error_card.clear()
        # The host's state says what went wrong, and this shows it.
        self._task = spawn(self._load(model), self._show_error)

    def cancel(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
        self._task = None

    def open_menu(self) -> None:
        """Lists the library; the models that cannot be used say why."""
        menu = QMenu(self)
        menu.setToolTipsVisible(True)
        group = QActionGroup(menu)
        state = self._core.host.state
        for model in self._models or []:
            action = QAction(describe_model(model).replace("&", "&&"), group)
            action.setCheckable(True)
            action.setChecked(self._is_loaded(model))
            action.setEnabled(not model.problem)
            action.setToolTip(model.problem)
            action.triggered.connect(lambda _=False, model=model: self.choose(model))
            menu.addAction(action)
        if not self._models:
            menu.addAction("There are no models yet").setEnabled(False)
        menu.addSeparator()
        menu.addAction("Find or add a model…").triggered.connect(self.models_asked)
        if state.status is HostStatus.READY:
            menu.addAction("Unload the model", self._unload)
        menu.addAction("Look for models again", self.refresh)
        menu.aboutToHide.connect(menu.deleteLater)
        menu.popup(self.button.mapToGlobal(QPoint(0, self.button.height() + SPACE_TIGHT)))

    async def _scan(self) -> None:
        self._models = await asyncio.to_thread(self._core.library.scan)
        self.models_changed.emit()

    async def _load(self, model: LibraryModel) -> None:
        if not self._is_loaded(model):
            await load_model(self._core, model)

    def _is_loaded(self, model: LibraryModel) -> bool:
        state = self._core.host.state
        is_same = state.model is not None and state.model.name == model.name
        return is_same and state.status is HostStatus.READY

    def _unload(self) -> None:
        spawn(self._core.host.unload())

    def _retry(self) -> None:
        if isinstance(self.error_card.error, DeviceLostError):
            if self._was_restarted:
                self.restart_asked.emit()
                return
            self._was_restarted = True
        model = self._core.host.state.model
        if model is not None:
            self.choose(model)

    def _retry_text(self, error: OctavoError) -> str:
        if not isinstance(error, DeviceLostError):
            return "Try again"
        return "Restart Octavo" if self._was_restarted else "Restart the engine"

    def _read_library(self, _changed: None) -> None:
        self.refresh()

    def _show_error(self, error: OctavoError) -> None:
        self.error_card.show_error(error)

    def _show_state(self, state: HostState) -> None:
        title = NO_MODEL if state.model is None else state.model.title
        if state.model is not None and state.status is HostStatus.READY:
            title = f"{title} · {state.model.quantization}"
        self.button.setText(title)
        self.button.setAccessibleName(f"Model: {title}")
        is_loading = state.status is HostStatus.LOADING
        self._loading.setVisible(is_loading)
        # A load begun elsewhere is cancelled where it was begun.
        self.cancel_button.setVisible(self._task is not None and not self._task.done())
        if is_loading:
            self.error_card.clear()
            self.progress.show_progress(state.progress or Progress("Loading the model"))
        elif state.status is HostStatus.FAILED and state.error is not None:
            self.error_card.retry.setText(self._retry_text(state.error))
            self.error_card.show_error(state.error)
        else:
            self._was_restarted &= state.status is not HostStatus.READY
            self.error_card.clear()
