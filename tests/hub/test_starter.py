import collections
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from octavo.errors import DownloadError, StorageError
from octavo.hub.catalog import CatalogEntry
from octavo.hub.download import Patience
from octavo.hub.starter import Resolve, pull
from octavo.hub.wheel_source import WheelSource
from octavo.jobs import JobCancelled, JobControl, Progress
from tests.hub.file_server import CHUNK_BYTES, Answer, serving
from tests.hub.wheels import MEMBER, Wheel, make_wheel

QUICK = Patience(first_pause_s=0.01, longest_pause_s=0.02)


@pytest.fixture(scope="module")
def wheel() -> Wheel:
    return make_wheel()


def answering(url: str, sha256: str = "") -> Resolve:
    """A pip that always gives this address."""
    return lambda _entry, _control: WheelSource(url, sha256)


def never(_entry: CatalogEntry, _control: JobControl) -> WheelSource:
    raise AssertionError("pip is asked although it need not be")


def pull_from(url: str, wheel: Wheel, folder: Path, control: JobControl | None = None) -> Path:
    return pull(
        wheel.entry,
        folder / "models",
        folder / "cache",
        control or JobControl(),
        resolve=answering(url, wheel.entry.download_sha256),
        patience=QUICK,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_the_model_stays(tmp_path: Path, wheel: Wheel) -> None:
    seen: list[Progress] = []
    with serving(wheel.content) as server:
        path = pull_from(server.url, wheel, tmp_path, JobControl(seen.append))
    assert path.read_bytes() == wheel.model
    assert names(tmp_path / "models") == [wheel.entry.file_name]
    assert names(tmp_path / "cache") == [f"{wheel.entry.download_sha256}.lock"]
    assert [stage.split()[0] for stage in dict.fromkeys(p.stage for p in seen)] == [
        "Downloading",
        "Unpacking",
    ]
    assert path.stat().st_mode & 0o444 == 0o444


def test_a_model_that_is_there_is_not_fetched_again(tmp_path: Path, wheel: Wheel) -> None:
    with serving(wheel.content) as server:
        path = pull_from(server.url, wheel, tmp_path)
    again = pull(wheel.entry, path.parent, tmp_path / "cache", JobControl(), resolve=never)
    assert again == path


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 400_000])
def test_a_damaged_model_is_fetched_anew(tmp_path: Path, wheel: Wheel, damage: bytes) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / wheel.entry.file_name).write_bytes(damage)
    with serving(wheel.content) as server:
        assert pull_from(server.url, wheel, tmp_path).read_bytes() == wheel.model


def test_a_wheel_on_this_machine_is_read_where_it_lies(tmp_path: Path, wheel: Wheel) -> None:
    local = tmp_path / "my wheels" / "tiny-1.0-py3-none-any.whl"
    local.parent.mkdir()
    local.write_bytes(wheel.content)
    assert pull_from(local.as_uri(), wheel, tmp_path).read_bytes() == wheel.model
    assert local.exists()


def test_a_whole_part_needs_no_network(tmp_path: Path, wheel: Wheel) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / f"{wheel.entry.download_sha256}.part").write_bytes(wheel.content)
    path = pull(wheel.entry, tmp_path / "m", tmp_path / "c", JobControl(), resolve=never)
    assert path.read_bytes() == wheel.model


def test_a_part_of_the_right_length_but_wrong(tmp_path: Path, wheel: Wheel) -> None:
    (tmp_path / "cache").mkdir()
    part = tmp_path / "cache" / f"{wheel.entry.download_sha256}.part"
    part.write_bytes(b"x" * len(wheel.content))
    with serving(wheel.content) as server:
        assert pull_from(server.url, wheel, tmp_path).read_bytes() == wheel.model


def test_another_wheel_in_the_index_is_refused(tmp_path: Path, wheel: Wheel) -> None:
    with pytest.raises(DownloadError, match=r"another tiny-model 1\.0"):
        pull(
            wheel.entry,
            tmp_path,
            tmp_path,
            JobControl(),
            resolve=answering("http://localhost/", "0" * 64),
        )


@pytest.mark.parametrize("url", ["ftp://example.org/x.whl", "git+ssh://example.org/x"])
def test_other_kinds_of_address_are_refused(tmp_path: Path, wheel: Wheel, url: str) -> None:
    with pytest.raises(DownloadError, match="not on the web"):
        pull_from(url, wheel, tmp_path)


def test_a_wheel_without_the_model(tmp_path: Path, wheel: Wheel) -> None:
    local = tmp_path / "tiny.whl"
    with zipfile.ZipFile(local, "w") as archive:
        archive.writestr("other", "file")
    with pytest.raises(DownloadError, match=MEMBER):
        pull_from(local.as_uri(), wheel, tmp_path)
    assert names(tmp_path / "models") == []


def test_a_wheel_with_another_model(tmp_path: Path, wheel: Wheel) -> None:
    for model in (wheel.model[:-1], wheel.model + b"x", bytes(len(wheel.model))):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(MEMBER, model)
        local = tmp_path / "tiny.whl"
        local.write_bytes(buffer.getvalue())
        with pytest.raises(DownloadError, match="is not the file Octavo knows"):
            pull_from(local.as_uri(), wheel, tmp_path)
        assert names(tmp_path / "models") == []


def test_a_disk_that_is_too_small_is_seen_before_the_download(
    tmp_path: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage(10, 0, 100_000))
    with serving(wheel.content) as server:
        with pytest.raises(StorageError, match=r"needs 78\d\.\d KiB in .* and 97\.7 KiB are free"):
            pull_from(server.url, wheel, tmp_path)
        assert server.ranges == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, wheel: Wheel) -> None:
    (tmp_path / "models").write_text("a file is in the way")
    with pytest.raises(StorageError) as caught:
        pull_from("http://localhost/", wheel, tmp_path)
    assert caught.value.path == tmp_path / "models"
    assert "cannot be written" in caught.value.message


def test_what_a_killed_unpacking_left_is_cleared(tmp_path: Path, wheel: Wheel) -> None:
    (tmp_path / "models").mkdir()
    old, new = (tmp_path / "models" / f".{wheel.entry.file_name}.{name}.unpacking" for name in "ab")
    old.write_text("half")
    os.utime(old, (1, 1))
    new.write_text("another process is at it")
    with serving(wheel.content) as server:
        pull_from(server.url, wheel, tmp_path)
    assert not old.exists()
    assert new.exists()


def test_a_cancelled_download_goes_on_at_the_next_call(tmp_path: Path, wheel: Wheel) -> None:
    def cancel_in_the_middle(progress: Progress) -> None:
        if progress.stage.startswith("Downloading") and progress.done > 100_000:
            control.cancel()

    control = JobControl(cancel_in_the_middle)
    with serving(wheel.content) as server:
        server.pause_s = 0.005
        with pytest.raises(JobCancelled):
            pull_from(server.url, wheel, tmp_path, control)
        server.pause_s = 0.0
        path = pull_from(server.url, wheel, tmp_path)
        assert path.read_bytes() == wheel.model
        assert int(server.ranges[1].removeprefix("bytes=").removesuffix("-")) > 100_000


def test_two_pulls_at_once_download_once(tmp_path: Path, wheel: Wheel) -> None:
    waiting = f"Waiting for another Octavo that fetches {wheel.entry.title}"
    stages: list[str] = []
    paths: list[Path] = []
    begun, waits = threading.Event(), threading.Event()

    def run(control: JobControl) -> None:
        paths.append(pull_from(server.url, wheel, tmp_path, control))

    def first_progress(progress: Progress) -> None:
        if progress.stage.startswith("Downloading"):
            begun.set()
            assert waits.wait(60), "the second was to come meanwhile"

    def second_progress(progress: Progress) -> None:
        stages.append(progress.stage)
        if progress.stage == waiting:
            waits.set()

    with serving(wheel.content) as server:
        first = threading.Thread(target=run, args=(JobControl(first_progress),))
        first.start()
        assert begun.wait(60)
        second = threading.Thread(target=run, args=(JobControl(second_progress),))
        second.start()
        first.join(60)
        second.join(60)
    assert len(paths) == 2
    assert server.num_bytes_sent == len(wheel.content)
    assert set(stages) == {waiting}


PULL_AND_BE_KILLED = """
import sys
from pathlib import Path
from octavo.hub.starter import pull
from octavo.hub.wheel_source import WheelSource
from octavo.jobs import JobControl
from tests.hub.wheels import make_wheel

url, folder, size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
pull(make_wheel(size).entry, folder / "models", folder / "cache", JobControl(),
     resolve=lambda entry, control: WheelSource(url))
"""


def test_killed_three_times_it_still_arrives_with_two_percent_more_at_most(tmp_path: Path) -> None:
    wheel = make_wheel(4_000_000)
    part = tmp_path / "cache" / f"{wheel.entry.download_sha256}.part"
    with serving(wheel.content) as server:
        server.arrived = lambda: part.stat().st_size if part.exists() else 0
        for share in (0.2, 0.5, 0.8):
            child = subprocess.Popen(
                [sys.executable, "-c", PULL_AND_BE_KILLED, server.url, str(tmp_path), "4000000"],
                cwd=Path(__file__).parents[2],
            )
            deadline = time.monotonic() + 90
            while not part.exists() or part.stat().st_size < share * len(wheel.content):
                assert child.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.005)
            child.send_signal(signal.SIGKILL)
            child.wait()
        server.arrived = None
        path = pull_from(server.url, wheel, tmp_path)
    assert path.read_bytes() == wheel.model
    assert server.num_bytes_sent <= 1.02 * len(wheel.content)


def test_a_failing_server_keeps_the_part(tmp_path: Path, wheel: Wheel) -> None:
    answers = [Answer(drop_after=CHUNK_BYTES * 5), *[Answer(status=503)] * 9]
    with (
        serving(wheel.content, *answers) as server,
        pytest.raises(DownloadError, match="503"),
    ):
        pull_from(server.url, wheel, tmp_path)
    part = tmp_path / "cache" / f"{wheel.entry.download_sha256}.part"
    assert part.read_bytes() == wheel.content[: CHUNK_BYTES * 5]


def test_fields_of_a_wrong_catalogue_entry_are_noticed(tmp_path: Path, wheel: Wheel) -> None:
    wrong = replace(wheel, entry=replace(wheel.entry, download_bytes=5))
    with serving(wheel.content) as server, pytest.raises(DownloadError, match="5 were expected"):
        pull_from(server.url, wrong, tmp_path)
