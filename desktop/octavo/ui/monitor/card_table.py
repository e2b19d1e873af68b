"""The table of graphics cards: what each is, and which programs can use it, with the reason."""

from collections.abc import Sequence

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QBoxLayout, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from octavo.monitor.inventory import InventoryCard, Verdict
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import SPACE_GROUP, SPACE_INSET, SPACE_TIGHT, SPACE_WITHIN, scaled
from octavo.ui.widgets.cards import IconLabel, Notice
from octavo.ui.widgets.labels import ElidedLabel, hairline, label, set_tone

NO_CARD = "No graphics card was found; models run on the CPU."
COLUMNS = (("VRAM", 96), ("Interface", 120), ("Compute capability", 128))
"""Titles and widths at scale 1."""
SOFTWARE_WIDTH = 72
WORD_WIDTH = 88


class CardTable(QWidget):
    """A row per card, its verdicts below it."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.rows: list[CardRow] = []
        self._is_wide = True
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(0)
        self.empty = label("Looking for graphics cards…", "soft", wrap=True)
        self._column.addWidget(self.empty)
        self._header = QWidget()
        header = QHBoxLayout(self._header)
        header.setContentsMargins(0, 0, 0, SPACE_WITHIN)
        header.setSpacing(SPACE_GROUP)
        header.addWidget(label("Manufacturer and model", "caption"), 1)
        self._titles: list[tuple[QLabel, int]] = []
        for title, width in COLUMNS:
            text = label(title, "caption")
            header.addWidget(text)
            self._titles.append((text, width))
        self._column.addWidget(self._header)
        self._header.hide()
        ThemeController.current().changed.connect(self._apply_scale)
        self._apply_scale()

    def show_cards(self, cards: Sequence[InventoryCard]) -> None:
        for row in self.rows:
            row.hide()
            row.deleteLater()
        self.rows = [CardRow(card) for card in cards]
        for row in self.rows:
            row.set_wide(self._is_wide)
            self._column.addWidget(row)
        self.empty.setText(NO_CARD)
        self.empty.setVisible(not cards)
        self._header.setVisible(self._is_wide and bool(cards))

    def set_wide(self, is_wide: bool) -> None:
        self._is_wide = is_wide
        self._header.setVisible(is_wide and bool(self.rows))
        for row in self.rows:
            row.set_wide(is_wide)

    def _apply_scale(self) -> None:
        for text, width in self._titles:
            text.setFixedWidth(scaled(width, ThemeController.current().scale))


class CardRow(QWidget):
    """One card: columns where there is room, else a line of facts under its name."""

    def __init__(self, card: InventoryCard, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.card = card
        self.setAccessibleName(f"{card.manufacturer} {card.model}")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, SPACE_INSET)
        column.setSpacing(SPACE_TIGHT)
        column.addWidget(hairline())
        column.addSpacing(SPACE_WITHIN)
        line = QHBoxLayout()
        line.setSpacing(SPACE_GROUP)
        line.addWidget(ElidedLabel(f"{card.manufacturer} {card.model}", "strong"), 1)
        texts = (card.vram_text, card.interface or "unknown", card.compute_capability_text)
        self._figures: list[tuple[QLabel, int]] = []
        for text, (_title, width) in zip(texts, COLUMNS, strict=True):
            figure = label(text, "figure")
            line.addWidget(figure)
            self._figures.append((figure, width))
        column.addLayout(line)
        facts = [f"{title} {text}" for text, (title, _width) in zip(texts, COLUMNS, strict=True)]
        self._facts = label(" · ".join(facts), "caption", wrap=True)
        column.addWidget(self._facts)
        problem = Notice("triangle-alert", "caution")
        column.addWidget(problem)
        problem.set_text(card.problem)
        self._verdicts = [VerdictLine(verdict) for verdict in card.verdicts]
        self._verdict_column = QVBoxLayout()
        for verdict in self._verdicts:
            self._verdict_column.addWidget(verdict)
        column.addLayout(self._verdict_column)
        ThemeController.current().changed.connect(self._apply_scale)
        self._apply_scale()

    @property
    def text(self) -> str:
        """What stands in the row, for tests and reports."""
        return " ".join(one.text() for one in self.findChildren(QLabel) if one.text())

    def set_wide(self, is_wide: bool) -> None:
        for figure, _width in self._figures:
            figure.setVisible(is_wide)
        self._facts.setVisible(not is_wide)
        self._verdict_column.setSpacing(SPACE_TIGHT if is_wide else SPACE_WITHIN)
        for verdict in self._verdicts:
            verdict.set_wide(is_wide)

    def _apply_scale(self) -> None:
        for figure, width in self._figures:
            figure.setFixedWidth(scaled(width, ThemeController.current().scale))


class VerdictLine(QWidget):
    """A program, whether it can use the card, and why."""

    def __init__(self, verdict: Verdict, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        icon_name, tone, word = _LOOKS[verdict.is_supported]
        self._box = QBoxLayout(QBoxLayout.Direction.LeftToRight, self)
        self._box.setContentsMargins(0, 0, 0, 0)
        self._box.setSpacing(SPACE_WITHIN)
        head = QHBoxLayout()
        head.setSpacing(SPACE_WITHIN)
        icon_tone = tone if tone != "soft" else "ink_soft"
        head.addWidget(IconLabel(icon_name, icon_tone), 0, Qt.AlignmentFlag.AlignVCenter)
        self._software = label(verdict.software)
        self._word = label(word, "caption")
        set_tone(self._word, tone)
        head.addWidget(self._software)
        head.addWidget(self._word)
        head.addStretch(1)
        self._box.addLayout(head)
        self._box.addWidget(label(verdict.reason, "caption", wrap=True), 1)
        ThemeController.current().changed.connect(self._apply_scale)
        self._apply_scale()

    def set_wide(self, is_wide: bool) -> None:
        direction = QBoxLayout.Direction
        self._box.setDirection(direction.LeftToRight if is_wide else direction.TopToBottom)
        self._box.setSpacing(SPACE_WITHIN if is_wide else 0)

    def _apply_scale(self) -> None:
        scale = ThemeController.current().scale
        self._software.setFixedWidth(scaled(SOFTWARE_WIDTH, scale))
        self._word.setFixedWidth(scaled(WORD_WIDTH, scale))


_LOOKS: dict[bool | None, tuple[str, str, str]] = {
    True: ("check", "good", "Works"),
    False: ("x", "bad", "Cannot use it"),
    None: ("info", "soft", "Not known"),
}
