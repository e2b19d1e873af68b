"""The sampler with a probe that counts: who is called, when, and that nothing runs unheard."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable

import pytest

from octavo.monitor import sampler as sampler_module
from octavo.monitor.readings import MachineReading
from octavo.monitor.sampler import Sampler
from tests.monitor.machine_readings import make_reading

INTERVAL_S = 0.05


class Clock:
    """The time, and when the sampler last asked for it: when a reading became due.

    Between that and its being read a busy machine may put a pause of any length.
    """

    def __init__(self) -> None:
        self.last_s = 0.0

    def monotonic(self) -> float:
        self.last_s = time.monotonic()
        return self.last_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(sampler_module, "time", clock)
    return clock


def gaps(times_s: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times_s)]


class CountingProbe:
    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock
        self.times_s: list[float] = []
        self.threads: set[str] = set()
        self.is_closed = False
        self.is_reading = threading.Lock()

    def read(self) -> MachineReading:
        assert self.is_reading.acquire(blocking=False), "two readings at once"
        self.times_s.append(time.monotonic() if self._clock is None else self._clock.last_s)
        self.threads.add(threading.current_thread().name)
        self.is_reading.release()
        return make_reading(self.times_s[-1])

    def close(self) -> None:
        self.is_closed = True


def monitor_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "octavo-monitor"]


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
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


async def test_readings_come_on_the_listeners_loop_at_the_pace(clock: Clock) -> None:
    probe = CountingProbe(clock)
    sampler = Sampler(probe, INTERVAL_S)
    heard: list[tuple[MachineReading, str]] = []
    stop = sampler.listen(lambda reading: heard.append((reading, threading.current_thread().name)))
    await until(lambda: len(heard) >= 4)
    stop()
    assert min(gaps(probe.times_s)) >= INTERVAL_S
    assert {thread for _, thread in heard} == {threading.current_thread().name}
    assert probe.threads == {"octavo-monitor"}
    # A loop that lags is given the newest alone.
    heard_s = [reading.time_s for reading, _ in heard]
    assert heard_s == sorted(set(heard_s) & set(probe.times_s))
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


async def test_coming_and_going_keeps_one_thread_and_the_pace(clock: Clock) -> None:
    probe = CountingProbe(clock)
    sampler = Sampler(probe, INTERVAL_S)
    for _ in range(200):
        stop = sampler.listen(lambda reading: None)
        assert len(monitor_threads()) <= 2, "one that ends beside one that begins"
        stop()
        await asyncio.sleep(0.001)
    assert all(gap >= INTERVAL_S for gap in gaps(probe.times_s))
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
    while len(probe.times_s) < 4:
        time.sleep(INTERVAL_S)  # noqa: ASYNC251 - the loop is held up on purpose
    num_read = len(probe.times_s)
    await asyncio.sleep(0)
    assert len(heard) == 1
    assert heard[0].time_s >= probe.times_s[num_read - 2], "the last may not be posted yet"
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


async def test_a_slow_listener_alone_slows_the_readings(clock: Clock) -> None:
    probe = CountingProbe(clock)
    sampler = Sampler(probe, INTERVAL_S)
    slow: list[MachineReading] = []
    stop_slow = sampler.listen(slow.append, interval_s=4 * INTERVAL_S)
    await until(lambda: len(slow) >= 2)
    assert min(gaps(probe.times_s)) >= 4 * INTERVAL_S
    stop_slow()
    sampler.close()


async def test_a_listener_that_joins_does_not_wait_for_the_slow_ones_turn(clock: Clock) -> None:
    probe = CountingProbe(clock)
    sampler = Sampler(probe, INTERVAL_S)
    slow: list[MachineReading] = []
    fast: list[MachineReading] = []
    stop_slow = sampler.listen(slow.append, interval_s=3600)
    await until(lambda: len(slow) == 1)
    stop_fast = sampler.listen(fast.append)
    await until(lambda: len(fast) >= 8)
    assert len(slow) == 1
    assert min(gaps(probe.times_s)) >= INTERVAL_S, "both hear the same readings"
    stop_fast()
    stop_slow()
    sampler.close()
