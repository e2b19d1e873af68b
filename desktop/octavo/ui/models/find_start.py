"""What the search shows before the first one: what it takes, what is sent, and where to begin."""

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QVBoxLayout, QWidget

from octavo.ui.tokens import SPACE_PAGE, SPACE_WITHIN
from octavo.ui.widgets.buttons import Button
from octavo.ui.widgets.labels import label

EXAMPLES = ("SmolLM2 instruct", "Llama 3.2 instruct", "Qwen2.5 coder")


class FindStart(QWidget):
    """A sentence and a few beginnings; each is sent only when it is clicked."""

    words_chosen = Signal(str)
    sort_chosen = Signal(str)
    """All models in an order of the search."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, SPACE_PAGE, 0, SPACE_PAGE)
        column.setSpacing(SPACE_WITHIN)
        centre = Qt.AlignmentFlag.AlignHCenter
        for text in (
            label("Find a model on the hub", "heading", wrap=True),
            label(
                "Type words, paste a link, or name ORG/NAME:Q4_K_M.\nBefore you download one,"
                " Octavo says whether it runs here. Nothing is sent until you search.",
                "soft",
                wrap=True,
            ),
        ):
            text.setAlignment(centre)
            column.addWidget(text)
        column.addSpacing(SPACE_WITHIN)
        self.buttons: list[Button] = []
        for sort, title in (("downloads", "Popular models"), ("trending", "Trending models")):
            button = self._add_button(title)
            button.clicked.connect(lambda _=False, sort=sort: self.sort_chosen.emit(sort))
        for words in EXAMPLES:
            button = self._add_button(words)
            button.setAccessibleName(f"Search for {words}")
            button.clicked.connect(lambda _=False, words=words: self.words_chosen.emit(words))
        beginnings = QWidget()
        stack = QVBoxLayout(beginnings)
        stack.setContentsMargins(0, 0, 0, 0)
        stack.setSpacing(SPACE_WITHIN)
        for button in self.buttons:
            stack.addWidget(button)
        column.addWidget(beginnings, 0, centre)

    def _add_button(self, text: str) -> Button:
        button = Button(text)
        self.buttons.append(button)
        return button
