"""The forms a model can be written in, to choose one from, each with the size it would have."""

from collections.abc import Mapping

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QButtonGroup, QHBoxLayout, QLabel, QRadioButton, QVBoxLayout, QWidget

from octavo.quantize.methods import METHODS, QuantizeMethod
from octavo.quantize.recipe import Estimate
from octavo.ui.tokens import SPACE_GROUP, SPACE_WITHIN
from octavo.ui.widgets.labels import hairline, label, set_tone
from octavo.units import format_bytes

DEFAULT_METHOD = "q8_0"
WORDS_INDENT = 30
"""The style sheet puts a radio button's words there: ring, padding, circle and gap."""
NO_GAIN = "No smaller than the model is now."


class MethodList(QWidget):
    """A row a method."""

    chosen = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        self._group = QButtonGroup(self)
        self._estimates: Mapping[str, Estimate] = {}
        self._was_chosen = False
        """By a person, who is then not overruled."""
        self.sizes: dict[str, QLabel] = {}
        self.summaries: dict[str, QLabel] = {}
        """Both by the method's id."""
        for index, method in enumerate(METHODS):
            if index:
                column.addWidget(hairline())
            button = QRadioButton(method.title)
            button.setChecked(method.id == DEFAULT_METHOD)
            button.clicked.connect(self._keep_choice)
            button.setAccessibleDescription(method.summary)
            self._group.addButton(button, index)
            self.sizes[method.id] = label("", "figure")
            first = QHBoxLayout()
            first.setContentsMargins(0, SPACE_WITHIN, 0, 0)
            first.setSpacing(SPACE_GROUP)
            first.addWidget(button, 1)
            first.addWidget(self.sizes[method.id])
            column.addLayout(first)
            summary = label(method.summary, "caption", wrap=True)
            # Below the words of the button, not below its circle.
            summary.setContentsMargins(WORDS_INDENT, 0, 0, SPACE_WITHIN)
            self.summaries[method.id] = summary
            column.addWidget(summary)
        self._group.idToggled.connect(lambda _id, is_on: self.chosen.emit() if is_on else None)

    @property
    def method(self) -> QuantizeMethod:
        """The one that is chosen."""
        return METHODS[self._group.checkedId()]

    def set_method(self, method_id: str) -> None:
        """Chooses one, as a person would."""
        self._keep_choice()
        self._check(method_id)

    def _keep_choice(self) -> None:
        self._was_chosen = True

    def _check(self, method_id: str) -> None:
        for index, method in enumerate(METHODS):
            if method.id == method_id:
                self._group.button(index).setChecked(True)

    def show_estimates(self, estimates: Mapping[str, Estimate], source_bytes: int = 0) -> None:
        """Shows how large each result would be, and what is special about it.

        Args:
            estimates: a method without one shows no size.
            source_bytes: of the model as it is now; a result that is no smaller stands out.
        """
        self._estimates = estimates
        for index, method in enumerate(METHODS):
            estimate = estimates.get(method.id, Estimate(0))
            size = estimate.num_bytes
            self._group.button(index).setEnabled(bool(size) or not estimate.remarks)
            self.sizes[method.id].setText(f"about {format_bytes(size)}" if size else "")
            is_smaller = size < source_bytes or not size
            set_tone(self.sizes[method.id], "soft" if is_smaller else "caution")
            words = [method.summary, *([] if is_smaller else [NO_GAIN]), *estimate.remarks]
            self.summaries[method.id].setText(" ".join(words))
        if estimates and not self._was_chosen:
            self._check(_proposed(estimates, source_bytes))

    @property
    def can_be_made(self) -> bool:
        """Whether the chosen method gives a result of the model."""
        estimate = self._estimates.get(self.method.id)
        return estimate is not None and bool(estimate.num_bytes)


def _proposed(estimates: Mapping[str, Estimate], source_bytes: int) -> str:
    """The default, or the first method whose result is smaller than the model is now."""
    smaller = [
        method.id
        for method in METHODS
        if 0 < estimates.get(method.id, Estimate(0)).num_bytes < source_bytes
    ]
    return DEFAULT_METHOD if DEFAULT_METHOD in smaller or not smaller else smaller[0]
