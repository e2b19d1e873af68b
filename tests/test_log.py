"""The log: one file that rotates, and an app that goes on without it."""

import errno
import logging
import logging.handlers
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo import log
from octavo.log import LogTail, log_file, read_log_tail, setup_logging

logger = logging.getLogger("octavo.somewhere")


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("octavo")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    logging.captureWarnings(False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "octavo.log"


def test_record_names_time_level_thread_and_module(path: Path) -> None:
    setup_logging(path)
    logger.info("loaded %d models", 3)
    line = path.read_text(encoding="utf-8")
    assert "INFO [MainThread] octavo.somewhere: loaded 3 models" in line
    assert line[:2] == "20"


def test_levels(path: Path) -> None:
    setup_logging(path)
    logger.debug("quiet")
    logging.getLogger("urllib3").info("quiet")
    assert path.read_text() == ""
    setup_logging(path, verbose=True)
    logger.debug("loud")
    logging.getLogger("urllib3").debug("quiet")
    assert path.read_text().count("loud") == 1
    assert "quiet" not in path.read_text()


def test_python_s_warnings_are_captured(path: Path) -> None:
    setup_logging(path)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # catch_warnings puts the function back that captureWarnings replaced.
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old and slow", stacklevel=1)
    assert "old and slow" in path.read_text()


def test_file_rotates(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "MAX_FILE_BYTES", 1000)
    setup_logging(path)
    for number in range(100):
        logger.info("record %d", number)
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["octavo.log", "octavo.log.1", "octavo.log.2"]
    assert all(file.stat().st_size <= 1000 for file in files)
    assert "record 99" in path.read_text()


def test_half_a_surrogate_pair_is_written(path: Path) -> None:
    setup_logging(path)
    logger.info("folder %s", "/a/\udcff")
    assert "\\udcff" in path.read_text(encoding="utf-8")


def test_unwritable_folder_goes_to_the_terminal_and_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    setup_logging(tmp_path / "logs" / "octavo.log")
    logger.warning("something")
    logger.info("not worth a warning")
    error = capsys.readouterr().err
    assert error.count("cannot be written") == 1
    assert "something" in error
    assert "not worth a warning" not in error


def test_disk_that_fills_up_goes_to_the_terminal(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup_logging(path)

    def full(handler: logging.Handler, record: logging.LogRecord) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(logging.handlers.RotatingFileHandler, "shouldRollover", full)
    logger.warning("first")
    logger.warning("second")
    error = capsys.readouterr().err
    assert error.count("No space left on device") == 1
    assert "first" in error
    assert "second" in error
    assert "Traceback" not in error


def test_no_terminal_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    monkeypatch.setattr(sys, "stderr", None)
    setup_logging(tmp_path / "logs" / "octavo.log")
    logger.warning("something")


def test_the_tail_is_bounded_and_begins_with_a_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "octavo.log"
    path.write_bytes(b"".join(b"line %d\n" % number for number in range(1000)))
    tail = LogTail(path, 100)
    lines = tail.read()
    assert lines[-1] == "line 999"
    assert all(line.startswith("line ") for line in lines)
    assert sum(map(len, lines)) <= 100
    assert tail.read() == []


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "octavo.log"
    assert read_log_tail(path, 3) == []
    path.write_text("a\nb\nc\nd\n", encoding="utf-8")
    assert read_log_tail(path, 3) == ["b", "c", "d"]


def test_the_file_in_use_is_known(tmp_path: Path) -> None:
    setup_logging(tmp_path / "octavo.log")
    assert log_file() == tmp_path / "octavo.log"
