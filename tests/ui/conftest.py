"""The window's tests: no display, Octavo's own event loop, one QApplication with its fonts."""

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

# Whatever display the person sits at: tests must not open windows on it, nor need it.
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import pytest
import pytestqt.plugin
from PySide6.QtCore import QEvent
from PySide6.QtWidgets import QApplication

from octavo.ui.application import make_application
from octavo.ui.event_loop import OctavoLoop
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from tests.ui.fakes import FakeCore


def _make_loop() -> asyncio.AbstractEventLoop:
    return OctavoLoop(make_application())


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Qt's event loop; pytest asks a conftest only for the tests of its own folder."""
    return {"qt": _make_loop}


@pytest.fixture(scope="session")
def app() -> QApplication:
    return make_application()


@pytest.fixture(scope="session")
def qapp(app: QApplication) -> QApplication:
    """pytest-qt's own fixture, so that `qtbot` uses the same application."""
    return app


@pytest.fixture(autouse=True, scope="session")
def _no_events_without_a_loop() -> Iterator[None]:
    """Qt's events run within asyncio's loop alone, as they do in Octavo.

    pytest-qt runs them between a test's set-up, call and end, too, when no loop runs: on a slow
    machine a timer of the window is due just then, and what it spawns fails.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytestqt.plugin, "_process_events", lambda: None)
        yield


@pytest.fixture(autouse=True)
def _clean_screen(app: QApplication) -> Iterator[None]:
    """Takes away what a test has left on the screen: it would be styled anew by every later one."""
    yield
    for widget in app.topLevelWidgets():
        widget.hide()
        widget.deleteLater()
    app.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    # What the screen tells of the windows that are gone, before the next one is shown.
    app.processEvents()


@pytest.fixture
def theme(app: QApplication) -> Iterator[ThemeController]:
    """The application's theme, light and at scale 1 before and after each test."""
    controller = ThemeController.current()
    controller.set_mode("light")
    controller.set_scale(1.0)
    yield controller
    controller.set_mode("light")
    controller.set_scale(1.0)


@pytest.fixture
async def tasks(app: QApplication) -> AsyncIterator[UiTasks]:
    """Ends what a test has left running."""
    current = UiTasks.current()
    yield current
    await current.cancel_all()


@pytest.fixture(autouse=True)
def _ended_tasks(request: pytest.FixtureRequest) -> None:
    """Every test in the loop ends its tasks, and what their end begins, before the loop closes."""
    if inspect.iscoroutinefunction(request.function):
        request.getfixturevalue("tasks")


@pytest.fixture
def core(tmp_path: Path) -> FakeCore:
    return FakeCore(tmp_path)


async def settled() -> None:
    """Lets Qt work off what it has posted: layouts ask for layouts, a few rounds deep."""
    for _ in range(10):
        QApplication.sendPostedEvents()
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Waits in the running loop; qtbot's waiters would nest a second one and stop asyncio."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (any condition, from any signal)
            await asyncio.sleep(0.005)
