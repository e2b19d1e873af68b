"""The event loop: asyncio's promises kept on Qt's timers."""

import asyncio
import time

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
    started_at = time.perf_counter()
    try:
        async with asyncio.timeout(0.02):
            await asyncio.sleep(5)
    except TimeoutError:
        pass
    assert time.perf_counter() - started_at < 1


async def test_work_on_a_thread_comes_back() -> None:
    assert await asyncio.to_thread(lambda: 6 * 7) == 42
