"""The download queue: order, pause, cancel, offline, kill -9 and a second Octavo."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from octavo.errors import DownloadError, StorageError
from octavo.hub.download_queue import OFFLINE, TICK_S, Download, DownloadQueue, DownloadState
from octavo.jobs import JobControl, Progress

KIB = 1024


@dataclass
class FakeTransfer:
    """Delivers a kibibyte at each `step`; what has arrived is kept by label."""

    sizes: dict[str, int] = field(default_factory=dict)
    arrived: dict[str, int] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    discarded: list[str] = field(default_factory=list)
    pace_s: float = 0.01
    silent: str = ""
    """Of this label nothing more arrives for long."""
    room_error: StorageError | None = None
    running: int = 0
    most_running: int = 0
    stage: str = "Downloading"

    def run(self, download: Download, control: JobControl) -> Path:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            size = self.sizes.get(download.label, 4 * KIB)
            control.report(Progress("Asking"))
            while self.arrived.setdefault(download.label, 0) < size:
                control.wait(600 if download.label == self.silent else self.pace_s)
                if error := self.errors.pop(download.label, None):
                    raise error
                self.arrived[download.label] += KIB
                control.report(Progress(self.stage, self.arrived[download.label], size))
            return Path("models") / download.label
        finally:
            self.running -= 1

    def discard(self, download: Download) -> None:
        self.arrived.pop(download.label, None)
        self.discarded.append(download.label)

    def require_room(self) -> None:
        if self.room_error is not None:
            raise self.room_error


@pytest.fixture
def transfer() -> FakeTransfer:
    return FakeTransfer()


@pytest.fixture
async def queue(tmp_path: Path, transfer: FakeTransfer) -> AsyncIterator[DownloadQueue]:
    queue = DownloadQueue(tmp_path / "downloads.json", transfer)
    yield queue
    await queue.close()


async def until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.005)


def state_of(queue: DownloadQueue, label: str) -> DownloadState:
    (download,) = (each for each in queue.downloads if each.label == label)
    return download.state


def is_in(queue: DownloadQueue, label: str, state: DownloadState) -> Callable[[], bool]:
    return lambda: state_of(queue, label) is state


async def test_downloads_run_one_after_the_other_in_their_order(
    queue: DownloadQueue, transfer: FakeTransfer
) -> None:
    finished: list[str] = []
    threads: set[int] = set()
    queue.finished.connect(lambda download: finished.append(download.label))
    queue.changed.connect(lambda _: threads.add(threading.get_ident()))
    for label in ("a", "b", "c"):
        queue.add("acme/Tiny", label, size_bytes=4 * KIB)
    assert [each.state for each in queue.downloads] == ["running", "waiting", "waiting"]
    await until(is_in(queue, "c", DownloadState.DONE))
    assert finished == ["a", "b", "c"]
    assert transfer.most_running == 1
    assert threads == {threading.get_ident()}
    first = queue.downloads[0]
    assert (first.title, first.fraction, first.path) == ("acme/Tiny a", 1.0, Path("models/a"))
    queue.clear_done()
    assert queue.downloads == ()


async def test_pausing_takes_effect_at_once_and_the_next_one_begins(
    queue: DownloadQueue, transfer: FakeTransfer
) -> None:
    transfer.sizes["big"] = 10_000 * KIB
    big = queue.add("acme/Tiny", "big")
    queue.add("acme/Tiny", "small")
    await until(lambda: transfer.arrived.get("big", 0) > 2 * KIB)
    # The line is silent for long now: the next one begins only if the pause wakes the transfer.
    transfer.silent = "big"
    await asyncio.sleep(0.05)
    queue.pause(big.id)
    assert state_of(queue, "big") is DownloadState.PAUSED
    await until(is_in(queue, "small", DownloadState.DONE))
    kept = transfer.arrived["big"]
    transfer.sizes["big"], transfer.silent = kept + KIB, ""
    queue.resume(big.id)
    await until(is_in(queue, "big", DownloadState.DONE))
    assert transfer.arrived["big"] == kept + KIB


async def test_cancel_deletes_what_has_arrived_after_the_thread_has_ended(
    queue: DownloadQueue, transfer: FakeTransfer
) -> None:
    transfer.sizes["big"] = 10_000 * KIB
    big = queue.add("acme/Tiny", "big")
    await until(lambda: transfer.arrived.get("big", 0) > 0)
    transfer.silent = "big"
    await asyncio.sleep(0.05)
    queue.cancel(big.id)
    assert queue.downloads == ()
    await until(lambda: transfer.discarded == ["big"])
    assert transfer.arrived == {}


async def test_a_download_that_is_done_is_cancelled_without_deleting_anything(
    queue: DownloadQueue, transfer: FakeTransfer
) -> None:
    done = queue.add("acme/Tiny", "a")
    await until(is_in(queue, "a", DownloadState.DONE))
    queue.cancel(done.id)
    await asyncio.sleep(0.05)
    assert (queue.downloads, transfer.discarded) == ((), [])


async def test_an_error_is_shown_and_the_next_try_goes_on(
    queue: DownloadQueue, transfer: FakeTransfer
) -> None:
    transfer.errors["a"] = DownloadError("The hub is away.", hint="Wait.")
    failed = queue.add("acme/Tiny", "a")
    await until(is_in(queue, "a", DownloadState.FAILED))
    (shown,) = queue.downloads
    assert (shown.error, shown.hint, shown.bytes_per_second) == ("The hub is away.", "Wait.", 0.0)
    queue.resume(failed.id)
    assert queue.downloads[0].error == ""
    await until(is_in(queue, "a", DownloadState.DONE))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_mistake_of_ours_fails_the_download_and_not_the_queue(
    queue: DownloadQueue, transfer: FakeTransfer
) -> None:
    transfer.errors["a"] = ZeroDivisionError("ours")
    queue.add("acme/Tiny", "a")
    queue.add("acme/Tiny", "b")
    await until(is_in(queue, "b", DownloadState.DONE))
    assert "Octavo made a mistake" in queue.downloads[0].error


async def test_a_disk_that_is_nearly_full_stops_it_and_keeps_what_is_here(
    queue: DownloadQueue, transfer: FakeTransfer
) -> None:
    transfer.room_error = StorageError("The disk is nearly full.", hint="Make room.")
    queue.add("acme/Tiny", "a")
    await until(is_in(queue, "a", DownloadState.FAILED))
    assert queue.downloads[0].hint == "Make room."
    transfer.room_error = None
    queue.resume(queue.downloads[0].id)
    await until(is_in(queue, "a", DownloadState.DONE))


async def test_the_rate_falls_to_nothing_when_nothing_arrives(
    queue: DownloadQueue, transfer: FakeTransfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.hub.download_queue.RATE_WINDOW_S", 0.3)
    transfer.sizes["a"] = 10_000 * KIB
    queue.add("acme/Tiny", "a", size_bytes=10_000 * KIB)
    await until(lambda: queue.downloads[0].bytes_per_second > 0)
    left = queue.downloads[0].seconds_left
    assert left is not None
    assert left > 0
    transfer.pace_s = 60
    await until(lambda: queue.downloads[0].bytes_per_second == 0)
    assert queue.downloads[0].seconds_left is None
    assert queue.downloads[0].done_bytes > 0


async def test_reading_the_disk_is_no_rate_and_the_stage_is_shown(
    queue: DownloadQueue, transfer: FakeTransfer
) -> None:
    transfer.stage = "Trying again in 12 s: the server was silent"
    transfer.sizes["a"] = 60 * KIB
    queue.add("acme/Tiny", "a")
    rates = set()
    queue.changed.connect(lambda _: rates.add(queue.downloads[0].bytes_per_second))
    await until(lambda: queue.downloads[0].stage.startswith("Trying again in 12 s"))
    await until(is_in(queue, "a", DownloadState.DONE))
    assert rates == {0.0}


async def test_changes_are_told_at_most_about_ten_times_a_second(
    queue: DownloadQueue, transfer: FakeTransfer
) -> None:
    transfer.pace_s = 0.0005
    transfer.sizes["a"] = 100_000 * KIB
    queue.add("acme/Tiny", "a")
    num_changes = 0

    def count(_: None) -> None:
        nonlocal num_changes
        num_changes += 1

    queue.changed.connect(count)
    began = time.monotonic()
    await until(lambda: transfer.arrived.get("a", 0) > 100 * KIB)
    await asyncio.sleep(6 * TICK_S)
    assert 1 <= num_changes <= (time.monotonic() - began) / TICK_S + 2


async def test_offline_nothing_runs_until_it_is_switched_off(
    tmp_path: Path, transfer: FakeTransfer
) -> None:
    is_offline = True
    queue = DownloadQueue(tmp_path / "d.json", transfer, is_offline=lambda: is_offline)
    queue.add("acme/Tiny", "a")
    await until(lambda: queue.downloads[0].stage == OFFLINE)
    await asyncio.sleep(0.05)
    assert (queue.downloads[0].state, transfer.most_running) == (DownloadState.WAITING, 0)
    is_offline = False
    transfer.sizes["a"] = 10_000 * KIB
    queue.refresh()
    await until(lambda: transfer.arrived.get("a", 0) > 0)
    is_offline = True
    queue.refresh()
    assert (queue.downloads[0].state, queue.downloads[0].stage) == ("waiting", OFFLINE)
    await until(lambda: transfer.running == 0)
    await queue.close()


async def test_one_asked_for_twice_is_there_once(
    queue: DownloadQueue, transfer: FakeTransfer
) -> None:
    first = queue.add("acme/Tiny", "a")
    queue.pause(first.id)
    again = queue.add("acme/Tiny", "a")
    assert again.id == first.id
    assert len(queue.downloads) == 1
    await until(is_in(queue, "a", DownloadState.DONE))
    queue.add("acme/Tiny", "a")
    await until(is_in(queue, "a", DownloadState.DONE))
    assert len(queue.downloads) == 1


async def test_closing_keeps_the_list_and_the_next_start_goes_on(
    tmp_path: Path, transfer: FakeTransfer
) -> None:
    file = tmp_path / "downloads.json"
    transfer.sizes["a"] = 10_000 * KIB
    queue = DownloadQueue(file, transfer)
    paused = queue.add("acme/Tiny", "paused")
    queue.pause(paused.id)
    queue.add("acme/Tiny", "a", "v2")
    await until(lambda: transfer.arrived.get("a", 0) > 0)
    await queue.close()
    assert transfer.running == 0
    again = DownloadQueue(file, transfer)
    assert [(each.label, each.state) for each in again.downloads] == [
        ("paused", "paused"),
        ("a", "waiting"),
    ]
    assert again.downloads[1].done_bytes > 0
    transfer.sizes["a"] = transfer.arrived["a"] + KIB
    again.start()
    await until(is_in(again, "a", DownloadState.DONE))
    assert (again.downloads[1].revision, state_of(again, "paused")) == ("v2", "paused")
    await again.close()


async def test_closing_leaves_a_thread_that_hangs(tmp_path: Path) -> None:
    goes_on = threading.Event()

    class Hanging(FakeTransfer):
        def run(self, download: Download, control: JobControl) -> Path:
            goes_on.wait(100)
            return super().run(download, control)

    queue = DownloadQueue(tmp_path / "d.json", Hanging())
    queue.add("acme/Tiny", "a")
    began = time.monotonic()
    await queue.close()
    assert time.monotonic() - began < 50, "it did not wait for the thread"
    assert DownloadQueue(tmp_path / "d.json", Hanging()).downloads[0].state == "waiting"
    goes_on.set()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"version": 99, "downloads": [], "cancelled": []}',
        b'{"version": 1}',
        b'{"version": 1, "downloads": [{"id": 5}], "cancelled": []}',
        b'{"version": 1, "downloads": [null], "cancelled": []}',
    ],
)
async def test_a_file_that_cannot_be_used_is_put_aside(
    tmp_path: Path, transfer: FakeTransfer, content: bytes
) -> None:
    file = tmp_path / "downloads.json"
    file.write_bytes(content)
    queue = DownloadQueue(file, transfer)
    assert file.read_bytes() == content
    queue.start()
    assert queue.downloads == ()
    assert "begins anew" in queue.problem
    assert (tmp_path / "downloads.json.bak1").read_bytes() == content
    queue.add("acme/Tiny", "a")
    assert len(json.loads(file.read_text())["downloads"]) == 1
    await queue.close()


async def test_a_second_octavo_reads_and_changes_nothing(
    queue: DownloadQueue, transfer: FakeTransfer, tmp_path: Path
) -> None:
    transfer.sizes["a"] = 10_000 * KIB
    queue.add("acme/Tiny", "a")
    second = DownloadQueue(tmp_path / "downloads.json", transfer)
    second.start()
    assert [each.label for each in second.downloads] == ["a"]
    assert not second.is_owner
    for change in (
        lambda: second.add("acme/Tiny", "b"),
        lambda: second.pause(second.downloads[0].id),
        lambda: second.cancel(second.downloads[0].id),
    ):
        with pytest.raises(StorageError, match="Another Octavo window"):
            change()
    await queue.close()
    second.start()
    assert second.is_owner
    assert second.problem == ""
    await second.close()


CHILD = """
import asyncio, sys
from pathlib import Path
from octavo.hub.download_queue import DownloadQueue
from tests.hub.test_download_queue import KIB, FakeTransfer

async def main():
    transfer = FakeTransfer(sizes={"a": 100_000 * KIB}, pace_s=0.002)
    queue = DownloadQueue(Path(sys.argv[1]), transfer)
    queue.start()
    queue.add("acme/Tiny", "a", size_bytes=100_000 * KIB)
    paused = queue.add("acme/Tiny", "p")
    queue.pause(paused.id)
    cancelled = queue.add("acme/Tiny", "c")
    await asyncio.sleep(0.3)
    print("running", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX's")
async def test_the_list_survives_kill_9_and_the_lock_does_not(
    tmp_path: Path, transfer: FakeTransfer
) -> None:
    file = tmp_path / "downloads.json"
    with subprocess.Popen(  # noqa: ASYNC220  (it is to be killed)
        [sys.executable, "-c", CHILD, str(file)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "running\n"
        other = DownloadQueue(file, transfer)
        other.start()
        assert not other.is_owner
        child.send_signal(signal.SIGKILL)
        child.wait()
    queue = DownloadQueue(file, transfer)
    states = {each.label: str(each.state) for each in queue.downloads}
    assert states == {"a": "running", "p": "paused", "c": "waiting"}
    queue.start()
    await until(is_in(queue, "c", DownloadState.DONE))
    assert state_of(queue, "a") is DownloadState.DONE
    assert state_of(queue, "p") is DownloadState.PAUSED
    await queue.close()


async def test_what_a_killed_octavo_had_cancelled_is_deleted_at_the_next_start(
    tmp_path: Path, transfer: FakeTransfer
) -> None:
    file = tmp_path / "downloads.json"
    queue = DownloadQueue(file, transfer)
    queue.add("acme/Tiny", "x")
    await until(is_in(queue, "x", DownloadState.DONE))
    await queue.close()
    document = json.loads(file.read_text())
    document["cancelled"], document["downloads"] = document["downloads"], []
    file.write_text(json.dumps(document))
    again = DownloadQueue(file, transfer)
    again.start()
    await until(lambda: transfer.discarded == ["x"])
    await until(lambda: json.loads(file.read_text())["cancelled"] == [])
    await again.close()
