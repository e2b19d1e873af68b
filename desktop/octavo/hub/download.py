"""Downloads one file of known size and checksum over HTTP, and resumes what was begun.

What has arrived lies in a part file and is never thrown away unless it turned out to be wrong.
"""

import errno
import hashlib
import http.client
import importlib.util
import os
import queue
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from octavo.errors import DownloadError, StorageError
from octavo.jobs import JobControl, Progress
from octavo.units import format_bytes

_CHUNK_BYTES = 1 << 16
_HASH_BYTES = 1 << 20
_REPORT_INTERVAL_S = 0.1
_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_KEPT = "What has arrived is kept; the next try goes on from there."


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What is to be downloaded."""

    url: str
    size_bytes: int
    sha256: str


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


class _TransientError(Exception):
    """The connection failed in a way that another try may mend; the text says how."""

    def __init__(self, reason: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class _WrongContentError(Exception):
    """What the server sends is not the file; the text says why."""

    def __init__(self, reason: str, *, spoils_part: bool = True) -> None:
        super().__init__(reason)
        self.spoils_part = spoils_part


def make_opener(*, proxy: str = "", certificates: str = "") -> urllib.request.OpenerDirector:
    """An opener that goes through a proxy and trusts the certificates of a file or folder.

    Left empty, both come from the environment and the system.

    Raises:
        DownloadError: the certificates cannot be read.
    """
    try:
        context = _tls_context(certificates)
    except (OSError, ssl.SSLError) as error:
        raise DownloadError(
            f"The certificates in {certificates} cannot be read: {error}.",
            hint="Set PIP_CERT to a file of certificates in PEM form.",
        ) from error
    proxies = {"http": proxy, "https": proxy} if proxy else None
    return urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=context)
    )


def _tls_context(certificates: str) -> ssl.SSLContext:
    if certificates:
        is_folder = Path(certificates).is_dir()
        return ssl.create_default_context(
            cafile=None if is_folder else certificates, capath=certificates if is_folder else None
        )
    context = ssl.create_default_context()
    trusted = ssl.get_default_verify_paths()
    if os.name != "nt" and trusted.cafile is None and trusted.capath is None:
        # Python from python.org for macOS comes without certificates; pip brings its own.
        pip = importlib.util.find_spec("pip")
        if pip is not None and pip.origin:
            bundle = Path(pip.origin).parent / "_vendor" / "certifi" / "cacert.pem"
            if bundle.is_file():
                context.load_verify_locations(bundle)
    return context


def fetch(
    remote: RemoteFile,
    part: Path,
    control: JobControl,
    *,
    stage: str,
    opener: urllib.request.OpenerDirector,
    patience: Patience,
) -> None:
    """Fills the part file until it is the whole file and its checksum is right.

    Raises:
        DownloadError: the server keeps failing, or sends another file.
        StorageError: the part file cannot be written; what has arrived is kept.
        JobCancelled: the work is to stop; what has arrived is kept.
    """
    _Fetch(remote, part, control, stage, opener, patience).run()


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
    ) -> None:
        self._remote = remote
        self._part = part
        # The version of the file that the part is a beginning of, in the server's words.
        self._tag_file = part.with_suffix(".etag")
        self._control = control
        self._stage = stage
        self._opener = opener
        self._patience = patience
        self._done = 0
        self._digest = hashlib.sha256()
        self._reported_at = 0.0

    def run(self) -> None:
        failures = 0
        wrong_contents = 0
        self._hash_part()
        while True:
            done_before = self._done
            try:
                if self._done < self._remote.size_bytes:
                    self._receive()
                self._check()
            except _TransientError as error:
                failures = 1 if self._done > done_before else failures + 1
                if failures >= self._patience.tries_without_progress:
                    raise DownloadError(
                        f"The download failed {failures} times in a row: {error}.", hint=_KEPT
                    ) from error
                self._pause(max(self._patience.pause_s(failures), error.retry_after_s), str(error))
            except _WrongContentError as error:
                wrong_contents += 1
                if error.spoils_part:
                    self._forget()
                if wrong_contents > 1:
                    raise DownloadError(
                        f"The server does not send the right file: {error}.",
                        hint="Check the network (a login page?) and pip's index settings.",
                    ) from error
                self._pause(self._patience.first_pause_s, str(error))
            else:
                self._report(self._stage, now=True)
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
            _TransientError: the connection broke; what came before is in the part file.
            _WrongContentError: the answer is not a part of this file.
        """
        offset = self._done
        answer = _Answer(self._request(offset), self._opener, self._patience.read_timeout_s)
        try:
            head = answer.head(self._tick)
            if self._is_whole(head, offset):
                # The server sends everything, not the rest: what is here counts no more.
                self._forget()
            if tag := _strong_tag(head):
                self._write_tag(tag)
            try:
                with self._part.open("ab") as file:
                    for chunk in answer.chunks(self._tick):
                        self._append(file, chunk)
            except OSError as error:
                raise storage_error(error, self._part) from error
        finally:
            answer.leave()
        if self._done < self._remote.size_bytes:
            raise _TransientError(
                f"the connection ended at {format_bytes(self._done)} "
                f"of {format_bytes(self._remote.size_bytes)}"
            )

    def _append(self, file: IO[bytes], chunk: bytes) -> None:
        if self._done + len(chunk) > self._remote.size_bytes:
            raise _WrongContentError(
                f"it is longer than the {self._remote.size_bytes:,} bytes expected"
            )
        file.write(chunk)
        self._digest.update(chunk)
        self._done += len(chunk)
        self._report(self._stage)

    def _request(self, offset: int) -> urllib.request.Request:
        request = urllib.request.Request(self._remote.url)  # noqa: S310  (http or https: pull asked)
        # Compressed on the way, lengths and ranges would count something else.
        request.add_header("Accept-Encoding", "identity")
        request.add_header("User-Agent", "octavo")
        if offset:
            request.add_header("Range", f"bytes={offset}-")
            if tag := self._read_tag():
                request.add_header("If-Range", tag)
        return request

    def _is_whole(self, head: http.client.HTTPResponse, offset: int) -> bool:
        """Whether the answer begins at the first byte and not at `offset`.

        Raises:
            _WrongContentError: it is neither the rest nor the whole.
        """
        size_bytes = self._remote.size_bytes
        if head.status == http.HTTPStatus.PARTIAL_CONTENT and offset:
            expected = f"bytes {offset}-{size_bytes - 1}/{size_bytes}"
            given = head.headers.get("Content-Range", "")
            if given not in (expected, expected.rpartition("/")[0] + "/*"):
                raise _WrongContentError(f"asked for {expected}, it sent {given or 'no range'}")
            return False
        length = head.headers.get("Content-Length")
        if head.status != http.HTTPStatus.OK or (length and length != str(size_bytes)):
            # This may be the login page of a hotel, which says nothing about the part.
            raise _WrongContentError(
                f"it announced {length or 'no'} bytes with status {head.status} "
                f"where {size_bytes:,} were expected",
                spoils_part=False,
            )
        return True

    def _check(self) -> None:
        if self._digest.hexdigest() != self._remote.sha256:
            found = self._digest.hexdigest()
            raise _WrongContentError(
                f"its sha256 is {found[:12]}… and not {self._remote.sha256[:12]}…"
            )

    def _forget(self) -> None:
        """Deletes the part file."""
        try:
            self._part.unlink(missing_ok=True)
            self._tag_file.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, self._part) from error
        self._done = 0
        self._digest = hashlib.sha256()

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
            self._control.report(Progress(stage, self._done, self._remote.size_bytes))


class _Answer:
    """The answer to one request, read on a thread of its own.

    A read from a silent server cannot be interrupted. On its own thread it need not be: whoever
    waits here leaves at once, and the thread ends by itself when its read does.
    """

    def __init__(
        self,
        request: urllib.request.Request,
        opener: urllib.request.OpenerDirector,
        read_timeout_s: float,
    ) -> None:
        self._request = request
        self._opener = opener
        self._read_timeout_s = read_timeout_s
        self._is_left = threading.Event()
        # Few chunks: what waits here is lost when the process is killed.
        self._arrived: queue.Queue[http.client.HTTPResponse | bytes | Exception] = queue.Queue(4)
        threading.Thread(target=self._read, name="octavo-download", daemon=True).start()

    def head(self, tick: Callable[[], None]) -> http.client.HTTPResponse:
        """Status and headers.

        Raises:
            _TransientError, DownloadError: no usable answer came.
        """
        head = self._next(tick)
        assert isinstance(head, http.client.HTTPResponse)
        return head

    def chunks(self, tick: Callable[[], None]) -> Iterator[bytes]:
        """The body as it arrives, until it or the connection ends."""
        while chunk := self._next(tick):
            assert isinstance(chunk, bytes)
            yield chunk

    def leave(self) -> None:
        """No more is wanted."""
        self._is_left.set()

    def _next(self, tick: Callable[[], None]) -> http.client.HTTPResponse | bytes:
        while True:
            try:
                item = self._arrived.get(timeout=0.1)
            except queue.Empty:
                tick()
                continue
            if isinstance(item, Exception):
                raise _as_ours(item, self._read_timeout_s) from item
            return item

    def _read(self) -> None:
        try:
            with self._opener.open(self._request, timeout=self._read_timeout_s) as response:
                self._put(response)
                while not self._is_left.is_set():
                    chunk = response.read1(_CHUNK_BYTES)
                    self._put(chunk)
                    if not chunk:
                        return
        except urllib.error.HTTPError as error:
            error.close()
            self._put(error)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._put(error)

    def _put(self, item: http.client.HTTPResponse | bytes | Exception) -> None:
        while not self._is_left.is_set():
            try:
                self._arrived.put(item, timeout=0.5)
            except queue.Full:
                continue
            return


def _as_ours(error: Exception, read_timeout_s: float) -> Exception:
    """The network library's error as one to try again after, or one that ends the download."""
    if isinstance(error, urllib.error.HTTPError):
        return _status_error(error)
    reason: object = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return DownloadError(
            f"The server's certificate is not trusted: {reason.verify_message}.",
            hint="Behind a company proxy, set PIP_CERT to the company's certificate file.",
        )
    if isinstance(reason, TimeoutError):
        return _TransientError(f"the server was silent for {read_timeout_s:.0f} s")
    if isinstance(error, ValueError):
        return DownloadError(f"The address of the download cannot be used: {error}.")
    return _TransientError(str(reason) or type(reason).__name__)


def _status_error(error: urllib.error.HTTPError) -> Exception:
    said = f"{error.code} {error.reason}"
    if error.code in _RETRIED_STATUSES:
        retry_after = error.headers.get("Retry-After", "") if error.headers else ""
        seconds = float(retry_after) if retry_after.isdigit() else 0.0
        return _TransientError(f"the server answered {said}", retry_after_s=min(seconds, 300.0))
    if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return _WrongContentError("the server has less of the file than is here already")
    if error.code in (401, 403, 407):
        return DownloadError(
            f"The server refuses the download: {said}.",
            hint="If pip uses a mirror or proxy with a login, download the wheel with "
            "`pip download` and set PIP_FIND_LINKS to its folder.",
        )
    return DownloadError(f"The server does not have the file: {said}.", hint="Try again later.")


def _strong_tag(head: http.client.HTTPResponse) -> str:
    tag: str = head.headers.get("ETag", "")
    return "" if tag.startswith("W/") else tag


def storage_error(error: OSError, path: Path) -> StorageError:
    """What the system says about writing a file, with the next step."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"The disk is full: {path} cannot be written any further.",
            hint=f"Make room, then try again. {_KEPT}",
            path=path,
        )
    return StorageError(
        f"{path} cannot be written: {error.strerror or error}.",
        hint="Check that the folder exists and belongs to you, or choose another in the settings.",
        path=path,
    )
