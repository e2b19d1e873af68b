"""The settings page: what is changed is on disk at once; what cannot be is said."""

import tomllib
from pathlib import Path

import pytest
from PySide6.QtWidgets import QDialog

from octavo.errors import InvalidSettingsError, OctavoError
from octavo.paths import short_path
from octavo.ui.settings.settings_page import SettingsPage
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from octavo.ui.widgets.dialogs import ConfirmDialog
from tests.ui.conftest import until
from tests.ui.fakes import FakeCore


@pytest.fixture
async def page(core: FakeCore, tasks: UiTasks, theme: ThemeController) -> SettingsPage:
    page = SettingsPage(core.as_core)
    page.resize(800, 900)
    page.show()
    return page


def on_disk(core: FakeCore) -> dict[str, object]:
    return tomllib.loads(core.paths.settings_file.read_text(encoding="utf-8"))


async def test_theme_and_size_are_saved(page: SettingsPage, core: FakeCore) -> None:
    page.appearance.theme._buttons["dark"].click()
    page.appearance.slider.setValue(120)
    assert on_disk(core)["appearance"] == {"theme": "dark", "font_scale": 1.2}
    assert page.appearance._percent.text() == "120 %"


async def test_size_waits_for_the_end_of_a_drag(page: SettingsPage, core: FakeCore) -> None:
    page.appearance.slider.setSliderDown(True)
    page.appearance.slider.setValue(140)
    assert core.settings.value.appearance.font_scale == 1.0
    page.appearance.slider.setSliderDown(False)
    assert core.settings.value.appearance.font_scale == 1.4


async def test_sampling_defaults_are_saved(page: SettingsPage, core: FakeCore) -> None:
    page.chat.temperature.setValue(0.2)
    page.chat.top_p.setValue(0.5)
    page.chat.max_tokens.setValue(256)
    assert on_disk(core)["chat"] == {"temperature": 0.2, "top_p": 0.5, "max_tokens": 256}
    page.chat.max_tokens.setValue(0)
    assert core.settings.value.chat.max_tokens is None


async def test_the_system_prompt_is_saved_when_the_typing_pauses_or_the_page_is_left(
    page: SettingsPage, core: FakeCore
) -> None:
    page.chat.system_prompt.setPlainText("Be brief.")
    assert core.settings.value.chat.system_prompt == ""
    page.hide()
    assert core.settings.value.chat.system_prompt == "Be brief."


async def test_folders_are_added_once_and_taken_away(page: SettingsPage, core: FakeCore) -> None:
    page.storage.add_folder("/data/models")
    page.storage.add_folder("/data/models")
    assert core.settings.value.storage.extra_folders == ("/data/models",)
    page.storage.remove_folder("/data/models")
    assert not core.settings.value.storage.extra_folders


async def test_weights_kept_for_loads_are_counted_and_removed(
    page: SettingsPage, core: FakeCore
) -> None:
    row, button = page.storage.kept_row, page.storage.remove_kept
    await until(lambda: "There are none now." in row.sentence.text())
    assert not button.isEnabled()
    core.paths.tiles_dir.mkdir(parents=True)
    kept = core.paths.tiles_dir / "model.tiles"
    kept.write_bytes(bytes(3 << 20))
    page.hide()
    page.show()
    await until(lambda: "Now 3.0 MiB." in row.sentence.text())
    button.click()
    await until(lambda: not kept.exists() and "There are none now." in row.sentence.text())


async def test_engine_options_are_saved(page: SettingsPage, core: FakeCore) -> None:
    page.engine.dtype.set_value("float32")
    page.engine.dtype.activated.emit(page.engine.dtype.currentIndex())
    page.engine.max_num_seqs.setValue(8)
    assert on_disk(core)["engine"] == {"dtype": "float32", "max_num_seqs": 8}


async def test_a_change_from_elsewhere_is_shown(page: SettingsPage, core: FakeCore) -> None:
    other = SettingsPage(core.as_core)
    other.chat.temperature.setValue(1.5)
    assert page.chat.temperature.value() == 1.5


async def test_a_broken_file_is_named_kept_and_can_be_reset(
    page: SettingsPage, core: FakeCore
) -> None:
    file = core.paths.settings_file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("theme = [", encoding="utf-8")
    page.chat.temperature.setValue(0.1)
    assert isinstance(page.error_card.error, InvalidSettingsError)
    assert page.error_card.retry.isVisible()
    assert file.read_text(encoding="utf-8") == "theme = ["
    page.error_card.retry.click()
    await until(lambda: page.findChild(ConfirmDialog) is not None)
    dialog = page.findChild(ConfirmDialog)
    assert isinstance(dialog, ConfirmDialog)
    dialog.done(QDialog.DialogCode.Accepted)
    await until(lambda: page.error_card.error is None)
    assert [path.name for path in file.parent.glob("*.bak")] == ["settings.toml.bak"]


async def test_a_folder_that_cannot_be_written_is_said_without_a_reset(
    page: SettingsPage, core: FakeCore, tmp_path: Path
) -> None:
    core.paths.settings_file.parent.parent.mkdir(parents=True, exist_ok=True)
    core.paths.settings_file.parent.write_text("a file in the folder's place", encoding="utf-8")
    page.engine.max_num_seqs.setValue(2)
    assert isinstance(page.error_card.error, OctavoError)
    assert not page.error_card.retry.isVisible()


def test_the_own_folder_is_written_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    assert short_path("/home/ada/models") == str(Path("~/models"))
    assert short_path("/home/ada") == "~"
    assert short_path("/home/adam/models") == "/home/adam/models"
    monkeypatch.setattr(Path, "home", lambda: Path("/"))
    assert short_path("/data/models") == "/data/models"
