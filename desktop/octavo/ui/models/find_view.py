"""Finding a model on the hub: one field for words, names and links; results; a repository."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import (
    QApplication,
    QBoxLayout,
    QHBoxLayout,
    QLineEdit,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from octavo.core import Core
from octavo.errors import DownloadError, OctavoError
from octavo.hub.hub_cache import HubCache
from octavo.hub.hub_files import (
    GGUF,
    SAFETENSORS,
    HubRepository,
    HubVariant,
    choose_variant,
    parse_address,
)
from octavo.hub.hub_pull import is_here
from octavo.hub.hugging_face import HubModel, HuggingFace
from octavo.hub.library import LibraryModel
from octavo.ui.models.find_start import FindStart
from octavo.ui.models.repository_view import RepositoryView
from octavo.ui.models.result_list import ResultList
from octavo.ui.models.variant_checks import Inspect
from octavo.ui.tasks import spawn
from octavo.ui.tokens import SPACE_GROUP, SPACE_WITHIN
from octavo.ui.widgets.buttons import Button
from octavo.ui.widgets.cards import EmptyState, ErrorCard
from octavo.ui.widgets.inputs import ChoiceBox
from octavo.ui.widgets.labels import label

SORTS = (
    ("downloads", "Most downloads"),
    ("likes", "Most likes"),
    ("trending", "Trending"),
    ("updated", "Newest"),
)
KINDS = ((GGUF, "GGUF"), (SAFETENSORS, "Safetensors"), ("any", "Any kind"))
LIMIT = 30

Work = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class _Opened:
    """A repository, and what was named of it."""

    hub: HuggingFace
    repository: HubRepository
    asked: HubVariant | None
    problem: OctavoError | None
    local: dict[str, Path]


class FindView(QWidget):
    """Sends nothing before the person searches; a newer search takes the place of an older one."""

    settings_asked = Signal()
    download_asked = Signal(object, object)
    """The HubRepository and the HubVariant."""
    chat_asked = Signal(object)
    """The path of the model to chat with."""

    def __init__(self, core: Core, inspect: Inspect, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
        self._core = core
        self._task: asyncio.Task[None] | None = None
        self._places_task: asyncio.Task[None] | None = None
        self._repeat: Callable[[], None] = self.search
        self._is_searched = False
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(SPACE_GROUP)
        column.addLayout(self._build_field())
        self.error_card = ErrorCard("Try again")
        self.error_card.retry.clicked.connect(lambda: self._repeat())
        self.busy = label("", "soft", wrap=True)
        self.start = FindStart()
        self.start.words_chosen.connect(self.search_for)
        self.start.sort_chosen.connect(self._search_all)
        self.results = ResultList()
        self.results.chosen.connect(self._open_named)
        self.nothing = EmptyState("search", "", "")
        settings_button = Button("Open the settings", icon_name="settings")
        settings_button.clicked.connect(self.settings_asked)
        self.offline = EmptyState(
            "power",
            "Octavo is offline",
            "Its settings say that nothing is sent to a hub. What is on this machine works.",
            settings_button,
        )
        self.repository_view = RepositoryView(core, inspect)
        self.repository_view.back_asked.connect(self.go_back)
        self.repository_view.settings_asked.connect(self.settings_asked)
        self.repository_view.chat_asked.connect(self.chat_asked)
        self.repository_view.download_asked.connect(
            lambda variant: self.download_asked.emit(self.repository_view.repository, variant)
        )
        self._parts: tuple[QWidget, ...] = (
            self.busy,
            self.error_card,
            self.start,
            self.results,
            self.nothing,
            self.offline,
            self.repository_view,
        )
        for part in self._parts:
            column.addWidget(part)
        column.addStretch(1)
        disconnects = [
            core.downloads.changed.connect(lambda _: self._show_places()),
            core.library.changed.connect(lambda _: self._look_for_places()),
            core.settings.changed.connect(lambda _: self._follow_settings()),
        ]
        self.destroyed.connect(lambda _=None: [disconnect() for disconnect in disconnects])
        self._local: dict[str, Path] = {}
        self._show_start()

    def focus_field(self) -> None:
        """Makes the field ready to be written over."""
        self.field.setFocus(Qt.FocusReason.ShortcutFocusReason)
        self.field.selectAll()

    def write(self, text: str) -> None:
        """Goes on in the field with what was written elsewhere."""
        self.focus_field()
        self.field.insert(text)

    def search_for(self, words: str) -> None:
        """Searches for words as if the person had typed them."""
        self.field.setText(words)
        self.search()

    def search(self) -> None:
        """Opens what the field names, or searches for its words."""
        text = self.field.text().strip()
        if is_address(text):
            self._begin(lambda: self._open(text), f"Asking the hub about {text}…")
            return
        self._is_searched = True
        sort, kind = self.sort.value, self.kind.value
        what = f"“{text}”" if text else "all models"
        self._begin(lambda: self._search(text, sort, kind), f"Searching the hub for {what}…")

    def go_back(self) -> None:
        """Leaves the repository for the results, or for the beginning."""
        self.repository_view.stop()
        if self.results.models:
            self._show(self.results)
            self.results.focus_chosen()
        else:
            self._show_start()
            self.field.setFocus()

    def check_again(self) -> None:
        """Plans anew, as what is free has changed."""
        self.repository_view.check_again()

    def set_layout(self, *, is_wide: bool, is_narrow: bool) -> None:
        direction = QBoxLayout.Direction
        self._field_line.setDirection(direction.TopToBottom if is_narrow else direction.LeftToRight)
        fitting = QSizePolicy.Policy.Ignored if is_narrow else QSizePolicy.Policy.Preferred
        for box in (self.sort, self.kind):
            box.setSizePolicy(fitting, QSizePolicy.Policy.Fixed)
        self.results.set_wide(is_wide)
        self.repository_view.set_narrow(is_narrow)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if event.key() == Qt.Key.Key_Escape and self.repository_view.isVisible():
            self.go_back()
        else:
            super().keyPressEvent(event)

    def _build_field(self) -> QBoxLayout:
        self.field = QLineEdit()
        self.field.setAccessibleName("Search the hub")
        self.field.setPlaceholderText("Words, ORG/NAME or a link")
        self.field.returnPressed.connect(self.search)
        self.search_button = Button("Search", icon_name="search")
        self.search_button.clicked.connect(self.search)
        self.sort = ChoiceBox("Order of the results", SORTS)
        self.kind = ChoiceBox("Kind of model", KINDS)
        for box in (self.sort, self.kind):
            box.chosen.connect(lambda _: self._search_again())
        self._field_line = QBoxLayout(QBoxLayout.Direction.LeftToRight)
        self._field_line.setSpacing(SPACE_WITHIN)
        field_row, choice_row = QHBoxLayout(), QHBoxLayout()
        field_row.addWidget(self.field, 1)
        field_row.addWidget(self.search_button)
        choice_row.addWidget(self.sort, 1)
        choice_row.addWidget(self.kind, 1)
        for row in (field_row, choice_row):
            row.setSpacing(SPACE_WITHIN)
        self._field_line.addLayout(field_row, 1)
        self._field_line.addLayout(choice_row)
        return self._field_line

    def _search_again(self) -> None:
        """After another order or kind was chosen; not before a first search."""
        if self._is_searched and not is_address(self.field.text().strip()):
            self.search()

    def _search_all(self, sort: str) -> None:
        self.sort.set_value(sort)
        self.search_for("")

    def _begin(self, work: Work, sentence: str) -> None:
        if self._task is not None:
            # Its answer may still come, and is then dropped.
            self._task.cancel()
        self.repository_view.stop()
        if self._core.settings.value.hub.is_offline:
            self._show(self.offline)
            return
        self._repeat = lambda: self._begin(work, sentence)
        self.busy.setText(sentence)
        self._show(self.busy)
        self._task = spawn(work(), self._show_error)

    async def _search(self, text: str, sort: str, kind: str) -> None:
        models = await asyncio.to_thread(self._ask, text, sort, kind)
        self.results.show_models(models)
        if models:
            self._show(self.results)
        else:
            kinds = {GGUF: "GGUF models", SAFETENSORS: "models as safetensors"}
            hint = "" if kind == "any" else " Try another kind, or fewer words."
            self.nothing.set_text(
                "Nothing found", f"The hub has no {kinds.get(kind, 'models')} for “{text}”.{hint}"
            )
            self._show(self.nothing)

    def _ask(self, text: str, sort: str, kind: str) -> list[HubModel]:
        return self._core.hub().search(text, limit=LIMIT, sort=sort, kind=kind)

    def _open_named(self, repository: str) -> None:
        self._begin(lambda: self._open(repository), f"Asking the hub about {repository}…")

    async def _open(self, text: str) -> None:
        opened = await asyncio.to_thread(self._look_up, text)
        self._local = opened.local
        self.repository_view.show_repository(opened.hub, opened.repository, opened.asked)
        self._show_places()
        self._show(self.repository_view)
        if opened.problem is not None:
            self._show_error(opened.problem)

    def _look_up(self, text: str) -> _Opened:
        """On a worker: the repository, the variant that is named, and what is here of it."""
        hub = self._core.hub()
        address = parse_address(text, endpoint=hub.endpoint)
        repository = hub.repository(address)
        asked, problem = None, None
        if address.quant:
            try:
                asked = choose_variant(address, repository)
            except OctavoError as error:
                problem = error
        return _Opened(hub, repository, asked, problem, self._find_local(repository))

    def _find_local(self, repository: HubRepository) -> dict[str, Path]:
        return find_local(repository, self._core.hub_cache, self._core.library.scan())

    def _look_for_places(self) -> None:
        repository = self.repository_view.repository
        if repository is not None and self.repository_view.isVisibleTo(self):
            if self._places_task is not None:
                self._places_task.cancel()
            self._places_task = spawn(self._find_places(repository))

    async def _find_places(self, repository: HubRepository) -> None:
        self._local = await asyncio.to_thread(self._find_local, repository)
        self._show_places()

    def _show_places(self) -> None:
        self.repository_view.show_places(self._local)

    def _follow_settings(self) -> None:
        is_offline = self._core.settings.value.hub.is_offline
        if not is_offline and self.offline.isVisibleTo(self):
            self._show_start()
        elif is_offline and self.start.isVisibleTo(self):
            self._show(self.offline)

    def _show_start(self) -> None:
        is_offline = self._core.settings.value.hub.is_offline
        self._show(self.offline if is_offline else self.start)

    def _show_error(self, error: OctavoError) -> None:
        # Only what the network did may go better the next time.
        self.error_card.retry.setVisible(isinstance(error, DownloadError))
        if self.busy.isVisibleTo(self):
            self._show(self.error_card)
        self.error_card.show_error(error)

    def _show(self, shown: QWidget) -> None:
        focused = QApplication.focusWidget()
        if focused is not None and any(
            part is not shown and part.isAncestorOf(focused) for part in self._parts
        ):
            # Else Qt hands the keyboard to whatever control comes next, and rings it.
            self.setFocus()
        for part in self._parts:
            part.setVisible(part is shown)


def is_address(text: str) -> bool:
    """Whether a text names one repository rather than words to search for."""
    return "/" in text and not any(character.isspace() for character in text)


def find_local(
    repository: HubRepository, cache: HubCache, models: Sequence[LibraryModel]
) -> dict[str, Path]:
    """Paths of the variants that are on this machine, by label; blocks for a look at the disk."""
    found = {}
    for variant in repository.variants:
        if is_here(repository, variant, cache):
            found[variant.label] = cache.model_path(repository.name, repository.commit, variant)
            continue
        for model in models:
            # Another program's cache, or an older commit with the same content.
            is_same = model.repository == repository.name and (
                model.path.name == variant.files[0].name
                if variant.kind == GGUF
                else model.path.is_dir()
            )
            if is_same and not model.problem:
                found[variant.label] = model.path
    return found
