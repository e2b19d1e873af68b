"""The sampler with a probe that counts: who is called, when, and that nothing runs unheard."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from octavo.monitor.readings import MachineReading
from octavo.monitor.sampler import Sampler
from tests.monitor.machine_readings import make_reading

INTERVAL_S = 0.05


class CountingProbe:
    def __init__(self) -> None:
        self.times_s: list[float] = []
        self.threads: set[str] = set()
        self.is_closed = False
        self.is_reading = threading.Lock()

    def read(self) -> MachineReading:
        assert self.is_reading.acquire(blocking=False), "two readings at once"
        self.times_s.append(time.monotonic())
        self.threads.add(threading.current_thread().name)
        self.is_reading.release()
        return make_reading(self.times_s[-1])

    def close(self) -> None:
        self.is_closed = True


def monitor_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "octavo-monitor"]


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come to that"
        await asyncio.sleep(0.005)


async def test_nothing_is_read_while_nobody_listens() -> None:
    probe = CountingProbe()
    sampler = Sampler(probe, INTERVAL_S)
    await asyncio.sleep(4 * INTERVAL_S)
    assert probe.times_s == []
    assert not monitor_threads()
    sampler.close()
    assert probe.is_closed


async def test_readings_come_on_the_listeners_loop_at_the_pace() -> None:
    probe = CountingProbe()
    sampler = Sampler(probe, INTERVAL_S)
    heard: list[tuple[MachineReading, str]] = []
    stop = sampler.listen(lambda reading: heard.append((reading, threading.current_thread().name)))
    await until(lambda: len(heard) >= 4)
    stop()
    gaps = [
        later - earlier for earlier, later in zip(probe.times_s, probe.times_s[1:], strict=False)
    ]
    assert min(gaps) >= INTERVAL_S * 0.98
    assert {thread for _, thread in heard} == {threading.current_thread().name}
    assert probe.threads == {"octavo-monitor"}
    assert [reading.time_s for reading, _ in heard] == probe.times_s[: len(heard)]
    sampler.close()


async def test_the_thread_ends_with_the_last_listener() -> None:
    probe = CountingProbe()
    sampler = Sampler(probe, INTERVAL_S)
    first: list[MachineReading] = []
    second: list[MachineReading] = []
    stop_first = sampler.listen(first.append)
    stop_second = sampler.listen(second.append)
    assert len(monitor_threads()) == 1
    await until(lambda: bool(first and second))
    stop_first()
    num_first = len(first)
    await until(lambda: len(second) >= 3)
    assert len(first) == num_first
    stop_second()
    stop_second()
    await until(lambda: not monitor_threads())
    assert not sampler.is_sampling
    num_read = len(probe.times_s)
    await asyncio.sleep(3 * INTERVAL_S)
    assert len(probe.times_s) == num_read
    sampler.close()


async def test_coming_and_going_keeps_one_thread_and_the_pace() -> None:
    probe = CountingProbe()
    sampler = Sampler(probe, INTERVAL_S)
    start_s = time.monotonic()
    for _ in range(200):
        stop = sampler.listen(lambda reading: None)
        assert len(monitor_threads()) <= 2, "one that ends beside one that begins"
        stop()
        await asyncio.sleep(0.001)
    assert len(probe.times_s) <= (time.monotonic() - start_s) / INTERVAL_S + 1
    sampler.close()
    await until(lambda: not monitor_threads())


async def test_nothing_arrives_after_stop() -> None:
    sampler = Sampler(CountingProbe(), INTERVAL_S)
    heard: list[MachineReading] = []
    stop = sampler.listen(heard.append)
    time.sleep(INTERVAL_S)  # noqa: ASYNC251 - the post waits in this very loop
    stop()
    await asyncio.sleep(2 * INTERVAL_S)
    assert heard == []
    sampler.close()


async def test_a_loop_that_lags_gets_the_newest_reading_once() -> None:
    probe = CountingProbe()
    sampler = Sampler(probe, INTERVAL_S)
    heard: list[MachineReading] = []
    stop = sampler.listen(heard.append)
    time.sleep(6 * INTERVAL_S)  # noqa: ASYNC251 - the loop is held up on purpose
    num_read = len(probe.times_s)
    await asyncio.sleep(0)
    assert num_read >= 3
    assert len(heard) == 1
    assert heard[0].time_s >= probe.times_s[num_read - 1]
    stop()
    sampler.close()


async def test_a_dead_loop_is_forgotten_and_the_others_go_on() -> None:
    sampler = Sampler(CountingProbe(), INTERVAL_S)
    dead = asyncio.new_event_loop()
    sampler.listen(lambda reading: None, dead)
    dead.close()
    heard: list[MachineReading] = []
    stop = sampler.listen(heard.append)
    await until(lambda: len(heard) >= 2)
    stop()
    await until(lambda: not sampler.is_sampling)
    sampler.close()


async def test_close_stops_everyone() -> None:
    probe = CountingProbe()
    sampler = Sampler(probe, INTERVAL_S)
    heard: list[MachineReading] = []
    sampler.listen(heard.append)
    await until(lambda: bool(heard))
    sampler.close()
    assert probe.is_closed
    assert not monitor_threads()
    num_heard = len(heard)
    await asyncio.sleep(2 * INTERVAL_S)
    assert len(heard) == num_heard


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_failing_probe_does_not_block_the_next_listener() -> None:
    class FailingProbe(CountingProbe):
        def read(self) -> MachineReading:
            if not self.times_s:
                self.times_s.append(0.0)
                raise ZeroDivisionError
            return super().read()

    sampler = Sampler(FailingProbe(), INTERVAL_S)
    sampler.listen(lambda reading: None)
    await until(lambda: not sampler.is_sampling)
    heard: list[MachineReading] = []
    sampler.listen(heard.append)
    await until(lambda: bool(heard))
    sampler.close()


async def test_a_slow_listener_alone_slows_the_readings() -> None:
    probe = CountingProbe()
    sampler = Sampler(probe, INTERVAL_S)
    slow: list[MachineReading] = []
    fast: list[MachineReading] = []
    stop_slow = sampler.listen(slow.append, interval_s=4 * INTERVAL_S)
    await until(lambda: len(slow) >= 2)
    assert probe.times_s[1] - probe.times_s[0] >= 4 * INTERVAL_S * 0.98
    num_before, num_slow = len(probe.times_s), len(slow)
    joined_s = time.monotonic()
    stop_fast = sampler.listen(fast.append)
    await until(lambda: len(fast) >= 1)
    assert fast[0].time_s - joined_s < 3 * INTERVAL_S, "it does not wait for the slow one's turn"
    await until(lambda: len(fast) >= 8)
    assert len(slow) - num_slow <= len(fast) // 2
    assert len(probe.times_s) - num_before <= len(fast) + 1, "both hear the same readings"
    stop_fast()
    stop_slow()
    sampler.close()
