"""The event loop: asyncio's promises kept on Qt's timers."""

import asyncio
import time
from collections.abc import Callable

import pytest
from PySide6.QtCore import QEventLoop, QTimer
from PySide6.QtWidgets import QApplication

from octavo.ui.event_loop import OctavoLoop


async def test_tests_of_the_window_run_on_octavos_loop() -> None:
    assert isinstance(asyncio.get_running_loop(), OctavoLoop)


async def test_cancelled_timeouts_leave_no_timer() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, OctavoLoop)
    before = loop.num_live_timers
    for _ in range(200):
        await asyncio.wait_for(asyncio.sleep(0), 600)
    assert loop.num_live_timers == before


async def test_sleep_is_never_short() -> None:
    for delay_s in (0.001, 0.01, 0.05):
        started_at = time.perf_counter()
        await asyncio.sleep(delay_s)
        assert time.perf_counter() - started_at >= delay_s


async def test_call_later_returns_a_handle_with_its_time() -> None:
    loop = asyncio.get_running_loop()
    handle = loop.call_later(60, print)
    assert 59 < handle.when() - loop.time() <= 60
    handle.cancel()
    assert handle.cancelled()


async def test_timeouts_fire() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await asyncio.sleep(600)


async def test_work_on_a_thread_comes_back() -> None:
    assert await asyncio.to_thread(lambda: 6 * 7) == 42


def test_a_task_that_comes_to_its_turn_after_the_end_finds_its_loop(app: QApplication) -> None:
    """Qt's events are run once more by whoever ends: qasync itself, pytest-qt, a dialog."""
    found: list[asyncio.AbstractEventLoop] = []

    async def begin_more() -> None:
        # Ends its wait in the very turn in which the main coroutine has ended.
        for _ in range(20):
            await asyncio.sleep(0)
            found.append(asyncio.get_running_loop())

    async def main() -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(begin_more())

    with asyncio.Runner(loop_factory=lambda: OctavoLoop(app)) as runner:
        task = runner.run(main())
        for _ in range(100):
            app.sendPostedEvents()
            app.eventDispatcher().processEvents(QEventLoop.ProcessEventsFlag.AllEvents)
        assert task.done()
        assert task.exception() is None
        assert set(found) == {runner.get_loop()}


def test_what_is_begun_while_the_loop_is_shut_down_ends_with_it(app: QApplication) -> None:
    """`asyncio.Runner` cancels the tasks that there are, and runs Qt's events after that."""
    steps: list[str] = []

    async def work(name: str, at_end: Callable[[], None]) -> None:
        steps.append(f"{name} begins")
        try:
            await asyncio.sleep(60)
        finally:
            at_end()
            steps.append(f"{name} ends")

    def begin_late() -> None:
        tasks.append(asyncio.get_running_loop().create_task(work("late", lambda: None)))

    async def main() -> None:
        coroutine = work("early", lambda: QTimer.singleShot(0, begin_late))
        tasks.append(asyncio.get_running_loop().create_task(coroutine))
        await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    with asyncio.Runner(loop_factory=lambda: OctavoLoop(app)) as runner:
        runner.run(main())
    assert steps[:2] == ["early begins", "early ends"]
    assert [task.cancelled() for task in tasks] == [True, True]
