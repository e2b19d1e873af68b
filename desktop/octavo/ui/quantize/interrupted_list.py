"""Quantisations that stopped half way: go on, or discard."""

from collections.abc import Sequence

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QHBoxLayout, QVBoxLayout, QWidget

from octavo.quantize.interrupted import InterruptedRun
from octavo.ui.quantize.report_list import method_title
from octavo.ui.tokens import SPACE_TIGHT, SPACE_WITHIN
from octavo.ui.widgets.buttons import Button, IconButton
from octavo.ui.widgets.cards import Card
from octavo.ui.widgets.labels import ElidedLabel
from octavo.units import format_bytes


class InterruptedList(QWidget):
    """Hidden while there is nothing to go on with."""

    resume_asked = Signal(object)
    discard_asked = Signal(object)
    """Both with the InterruptedRun."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(SPACE_WITHIN)
        self._cards: list[Card] = []
        self.resume_buttons: list[Button] = []
        self.hide()

    def show_runs(self, runs: Sequence[InterruptedRun]) -> None:
        for card in self._cards:
            card.hide()
            card.deleteLater()
        self._cards, self.resume_buttons = [], []
        for run in runs:
            card = self._build_card(run)
            self._cards.append(card)
            self._column.addWidget(card)
        self.setVisible(bool(runs))

    def _build_card(self, run: InterruptedRun) -> Card:
        name = run.recipe.output.name
        card = Card()
        row = QHBoxLayout()
        row.setSpacing(SPACE_WITHIN)
        texts = QVBoxLayout()
        texts.setSpacing(SPACE_TIGHT)
        texts.addWidget(ElidedLabel(name, "strong"))
        words = (
            f"{method_title(run.recipe.method)} of {run.recipe.source.name} stopped half way;"
            f" {format_bytes(run.num_bytes)} are written."
        )
        texts.addWidget(ElidedLabel(words, "caption"))
        row.addLayout(texts, 1)
        resume = Button("Go on", icon_name="play")
        resume.setAccessibleName(f"Go on with {name}")
        resume.clicked.connect(lambda: self.resume_asked.emit(run))
        discard = IconButton("x", f"Discard {name}")
        discard.clicked.connect(lambda: self.discard_asked.emit(run))
        row.addWidget(resume)
        row.addWidget(discard)
        self.resume_buttons.append(resume)
        card.body.addLayout(row)
        return card
