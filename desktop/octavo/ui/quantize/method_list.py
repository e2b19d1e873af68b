"""The forms a model can be written in, to choose one from, each with the size it would have."""

from collections.abc import Mapping

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QButtonGroup, QHBoxLayout, QLabel, QRadioButton, QVBoxLayout, QWidget

from octavo.quantize.methods import METHODS, QuantizeMethod
from octavo.ui.tokens import SPACE_GROUP, SPACE_WITHIN
from octavo.ui.widgets.labels import hairline, label, set_tone
from octavo.units import format_bytes

DEFAULT_METHOD = "q8_0"
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
        self.sizes: dict[str, QLabel] = {}
        self.summaries: dict[str, QLabel] = {}
        """Both by the method's id."""
        for index, method in enumerate(METHODS):
            if index:
                column.addWidget(hairline())
            button = QRadioButton(method.title)
            button.setChecked(method.id == DEFAULT_METHOD)
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
            summary.setContentsMargins(SPACE_GROUP + SPACE_WITHIN, 0, 0, SPACE_WITHIN)
            self.summaries[method.id] = summary
            column.addWidget(summary)
        self._group.idToggled.connect(lambda _id, is_on: self.chosen.emit() if is_on else None)

    @property
    def method(self) -> QuantizeMethod:
        """The one that is chosen."""
        return METHODS[self._group.checkedId()]

    def set_method(self, method_id: str) -> None:
        for index, method in enumerate(METHODS):
            if method.id == method_id:
                self._group.button(index).setChecked(True)

    def show_sizes(self, sizes: Mapping[str, int], source_bytes: int = 0) -> None:
        """Shows how large each result would be; a method without a size shows none.

        Args:
            source_bytes: of the model as it is now; a result that is no smaller stands out.
        """
        for method in METHODS:
            size = sizes.get(method.id)
            is_smaller = size is None or size < source_bytes
            self.sizes[method.id].setText("" if size is None else f"about {format_bytes(size)}")
            set_tone(self.sizes[method.id], "soft" if is_smaller else "caution")
            words = method.summary if is_smaller else f"{method.summary} {NO_GAIN}"
            self.summaries[method.id].setText(words)
