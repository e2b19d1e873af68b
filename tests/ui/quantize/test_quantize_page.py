"""The quantise page: forms and their sizes, a run, what stops it, and what it cost."""

import asyncio
from pathlib import Path

import pytest
from PySide6.QtWidgets import QApplication, QLabel

from octavo.errors import InsufficientMemoryError
from octavo.jobs import JobControl, Progress
from octavo.quantize.interrupted import find_interrupted, note_recipe
from octavo.quantize.recipe import Estimate, QuantizeRecipe
from octavo.quantize.report import QuantizeReport, write_report
from octavo.ui.quantize import quantize_page
from octavo.ui.quantize.method_list import NO_GAIN, MethodList
from octavo.ui.quantize.quantize_page import QuantizePage
from octavo.ui.quantize.report_list import describe_loss, figures
from octavo.ui.tasks import UiTasks
from tests.support.gguf_files import TinyLlama
from tests.ui.conftest import until
from tests.ui.fakes import FakeCore, make_model

SOURCE = "tiny"


def make_report(**changes: object) -> QuantizeReport:
    values = {
        "source_name": "tiny.gguf",
        "method": "q8_0",
        "source_bytes": 4_000_000,
        "output_bytes": 1_000_000,
        "bits_per_weight": 8.5,
        "perplexity_before": 18.234,
        "perplexity_after": 18.31,
        "kl_divergence": 0.0012,
        "top1_agreement": 0.987,
        "num_tokens": 2048,
        "text_name": "a text",
        "seconds": 3.0,
        "dtype": "float32",
        "note": "",
        **changes,
    }
    return QuantizeReport(**values)  # type: ignore[arg-type]


class FakeQuantize:
    """Waits at its gate, then gives a report, an error, or is cancelled."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.recipes: list[QuantizeRecipe] = []
        self.evaluated: list[bool] = []
        self.error: InsufficientMemoryError | None = None
        self.report = make_report()
        self.was_cancelled = False

    async def __call__(
        self, recipe: QuantizeRecipe, control: JobControl, evaluates: bool
    ) -> QuantizeReport:
        self.recipes.append(recipe)
        self.evaluated.append(evaluates)
        control.report(Progress("Writing weights", 30, 100))
        while not self.gate.is_set():
            await asyncio.sleep(0.01)
            self.was_cancelled = control.is_cancelled
            control.raise_if_cancelled()
        if self.error is not None:
            raise self.error
        recipe.output.write_bytes(b"GGUF")
        return self.report


@pytest.fixture
def quantize() -> FakeQuantize:
    return FakeQuantize()


@pytest.fixture
async def page(
    core: FakeCore, tasks: UiTasks, quantize: FakeQuantize, tmp_path: Path
) -> QuantizePage:
    core.models_dir.mkdir(parents=True, exist_ok=True)
    path = TinyLlama().write(tmp_path / "tiny.gguf")
    title = "Tiny Llama that was given a rather long title by whoever made it"
    model = make_model(SOURCE, title=title, path=path, size_bytes=path.stat().st_size)
    core.library.models = [model, make_model("broken", problem="It is damaged.")]
    page = QuantizePage(core.as_core, quantize=quantize)
    page.resize(900, 900)
    page.show()
    await until(lambda: page.start_button.isVisible() and "about" in sizes(page)["q8_0"])
    return page


def sizes(page: QuantizePage) -> dict[str, str]:
    return {method: text.text() for method, text in page.methods.sizes.items()}


async def test_lists_what_can_be_made_smaller(page: QuantizePage, core: FakeCore) -> None:
    assert [page.picker.itemData(i) for i in range(page.picker.count())] == [SOURCE]
    assert all(text.startswith("about ") for text in sizes(page).values())
    assert str(core.models_dir / "tiny-q8_0.gguf") in page.output.text()
    page.methods.set_method("int4-g32")
    assert page.output.text().endswith("tiny-int4-g32")


async def test_nothing_is_cut_in_a_narrow_window(page: QuantizePage) -> None:
    page.resize(420, 700)
    await until(lambda: page.scroll_area.viewport().width() < 420)
    sheet = page.scroll_area.widget()
    assert sheet is not None
    assert sheet.minimumSizeHint().width() <= page.scroll_area.viewport().width()


async def test_a_run_from_the_button_to_the_library(
    page: QuantizePage, core: FakeCore, quantize: FakeQuantize
) -> None:
    changes: list[None] = []
    core.library.changed.connect(changes.append)
    page.methods.set_method("q4_0")
    page.evaluates.setChecked(False)
    page.start_button.click()
    await until(lambda: page.run.progress.done == 30)
    assert page.run_card.isVisible()
    assert not page.form.isVisible()
    assert "tiny-q4_0.gguf" in page.run_title.text()
    quantize.gate.set()
    await until(lambda: not page.run_card.isVisible())
    assert page.form.isVisible()
    assert quantize.recipes[0].method == "q4_0"
    assert quantize.evaluated == [False]
    assert "75 % smaller than tiny.gguf" in page.note.text
    assert changes == [None]


async def test_stopped_while_measuring_the_result_is_there(
    page: QuantizePage, core: FakeCore, quantize: FakeQuantize
) -> None:
    changes: list[None] = []
    core.library.changed.connect(changes.append)
    page.start_button.click()
    await until(lambda: bool(quantize.recipes))
    quantize.recipes[0].output.write_bytes(b"GGUF")
    page.cancel_button.click()
    await until(lambda: bool(changes))
    assert "was not measured" in page.note.text


async def test_cancel_keeps_what_is_finished(
    page: QuantizePage, core: FakeCore, quantize: FakeQuantize
) -> None:
    page.start_button.click()
    await until(lambda: bool(quantize.recipes))
    note_recipe(quantize.recipes[0])
    page.cancel_button.click()
    await until(lambda: page.interrupted.isVisible())
    assert quantize.was_cancelled
    assert page.form.isVisible()
    assert page.error_card.error is None
    page.interrupted.resume_buttons[0].click()
    await until(lambda: len(quantize.recipes) == 2)
    assert quantize.recipes[1] == quantize.recipes[0]
    await until(lambda: not page.interrupted.isVisible())


async def test_an_error_is_shown_and_the_form_comes_back(
    page: QuantizePage, quantize: FakeQuantize
) -> None:
    quantize.error = InsufficientMemoryError("Needs 9 GiB.", needed_bytes=9, free_bytes=1)
    quantize.gate.set()
    page.start_button.click()
    await until(lambda: page.error_card.error is not None)
    assert page.error_card.error is quantize.error
    assert page.form.isVisible()


async def test_discarding_asks_and_deletes(
    page: QuantizePage, core: FakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = QuantizeRecipe(Path("tiny.gguf"), "q8_0", core.models_dir / "tiny-q8_0.gguf")
    note_recipe(recipe)

    async def agree(*_args: object, **_options: object) -> bool:
        return True

    monkeypatch.setattr(quantize_page, "confirm", agree)
    (run,) = find_interrupted(core.models_dir)
    page.interrupted.discard_asked.emit(run)
    await until(lambda: not recipe.partial.exists())


async def test_a_source_that_cannot_be_quantised_says_why(
    page: QuantizePage, core: FakeCore
) -> None:
    path = core.library.models[0].path
    path.write_bytes(b"GGUF")
    core.library.changed.emit(None)
    await until(lambda: bool(page.source_note.text()))
    assert not page.start_button.isEnabled()
    assert set(sizes(page).values()) == {""}


async def test_no_models_at_all(core: FakeCore, tasks: UiTasks, quantize: FakeQuantize) -> None:
    page = QuantizePage(core.as_core, quantize=quantize)
    page.show()
    await until(lambda: page.empty.isVisible())
    assert not page.form.isVisible()


async def test_what_octavo_made_is_listed_with_its_report(
    page: QuantizePage, core: FakeCore
) -> None:
    path = TinyLlama().write(core.models_dir / "small.gguf")
    remark = "Programs that do not know them will not open it."
    write_report(make_report(output_bytes=path.stat().st_size, remark=remark), path)
    made = make_model("small", path=path)
    core.library.models.append(made)
    core.library.changed.emit(None)
    await until(lambda: bool(page.reports.cards))
    assert remark in [text.text() for text in page.reports.findChildren(QLabel)]
    asked: list[object] = []
    page.chat_asked.connect(asked.append)
    page.reports.cards[0].chat_asked.emit(made)
    assert asked == [made]
    assert page.picker.count() == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "Hardly to be told"),
        ({"kl_divergence": 0.05}, "Close to the original"),
        ({"kl_divergence": 0.5}, "Clearly weaker"),
        ({"kl_divergence": None}, "was not measured"),
        ({"kl_divergence": None, "note": "Needs 9 GiB."}, "Needs 9 GiB."),
    ],
)
def test_the_loss_in_words(changes: dict[str, object], words: str) -> None:
    assert words in describe_loss(make_report(**changes))


def test_figures_name_what_was_measured() -> None:
    assert figures(make_report()) == [
        ("Size", "3.8 MiB → 976.6 KiB"),
        ("Perplexity", "18.23 → 18.31"),
        ("Divergence", "0.0012 nats"),
        ("Same first choice", "98.7 %"),
    ]
    bare = make_report(perplexity_before=None, kl_divergence=None, top1_agreement=None)
    assert [name for name, _ in figures(bare)] == ["Size"]


def test_sizes_that_are_no_gain_stand_out(app: QApplication) -> None:
    methods = MethodList()
    estimates = {
        "q8_0": Estimate(2 << 20),
        "q4_0": Estimate(1 << 20, ("Two layers stay.",)),
        "int4-g64": Estimate(0, ("No config.json can say it.",)),
    }
    methods.show_estimates(estimates, 2 << 20)
    shown = {key: text.text() for key, text in methods.sizes.items()}
    assert shown["q8_0"] == "about 2.0 MiB"
    assert NO_GAIN in methods.summaries["q8_0"].text()
    assert shown["q4_0"] == "about 1.0 MiB"
    assert NO_GAIN not in methods.summaries["q4_0"].text()
    assert methods.summaries["q4_0"].text().endswith("Two layers stay.")
    assert shown["int8"] == shown["int4-g64"] == ""
    methods.set_method("q4_0")
    assert methods.can_be_made
    methods.set_method("int4-g64")
    assert not methods.can_be_made
    assert methods.summaries["int4-g64"].text().endswith("No config.json can say it.")


def test_proposes_what_makes_the_model_smaller(app: QApplication) -> None:
    methods = MethodList()
    assert methods.method.id == "q8_0"
    estimates = {"q8_0": Estimate(2 << 20), "q4_0": Estimate(1 << 20)}
    methods.show_estimates(estimates, 2 << 20)
    assert methods.method.id == "q4_0"
    methods.show_estimates(estimates, 1 << 20)
    assert methods.method.id == "q8_0", "nothing is smaller"
    methods.set_method("int8")
    methods.show_estimates(estimates, 2 << 20)
    assert methods.method.id == "int8", "a person chose it"


async def test_a_new_report_is_brought_into_view(
    page: QuantizePage, core: FakeCore, quantize: FakeQuantize
) -> None:
    page.resize(900, 500)
    page.start_button.click()
    await until(lambda: bool(quantize.recipes))
    path = TinyLlama().write(core.models_dir / "small.gguf")
    write_report(make_report(output_bytes=path.stat().st_size), path)
    quantize.report = make_report(output_bytes=path.stat().st_size)
    core.library.models.append(make_model("small", path=path))
    quantize.gate.set()
    await until(lambda: bool(page.reports.cards))
    (card,) = page.reports.cards
    await until(lambda: card.visibleRegion().boundingRect().height() == card.height())


async def test_what_was_not_measured_can_be_later(
    page: QuantizePage, core: FakeCore, quantize: FakeQuantize, tmp_path: Path
) -> None:
    path = TinyLlama().write(core.models_dir / "small.gguf")
    bare = make_report(
        output_bytes=path.stat().st_size, kl_divergence=None, source=str(tmp_path / "tiny.gguf")
    )
    write_report(bare, path)
    core.library.models.append(make_model("small", path=path))
    core.library.changed.emit(None)
    await until(lambda: bool(page.reports.cards))
    assert page.reports.cards[0].measure_button.isVisible()
    page.reports.cards[0].measure_button.click()
    await until(lambda: bool(quantize.recipes))
    assert quantize.recipes == [QuantizeRecipe(tmp_path / "tiny.gguf", "q8_0", path)]
    assert quantize.evaluated == [True]
    assert page.run_title.text() == "Measuring small.gguf"
    page.run.cancel()
    await until(lambda: not page.run_card.isVisible())
