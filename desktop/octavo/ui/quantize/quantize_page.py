"""The quantise page: choose a model and a form, watch it being made, see what that cost."""

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import Qt, QTimer, Signal
from PySide6.QtGui import QShowEvent
from PySide6.QtWidgets import QComboBox, QHBoxLayout, QVBoxLayout, QWidget

from octavo.checkpoint.header import read_checkpoint
from octavo.core import Core
from octavo.errors import OctavoError
from octavo.hub.library import LibraryModel
from octavo.paths import short_path
from octavo.quantize.interrupted import InterruptedRun, discard, find_interrupted
from octavo.quantize.methods import METHODS
from octavo.quantize.recipe import (
    Estimate,
    QuantizeRecipe,
    default_output,
    estimate,
    refuse_quantized,
    source_name,
)
from octavo.quantize.report import QuantizeReport, read_report
from octavo.ui.quantize.interrupted_list import InterruptedList
from octavo.ui.quantize.method_list import MethodList
from octavo.ui.quantize.quantize_run import Quantize, QuantizeRun, quantize_in_child
from octavo.ui.quantize.report_list import QuantizedModel, ReportList
from octavo.ui.tasks import spawn
from octavo.ui.tokens import SPACE_WITHIN
from octavo.ui.widgets.buttons import Button
from octavo.ui.widgets.cards import Card, EmptyState, ErrorCard, Notice
from octavo.ui.widgets.dialogs import confirm
from octavo.ui.widgets.inputs import ChoiceBox
from octavo.ui.widgets.labels import ElidedLabel, label
from octavo.ui.widgets.page import ScrolledPage
from octavo.ui.widgets.progress import ProgressLine
from octavo.ui.widgets.switch import Switch
from octavo.units import format_bytes

WIDE_FROM = 640
MAX_WIDTH = 880
NARROWEST_NAME = 20
"""Characters of the chosen model that are seen in the narrowest window."""


class QuantizePage(ScrolledPage):
    """One run at a time, in a child process; it goes on while other pages are shown."""

    chat_asked = Signal(object)
    """The LibraryModel to load and to chat with."""
    models_asked = Signal()

    def __init__(
        self,
        core: Core,
        parent: QWidget | None = None,
        *,
        quantize: Quantize = quantize_in_child,
        has_interrupted: Callable[[Path], list[InterruptedRun]] = find_interrupted,
    ) -> None:
        super().__init__(MAX_WIDTH, parent)
        self._core = core
        self._find_interrupted = has_interrupted
        self._sources: dict[str, LibraryModel] = {}
        self._is_stale = True
        self._unseen: QuantizeReport | None = None
        """Of the run that has just ended, until it is in view."""
        self.run = QuantizeRun(quantize, self)
        self._build()
        self.run.changed.connect(self._show_run)
        self.run.ended.connect(self._look_for_interrupted)
        self.run.cancelled.connect(self._keep_unmeasured)
        self.run.finished.connect(self._finish)
        self.run.failed.connect(self._fail)
        disconnect = core.library.changed.connect(lambda _: self._refresh())
        self.destroyed.connect(lambda _=None: disconnect())
        self._show_run()

    def arrange(self) -> None:
        self.reports.set_wide(self.is_at_least(WIDE_FROM))

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        if self._is_stale:
            self._refresh()

    def _build(self) -> None:
        self.add_title(
            "Quantise",
            "Makes a smaller model of one on this machine, and measures what that cost.",
        )
        self.note = Notice()
        self.error_card = ErrorCard()
        self.empty = EmptyState(
            "shrink",
            "No model to make smaller",
            "Octavo quantises GGUF files and folders of safetensors. There is none here yet.",
            self._find_button(),
        )
        self.empty.hide()
        self.form = self._build_form()
        self.run_card = self._build_run_card()
        self.interrupted = InterruptedList()
        self.interrupted.resume_asked.connect(self._resume)
        self.interrupted.discard_asked.connect(
            lambda run: spawn(self._ask_discard(run), self.error_card.show_error)
        )
        self.reports_title = label("Made here", "heading")
        self.reports = ReportList()
        self.reports.chat_asked.connect(self.chat_asked)
        self.reports.measure_asked.connect(self._measure)
        for part in (
            self.note,
            self.error_card,
            self.run_card,
            self.interrupted,
            self.form,
            self.reports_title,
            self.reports,
        ):
            self.column.addWidget(part)
        self.column.addWidget(self.empty, 1)
        self.column.addStretch(1)

    def _find_button(self) -> Button:
        button = Button("Find a model", icon_name="search")
        button.clicked.connect(self.models_asked)
        return button

    def _build_form(self) -> Card:
        card = Card()
        self.picker = ChoiceBox("Model to make smaller", [])
        self.picker.setMinimumContentsLength(NARROWEST_NAME)
        self.picker.setSizeAdjustPolicy(
            QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
        )
        self.picker.chosen.connect(lambda _name: self._show_source())
        title = label("Model", "strong")
        title.setBuddy(self.picker)
        card.body.addWidget(title)
        card.body.addWidget(self.picker)
        self.source_note = label("", "caption", wrap=True)
        self.source_note.hide()
        card.body.addWidget(self.source_note)
        card.body.addSpacing(SPACE_WITHIN)
        card.body.addWidget(label("Method", "strong"))
        self.methods = MethodList()
        self.methods.chosen.connect(self._show_output)
        card.body.addWidget(self.methods)
        card.body.addSpacing(SPACE_WITHIN)
        card.body.addLayout(self._build_evaluation())
        self.output = ElidedLabel("", "caption", mode=Qt.TextElideMode.ElideMiddle)
        card.body.addWidget(self.output)
        self.start_button = Button("Quantise", variant="primary", icon_name="shrink")
        self.start_button.clicked.connect(self._start)
        row = QHBoxLayout()
        row.addWidget(self.start_button)
        row.addStretch(1)
        card.body.addLayout(row)
        return card

    def _build_evaluation(self) -> QHBoxLayout:
        row = QHBoxLayout()
        texts = QVBoxLayout()
        texts.setSpacing(2)
        texts.addWidget(label("Measure the quality afterwards", "strong"))
        sentence = "Perplexity, and how often both models choose the same word. Takes some minutes."
        texts.addWidget(label(sentence, "caption", wrap=True))
        self.evaluates = Switch("Measure the quality afterwards")
        self.evaluates.setChecked(True)
        row.addLayout(texts, 1)
        row.addWidget(self.evaluates, 0, Qt.AlignmentFlag.AlignTop)
        return row

    def _build_run_card(self) -> Card:
        card = Card()
        self.run_title = ElidedLabel("", "strong")
        self.progress = ProgressLine("Quantisation")
        self.cancel_button = Button("Cancel")
        self.cancel_button.clicked.connect(self.run.cancel)
        row = QHBoxLayout()
        row.addWidget(label("What is finished is kept if you stop.", "caption"), 1)
        row.addWidget(self.cancel_button)
        column = QVBoxLayout()
        column.setSpacing(SPACE_WITHIN)
        column.addWidget(self.run_title)
        column.addWidget(self.progress)
        column.addLayout(row)
        card.body.addLayout(column)
        return card

    def _refresh(self) -> None:
        """Reads the library again; while the page is hidden, at its next showing."""
        self._is_stale = True
        if self.isVisible():
            self._is_stale = False
            spawn(self._read_library(), self.error_card.show_error)

    async def _read_library(self) -> None:
        sources, made = await asyncio.to_thread(_sort_models, self._core)
        self._sources = {model.name: model for model in sources}
        shown = self.picker.value
        self.picker.clear()
        for model in sources:
            self.picker.addItem(_describe(model), model.name)
        if shown in self._sources:
            self.picker.set_value(shown)
        self.reports.show_models(made)
        self.reports_title.setVisible(bool(made))
        await self._read_interrupted()
        self._show_run()
        await self._estimate()
        self._show_report()

    def _show_report(self) -> None:
        """Brings what has just been measured into view: it stands below the form."""
        report, self._unseen = self._unseen, None
        cards = [card for card in self.reports.cards if card.quantized.report == report]
        for card in cards[:1]:
            show = functools.partial(self.scroll_area.ensureWidgetVisible, card)
            # Once the new cards have been laid out.
            QTimer.singleShot(0, card, show)

    async def _read_interrupted(self) -> None:
        runs = await asyncio.to_thread(self._find_interrupted, self._core.models_dir)
        running = self.run.recipe
        self.interrupted.show_runs([run for run in runs if run.recipe != running])

    def _show_source(self) -> None:
        self.methods.show_estimates({})
        spawn(self._estimate(), self.error_card.show_error)

    async def _estimate(self) -> None:
        """Shows what each form of the chosen model would take, or why there is none."""
        model = self._sources.get(self.picker.value)
        self._show_output()
        if model is None:
            return
        try:
            estimates, note = await asyncio.to_thread(_estimate, model.path), ""
        except OctavoError as error:
            estimates, note = {}, str(error)
        if self.picker.value == model.name:
            self.methods.show_estimates(estimates, model.size_bytes)
            self.source_note.setText(note)
            self.source_note.setVisible(bool(note))
            self._show_output()

    def _show_output(self) -> None:
        recipe = self._recipe()
        self.output.setText(f"Becomes {short_path(str(recipe.output))}" if recipe else "")
        self.start_button.setEnabled(self.methods.can_be_made)

    def _recipe(self) -> QuantizeRecipe | None:
        model = self._sources.get(self.picker.value)
        if model is None:
            return None
        method = self.methods.method
        name = source_name(model.path, model.name)
        output = default_output(self._core.models_dir, name, method)
        return QuantizeRecipe(model.path, method.id, output)

    def _start(self) -> None:
        recipe = self._recipe()
        if recipe is not None:
            self._begin(recipe)

    def _resume(self, run: InterruptedRun) -> None:
        self._begin(run.recipe)

    def _begin(self, recipe: QuantizeRecipe) -> None:
        self.error_card.clear()
        self.note.set_text("")
        self.run.start(recipe, evaluates=self.evaluates.isChecked())
        self._look_for_interrupted()

    def _measure(self, quantized: QuantizedModel) -> None:
        """Goes on with what was stopped, or left out, when the model was made."""
        self.note.set_text("")
        self.error_card.hide()
        report = quantized.report
        recipe = QuantizeRecipe(Path(report.source), report.method, quantized.model.path)
        self.run.start(recipe, evaluates=True)

    def _look_for_interrupted(self) -> None:
        spawn(self._read_interrupted(), self.error_card.show_error)

    def _show_run(self) -> None:
        recipe = self.run.recipe
        is_running = recipe is not None
        has_sources = bool(self._sources)
        self.run_card.setVisible(is_running)
        self.form.setVisible(has_sources and not is_running)
        self.empty.setVisible(not has_sources and not is_running and not self._is_stale)
        self.interrupted.setEnabled(not is_running)
        if recipe is not None:
            verb = "Measuring" if recipe.output.exists() else "Making"
            self.run_title.setText(f"{verb} {recipe.output.name}")
            self.progress.show_progress(self.run.progress)

    def _keep_unmeasured(self, recipe: QuantizeRecipe) -> None:
        """Stopped while it was measured, a model is finished all the same."""
        if recipe.output.exists():
            self.note.set_text(
                "The result is in the library. Its quality was not measured; that can be done"
                " later."
            )
            self._core.library.changed.emit(None)

    def _finish(self, report: QuantizeReport) -> None:
        smaller = 1 - report.output_bytes / max(1, report.source_bytes)
        size = f"{abs(smaller) * 100:.0f} % {'smaller' if smaller > 0 else 'larger'} than"
        self.note.set_text(f"The result is in the library: {size} {report.source_name}.")
        self._unseen = report
        # Every listener shows the new model; this page, too.
        self._core.library.changed.emit(None)

    def _fail(self, error: OctavoError) -> None:
        self.error_card.show_error(error)

    async def _ask_discard(self, run: InterruptedRun) -> None:
        agreed = await confirm(
            self,
            f"Discard {run.recipe.output.name}?",
            f"What was finished of it is deleted. That frees {format_bytes(run.num_bytes)}."
            " The model it was made from stays.",
            "Discard",
            is_danger=True,
        )
        if agreed:
            await asyncio.to_thread(discard, run)
            await self._read_interrupted()


def _sort_models(core: Core) -> tuple[list[LibraryModel], list[QuantizedModel]]:
    """The library's models that can be made smaller, and those that Octavo has made; blocks."""
    sources, made = [], []
    for model in core.library.scan():
        report = None if model.problem else read_report(model.path)
        if report is not None:
            made.append(QuantizedModel(model, report))
        elif not model.problem:
            sources.append(model)
    made.sort(key=lambda item: -item.model.path.stat().st_mtime)
    return sources, made


def _describe(model: LibraryModel) -> str:
    """As the library calls it; the name tells models of one title apart."""
    title = model.title if model.title == model.name else f"{model.title} · {model.name}"
    return f"{title} · {format_bytes(model.size_bytes)}"


def _estimate(path: Path) -> dict[str, Estimate]:
    """What every form of a model would be; blocks.

    Raises:
        ModelError: it is damaged, unknown or quantised already.
    """
    header = read_checkpoint(path)
    refuse_quantized(header)
    return {method.id: estimate(header, method) for method in METHODS}
