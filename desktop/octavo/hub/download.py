"""Downloads one file of known size and checksum over HTTP, and resumes what was begun.

What has arrived lies in a part file and is never thrown away unless it turned out to be wrong.
"""

import functools
import http
import http.client
import os
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from octavo.errors import DownloadError
from octavo.hub.disk import KEPT, new_digest, storage_error
from octavo.hub.transport import PIP_ADVICE, Advice, Answer, TransientError, WrongContentError
from octavo.jobs import JobControl, Progress
from octavo.units import format_bytes

_HASH_BYTES = 1 << 20
_REPORT_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What is to be downloaded."""

    url: str
    size_bytes: int
    sha256: str
    """Empty if only `git_sha1` is known."""
    token: str = field(default="", repr=False)
    """Shown to the server of `url` alone, never to one that it sends us on to."""
    advice: Advice = PIP_ADVICE
    git_sha1: str = ""
    """What git calls a file of this content."""


@dataclass(frozen=True, slots=True)
class Share:
    """One file's place in a download of several: progress is reported of all of them."""

    before_bytes: int = 0
    total_bytes: int = 0
    """0: there is but this file."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a silent or failing server is waited for."""

    read_timeout_s: float = 30.0
    first_pause_s: float = 1.0
    longest_pause_s: float = 30.0
    tries_without_progress: int = 5

    def pause_s(self, failures: int) -> float:
        """Doubles with each failure in a row, counted from 1."""
        return float(min(self.longest_pause_s, self.first_pause_s * 2 ** (failures - 1)))


def fetch(
    remote: RemoteFile,
    part: Path,
    control: JobControl,
    *,
    stage: str,
    opener: urllib.request.OpenerDirector,
    patience: Patience,
    until_bytes: int | None = None,
    share: Share | None = None,
) -> None:
    """Fills the part file until it is the whole file and its checksum is right.

    Every try begins at the file's own address, so that one which a server signed and which has
    expired meanwhile is signed anew.

    Args:
        until_bytes: stop after so many bytes, of which nothing but the number is checked then.

    Raises:
        DownloadError: the server keeps failing, or sends another file.
        StorageError: the part file cannot be written; what has arrived is kept.
        JobCancelled: the work is to stop; what has arrived is kept.
    """
    _Fetch(remote, part, control, stage, opener, patience, until_bytes, share or Share()).run()


class _Fetch:
    """One file on its way."""

    def __init__(
        self,
        remote: RemoteFile,
        part: Path,
        control: JobControl,
        stage: str,
        opener: urllib.request.OpenerDirector,
        patience: Patience,
        until_bytes: int | None,
        share: Share,
    ) -> None:
        self._remote = remote
        self._part = part
        # The version of the file that the part is a beginning of, in the server's words.
        self._tag_file = part.with_suffix(".etag")
        self._control = control
        self._stage = stage
        self._opener = opener
        self._patience = patience
        size_bytes = remote.size_bytes
        self._end = size_bytes if until_bytes is None else min(until_bytes, size_bytes)
        self._share = share
        self._done = 0
        self._written = 0
        self._digest = new_digest(size_bytes, remote.sha256)
        self._reported_at = 0.0

    def run(self) -> None:
        failures = 0
        wrong_contents = 0
        self._hash_part()
        while True:
            done_before = self._done
            try:
                if self._done < self._end:
                    self._receive()
                if not self._is_beginning:
                    self._check()
            except TransientError as error:
                failures = 1 if self._done > done_before else failures + 1
                if failures >= self._patience.tries_without_progress:
                    raise DownloadError(
                        f"The download failed {failures} times in a row: {error}.", hint=KEPT
                    ) from error
                self._pause(max(self._patience.pause_s(failures), error.retry_after_s), str(error))
            except WrongContentError as error:
                wrong_contents += 1
                if error.spoils_part:
                    self._forget()
                if wrong_contents > 1:
                    raise DownloadError(
                        f"The server does not send the right file: {error}.",
                        hint=self._remote.advice.wrong_file,
                    ) from error
                self._pause(self._patience.first_pause_s, str(error))
            else:
                self._report(self._stage, now=True)
                if not self._is_beginning:
                    self._tag_file.unlink(missing_ok=True)
                return

    def _hash_part(self) -> None:
        """Takes up what an earlier try left."""
        try:
            with self._part.open("rb") as file:
                size_bytes = os.fstat(file.fileno()).st_size
                if size_bytes <= self._remote.size_bytes:
                    while chunk := file.read(_HASH_BYTES):
                        self._digest.update(chunk)
                        self._done += len(chunk)
                        self._report("Checking what is here already")
                    return
        except FileNotFoundError:
            return
        except OSError as error:
            raise storage_error(error, self._part) from error
        self._forget()

    def _receive(self) -> None:
        """One request; appends what comes to the part file.

        Raises:
            TransientError: the connection broke; what came before is in the part file.
            WrongContentError: the answer is not a part of this file.
        """
        offset = self._done
        answer = Answer(
            self._request(offset),
            self._opener,
            self._patience.read_timeout_s,
            self._remote.advice,
        )
        try:
            head = answer.head(self._tick)
            if self._is_whole(head, offset):
                # The server sends everything, not the rest: what is here counts no more.
                self._forget()
            if tag := _strong_tag(head):
                self._write_tag(tag)
            self._written = self._done
            try:
                # Unbuffered: what has arrived is the system's at once, and outlives this process.
                with self._part.open("ab", buffering=0) as file:
                    try:
                        for chunk in answer.chunks(
                            self._tick, functools.partial(self._write, file)
                        ):
                            self._digest.update(chunk)
                            self._done += len(chunk)
                            self._report(self._stage)
                            if self._done >= self._end:
                                break
                    finally:
                        answer.leave()
            except OSError as error:
                raise storage_error(error, self._part) from error
        finally:
            answer.leave()
        if self._done < self._end:
            raise TransientError(
                f"the connection ended at {format_bytes(self._done)} "
                f"of {format_bytes(self._remote.size_bytes)}"
            )

    def _write(self, file: IO[bytes], chunk: bytes) -> None:
        """Appends to the part file; on the thread that reads from the server."""
        if self._written + len(chunk) > self._remote.size_bytes:
            raise WrongContentError(
                f"it is longer than the {self._remote.size_bytes:,} bytes expected"
            )
        left = memoryview(chunk)
        while left:
            num_bytes = file.write(left)
            left = left[num_bytes:]
            self._written += num_bytes

    def _request(self, offset: int) -> urllib.request.Request:
        request = urllib.request.Request(self._remote.url)  # noqa: S310  (http or https: pull asked)
        # Compressed on the way, lengths and ranges would count something else.
        request.add_header("Accept-Encoding", "identity")
        request.add_header("User-Agent", "octavo")
        if self._remote.token:
            request.add_unredirected_header("Authorization", f"Bearer {self._remote.token}")
        if self._is_beginning:
            request.add_header("Range", f"bytes={offset}-{self._end - 1}")
        elif offset:
            request.add_header("Range", f"bytes={offset}-")
        if offset and (tag := self._read_tag()):
            request.add_header("If-Range", tag)
        return request

    @property
    def _is_beginning(self) -> bool:
        """Whether less than the whole file is wanted now."""
        return self._end < self._remote.size_bytes

    def _is_whole(self, head: http.client.HTTPResponse, offset: int) -> bool:
        """Whether the answer begins at the first byte and not at `offset`.

        Raises:
            WrongContentError: it is neither the rest nor the whole.
        """
        size_bytes = self._remote.size_bytes
        if head.status == http.HTTPStatus.PARTIAL_CONTENT and (offset or self._is_beginning):
            expected = f"bytes {offset}-{self._end - 1}/{size_bytes}"
            given = head.headers.get("Content-Range", "")
            if given not in (expected, expected.rpartition("/")[0] + "/*"):
                raise WrongContentError(f"asked for {expected}, it sent {given or 'no range'}")
            return False
        length = head.headers.get("Content-Length")
        if head.status != http.HTTPStatus.OK or (length and length != str(size_bytes)):
            # This may be the login page of a hotel, which says nothing about the part.
            raise WrongContentError(
                f"it announced {_grouped(length)} bytes with status {head.status} "
                f"where {size_bytes:,} were expected",
                spoils_part=False,
            )
        return True

    def _check(self) -> None:
        found = self._digest.hexdigest()
        expected = self._remote.sha256 or self._remote.git_sha1
        if found != expected:
            kind = "sha256" if self._remote.sha256 else "git sha1"
            raise WrongContentError(f"its {kind} is {found[:12]}… and not {expected[:12]}…")

    def _forget(self) -> None:
        """Deletes the part file."""
        try:
            self._part.unlink(missing_ok=True)
            self._tag_file.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, self._part) from error
        self._done = 0
        self._digest = new_digest(self._remote.size_bytes, self._remote.sha256)

    def _read_tag(self) -> str:
        try:
            return self._tag_file.read_text(encoding="ascii")
        except (OSError, UnicodeError):
            return ""

    def _write_tag(self, tag: str) -> None:
        try:
            self._tag_file.write_text(tag, encoding="ascii")
        except UnicodeError:
            return
        except OSError as error:
            raise storage_error(error, self._tag_file) from error

    def _pause(self, seconds: float, reason: str) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._report(f"Trying again in {left:.0f} s: {reason}", now=True)
            self._control.wait(min(left, 1.0))

    def _tick(self) -> None:
        """Called while nothing arrives: progress that stands still is progress, too."""
        self._report(self._stage)

    def _report(self, stage: str, *, now: bool = False) -> None:
        self._control.raise_if_cancelled()
        if now or time.monotonic() - self._reported_at >= _REPORT_INTERVAL_S:
            self._reported_at = time.monotonic()
            self._control.report(
                Progress(
                    stage,
                    self._share.before_bytes + self._done,
                    self._share.total_bytes or self._remote.size_bytes,
                )
            )


def _strong_tag(head: http.client.HTTPResponse) -> str:
    tag: str = head.headers.get("ETag", "")
    return "" if tag.startswith("W/") else tag


def _grouped(length: str | None) -> str:
    """A length of a server's header as people read it."""
    return f"{int(length):,}" if length and length.isdecimal() else length or "no"
