"""The list of downloads: numbers and words of each state, and what the buttons ask for."""

from pathlib import Path
from typing import Any

import pytest
from PySide6.QtWidgets import QDialog

from octavo.hub.download_queue import DownloadState
from octavo.ui.models.download_list import DownloadList
from octavo.ui.models.download_row import DownloadRow, describe_download, describe_left
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from octavo.ui.widgets.dialogs import ConfirmDialog
from tests.ui.conftest import until
from tests.ui.fakes import FakeCore
from tests.ui.hub_fakes import GIB, make_download


@pytest.fixture
async def downloads(core: FakeCore, tasks: UiTasks, theme: ThemeController) -> DownloadList:
    downloads = DownloadList(core.as_core)
    downloads.resize(600, 400)
    return downloads


def buttons(row: DownloadRow) -> set[str]:
    named = {
        "pause": row.pause_button,
        "resume": row.resume_button,
        "retry": row.retry_button,
        "chat": row.chat_button,
    }
    return {name for name, button in named.items() if not button.isHidden()}


async def test_it_is_there_only_with_downloads(core: FakeCore, downloads: DownloadList) -> None:
    assert downloads.isHidden()
    core.downloads.show(make_download())
    assert not downloads.isHidden()
    core.downloads.show()
    assert downloads.isHidden()


@pytest.mark.parametrize(
    ("fields", "expected_buttons", "words"),
    [
        (
            {},
            {"pause"},
            "25 % · 1.0 GiB of 4.0 GiB · 12.0 MiB/s · about 4 min left",
        ),
        (
            {"stage": "Trying again in 12 s", "bytes_per_second": 0.0},
            {"pause"},
            "25 % · 1.0 GiB of 4.0 GiB · 0 B/s Trying again in 12 s",
        ),
        ({"state": DownloadState.WAITING, "stage": ""}, {"pause"}, "Waiting for its turn"),
        (
            {"state": DownloadState.WAITING, "stage": "Waiting: offline."},
            {"pause"},
            "Waiting: offline.",
        ),
        ({"state": DownloadState.PAUSED}, {"resume"}, "Paused. What has arrived is kept."),
        (
            {"state": DownloadState.FAILED, "error": "The disk is full.", "hint": "Make room."},
            {"retry"},
            "The disk is full. Make room.",
        ),
        (
            {"state": DownloadState.DONE, "path": Path("/models/x.gguf")},
            {"chat"},
            "Downloaded and checked, 4.0 GiB.",
        ),
    ],
)
async def test_each_state_has_its_words_and_buttons(
    core: FakeCore,
    downloads: DownloadList,
    fields: dict[str, Any],
    expected_buttons: set[str],
    words: str,
) -> None:
    core.downloads.show(make_download(**fields))
    row = downloads.rows["one"]
    assert buttons(row) == expected_buttons
    assert row.text.endswith(words)


async def test_pause_resume_and_retry_reach_the_queue(
    core: FakeCore, downloads: DownloadList
) -> None:
    core.downloads.show(make_download())
    row = downloads.rows["one"]
    row.pause_button.click()
    row.resume_button.click()
    row.retry_button.click()
    assert core.downloads.calls == [("pause", "one"), ("resume", "one"), ("resume", "one")]


async def test_stopping_asks_first_where_something_has_arrived(
    core: FakeCore, downloads: DownloadList
) -> None:
    core.downloads.show(make_download())
    downloads.show()
    for answer, calls in (
        (QDialog.DialogCode.Rejected, []),
        (QDialog.DialogCode.Accepted, [("cancel", "one")]),
    ):
        downloads.rows["one"].cancel_button.click()
        await until(lambda: downloads.findChild(ConfirmDialog) is not None)
        dialog = downloads.findChild(ConfirmDialog)
        assert isinstance(dialog, ConfirmDialog)
        dialog.done(answer)
        await until(lambda: downloads.findChild(ConfirmDialog) is None)
        assert core.downloads.calls == calls
    assert downloads.rows == {}


@pytest.mark.parametrize(
    "fields", [{"done_bytes": 0}, {"state": DownloadState.DONE, "path": Path("/models/x.gguf")}]
)
async def test_what_loses_nothing_goes_at_once(
    core: FakeCore, downloads: DownloadList, fields: dict[str, Any]
) -> None:
    core.downloads.show(make_download(**fields))
    downloads.rows["one"].cancel_button.click()
    await until(lambda: core.downloads.calls == [("cancel", "one")])


async def test_what_got_done_while_the_question_stood_is_kept(
    core: FakeCore, downloads: DownloadList
) -> None:
    core.downloads.show(make_download())
    downloads.show()
    downloads.rows["one"].cancel_button.click()
    await until(lambda: downloads.findChild(ConfirmDialog) is not None)
    core.downloads.show(make_download(state=DownloadState.DONE))
    dialog = downloads.findChild(ConfirmDialog)
    assert isinstance(dialog, ConfirmDialog)
    dialog.accept()
    await until(lambda: downloads.findChild(ConfirmDialog) is None)
    assert core.downloads.calls == []


async def test_rows_are_kept_while_others_come_and_go(
    core: FakeCore, downloads: DownloadList
) -> None:
    core.downloads.show(make_download("one"), make_download("two"))
    row = downloads.rows["two"]
    core.downloads.show(make_download("two", done_bytes=2 * GIB), make_download("three"))
    assert list(downloads.rows) == ["two", "three"]
    assert downloads.rows["two"] is row
    assert row.text.startswith("50 %")


async def test_finished_ones_are_cleared_together(core: FakeCore, downloads: DownloadList) -> None:
    core.downloads.show(make_download())
    assert downloads.clear_button.isHidden()
    core.downloads.show(make_download(), make_download("two", state=DownloadState.DONE))
    downloads.clear_button.click()
    assert list(downloads.rows) == ["one"]


async def test_chat_gives_the_models_path(core: FakeCore, downloads: DownloadList) -> None:
    asked: list[Path] = []
    downloads.chat_asked.connect(asked.append)
    path = Path("/models/x.gguf")
    core.downloads.show(make_download(state=DownloadState.DONE, path=path))
    downloads.rows["one"].chat_button.click()
    assert asked == [path]


async def test_a_second_octavo_shows_and_changes_nothing(
    core: FakeCore, downloads: DownloadList
) -> None:
    core.downloads.problem = "Another Octavo window fetches the downloads."
    core.downloads.is_owner = False
    core.downloads.show(make_download())
    assert downloads.notice.text == core.downloads.problem
    assert not downloads.rows["one"].pause_button.isEnabled()
    assert not downloads.rows["one"].cancel_button.isEnabled()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "less than a minute left"),
        (90, "about 2 min left"),
        (3599, "about 1 h 00 min left"),
        (7500, "about 2 h 05 min left"),
    ],
)
def test_the_time_left_in_words(seconds: float, words: str) -> None:
    assert describe_left(seconds) == words


def test_no_time_is_told_while_it_is_not_known() -> None:
    unknown = make_download(size_bytes=0, done_bytes=5 * 2**20)
    assert describe_download(unknown) == "5.0 MiB · 12.0 MiB/s"
    crawling = make_download(bytes_per_second=1.0)
    assert describe_download(crawling) == "25 % · 1.0 GiB of 4.0 GiB · 1 B/s"
