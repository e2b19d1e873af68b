"""A thin line that shows how far long work is, with the stage and the numbers beside it."""

import time

from PySide6.QtWidgets import QHBoxLayout, QProgressBar, QVBoxLayout, QWidget

from octavo.jobs import Progress
from octavo.ui.tokens import SPACE_TIGHT, SPACE_WITHIN
from octavo.ui.widgets.labels import ElidedLabel, label
from octavo.units import format_amount, format_seconds

RATE_AFTER_S = 1.0
"""An estimate made sooner would jump about."""
COARSE_BELOW_S = 10.0
"""No estimate is as exact as single seconds."""
STEPS = 1000


class ProgressLine(QWidget):
    """Stage, amount and, once it can be told, the time left."""

    def __init__(self, name: str, parent: QWidget | None = None) -> None:
        """Args:
        name: what is under way, for screen readers.
        """
        super().__init__(parent)
        self._started_at = 0.0
        self._started_done = 0
        self._stage = ""
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(SPACE_TIGHT)
        texts = QHBoxLayout()
        texts.setSpacing(SPACE_WITHIN)
        self._stage_label = ElidedLabel("", "soft")
        self._amount_label = label("", "figure")
        texts.addWidget(self._stage_label, 1)
        texts.addWidget(self._amount_label)
        column.addLayout(texts)
        self._bar = QProgressBar()
        self._bar.setTextVisible(False)
        self._bar.setAccessibleName(name)
        column.addWidget(self._bar)

    def show_progress(self, progress: Progress) -> None:
        if progress.stage != self._stage:
            self._stage = progress.stage
            self._started_at = time.monotonic()
            self._started_done = progress.done
        self._stage_label.setText(progress.stage)
        fraction = progress.fraction
        if fraction is None:
            # Qt shows a moving bar while minimum and maximum are equal.
            self._bar.setRange(0, 0)
        else:
            self._bar.setRange(0, STEPS)
            self._bar.setValue(round(fraction * STEPS))
        elapsed_s = time.monotonic() - self._started_at
        moved = progress.done - self._started_done
        self._amount_label.setText(describe_amount(progress, moved, elapsed_s))


def describe_amount(progress: Progress, moved: int, elapsed_s: float) -> str:
    """What is done and to do, and the time left where it can be told.

    Args:
        moved: what was done since this stage began.
        elapsed_s: time since this stage began.
    """
    if not progress.total:
        return format_amount(progress.done, None, progress.unit) if progress.done else ""
    text = format_amount(progress.done, progress.total, progress.unit)
    if moved <= 0 or elapsed_s < RATE_AFTER_S or progress.done >= progress.total:
        return text
    left_s = (progress.total - progress.done) * elapsed_s / moved
    if left_s < COARSE_BELOW_S:
        return f"{text} · a few seconds left"
    return f"{text} · about {format_seconds(round(left_s))} left"
