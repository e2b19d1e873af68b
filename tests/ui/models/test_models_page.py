"""The models page: its two views, keys, drops, downloads and the way to the chat."""

import contextlib
import warnings
from pathlib import Path

import pytest
from PySide6.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
from PySide6.QtGui import QDragEnterEvent, QDragLeaveEvent, QDropEvent, QKeySequence, QShortcut
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QFileDialog, QLabel, QMainWindow, QPushButton

from octavo.core import Core
from octavo.errors import CheckpointError
from octavo.hub.download_queue import DownloadState
from octavo.hub.library import LibraryModel
from octavo.ui.models.models_page import FIND, LIBRARY, ModelsPage
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from octavo.ui.widgets.toast import Toast
from tests.ui.conftest import settled, until
from tests.ui.fakes import MODELS, FakeCore
from tests.ui.hub_fakes import make_download, make_hub_model, make_repository
from tests.ui.models.fake_inspect import FakeInspect

NAME = "acme/Road-8B-Instruct-GGUF"


class FakeAdding:
    def __init__(self) -> None:
        self.added: list[Path] = []

    def __call__(self, core: Core, path: Path) -> str:
        if path.name == "broken.gguf":
            raise CheckpointError("broken.gguf is no GGUF file.", path=path)
        self.added.append(path)
        return f"Added {path.name}."


@pytest.fixture
def adding() -> FakeAdding:
    return FakeAdding()


@pytest.fixture
async def page(
    tmp_path: Path, tasks: UiTasks, theme: ThemeController, adding: FakeAdding
) -> ModelsPage:
    core = FakeCore(tmp_path, MODELS)
    core.fake_hub.results = {"road": [make_hub_model(NAME)]}
    core.fake_hub.repositories = {NAME: make_repository()}
    page = ModelsPage(core.as_core, inspect=FakeInspect(), add_model=adding)
    page.resize(1000, 700)
    page.show()
    await until(lambda: len(page.library.rows) == len(MODELS))
    return page


def core_of(page: ModelsPage) -> FakeCore:
    core = page._core
    assert isinstance(core, FakeCore)
    return core


def urls(*paths: Path) -> QMimeData:
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    return data


def drag(page: ModelsPage, data: QMimeData) -> bool:
    """Moves a drag onto the page; whether it may be dropped."""
    with warnings.catch_warnings():
        # Deprecated since Qt 6.12, and the only way before.
        warnings.simplefilter("ignore", DeprecationWarning)
        event = QDragEnterEvent(
            QPoint(5, 5),
            Qt.DropAction.CopyAction,
            data,
            Qt.MouseButton.LeftButton,
            Qt.KeyboardModifier.NoModifier,
        )
    event.ignore()
    page.dragEnterEvent(event)
    return event.isAccepted()


def drop(page: ModelsPage, data: QMimeData) -> None:
    page.dropEvent(
        QDropEvent(
            QPointF(5, 5),
            Qt.DropAction.CopyAction,
            data,
            Qt.MouseButton.LeftButton,
            Qt.KeyboardModifier.NoModifier,
        )
    )


async def test_two_views_one_at_a_time(page: ModelsPage) -> None:
    assert page.view == LIBRARY
    assert page.library.isVisible()
    assert not page.finder.isVisible()
    page._choice._buttons[FIND].click()
    assert page.view == FIND
    assert page.finder.isVisible()
    assert not page.library.isVisible()


async def test_what_is_written_beside_the_field_is_searched_for(page: ModelsPage) -> None:
    button = page._choice._buttons[FIND]
    button.click()
    page.activateWindow()
    button.setFocus()
    await until(button.hasFocus)
    QTest.keyClick(button, Qt.Key.Key_S)
    assert page.finder.field.hasFocus()
    QTest.keyClick(page.finder.field, Qt.Key.Key_M)
    assert page.finder.field.text() == "sm"


async def test_the_arrow_keys_change_the_view(page: ModelsPage) -> None:
    chosen = page._choice._buttons[LIBRARY]
    page.activateWindow()
    chosen.setFocus()
    await until(chosen.hasFocus)
    QTest.keyClick(chosen, Qt.Key.Key_Right)
    assert page.view == FIND
    assert page.finder.isVisible()


async def test_ctrl_f_searches_the_hub_though_the_window_has_it_too(
    app: object, theme: ThemeController, page: ModelsPage
) -> None:
    window = QMainWindow()
    window.setCentralWidget(page)
    elsewhere: list[bool] = []
    QShortcut(QKeySequence("Ctrl+F"), window).activated.connect(lambda: elsewhere.append(True))
    window.show()
    window.activateWindow()
    await until(window.isActiveWindow)
    page.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
    page.setFocus()
    QTest.keyClick(page, Qt.Key.Key_F, Qt.KeyboardModifier.ControlModifier)
    assert page.view == FIND
    await until(page.finder.field.hasFocus)
    QTest.keyClick(page.finder.field, Qt.Key.Key_F, Qt.KeyboardModifier.ControlModifier)
    assert elsewhere == []


async def test_what_the_app_was_started_with_is_opened(
    page: ModelsPage, adding: FakeAdding, tmp_path: Path
) -> None:
    file = tmp_path / "road.gguf"
    file.touch()
    page.open_asked(NAME)
    assert page.view == FIND
    await until(lambda: page.finder.repository_view.isVisible())
    page.open_asked(str(file))
    assert page.view == LIBRARY
    await until(lambda: adding.added == [file])


async def test_from_words_to_a_download(page: ModelsPage) -> None:
    core = core_of(page)
    page.finder.search_for("road")
    page.open_search()
    await until(lambda: page.finder.results.isVisible())
    page.finder.results.rows[0].click()
    await until(lambda: page.finder.repository_view.take_button.isVisible())
    page.finder.repository_view.take_button.click()
    (download,) = core.downloads.downloads
    assert (download.repository, download.label, download.revision) == (NAME, "Q8_0", "main")
    assert download.size_bytes == 8 * 2**30
    assert page.downloads.isVisible()
    assert not page.finder.repository_view.take_button.isVisible()


async def test_a_download_that_cannot_be_begun_says_why(page: ModelsPage) -> None:
    core_of(page).downloads.is_owner = False
    page._download(make_repository(), make_repository().variants[0])
    assert page.error_card.isVisible()
    assert "Another Octavo" in str(page.error_card.error)


async def test_chat_with_what_was_downloaded(page: ModelsPage) -> None:
    asked: list[LibraryModel] = []
    page.chat_asked.connect(asked.append)
    done = make_download(state=DownloadState.DONE, path=MODELS[0].path)
    core_of(page).downloads.show(done)
    page.downloads.rows["one"].chat_button.click()
    await until(lambda: asked == [MODELS[0]])


async def test_chat_with_what_is_gone_says_so(page: ModelsPage) -> None:
    done = make_download(state=DownloadState.DONE, path=Path("/models/gone.gguf"))
    core_of(page).downloads.show(done)
    page.downloads.rows["one"].chat_button.click()
    await until(lambda: page.error_card.isVisible())


async def test_dropped_models_are_added(
    page: ModelsPage, adding: FakeAdding, tmp_path: Path
) -> None:
    toast = Toast(page)
    file, folder = tmp_path / "road.GGUF", tmp_path / "folder"
    folder.mkdir()
    page.show_view(FIND)
    assert drag(page, urls(file, folder))
    assert page.drop_note.text == "Drop it here to add road.GGUF, folder to the models."
    drop(page, urls(file, folder))
    assert page.view == LIBRARY
    assert not page.drop_note.isVisible()
    await until(lambda: adding.added == [file, folder])
    await until(lambda: "Added folder." in toast.text)
    await until(lambda: not page.adding.isVisible())


async def test_other_files_are_not_taken(page: ModelsPage, tmp_path: Path) -> None:
    assert not drag(page, urls(tmp_path / "picture.png"))
    text = QMimeData()
    text.setText("road.gguf")
    assert not drag(page, text)


async def test_a_drag_that_leaves_takes_its_note_along(page: ModelsPage, tmp_path: Path) -> None:
    assert drag(page, urls(tmp_path / "road.gguf"))
    page.dragLeaveEvent(QDragLeaveEvent())
    assert not page.drop_note.isVisible()


async def test_a_file_that_is_no_model_says_why(page: ModelsPage, tmp_path: Path) -> None:
    drop(page, urls(tmp_path / "broken.gguf"))
    await until(lambda: page.error_card.isVisible())
    assert page.error_card.error is not None
    assert page.error_card.error.message == "broken.gguf is no GGUF file."
    assert not page.adding.isVisible()


async def test_a_file_is_chosen_in_a_dialog_that_does_not_stop_the_loop(
    page: ModelsPage, adding: FakeAdding, tmp_path: Path
) -> None:
    file = tmp_path / "road.gguf"
    file.touch()
    page.library.add_file_asked.emit()
    await until(lambda: page.window().findChild(QFileDialog) is not None)
    dialog = page.window().findChild(QFileDialog)
    assert isinstance(dialog, QFileDialog)
    dialog.filesSelected.emit([str(file)])
    dialog.done(QFileDialog.DialogCode.Accepted)
    await until(lambda: adding.added == [file])


@pytest.mark.parametrize("scale", [1.0, 1.5])
@pytest.mark.parametrize("width", [420, 620, 1000])
async def test_nothing_is_wider_than_the_page_and_no_text_is_cut(
    page: ModelsPage, theme: ThemeController, width: int, scale: float
) -> None:
    core = core_of(page)
    core.fake_hub.repositories = {NAME: make_repository(gated="manual")}
    states = (DownloadState.RUNNING, DownloadState.FAILED, DownloadState.DONE)
    core.downloads.show(
        *(make_download(str(i), state=s, path=Path("/x")) for i, s in enumerate(states))
    )
    theme.set_scale(scale)
    page.resize(width, 900)
    page.show_view(FIND)
    page.finder.search_for(NAME)
    await until(lambda: page.finder.repository_view.take_button.isVisible())
    for view in (FIND, LIBRARY):
        page.show_view(view)
        await settled()
        with contextlib.suppress(TimeoutError):
            await until(lambda: flaws(page) == [], timeout_s=10)
        assert flaws(page) == []


def flaws(page: ModelsPage) -> list[str]:
    """What is cut off, or makes the page wider than its window."""
    room = page.scroll_area.viewport().width()
    too_wide = [
        f"{type(widget).__name__} is too wide"
        for widget in (page.scroll_area.widget(), page.library, page.finder, page.downloads)
        if widget is not None and widget.isVisible() and widget.minimumSizeHint().width() > room
    ]
    cut_texts = [
        text.text()
        for text in page.findChildren(QLabel)
        if text.isVisible()
        and text.wordWrap()
        and text.height() < text.heightForWidth(text.width())
    ]
    cut_buttons = [
        button.text()
        for button in page.findChildren(QPushButton)
        if button.isVisible() and button.text() and button.width() < button.sizeHint().width()
    ]
    return too_wide + cut_texts + cut_buttons
