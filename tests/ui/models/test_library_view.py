"""The view of this machine's models: what it lists, what it says, and what its buttons do."""

import asyncio
import dataclasses
from pathlib import Path

import pytest
from PySide6.QtWidgets import QDialog

from octavo.errors import InsufficientMemoryError
from octavo.host import HostState, HostStatus
from octavo.jobs import Progress
from octavo.ui.models.fit import PlanDialog, describe_plan, judge_fit
from octavo.ui.models.model_row import ModelRow
from octavo.ui.models.models_page import ModelsPage
from octavo.ui.models.origin import describe_origin, describe_removal
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from octavo.ui.widgets.dialogs import ConfirmDialog
from tests.ui.conftest import until
from tests.ui.fakes import CPU, GIB, MODELS, FakeCore, make_model, make_plan


async def open_page(core: FakeCore, width: int = 1000) -> ModelsPage:
    page = ModelsPage(core.as_core)
    page.resize(width, 700)
    page.show()
    await until(lambda: not page.library.scanning.isVisible())
    await until(lambda: all(row.fit_button.text() != "Checking" for row in page.library.rows))
    return page


@pytest.fixture
def full_core(tmp_path: Path, tasks: UiTasks, theme: ThemeController) -> FakeCore:
    return FakeCore(tmp_path, MODELS)


def drawing(page: ModelsPage) -> list[str]:
    """The list as a person sees it."""
    return [
        " | ".join(
            [
                row.model.title,
                *(figure.text() or "-" for figure in row._figures),
                row.fit_button.text() or "-",
                "Load" if row.load_button.isVisible() else "-",
            ]
        )
        for row in page.library.rows
    ]


async def test_the_library_is_listed_with_what_fits(full_core: FakeCore) -> None:
    page = await open_page(full_core)
    assert drawing(page) == [
        "SmolLM2 135M Instruct | 135M | Q4_1 | 93.8 MiB | 8,192 tok | Fits | Load",
        "Meta Llama 3.1 8B Instruct | 8.0B | Q4_K_M | 4.6 GiB | 131,072 tok | Too large | Load",
        "Mistral Large Instruct 2411 | 123B | Q4_0 | 64.6 GiB | 131,072 tok | Too large | Load",
        "phi-3-mini | - | - | 2.0 GiB | - | - | -",
    ]
    assert page.library.rows[3]._problem.text() == MODELS[3].problem
    assert page.library.summary.text() == "4 models, 71.2 GiB"


async def test_a_narrow_page_puts_the_figures_under_the_name(full_core: FakeCore) -> None:
    page = await open_page(full_core, width=440)
    row = page.library.rows[0]
    assert not any(figure.isVisible() for figure in row._figures)
    assert row._facts.text() == "135M · Q4_1 · 93.8 MiB · 8,192 tok · apache-2.0 · in /models"


async def test_an_empty_library_offers_the_starter_model(
    core: FakeCore, tasks: UiTasks, theme: ThemeController
) -> None:
    page = await open_page(core)
    assert page.library.empty.isVisible()
    assert page.library.starter_card.start_button.isVisible()
    core.library.models = [make_model()]
    core.library.changed.emit(None)
    await until(lambda: len(page.library.rows) == 1)
    assert not page.library.empty.isVisible()


async def test_folders_that_cannot_be_read_are_a_quiet_notice(full_core: FakeCore) -> None:
    full_core.library.problems = ["The model folder /mnt/usb is missing."]
    page = await open_page(full_core)
    assert page.library.notice.isVisible()
    assert page.library.notice.text == "The model folder /mnt/usb is missing."


async def test_loading_shows_progress_and_can_be_cancelled(full_core: FakeCore) -> None:
    full_core.host.gate = asyncio.Event()
    page = await open_page(full_core)
    row, other = page.library.rows[0], page.library.rows[1]
    row.load_button.click()
    await until(lambda: row._progress.isVisible())
    assert row.cancel_button.isVisible()
    assert not other.load_button.isEnabled()
    row.cancel_button.click()
    await until(lambda: full_core.host.state.status is HostStatus.EMPTY)
    assert row.load_button.isVisible()


async def test_a_loaded_model_can_be_unloaded_and_not_removed(full_core: FakeCore) -> None:
    page = await open_page(full_core)
    row = page.library.rows[0]
    row.load_button.click()
    await until(lambda: row.unload_button.isVisible())
    assert row._loaded_mark.isVisible()
    assert not row._remove.isEnabled()
    row.unload_button.click()
    await until(lambda: row.load_button.isVisible())


async def test_a_load_that_fails_says_why(full_core: FakeCore) -> None:
    full_core.host.load_error = InsufficientMemoryError(
        "Needs 17.2 GiB, 15.4 GiB are free.", needed_bytes=1, free_bytes=0, hint="Use a Q4 version."
    )
    page = await open_page(full_core)
    page.library.rows[1].load_button.click()
    await until(lambda: page.library.error_card.isVisible())
    assert page.library.error_card.error is full_core.host.load_error


async def test_removing_asks_first(full_core: FakeCore) -> None:
    page = await open_page(full_core)
    row = page.library.rows[0]
    for answer, num_left in ((QDialog.DialogCode.Rejected, 4), (QDialog.DialogCode.Accepted, 3)):
        row.remove_asked.emit()
        await until(lambda: page.findChild(ConfirmDialog) is not None)
        dialog = page.findChild(ConfirmDialog)
        assert isinstance(dialog, ConfirmDialog)
        dialog.done(answer)
        await until(lambda: page.findChild(ConfirmDialog) is None)
        assert len(full_core.library.models) == num_left
    await until(lambda: len(page.library.rows) == 3)


async def test_a_model_that_cannot_be_planned_says_why(full_core: FakeCore) -> None:
    full_core.library.models = [make_model(architecture="mamba")]
    page = await open_page(full_core)
    assert page.library.rows[0]._problem.text() == "The architecture mamba is not supported."
    assert not page.library.rows[0].load_button.isVisible()


async def test_the_plan_opens_with_every_item(full_core: FakeCore) -> None:
    page = await open_page(full_core)
    page.library.rows[0].fit_button.click()
    dialog = page.findChild(PlanDialog)
    assert isinstance(dialog, PlanDialog)
    assert dialog.isVisible()
    dialog.accept()


async def test_a_row_shows_a_load_begun_elsewhere_without_a_cancel(
    app: object, theme: ThemeController
) -> None:
    row = ModelRow(MODELS[0])
    row.show()
    row.show_host(HostState(HostStatus.LOADING, MODELS[0], Progress("Loading weights", 1, 2)))
    assert row._progress.isVisible()
    assert not row.cancel_button.isVisible()
    row.hide()


@pytest.mark.parametrize(
    ("free_bytes", "word"), [(15 * GIB, "Fits"), (GIB * 5 // 8, "Tight"), (GIB // 4, "Too large")]
)
def test_fit_is_one_word(free_bytes: int, word: str) -> None:
    plan = make_plan(make_model(), dataclasses.replace(CPU, free_bytes=free_bytes))
    verdict = judge_fit(plan)
    assert verdict.word == word
    assert "Needs about 576.6 MiB" in verdict.sentence
    assert ("shorter context" in verdict.sentence) == (word == "Too large")


def test_the_plan_in_words_names_each_item() -> None:
    lines = describe_plan(make_plan(make_model())).splitlines()
    assert lines[0] == "Weights: 256.6 MiB (135 million parameters in bfloat16)"
    assert len(lines) == 4


def test_a_row_says_where_its_model_came_from(tmp_path: Path) -> None:
    own, elsewhere = tmp_path / "own", tmp_path / "elsewhere"
    own.mkdir()
    link = own / "linked.gguf"
    link.symlink_to(elsewhere / "real.gguf")
    cases = {
        "from acme/Road-8B": make_model(path=own / "hub" / "x.gguf", repository="acme/Road-8B"),
        "in Octavo's folder": make_model(path=own / "plain.gguf"),
        "linked": make_model(path=link),
        f"in {elsewhere}": make_model(path=elsewhere / "plain.gguf"),
    }
    assert {describe_origin(model, own): model for model in cases.values()} == cases


def test_removing_says_what_it_frees(tmp_path: Path) -> None:
    model = make_model(path=tmp_path / "plain.gguf")
    assert "That frees 93.8 MiB." in describe_removal(model)
    assert "other programs" in describe_removal(make_model(repository="acme/Road-8B"))
    link = tmp_path / "linked.gguf"
    link.symlink_to(tmp_path / "elsewhere.gguf")
    linked = describe_removal(make_model(path=link))
    assert "Only the link" in linked
    assert "nothing is freed" in linked
