"""The offer of the starter model: download, cancel, failure, and the first load."""

import threading
from pathlib import Path

import pytest
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QLabel, QVBoxLayout, QWidget

from octavo.errors import DownloadError
from octavo.host import HostStatus
from octavo.hub.catalog import CatalogEntry
from octavo.jobs import JobControl, Progress
from octavo.ui.models.starter_card import StarterCard, centred
from octavo.ui.models.starter_pull import PullStatus, StarterPull
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from tests.ui.conftest import until
from tests.ui.fakes import FakeCore, make_model


class FakePull:
    """Reports half, then waits until it is let go or cancelled."""

    def __init__(self, core: FakeCore) -> None:
        self.core = core
        self.release = threading.Event()
        self.errors: list[DownloadError] = []
        self.was_cancelled = False

    def __call__(
        self, entry: CatalogEntry, models_dir: Path, cache_dir: Path, control: JobControl
    ) -> Path:
        if self.errors:
            raise self.errors.pop()
        total = entry.download_bytes
        control.report(Progress("Downloading", total // 2, total))
        while not self.release.wait(0.005):
            self.was_cancelled = control.is_cancelled
            control.raise_if_cancelled()
        self.core.library.models = [make_model()]
        return models_dir / entry.file_name


@pytest.fixture
def fake_pull(
    core: FakeCore, app: QApplication, tasks: UiTasks, theme: ThemeController
) -> FakePull:
    fake = FakePull(core)
    StarterPull(core.as_core, app, fake)
    return fake


@pytest.fixture
async def card(core: FakeCore, fake_pull: FakePull) -> StarterCard:
    card = StarterCard(core.as_core)
    card.show()
    return card


async def test_download_then_load_then_ready(
    core: FakeCore, card: StarterCard, fake_pull: FakePull
) -> None:
    finished: list[bool] = []
    card.finished.connect(lambda: finished.append(True))
    card.start_button.click()
    await until(lambda: "44.3 MiB of 88.6 MiB" in card._progress._amount_label.text())
    assert card.cancel_button.isVisible()
    assert not card.start_button.isVisible()
    fake_pull.release.set()
    await until(lambda: finished == [True])
    assert core.host.state.status is HostStatus.READY


async def test_cancel_stops_the_worker_and_offers_again(
    card: StarterCard, fake_pull: FakePull
) -> None:
    card.start_button.click()
    await until(lambda: card._pull.progress is not None and card._pull.progress.done > 0)
    card.cancel_button.click()
    await until(lambda: card.start_button.isVisible())
    await until(lambda: fake_pull.was_cancelled)
    assert card._pull.status is PullStatus.IDLE


async def test_a_failure_says_why_and_can_be_tried_again(
    card: StarterCard, fake_pull: FakePull
) -> None:
    error = DownloadError("The index does not answer.", hint="Check the network.")
    fake_pull.errors.append(error)
    card.start_button.click()
    await until(lambda: card._error.isVisible())
    assert card._error.error is error
    assert card.start_button.text().strip() == "Try again"
    fake_pull.release.set()
    card.start_button.click()
    await until(lambda: card._pull.status is PullStatus.FINISHED)
    assert not card._error.isVisible()


async def test_two_cards_show_one_download(
    core: FakeCore, card: StarterCard, fake_pull: FakePull
) -> None:
    other = StarterCard(core.as_core)
    card.start_button.click()
    assert not other.cancel_button.isHidden()
    fake_pull.release.set()
    await until(lambda: other._pull.status is PullStatus.FINISHED)


async def test_the_offer_names_size_and_licence(card: StarterCard) -> None:
    texts = [label.text() for label in card.findChildren(type(card._progress._amount_label))]
    assert "88.6 MiB to download · Apache-2.0" in texts


@pytest.mark.parametrize("width", [400, 560, 800, 1100])
async def test_no_text_is_cut_off(core: FakeCore, fake_pull: FakePull, width: int) -> None:
    page = QWidget()
    column = QVBoxLayout(page)
    column.addLayout(centred(StarterCard(core.as_core)))
    column.addStretch(1)
    page.resize(width, 600)
    page.show()
    QTest.qWait(20)
    for label in page.findChildren(QLabel):
        if label.isVisible() and label.wordWrap():
            assert label.height() >= label.heightForWidth(label.width())
