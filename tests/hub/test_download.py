import dataclasses
import errno
import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import DownloadError, StorageError
from octavo.hub.download import Patience, RemoteFile, fetch
from octavo.hub.transport import make_opener
from octavo.jobs import JobCancelled, JobControl, Progress
from tests.hub.file_server import CHUNK_BYTES, Answer, FileServer, serving

CONTENT = bytes(range(256)) * 2000
PATIENT = Patience(first_pause_s=0.01, longest_pause_s=0.02, tries_without_progress=3)
"""Takes a server that is slow because the machine is busy for slow, and not for silent."""
SOON_GONE = dataclasses.replace(PATIENT, read_timeout_s=1.0)
"""For servers that are silent on purpose."""


def download(
    server: FileServer,
    part: Path,
    control: JobControl | None = None,
    patience: Patience = PATIENT,
) -> None:
    remote = RemoteFile(server.url, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    fetch(
        remote,
        part,
        control or JobControl(),
        stage="Downloading",
        opener=make_opener(),
        patience=patience,
    )
    assert part.read_bytes() == CONTENT


def test_a_good_server_sends_the_file_once(tmp_path: Path) -> None:
    seen: list[Progress] = []
    with serving(CONTENT) as server:
        download(server, tmp_path / "f.part", JobControl(seen.append))
    assert server.ranges == [""]
    assert seen[-1] == Progress("Downloading", len(CONTENT), len(CONTENT))
    assert [path.name for path in tmp_path.iterdir()] == ["f.part"]


def test_dropped_connections_go_on_where_they_broke(tmp_path: Path) -> None:
    drops = [Answer(drop_after=CHUNK_BYTES * n) for n in (3, 1, 10)]
    with serving(CONTENT, *drops) as server:
        download(server, tmp_path / "f.part")
    assert server.num_bytes_sent == len(CONTENT)
    assert server.ranges[1:] == [f"bytes={CHUNK_BYTES * n}-" for n in (3, 4, 14)]


def test_progress_resets_the_count_of_failures(tmp_path: Path) -> None:
    drops = [Answer(drop_after=CHUNK_BYTES)] * 3 * PATIENT.tries_without_progress
    with serving(CONTENT, *drops) as server:
        download(server, tmp_path / "f.part")


def test_a_silent_server_is_left_and_asked_again(tmp_path: Path) -> None:
    seen: list[Progress] = []
    with serving(CONTENT, Answer(stall_after=CHUNK_BYTES)) as server:
        download(server, tmp_path / "f.part", JobControl(seen.append), SOON_GONE)
    assert server.num_bytes_sent == len(CONTENT)
    assert any("silent" in progress.stage for progress in seen)
    # While the server was silent, the same number was reported again and again.
    assert sum(progress.done == CHUNK_BYTES for progress in seen) >= 2


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(tmp_path: Path, status: int) -> None:
    with serving(CONTENT, Answer(status=status), Answer(status=status)) as server:
        download(server, tmp_path / "f.part")
    assert len(server.ranges) == 3


def test_a_server_that_stays_busy_is_given_up_with_its_answer(tmp_path: Path) -> None:
    with (
        serving(CONTENT, *[Answer(status=503)] * 9) as server,
        pytest.raises(DownloadError, match=r"3 times in a row.*503") as caught,
    ):
        download(server, tmp_path / "f.part")
    assert "goes on from there" in caught.value.hint


@pytest.mark.parametrize(("status", "words"), [(404, "does not have"), (403, "refuses")])
def test_a_refusal_ends_the_download_at_once(tmp_path: Path, status: int, words: str) -> None:
    with (
        serving(CONTENT, Answer(status=status)) as server,
        pytest.raises(DownloadError, match=f"{words}.*{status}"),
    ):
        download(server, tmp_path / "f.part")
    assert len(server.ranges) == 1


def test_nobody_there_is_a_download_error(tmp_path: Path) -> None:
    with serving(CONTENT) as server:
        pass
    with pytest.raises(DownloadError, match="in a row"):
        download(server, tmp_path / "f.part")


def test_an_earlier_part_is_hashed_and_continued(tmp_path: Path) -> None:
    part = tmp_path / "f.part"
    part.write_bytes(CONTENT[:100_000])
    with serving(CONTENT) as server:
        download(server, part)
    assert server.ranges == ["bytes=100000-"]
    assert server.num_bytes_sent == len(CONTENT) - 100_000


def test_the_whole_after_a_range_starts_anew(tmp_path: Path) -> None:
    part = tmp_path / "f.part"
    part.write_bytes(CONTENT[:100_000])
    with serving(CONTENT, Answer(ignores_range=True)) as server:
        download(server, part)


def test_another_version_on_the_server_starts_anew(tmp_path: Path) -> None:
    part = tmp_path / "f.part"
    part.write_bytes(b"old" * 1000)
    part.with_suffix(".etag").write_text('"of the old version"')
    with serving(CONTENT) as server:
        download(server, part)
    assert server.num_bytes_sent == len(CONTENT)


def test_a_wrong_range_is_not_appended(tmp_path: Path) -> None:
    part = tmp_path / "f.part"
    part.write_bytes(CONTENT[:100_000])
    lie = Answer(status=206, headers={"Content-Range": f"bytes 5-{len(CONTENT) - 1}/*"})
    with serving(CONTENT, lie) as server:
        download(server, part)


def test_a_spoilt_part_is_downloaded_once_more(tmp_path: Path) -> None:
    part = tmp_path / "f.part"
    part.write_bytes(b"x" * 100_000)
    with serving(CONTENT) as server:
        download(server, part)
    assert server.ranges == ["bytes=100000-", ""]


@pytest.mark.parametrize("size_bytes", [len(CONTENT), len(CONTENT) + 5])
def test_a_part_that_is_whole_or_too_long_but_wrong(tmp_path: Path, size_bytes: int) -> None:
    part = tmp_path / "f.part"
    part.write_bytes(b"x" * size_bytes)
    with serving(CONTENT) as server:
        download(server, part)
    assert server.ranges == [""]


def test_less_on_the_server_than_in_the_part(tmp_path: Path) -> None:
    part = tmp_path / "f.part"
    part.write_bytes(CONTENT[:-1])
    with serving(CONTENT, Answer(status=416)) as server:
        download(server, part)
    assert server.ranges == [f"bytes={len(CONTENT) - 1}-", ""]


def test_wrong_bytes_twice_are_an_error_and_leave_no_part(tmp_path: Path) -> None:
    part = tmp_path / "f.part"
    wrong = Answer(content=b"y" * len(CONTENT))
    with (
        serving(CONTENT, wrong, wrong) as server,
        pytest.raises(DownloadError, match="sha256"),
    ):
        download(server, part)
    assert not part.exists()


def test_a_login_page_does_not_cost_what_is_here(tmp_path: Path) -> None:
    part = tmp_path / "f.part"
    part.write_bytes(CONTENT[:100_000])
    page = Answer(content=b"<html>Please log in</html>", ignores_range=True)
    with (
        serving(CONTENT, page, page) as server,
        pytest.raises(DownloadError, match="26 bytes with status 200"),
    ):
        download(server, part)
    assert part.read_bytes() == CONTENT[:100_000]


def test_cancel_works_while_the_server_is_silent(tmp_path: Path) -> None:
    part = tmp_path / "f.part"
    control = JobControl()
    with serving(CONTENT, Answer(stall_after=CHUNK_BYTES)) as server:
        cancelled_at = []

        def cancel() -> None:
            cancelled_at.append(time.monotonic())
            control.cancel()

        threading.Timer(0.1, cancel).start()
        with pytest.raises(JobCancelled):
            download(server, part, control)
        waited_s = time.monotonic() - cancelled_at[0]
        assert waited_s < PATIENT.read_timeout_s / 2, "it did not wait for the server"
        assert CONTENT.startswith(part.read_bytes())
        download(server, part)
    assert server.num_bytes_sent <= len(CONTENT) + CHUNK_BYTES


class _FullDisk:
    """A file that takes 50,000 bytes."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> "_FullDisk":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, chunk: memoryview) -> int:
        room_bytes = 50_000 - self._file.tell()
        if not room_bytes:
            raise OSError(errno.ENOSPC, "No space left on device")
        num_bytes: int = self._file.write(chunk[:room_bytes])
        return num_bytes


def test_a_full_disk_keeps_what_has_arrived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tmp_path / "f.part"
    open_file = Path.open

    def open_on_full_disk(path: Path, mode: str = "r", **options: Any) -> Any:
        file = open_file(path, mode, **options)
        return _FullDisk(file) if mode == "ab" else file

    with serving(CONTENT) as server:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", open_on_full_disk)
            with pytest.raises(StorageError, match="disk is full") as caught:
                download(server, part)
        assert caught.value.path == part
        assert part.read_bytes() == CONTENT[:50_000]
        download(server, part)
        assert server.ranges[1] == "bytes=50000-"


def test_certificates_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "company.pem"
    path.write_text("nothing")
    with pytest.raises(DownloadError, match=r"company\.pem"):
        make_opener(certificates=str(path))
