"""A repository: its facts and gate, verdicts of its variants, and what a row offers."""

import threading
from pathlib import Path

import pytest

from octavo.errors import DownloadError, UnsupportedModelError
from octavo.hub.download_queue import DownloadState
from octavo.hub.hub_files import HubVariant
from octavo.ui.models.fit import PlanDialog
from octavo.ui.models.repository_view import RepositoryView, describe_gate, describe_repository
from octavo.ui.models.variant_row import VariantRow
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from tests.ui.conftest import until
from tests.ui.fakes import FakeCore
from tests.ui.hub_fakes import VARIANTS, make_download, make_repository, make_variant
from tests.ui.models.fake_inspect import FakeInspect


@pytest.fixture
def inspect() -> FakeInspect:
    inspect = FakeInspect()
    inspect.num_parameters = {"Q8_0": 9e9, "Q6_K": 9e9}
    return inspect


@pytest.fixture
async def view(
    core: FakeCore, tasks: UiTasks, theme: ThemeController, inspect: FakeInspect
) -> RepositoryView:
    view = RepositoryView(core.as_core, inspect)
    view.resize(900, 700)
    view.show()
    return view


def row_of(view: RepositoryView, label: str) -> VariantRow:
    return next(row for row in view.rows if row.variant.label == label)


async def open_repository(
    core: FakeCore, view: RepositoryView, asked: HubVariant | None = None, **fields: object
) -> None:
    view.show_repository(core.hub(), make_repository(**fields), asked)  # type: ignore[arg-type]
    await until(lambda: not view._checks.is_running)


def drawing(view: RepositoryView) -> list[str]:
    """The rows as a person sees them."""
    return [
        " | ".join(
            [row.variant.label, row.verdict_button.text(), row.mark or "-"]
            + (["Download"] if row.can_download else [])
        )
        for row in view.rows
    ]


async def test_the_best_that_fits_is_recommended_from_few_headers(
    core: FakeCore, view: RepositoryView, inspect: FakeInspect
) -> None:
    await open_repository(core, view)
    assert drawing(view) == [
        "F16 | Too large | - | Download",
        "safetensors | Too large | - | Download",
        "Q8_0 | Too large | - | Download",
        "Q6_K | Too large | - | Download",
        "Q5_K_M | Fits | Recommended | Download",
        "Q4_K_M | Check fit | - | Download",
        "Q3_K_M | Check fit | - | Download",
    ]
    assert inspect.read == ["Q5_K_M", "Q8_0", "Q6_K"]
    assert view.summary.text() == "Q5_K_M is the best that fits this machine."
    assert view.take_button.accessibleName() == "Download Q5_K_M, 5.0 GiB"
    assert row_of(view, "F16").detail == "The weights alone are 16.0 GiB, 15.0 GiB are free."


async def test_a_row_is_checked_when_its_button_is_pressed(
    core: FakeCore, view: RepositoryView, inspect: FakeInspect
) -> None:
    await open_repository(core, view)
    row = row_of(view, "Q4_K_M")
    row.verdict_button.click()
    await until(lambda: row.verdict_button.text() == "Fits")
    assert inspect.read[-1] == "Q4_K_M"
    assert "8,192 tokens" in row.detail
    row.verdict_button.click()
    dialog = row.findChild(PlanDialog)
    assert isinstance(dialog, PlanDialog)
    dialog.accept()


async def test_what_the_engine_refuses_cannot_be_downloaded(
    core: FakeCore, view: RepositoryView, inspect: FakeInspect
) -> None:
    refusal = UnsupportedModelError("The architecture mamba is not supported yet.")
    inspect.errors = {variant.label: refusal for variant in VARIANTS}
    await open_repository(core, view, variants=VARIANTS[:2])
    assert drawing(view) == ["Q4_K_M | Not supported | -", "Q3_K_M | Not supported | -"]
    assert row_of(view, "Q4_K_M").detail == str(refusal)
    assert view.summary.text() == "Octavo cannot run any of these."
    assert not view.take_button.isVisible()


async def test_a_check_that_fails_leaves_the_download_and_can_be_repeated(
    core: FakeCore, view: RepositoryView, inspect: FakeInspect
) -> None:
    inspect.errors = {"Q5_K_M": DownloadError("The hub cannot be reached.")}
    await open_repository(core, view)
    assert view.error_card.isVisible()
    assert inspect.read == ["Q5_K_M"]
    assert row_of(view, "Q5_K_M").verdict_button.text() == "Not checked"
    assert row_of(view, "Q5_K_M").can_download
    inspect.errors = {}
    view.error_card.retry.click()
    await until(lambda: view.take_button.isVisible())
    assert not view.error_card.isVisible()


async def test_the_named_variant_is_checked_first(
    core: FakeCore, view: RepositoryView, inspect: FakeInspect
) -> None:
    await open_repository(core, view, asked=VARIANTS[0])
    assert inspect.read[0] == "Q3_K_M"
    assert row_of(view, "Q3_K_M").mark == "As you asked"


async def test_leaving_stops_the_checks(
    core: FakeCore, view: RepositoryView, inspect: FakeInspect
) -> None:
    inspect.gate = threading.Event()
    view.show_repository(core.hub(), make_repository(), None)  # type: ignore[arg-type]
    await until(lambda: inspect.read == ["Q5_K_M"])
    assert row_of(view, "Q5_K_M").verdict_button.text() == "Checking"
    assert view.summary.text().startswith("Looking for the best")
    view.stop()
    inspect.gate.set()
    await open_repository(core, view, variants=VARIANTS[:1])
    assert inspect.read == ["Q5_K_M", "Q3_K_M"]


async def test_a_row_shows_what_is_here_and_what_is_coming(
    core: FakeCore, view: RepositoryView
) -> None:
    await open_repository(core, view)
    core.downloads.show(
        make_download(label="Q5_K_M"),
        make_download("two", label="Q6_K", state=DownloadState.FAILED),
        make_download("three", label="Q8_0", revision="another"),
    )
    view.show_places({"Q4_K_M": Path("/models/q4.gguf")})
    asked: list[Path] = []
    view.chat_asked.connect(asked.append)
    here, coming, failed = (row_of(view, label) for label in ("Q4_K_M", "Q5_K_M", "Q6_K"))
    assert here.chat_button.isVisible()
    assert not here.download_button.isVisible()
    here.chat_button.click()
    assert asked == [Path("/models/q4.gguf")]
    assert coming._state.text() == "Downloading 25 %"
    assert failed._state.text() == "Failed"
    assert not coming.can_download
    assert not view.take_button.isVisible()
    assert row_of(view, "Q8_0").can_download


async def test_download_asks_for_the_variant(core: FakeCore, view: RepositoryView) -> None:
    await open_repository(core, view)
    asked: list[HubVariant] = []
    view.download_asked.connect(asked.append)
    row_of(view, "Q3_K_M").download_button.click()
    view.take_button.click()
    assert [variant.label for variant in asked] == ["Q3_K_M", "Q5_K_M"]


async def test_a_gate_says_the_next_step(core: FakeCore, view: RepositoryView) -> None:
    await open_repository(core, view, gated="auto")
    assert view.page_button.isVisible()
    assert view.token_button.isVisible()
    core.fake_hub.token = "hf_x"
    await open_repository(core, view, gated="manual")
    assert not view.token_button.isVisible()
    await open_repository(core, view)
    assert not view.page_button.isVisible()


def test_gates_in_words() -> None:
    open_gate = describe_gate(make_repository(gated="auto"), has_token=False)
    assert open_gate == (
        "Accept its terms on its page. Then put a token of that account into the settings."
    )
    assert "may take days" in describe_gate(make_repository(gated="manual"), has_token=True)


def test_facts_in_words() -> None:
    assert describe_repository(make_repository(license="", revision="v2")) == (
        "No licence named · 1.2M downloads · 890 likes · updated 2026-10-02 · revision v2"
    )


@pytest.mark.parametrize(
    ("pickle", "words"), [("pytorch_model.bin", "Octavo runs none"), ("", "no language model")]
)
async def test_a_repository_without_models_says_what_it_has(
    core: FakeCore, view: RepositoryView, pickle: str, words: str
) -> None:
    await open_repository(core, view, variants=(), pickle=pickle)
    assert words in view.note.text
    assert view.rows == []


async def test_changed_free_memory_is_planned_again(
    core: FakeCore, view: RepositoryView, inspect: FakeInspect
) -> None:
    await open_repository(core, view)
    inspect.num_parameters = {variant.label: 9e9 for variant in VARIANTS}
    view.check_again()
    await until(lambda: not view._checks.is_running)
    assert view.summary.text() == "None of those checked fits into the memory that is free."
    assert row_of(view, "Q5_K_M").verdict_button.text() == "Too large"


async def test_what_changed_while_hidden_is_planned_at_the_next_showing(
    core: FakeCore, view: RepositoryView, inspect: FakeInspect
) -> None:
    await open_repository(core, view)
    view.hide()
    inspect.read.clear()
    view.check_again()
    assert not view._checks.is_running
    view.show()
    await until(lambda: not view._checks.is_running)
    assert set(inspect.read) == {"Q5_K_M", "Q6_K", "Q8_0"}


async def test_labels_that_are_paths_stay_out_of_the_button(
    core: FakeCore, view: RepositoryView
) -> None:
    await open_repository(
        core, view, variants=(make_variant("folder/model-long-name-Q4_0", 2**30),)
    )
    assert view.take_button.accessibleName() == "Download it, 1.0 GiB"
