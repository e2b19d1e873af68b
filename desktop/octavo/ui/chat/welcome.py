"""`Welcome`: what a new chat shows before its first message: the model, or how to get one."""

from collections.abc import Sequence

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QStackedWidget, QVBoxLayout, QWidget

from octavo.core import Core
from octavo.host import HostState, HostStatus
from octavo.hub.library import LibraryModel
from octavo.ui.models.starter_card import StarterCard, centred
from octavo.ui.tokens import SPACE_GROUP, SPACE_PAGE, SPACE_WITHIN
from octavo.ui.widgets.buttons import Button
from octavo.ui.widgets.labels import label

EXAMPLES = (
    "Why is the sky blue?",
    "Explain recursion with a short Python example.",
    "Write a polite note to a neighbour about a barking dog.",
)


class Welcome(QStackedWidget):
    """One sentence and one action, for each state the model can be in."""

    example_chosen = Signal(str)
    load_requested = Signal(object)
    """The LibraryModel to load."""

    def __init__(self, core: Core, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._core = core
        self._offered: LibraryModel | None = None
        self._title = label("", "heading", wrap=True)
        self._sentence = label("", "soft", wrap=True)
        self.load_button = Button("", variant="primary")
        self.load_button.clicked.connect(lambda: self.load_requested.emit(self._offered))
        self.example_buttons = [Button(text) for text in EXAMPLES]
        page, column = _centred_page()
        for words in (self._title, self._sentence):
            words.setAlignment(Qt.AlignmentFlag.AlignHCenter)
            column.addWidget(words)
        column.addSpacing(SPACE_WITHIN)
        column.addWidget(self.load_button, 0, Qt.AlignmentFlag.AlignHCenter)
        for button, text in zip(self.example_buttons, EXAMPLES, strict=True):
            button.setToolTip("Send this as the first message")
            button.clicked.connect(lambda _=False, text=text: self.example_chosen.emit(text))
            column.addWidget(button, 0, Qt.AlignmentFlag.AlignHCenter)
        column.addStretch(3)
        self.addWidget(page)
        self._starter_page: QWidget | None = None

    @property
    def text(self) -> str:
        """What is said, without the starter model's card."""
        return f"{self._title.text()} {self._sentence.text()}".strip()

    @property
    def offers_starter(self) -> bool:
        return self._starter_page is not None and self.currentWidget() is self._starter_page

    def show_state(
        self, state: HostState, models: Sequence[LibraryModel] | None, last_model: str
    ) -> None:
        """Args:
        models: the library; None while it has not been read yet.
        last_model: library name of the model that was used last.
        """
        usable = [model for model in models or () if not model.problem]
        is_idle = state.status in (HostStatus.EMPTY, HostStatus.FAILED)
        if is_idle and models is not None and not usable:
            self._show_starter()
            return
        self.setCurrentIndex(0)
        is_ready = state.status is HostStatus.READY
        name = "" if state.model is None else state.model.title
        if is_ready:
            self._say(name, "What would you like to know? The answer is made on this machine.")
        elif state.status is HostStatus.LOADING:
            self._say(f"Loading {name}", "You can write your message meanwhile.")
        elif usable:
            self._say("No model is loaded", "Load one to begin. The list above has them all.")
        else:
            self._say("", "")
        self._offered = next((model for model in usable if model.name == last_model), None)
        self._offered = self._offered or (usable[0] if usable else None)
        if self._offered is not None:
            self.load_button.setText(f"Load {self._offered.title}")
        self.load_button.setVisible(is_idle and self._offered is not None)
        for button in self.example_buttons:
            button.setVisible(is_ready)

    def _say(self, title: str, sentence: str) -> None:
        self._title.setText(title)
        self._sentence.setText(sentence)

    def _show_starter(self) -> None:
        if self._starter_page is None:
            self._starter_page, column = _centred_page()
            sentence = label("To chat, Octavo needs a model. Here is a small one to begin with.")
            sentence.setWordWrap(True)
            sentence.setAlignment(Qt.AlignmentFlag.AlignHCenter)
            column.addWidget(sentence)
            column.addSpacing(SPACE_WITHIN)
            column.addLayout(centred(StarterCard(self._core)))
            column.addStretch(3)
            self.addWidget(self._starter_page)
        self.setCurrentWidget(self._starter_page)


def _centred_page() -> tuple[QWidget, QVBoxLayout]:
    page = QWidget()
    column = QVBoxLayout(page)
    column.setContentsMargins(SPACE_PAGE, SPACE_GROUP, SPACE_PAGE, SPACE_GROUP)
    column.setSpacing(SPACE_WITHIN)
    column.addStretch(2)
    return page, column
