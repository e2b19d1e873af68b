"""One repository of a search: a line that opens it."""

from PySide6.QtCore import QSize, Qt
from PySide6.QtWidgets import QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from octavo.hub.hugging_face import HubModel
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import SPACE_GROUP, SPACE_INSET, SPACE_TIGHT, SPACE_WITHIN, scaled
from octavo.ui.widgets.labels import ElidedLabel, label
from octavo.units import format_count

COLUMNS = (("Parameters", 76), ("Downloads", 80), ("Likes", 56), ("Updated", 92))
"""Titles and widths at scale 1."""
KINDS = {"gguf": "GGUF", "safetensors": "Safetensors"}


class ResultRow(QPushButton):
    """The whole line is the button."""

    def __init__(self, model: HubModel, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.model = model
        self.setProperty("variant", "quiet")
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.setAutoDefault(True)
        everything = _facts(model, with_figures=True)
        everything += f" · {format_count(model.likes)} likes · updated {model.last_modified}"
        self.setAccessibleName(f"Open {model.repository}: {everything}")
        self.setToolTip(f"{model.repository}\n{everything}")
        row = QHBoxLayout(self)
        row.setContentsMargins(SPACE_WITHIN, SPACE_INSET, SPACE_WITHIN, SPACE_INSET)
        row.setSpacing(SPACE_GROUP)
        names = QVBoxLayout()
        names.setSpacing(SPACE_TIGHT // 2)
        names.addWidget(ElidedLabel(model.repository, "strong"))
        self._facts = ElidedLabel("", "caption")
        names.addWidget(self._facts)
        row.addLayout(names, 1)
        self._figures = [self._build_figure(text) for text in _figures(model)]
        for figure in self._figures:
            row.addWidget(figure)
        for part in self.findChildren(QLabel):
            part.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        ThemeController.current().changed.connect(self._apply_scale)
        self._apply_scale()
        self.set_layout(is_wide=True)

    @property
    def facts(self) -> str:
        return self._facts.text()

    def set_layout(self, *, is_wide: bool) -> None:
        """Columns where there is room, else a line of facts."""
        for figure in self._figures:
            figure.setVisible(is_wide)
        self._facts.setText(_facts(self.model, with_figures=not is_wide))
        self.updateGeometry()

    def sizeHint(self) -> QSize:
        """A button asks its text; this one has none."""
        layout = self.layout()
        return super().sizeHint() if layout is None else layout.sizeHint()

    def minimumSizeHint(self) -> QSize:
        layout = self.layout()
        return super().minimumSizeHint() if layout is None else layout.minimumSize()

    def _build_figure(self, text: str) -> QLabel:
        figure = label(text, "figure")
        figure.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        return figure

    def _apply_scale(self) -> None:
        scale = ThemeController.current().scale
        for figure, (_title, width) in zip(self._figures, COLUMNS, strict=True):
            figure.setFixedWidth(scaled(width, scale))


def _figures(model: HubModel) -> tuple[str, str, str, str]:
    """As `COLUMNS` names them; empty where the hub does not tell."""
    return (
        format_count(model.num_parameters) if model.num_parameters else "",
        format_count(model.downloads),
        format_count(model.likes),
        model.last_modified,
    )


def _facts(model: HubModel, *, with_figures: bool) -> str:
    parts = [KINDS.get(model.kind, model.kind), model.architecture]
    if model.is_gated:
        parts.append("gated")
    if with_figures:
        parameters, downloads, *_ = _figures(model)
        parts = [parameters, *parts, f"{downloads} downloads"]
    return " · ".join(part for part in parts if part)
