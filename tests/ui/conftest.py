"""The window's tests: no display, Octavo's own event loop, one QApplication with its fonts."""

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

# Whatever display the person sits at: tests must not open windows on it, nor need it.
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import pytest
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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Hides what a test has shown before anything else happens, as Octavo does when it is closed.

    pytest-qt runs Qt's events after each test with no asyncio loop around them: the timer of a
    window that is still shown would begin work there.
    """
    try:
        yield
    finally:
        for widget in QApplication.topLevelWidgets():
            widget.hide()


@pytest.fixture(autouse=True)
def _clean_screen(app: QApplication) -> Iterator[None]:
    """Takes away what a test has left on the screen: it would be styled anew by every later one."""
    yield
    for widget in app.topLevelWidgets():
        widget.hide()
        widget.deleteLater()
    app.sendPostedEvents(None, QEvent.Type.DeferredDelete)


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


async def until(condition: Callable[[], bool], timeout_s: float = 3.0) -> None:
    """Waits in the running loop; qtbot's waiters would nest a second one and stop asyncio."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (any condition, from any signal)
            await asyncio.sleep(0.005)
