"""A lock that one process at a time holds, and that the system takes back when the process dies."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from octavo.hub.disk import storage_error
from octavo.jobs import JobControl, Progress

_LOCK_INTERVAL_S = 0.2


@contextlib.contextmanager
def locked(path: Path, control: JobControl, waiting: str) -> Iterator[None]:
    """Holds the lock of a long work; reports `waiting` as its progress while another holds it.

    Raises:
        StorageError: the file cannot be made.
        JobCancelled: the work is to stop.
    """

    def wait() -> None:
        control.report(Progress(waiting))
        control.wait(_LOCK_INTERVAL_S)

    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(path, wait))
        except OSError as error:
            raise storage_error(error, path) from error
        yield


@contextlib.contextmanager
def file_lock(path: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Holds the lock; while another holds it, calls `wait` between two tries.

    The file stays behind: deleting it would let two processes hold locks on two files of one name.
    The system's own locks are used, as `huggingface_hub` does, so each waits for the other.

    Raises:
        OSError: the file cannot be made.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while not _try_lock(handle):
            wait()
        yield
    finally:
        # Closing gives the lock back.
        os.close(handle)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(handle: int) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import errno
    import fcntl

    def _try_lock(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            # Some network drives know no locks; then nothing but the checksum protects the file.
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise
        return True
