"""One line of the models page: a model's facts, whether it fits, and what can be done with it."""

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QAction
from PySide6.QtWidgets import (
    QBoxLayout,
    QHBoxLayout,
    QLabel,
    QMenu,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from octavo.engine.memory import MemoryPlan
from octavo.host import HostState, HostStatus
from octavo.hub.library import LibraryModel
from octavo.ui.models.fit import PlanDialog, describe_plan, judge_fit
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import SPACE_INSET, SPACE_TIGHT, SPACE_WITHIN, scaled
from octavo.ui.widgets.buttons import Button, IconButton, set_property
from octavo.ui.widgets.labels import ElidedLabel, label
from octavo.ui.widgets.progress import ProgressLine
from octavo.units import format_bytes, format_count

COLUMNS = (
    ("Parameters", 68),
    ("Quantisation", 76),
    ("Size", 76),
    ("Context", 92),
)
"""Titles and widths at scale 1 of the columns of figures."""
FIT_WIDTH = 72
ACTIONS_WIDTH = 112
COLUMN_GAP = SPACE_INSET
VERDICT_PADDING = 4
"""Between the edge of the verdict's button and its letters."""


class ModelRow(QWidget):
    """Asks through its signals; the page acts."""

    load_asked = Signal()
    unload_asked = Signal()
    cancel_asked = Signal()
    remove_asked = Signal()
    show_folder_asked = Signal()

    def __init__(
        self, model: LibraryModel, origin: str = "", parent: QWidget | None = None
    ) -> None:
        """Args:
        origin: where it came from, in a few words.
        """
        super().__init__(parent)
        self.model = model
        self._origin = origin
        self._plan: MemoryPlan | None = None
        column = QVBoxLayout(self)
        column.setContentsMargins(0, SPACE_INSET, 0, SPACE_INSET)
        column.setSpacing(SPACE_WITHIN)
        self._line = QBoxLayout(QBoxLayout.Direction.LeftToRight)
        self._line.setSpacing(COLUMN_GAP)
        column.addLayout(self._line)
        self._line.addLayout(self._build_names(), 1)
        row = QHBoxLayout()
        row.setSpacing(COLUMN_GAP)
        self._line.addLayout(row)
        self._figures = [self._build_figure(text) for text in _figures(model)]
        for figure in self._figures:
            row.addWidget(figure)
        self.fit_button = Button("", variant="verdict")
        self.fit_button.clicked.connect(self._open_plan)
        row.addWidget(self.fit_button)
        row.addStretch(1)
        row.addLayout(self._build_actions())
        self._progress = ProgressLine(f"Loading {model.title}")
        self._progress.hide()
        column.addWidget(self._progress)
        ThemeController.current().changed.connect(self._apply_scale)
        self._apply_scale()
        self.show_plan(None)
        self.show_host(HostState())

    def show_plan(self, plan: MemoryPlan | None, problem: str = "") -> None:
        """Shows the verdict; None while it is being worked out or where it cannot be."""
        self._plan = plan
        if plan is None:
            self.fit_button.setText("" if problem or self.model.problem else "Checking")
            self.fit_button.setEnabled(False)
            self.fit_button.setToolTip(problem)
            self.fit_button.setAccessibleName(problem or "Checking whether it fits")
            if problem:
                self._show_problem(problem)
            return
        verdict = judge_fit(plan)
        self.fit_button.setText(verdict.word)
        set_property(self.fit_button, "tone", verdict.tone)
        self.fit_button.setEnabled(True)
        self.fit_button.setToolTip(describe_plan(plan))
        self.fit_button.setAccessibleName(f"{verdict.word}: memory plan of {self.model.title}")
        self.fit_button.setAccessibleDescription(verdict.sentence)

    def show_host(self, state: HostState, *, can_cancel: bool = False) -> None:
        """Shows what the host does with this model, or that it is busy with another."""
        is_this = state.model is not None and state.model.path == self.model.path
        status = state.status if is_this else HostStatus.EMPTY
        is_busy = state.status in (HostStatus.LOADING, HostStatus.UNLOADING)
        is_usable = not self.model.problem and not self._problem.text()
        is_loading = status is HostStatus.LOADING
        self._progress.setVisible(is_loading)
        if is_loading and state.progress is not None:
            self._progress.show_progress(state.progress)
        self.load_button.setVisible(status in (HostStatus.EMPTY, HostStatus.FAILED) and is_usable)
        self.load_button.setEnabled(not is_busy)
        self.unload_button.setVisible(status in (HostStatus.READY, HostStatus.UNLOADING))
        self.unload_button.setEnabled(status is HostStatus.READY)
        self.cancel_button.setVisible(is_loading and can_cancel)
        self._loaded_mark.setVisible(status is HostStatus.READY)
        self._remove.setEnabled(status in (HostStatus.EMPTY, HostStatus.FAILED))

    def set_layout(self, *, is_wide: bool, is_narrow: bool) -> None:
        """Columns where there is room, else a line of facts; where it is narrow, actions below."""
        direction = QBoxLayout.Direction
        self._line.setDirection(direction.TopToBottom if is_narrow else direction.LeftToRight)
        self._line.setSpacing(SPACE_TIGHT if is_narrow else COLUMN_GAP)
        for figure in self._figures:
            figure.setVisible(is_wide)
        self._facts.setText(_facts(self.model, self._origin, with_figures=not is_wide))

    def _build_names(self) -> QVBoxLayout:
        names = QVBoxLayout()
        names.setSpacing(SPACE_TIGHT // 2)
        first = QHBoxLayout()
        first.setSpacing(SPACE_WITHIN)
        title = ElidedLabel(self.model.title, "strong")
        title.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self._loaded_mark = label("Loaded", "caption")
        set_property(self._loaded_mark, "tone", "good")
        first.addWidget(title, 0)
        first.addWidget(self._loaded_mark)
        first.addStretch(1)
        self._facts = ElidedLabel("", "caption")
        self._problem = label(self.model.problem, "caption", wrap=True)
        set_property(self._problem, "tone", "caution")
        self._problem.setVisible(bool(self.model.problem))
        if self.model.problem:
            title.setEnabled(False)
        names.addLayout(first)
        names.addWidget(self._facts)
        names.addWidget(self._problem)
        return names

    def _build_figure(self, text: str) -> QLabel:
        figure = label(text, "figure")
        figure.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        figure.setEnabled(not self.model.problem)
        return figure

    def _build_actions(self) -> QHBoxLayout:
        title = self.model.title
        self.load_button = Button("Load")
        self.load_button.setAccessibleName(f"Load {title}")
        self.load_button.clicked.connect(self.load_asked)
        self.unload_button = Button("Unload")
        self.unload_button.setAccessibleName(f"Unload {title}")
        self.unload_button.clicked.connect(self.unload_asked)
        self.cancel_button = Button("Cancel")
        self.cancel_button.setAccessibleName(f"Cancel loading {title}")
        self.cancel_button.clicked.connect(self.cancel_asked)
        self.more_button = IconButton("ellipsis", f"More for {title}")
        menu = QMenu(self.more_button)
        show_folder = QAction("Show folder", menu)
        show_folder.triggered.connect(self.show_folder_asked)
        self._remove = QAction("Remove…", menu)
        self._remove.triggered.connect(self.remove_asked)
        menu.addActions([show_folder, self._remove])
        self.more_button.setMenu(menu)
        self.more_button.setPopupMode(self.more_button.ToolButtonPopupMode.InstantPopup)
        self._actions = QWidget()
        inner = QHBoxLayout(self._actions)
        inner.setContentsMargins(0, 0, 0, 0)
        inner.setSpacing(SPACE_TIGHT)
        inner.addStretch(1)
        for button in (self.load_button, self.unload_button, self.cancel_button, self.more_button):
            inner.addWidget(button)
        actions = QHBoxLayout()
        actions.addWidget(self._actions)
        return actions

    def _apply_scale(self) -> None:
        scale = ThemeController.current().scale
        for figure, (_title, width) in zip(self._figures, COLUMNS, strict=True):
            figure.setFixedWidth(scaled(width, scale))
        self.fit_button.setFixedWidth(scaled(FIT_WIDTH, scale))
        self._actions.setFixedWidth(scaled(ACTIONS_WIDTH, scale))

    def _show_problem(self, problem: str) -> None:
        self._problem.setText(problem)
        self._problem.show()
        self.load_button.hide()

    def _open_plan(self) -> None:
        if self._plan is not None:
            dialog = PlanDialog(self.model.title, self._plan, self)
            dialog.finished.connect(dialog.deleteLater)
            dialog.open()


def _figures(model: LibraryModel) -> tuple[str, str, str, str]:
    """As `COLUMNS` names them; empty where the file does not tell."""
    return (
        format_count(model.num_parameters) if model.num_parameters else "",
        model.quantization,
        format_bytes(model.size_bytes),
        f"{model.context_length:,} tok" if model.context_length else "",
    )


def _facts(model: LibraryModel, origin: str, *, with_figures: bool) -> str:
    parts = [model.license or "no licence named"] if not model.problem else []
    parts = [model.name, *parts, *([origin] if origin else [])]
    if with_figures:
        parts = [*(figure for figure in _figures(model) if figure), *parts[1:]]
    return " · ".join(parts)
