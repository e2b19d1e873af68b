"""Whether a model fits this machine, in one word and in full."""

from dataclasses import dataclass

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QDialog, QGridLayout, QHBoxLayout, QVBoxLayout, QWidget

from octavo.engine.memory import MemoryPlan
from octavo.ui.tokens import SPACE_GROUP, SPACE_PAGE, SPACE_WITHIN
from octavo.ui.widgets.buttons import Button
from octavo.ui.widgets.labels import hairline, label, set_tone
from octavo.units import format_bytes

TIGHT_SHARE = 0.85
"""Of the free memory: above it, other programs get in the way."""


@dataclass(frozen=True, slots=True)
class FitVerdict:
    """The word, its tone (a colour of the style sheet) and the sentence behind it."""

    word: str
    tone: str
    sentence: str


def judge_fit(plan: MemoryPlan) -> FitVerdict:
    """Puts a plan into a word."""
    needs = (
        f"Needs about {format_bytes(plan.total_bytes)}, {format_bytes(plan.free_bytes)} are free"
    )
    where = "in memory" if plan.device.kind == "cpu" else f"on {plan.device.name}"
    sentence = f"{needs} {where}."
    if not plan.fits:
        return FitVerdict("Too large", "bad", " ".join((sentence, *plan.remedies)))
    if plan.total_bytes > TIGHT_SHARE * plan.free_bytes:
        return FitVerdict("Tight", "caution", f"{sentence} Close other programs before loading it.")
    return FitVerdict("Fits", "good", sentence)


def judge_variant(plan: MemoryPlan) -> FitVerdict:
    """The word for a model that is not here yet, and what decides whether to fetch it."""
    word, tone = judge_fit(plan).word, judge_fit(plan).tone
    needs, free = format_bytes(plan.total_bytes), format_bytes(plan.free_bytes)
    if not plan.fits:
        return FitVerdict(word, tone, f"Needs {needs}, {free} are free.")
    num_tokens = min(plan.kv_tokens, plan.max_model_len)
    is_whole = num_tokens == plan.max_model_len
    context = f"{'its whole context of ' if is_whole else ''}{num_tokens:,} tokens"
    sentence = f"Room for {context}{'' if is_whole else ' of context'}"
    return FitVerdict(word, tone, f"{sentence}; needs {needs} of the {free} that are free.")


def describe_plan(plan: MemoryPlan) -> str:
    """The plan item by item, as text."""
    lines = [f"{item.name}: {format_bytes(item.num_bytes)} ({item.detail})" for item in plan.items]
    return "\n".join([*lines, judge_fit(plan).sentence])


class PlanDialog(QDialog):
    """The memory plan as a table: what each item takes, the sum, and what is free."""

    def __init__(self, title: str, plan: MemoryPlan, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        verdict = judge_fit(plan)
        self.setWindowTitle(f"Memory for {title}")
        self.setMinimumWidth(460)
        column = QVBoxLayout(self)
        column.setContentsMargins(SPACE_PAGE, SPACE_PAGE, SPACE_PAGE, SPACE_PAGE)
        column.setSpacing(SPACE_GROUP)
        column.addWidget(label(f"Memory for {title}", "heading", wrap=True))
        grid = QGridLayout()
        grid.setHorizontalSpacing(SPACE_GROUP)
        grid.setVerticalSpacing(SPACE_WITHIN)
        grid.setColumnStretch(1, 1)
        row = 0
        for item in plan.items:
            grid.addWidget(label(item.name), row, 0, Qt.AlignmentFlag.AlignTop)
            grid.addWidget(label(item.detail, "soft", wrap=True), row, 1)
            self._add_figure(grid, row, item.num_bytes)
            row += 1
        grid.addWidget(hairline(), row, 0, 1, 3)
        device = "Memory" if plan.device.kind == "cpu" else plan.device.name
        for name, detail, num_bytes in (
            ("Together", f"computed in {plan.dtype}", plan.total_bytes),
            ("Free", device, plan.free_bytes),
        ):
            row += 1
            grid.addWidget(label(name, "strong"), row, 0)
            grid.addWidget(label(detail, "soft", wrap=True), row, 1)
            self._add_figure(grid, row, num_bytes)
        column.addLayout(grid)
        text = label(verdict.sentence, wrap=True)
        set_tone(text, verdict.tone)
        column.addWidget(text)
        buttons = QHBoxLayout()
        buttons.addStretch(1)
        close = Button("Close")
        close.clicked.connect(self.accept)
        buttons.addWidget(close)
        column.addLayout(buttons)
        close.setFocus()

    @staticmethod
    def _add_figure(grid: QGridLayout, row: int, num_bytes: int) -> None:
        figure = label(format_bytes(num_bytes), "figure")
        grid.addWidget(figure, row, 2, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignTop)
