"""What quantising cost: a card for each model that Octavo has made."""

from collections.abc import Sequence
from dataclasses import dataclass

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QGridLayout, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from octavo.hub.library import LibraryModel
from octavo.quantize.methods import METHODS
from octavo.quantize.report import QuantizeReport
from octavo.ui.tokens import SPACE_GROUP, SPACE_TIGHT, SPACE_WITHIN
from octavo.ui.widgets.buttons import Button
from octavo.ui.widgets.cards import Card
from octavo.ui.widgets.labels import ElidedLabel, label
from octavo.units import format_bytes

LITTLE_LOSS_NATS = 0.01
MUCH_LOSS_NATS = 0.1


@dataclass(frozen=True, slots=True)
class QuantizedModel:
    """A model of the library and the report of its making."""

    model: LibraryModel
    report: QuantizeReport


class ReportList(QWidget):
    """The newest on top, as it is given."""

    chat_asked = Signal(object)
    """The LibraryModel."""
    measure_asked = Signal(object)
    """The QuantizedModel."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(SPACE_WITHIN)
        self.cards: list[ReportCard] = []
        self._is_wide = True

    def show_models(self, models: Sequence[QuantizedModel]) -> None:
        for card in self.cards:
            card.hide()
            card.deleteLater()
        self.cards = [ReportCard(model) for model in models]
        for card in self.cards:
            card.chat_asked.connect(self.chat_asked)
            card.measure_asked.connect(self.measure_asked)
            card.set_wide(self._is_wide)
            self._column.addWidget(card)

    def set_wide(self, is_wide: bool) -> None:
        self._is_wide = is_wide
        for card in self.cards:
            card.set_wide(is_wide)


class ReportCard(Card):
    """One model: how much smaller, and how close to the original."""

    chat_asked = Signal(object)
    measure_asked = Signal(object)

    def __init__(self, quantized: QuantizedModel, parent: QWidget | None = None) -> None:
        super().__init__(parent=parent)
        self.quantized = quantized
        head = QHBoxLayout()
        head.setSpacing(SPACE_WITHIN)
        titles = QVBoxLayout()
        titles.setSpacing(SPACE_TIGHT)
        titles.addWidget(ElidedLabel(quantized.model.name, "strong"))
        report = quantized.report
        titles.addWidget(
            ElidedLabel(f"{method_title(report.method)}, made from {report.source_name}", "caption")
        )
        head.addLayout(titles, 1)
        self.measure_button = Button("Measure now")
        self.measure_button.setAccessibleName(f"Measure {quantized.model.name}")
        self.measure_button.clicked.connect(lambda: self.measure_asked.emit(self.quantized))
        self.measure_button.setVisible(bool(report.source) and not report.is_measured)
        head.addWidget(self.measure_button)
        chat = Button("Chat with it")
        chat.setAccessibleName(f"Chat with {quantized.model.name}")
        chat.clicked.connect(lambda: self.chat_asked.emit(self.quantized.model))
        head.addWidget(chat)
        self.body.addLayout(head)
        self._grid = QGridLayout()
        self._grid.setHorizontalSpacing(SPACE_GROUP)
        self._grid.setVerticalSpacing(SPACE_WITHIN)
        self._figures = [_Figure(*figure) for figure in figures(report)]
        self.body.addLayout(self._grid)
        self.sentence = label(describe_loss(report), "soft", wrap=True)
        self.body.addWidget(self.sentence)
        if report.remark:
            self.body.addWidget(label(report.remark, "caption", wrap=True))
        self.set_wide(True)

    def set_wide(self, is_wide: bool) -> None:
        """Four figures side by side, or two."""
        columns = 4 if is_wide else 2
        for index, figure in enumerate(self._figures):
            self._grid.addWidget(figure, index // columns, index % columns)
        for column in range(4):
            self._grid.setColumnStretch(column, int(column < columns))


class _Figure(QWidget):
    def __init__(self, title: str, value: str) -> None:
        super().__init__()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(SPACE_TIGHT)
        column.addWidget(label(title, "caption"))
        text: QLabel = label(value, "figure", wrap=True)
        column.addWidget(text)


def method_title(method_id: str) -> str:
    """As the list of methods calls it."""
    return next((method.title for method in METHODS if method.id == method_id), method_id)


def figures(report: QuantizeReport) -> list[tuple[str, str]]:
    """Names and values; what was not measured is left out."""
    shown = [
        ("Size", f"{format_bytes(report.source_bytes)} → {format_bytes(report.output_bytes)}"),
    ]
    if report.perplexity_before is not None and report.perplexity_after is not None:
        perplexity = f"{report.perplexity_before:.2f} → {report.perplexity_after:.2f}"
        shown.append(("Perplexity", perplexity))
    if report.kl_divergence is not None:
        shown.append(("Divergence", f"{report.kl_divergence:.4f} nats"))
    if report.top1_agreement is not None:
        shown.append(("Same first choice", f"{100 * report.top1_agreement:.1f} %"))
    return shown


def describe_loss(report: QuantizeReport) -> str:
    """What the figures mean, and on what they were measured."""
    if report.kl_divergence is None:
        return report.note or "The quality was not measured."
    if report.kl_divergence < LITTLE_LOSS_NATS:
        verdict = "Hardly to be told from the original."
    elif report.kl_divergence < MUCH_LOSS_NATS:
        verdict = "Close to the original; long or exact work may show the difference."
    else:
        verdict = "Clearly weaker than the original."
    measured = f"Measured on {report.num_tokens:,} tokens of {report.text_name}."
    return f"{verdict} {measured}"
