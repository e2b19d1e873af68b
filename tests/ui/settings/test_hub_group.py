"""The hub group of the settings: the token is never seen again; the test says what it found."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PySide6.QtWidgets import QLineEdit

from octavo.errors import DownloadError
from octavo.settings import Storage
from octavo.ui.settings.settings_page import SettingsPage
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from tests.ui.conftest import until
from tests.ui.fakes import FakeCore

TOKEN = "hf_very_secret"


@dataclass
class AnsweringHub:
    name: str = ""
    error: DownloadError | None = None
    endpoint: str = "https://hub.test"

    def account(self) -> str:
        if self.error is not None:
            raise self.error
        return self.name


@pytest.fixture
async def page(core: FakeCore, tasks: UiTasks, theme: ThemeController) -> SettingsPage:
    page = SettingsPage(core.as_core)
    page.resize(800, 900)
    page.show()
    await until(lambda: page.hub.token_sentence.startswith("None is kept"))
    return page


def says(page: SettingsPage, words: str) -> Callable[[], bool]:
    return lambda: words in page.hub.outcome


async def test_a_token_is_kept_hidden_and_forgotten(page: SettingsPage, core: FakeCore) -> None:
    assert page.hub.token.echoMode() is QLineEdit.EchoMode.Password
    page.hub.token.setText(f" {TOKEN} ")
    page.hub.keep.click()
    assert page.hub.token.text() == ""
    await until(lambda: "a file that only you may read" in page.hub.token_sentence)
    assert core.tokens.read() == TOKEN
    assert page.hub.forget.isVisible()
    page.hub.forget.click()
    await until(lambda: not page.hub.forget.isVisible())
    assert core.tokens.read() == ""
    page.hub.token.setText("with space")
    page.hub.keep.click()
    await until(says(page, "characters that no token has"))
    assert "with space" not in page.hub.outcome


async def test_the_test_says_who_the_hub_sees_or_what_is_wrong(
    page: SettingsPage, core: FakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = AnsweringHub("ada")
    monkeypatch.setattr(core, "hub", lambda: hub)
    page.hub.test.click()
    await until(says(page, "https://hub.test answers, and knows the token as ada."))
    assert page.hub.test.isEnabled()
    hub.name = ""
    page.hub.test.click()
    await until(says(page, "Without a token"))
    hub.error = DownloadError("The hub cannot be reached.", hint="Check the network.")
    page.hub.test.click()
    await until(says(page, "The hub cannot be reached. Check the network."))
    assert page.hub.test.isEnabled()


async def test_endpoint_proxy_and_offline_are_saved_and_nonsense_is_refused(
    page: SettingsPage, core: FakeCore
) -> None:
    for edit, text in (
        (page.hub.endpoint, " https://mirror.test "),
        (page.hub.proxy, "http://proxy.test:8080"),
    ):
        edit.setText(text)
        edit.editingFinished.emit()
    page.hub.offline.click()
    hub = core.settings.value.hub
    assert (hub.endpoint, hub.proxy, hub.is_offline) == (
        "https://mirror.test",
        "http://proxy.test:8080",
        True,
    )
    page.hub.endpoint.setText("no address")
    page.hub.endpoint.editingFinished.emit()
    assert page.error_card.error is not None
    assert page.hub.endpoint.text() == "https://mirror.test"
    assert core.settings.value.hub.endpoint == "https://mirror.test"


async def test_folders_say_whether_they_are_there(
    page: SettingsPage, core: FakeCore, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    page.storage.add_folder(str(here))
    page.storage.add_folder(str(tmp_path / "gone"))
    assert page.storage.folders.missing == [str(tmp_path / "gone")]
    (tmp_path / "gone").mkdir()
    page.hide()
    page.show()
    assert page.storage.folders.missing == []


async def test_the_shared_cache_can_be_left_out_where_downloads_go_elsewhere(
    page: SettingsPage, core: FakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert page.storage.shared_row.isVisible()
    page.storage.shows_cache.click()
    assert not core.settings.value.storage.shows_hub_cache
    monkeypatch.setenv("HF_HUB_CACHE", str(core.hub_cache.root))
    core.settings.update(storage=Storage())
    assert not page.storage.shared_row.isVisible()
