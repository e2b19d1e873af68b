"""The frame of a page that scrolls: a sheet of limited width in the middle of the paper."""

from PySide6.QtCore import Qt
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QHBoxLayout, QScrollArea, QVBoxLayout, QWidget

from octavo.ui.theme import ThemeController
from octavo.ui.tokens import SPACE_GROUP, SPACE_PAGE, SPACE_TIGHT, scaled
from octavo.ui.widgets.labels import label


class ScrolledPage(QWidget):
    """Put things into `column`; override `arrange` to follow the width."""

    def __init__(self, max_width: int, parent: QWidget | None = None) -> None:
        """Args:
        max_width: of the sheet, in pixels at 100 %.
        """
        super().__init__(parent)
        self._max_width = max_width
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        self.scroll_area = QScrollArea()
        self.scroll_area.setWidgetResizable(True)
        self.scroll_area.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.scroll_area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        outer.addWidget(self.scroll_area)
        body = QWidget()
        body.setProperty("surface", "paper")
        body.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self.scroll_area.setWidget(body)
        centre = QHBoxLayout(body)
        centre.setContentsMargins(SPACE_PAGE, SPACE_PAGE, SPACE_PAGE, SPACE_PAGE)
        self._sheet = QWidget()
        centre.addWidget(self._sheet)
        self.column = QVBoxLayout(self._sheet)
        self.column.setContentsMargins(0, 0, 0, 0)
        self.column.setSpacing(SPACE_GROUP)
        ThemeController.current().changed.connect(self._fit)

    def add_title(self, title: str, sentence: str) -> None:
        """The page's name and what it is for, above everything else."""
        titles = QVBoxLayout()
        titles.setSpacing(SPACE_TIGHT)
        titles.addWidget(label(title, "title"))
        titles.addWidget(label(sentence, "soft", wrap=True))
        self.column.addLayout(titles)

    def is_at_least(self, width: int) -> bool:
        """Whether so many pixels at 100 % are there from edge to edge."""
        return self.scroll_area.width() >= scaled(width, ThemeController.current().scale)

    def arrange(self) -> None:
        """Called when the width or the scale has changed."""

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        self._sheet.setMaximumWidth(scaled(self._max_width, ThemeController.current().scale))
        self.arrange()
