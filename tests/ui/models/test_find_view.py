"""Searching the hub: what is sent and when, each state, and which answer is shown."""

import asyncio
import threading
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest

from octavo.errors import DownloadError
from octavo.settings import Hub
from octavo.ui.models.find_view import FindView, find_local, is_address
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from octavo.ui.widgets.labels import ElidedLabel
from tests.ui.conftest import until
from tests.ui.fakes import FakeCore, make_model
from tests.ui.hub_fakes import COMMIT, VARIANTS, make_hub_model, make_repository
from tests.ui.models.fake_inspect import FakeInspect

NAME = "acme/Road-8B-Instruct-GGUF"


@pytest.fixture
async def view(core: FakeCore, tasks: UiTasks, theme: ThemeController) -> FindView:
    core.fake_hub.results = {
        "road": [make_hub_model(NAME), make_hub_model("acme/Rail-1B", is_gated=True)],
        "": [make_hub_model("everybody/likes-it")],
    }
    core.fake_hub.repositories = {NAME: make_repository()}
    view = FindView(core.as_core, FakeInspect())
    view.resize(900, 700)
    view.set_layout(is_wide=True, is_narrow=False)
    view.show()
    return view


def names(view: FindView) -> list[str]:
    return [model.repository for model in view.results.models]


async def test_nothing_is_sent_before_the_person_acts(core: FakeCore, view: FindView) -> None:
    assert view.start.isVisible()
    view.field.setText("road")
    view.sort.chosen.emit("likes")
    view.kind.chosen.emit("any")
    assert core.fake_hub.searches == []
    assert core.fake_hub.asked == []


async def test_enter_searches_and_lists(core: FakeCore, view: FindView) -> None:
    view.field.setText(" road ")
    QTest.keyClick(view.field, Qt.Key.Key_Return)
    assert view.busy.isVisible()
    await until(lambda: view.results.isVisible())
    assert core.fake_hub.searches == [("road", "downloads", "gguf")]
    assert names(view) == [NAME, "acme/Rail-1B"]
    row = view.results.rows[1]
    assert row.facts == "GGUF · llama · gated"
    assert "1.2M downloads" in row.accessibleName()
    row.set_layout(is_wide=False)
    assert row.facts == "8.0B · GGUF · llama · gated · 1.2M downloads"


async def test_another_order_or_kind_searches_again(core: FakeCore, view: FindView) -> None:
    view.search_for("road")
    await until(lambda: view.results.isVisible())
    view.sort.set_value("updated")
    view.sort.chosen.emit("updated")
    view.kind.set_value("any")
    view.kind.chosen.emit("any")
    await until(lambda: view.results.isVisible())
    assert core.fake_hub.searches[-1] == ("road", "updated", "any")


async def test_an_older_answer_never_takes_the_place_of_a_newer_one(
    core: FakeCore, view: FindView
) -> None:
    gate = core.fake_hub.gates["slow"] = threading.Event()
    core.fake_hub.results["slow"] = [make_hub_model("acme/Stale")]
    view.search_for("slow")
    await until(lambda: len(core.fake_hub.searches) == 1)
    view.search_for("road")
    await until(lambda: view.results.isVisible())
    gate.set()
    await asyncio.sleep(0.03)
    assert names(view) == [NAME, "acme/Rail-1B"]


async def test_a_beginning_without_words(core: FakeCore, view: FindView) -> None:
    view.start.buttons[1].click()
    await until(lambda: view.results.isVisible())
    assert core.fake_hub.searches == [("", "trending", "gguf")]
    assert view.sort.value == "trending"


async def test_nothing_found_says_so(view: FindView) -> None:
    view.search_for("no such thing")
    await until(lambda: view.nothing.isVisible())
    assert not view.results.isVisible()


async def test_a_hub_that_cannot_be_reached_can_be_asked_again(
    core: FakeCore, view: FindView
) -> None:
    core.fake_hub.error = DownloadError("The hub cannot be reached.", hint="Check the network.")
    view.search_for("road")
    await until(lambda: view.error_card.isVisible())
    assert view.error_card.error is core.fake_hub.error
    assert not view.busy.isVisible()
    core.fake_hub.error = None
    view.error_card.retry.click()
    await until(lambda: view.results.isVisible())
    assert not view.error_card.isVisible()


async def test_offline_sends_nothing_and_leads_to_the_settings(
    core: FakeCore, view: FindView
) -> None:
    asked: list[bool] = []
    view.settings_asked.connect(lambda: asked.append(True))
    core.settings.update(hub=Hub(is_offline=True))
    assert view.offline.isVisible()
    view.search_for("road")
    view.search_for(NAME)
    assert view.offline.isVisible()
    assert core.fake_hub.searches == []
    assert core.fake_hub.asked == []
    core.settings.update(hub=Hub())
    assert view.start.isVisible()


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (NAME, ""),
        (f"{NAME}:q4_k_m", "Q4_K_M"),
        (f"https://hub.example.org/{NAME}", ""),
        (f"https://hub.example.org/{NAME}/blob/main/model-Q6_K.gguf", "Q6_K"),
    ],
)
async def test_a_name_or_a_link_opens_the_repository(
    core: FakeCore, view: FindView, text: str, label: str
) -> None:
    view.search_for(text)
    await until(lambda: view.repository_view.isVisible())
    assert core.fake_hub.searches == []
    marked = [row.variant.label for row in view.repository_view.rows if "As you" in row.mark]
    assert marked == ([label] if label else [])


async def test_a_variant_that_is_not_there_is_said_above_those_that_are(view: FindView) -> None:
    view.search_for(f"{NAME}:Q2_K")
    await until(lambda: view.repository_view.isVisible() and view.error_card.isVisible())
    assert "has no Q2_K" in str(view.error_card.error)
    assert len(view.repository_view.rows) == len(VARIANTS)


async def test_a_link_to_another_site_is_refused_without_a_retry(view: FindView) -> None:
    view.search_for("https://elsewhere.example.org/acme/road")
    await until(lambda: view.error_card.isVisible())
    assert "is not the hub" in str(view.error_card.error)
    assert not view.error_card.retry.isVisible()


async def test_back_returns_to_the_result_that_was_opened(view: FindView) -> None:
    view.search_for("road")
    await until(lambda: view.results.isVisible())
    row = view.results.rows[0]
    row.click()
    await until(lambda: view.repository_view.isVisible())
    QTest.keyClick(view, Qt.Key.Key_Escape)
    assert view.results.isVisible()
    assert view.results._chosen is row


async def test_long_names_are_elided_not_wider_than_the_page(
    core: FakeCore, view: FindView
) -> None:
    core.fake_hub.results["long"] = [make_hub_model("o" * 96 + "/" + "n" * 96)]
    view.search_for("long")
    await until(lambda: view.results.isVisible())
    assert view.results.rows[0].minimumSizeHint().width() < 600
    title = view.results.rows[0].findChild(ElidedLabel)
    assert title is not None


def test_what_is_an_address() -> None:
    assert is_address("acme/road:Q4_0")
    assert is_address("https://huggingface.co/acme/road")
    assert not is_address("road 8b")
    assert not is_address("road and/or rail")


def test_a_variant_in_another_cache_is_found_by_its_file(core: FakeCore, tmp_path: Path) -> None:
    repository = make_repository()
    other = make_model(path=tmp_path / "model-Q4_K_M.gguf", repository=repository.name)
    foreign = make_model(path=tmp_path / "model-Q6_K.gguf", repository="other/repository")
    assert find_local(repository, core.hub_cache, [other, foreign]) == {"Q4_K_M": other.path}


def test_a_variant_in_octavos_cache_is_found_by_its_commit(core: FakeCore) -> None:
    repository = make_repository(variants=(VARIANTS[0],))
    path = core.hub_cache.model_path(repository.name, COMMIT, VARIANTS[0])
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(VARIANTS[0].size_bytes)
    assert find_local(repository, core.hub_cache, []) == {"Q3_K_M": path}
