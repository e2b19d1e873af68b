"""HTTP for downloads: openers, and one request whose answer is read without blocking the caller."""

import http
import http.client
import importlib.util
import os
import queue
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from octavo.errors import DownloadError

_CHUNK_BYTES = 1 << 16
# They are on the disk already; what waits for the checksum is 4 MiB at most.
_MOST_UNHASHED_CHUNKS = 64
_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_RETRY_AFTER_S = 300.0


@dataclass(frozen=True, slots=True)
class Advice:
    """The next step to name when a server stands in the way; depends on whose server it is."""

    certificate: str
    refused: str
    wrong_file: str


PIP_ADVICE = Advice(
    certificate="Behind a company proxy, set PIP_CERT to the company's certificate file.",
    refused="If pip uses a mirror or proxy with a login, download the wheel with "
    "`pip download` and set PIP_FIND_LINKS to its folder.",
    wrong_file="Check the network (a login page?) and pip's index settings.",
)
HUB_ADVICE = Advice(
    certificate="Behind a company proxy, set SSL_CERT_FILE to the company's certificate file.",
    refused="If the model is gated, accept its licence on its page and put a token of "
    "that account into the settings or $HF_TOKEN.",
    wrong_file="Check the network (a login page?) and the endpoint, then try again.",
)


class TransientError(Exception):
    """The connection failed in a way that another try may mend; the text says how."""

    def __init__(self, reason: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class WrongContentError(Exception):
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
        urllib.request.ProxyHandler(proxies),
        urllib.request.HTTPSHandler(context=context),
        _Redirects(),
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects; a token goes along on the server it is meant for, and nowhere else."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.unredirected_hdrs.get("Authorization")
        if request is not None and token and _origin(newurl) == _origin(req.full_url):
            request.add_unredirected_header("Authorization", token)
        return request


def _origin(url: str) -> tuple[str, str]:
    address = urllib.parse.urlsplit(url)
    return address.scheme, address.netloc


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


class Answer:
    """The answer to one request, read on a thread of its own.

    A read from a silent server cannot be interrupted. On its own thread it need not be: whoever
    waits here leaves at once, and the thread ends by itself when its read does. What arrives is
    written by that very thread, before anything else is done with it: if the process dies, only
    what the system still holds is lost.
    """

    def __init__(
        self,
        request: urllib.request.Request,
        opener: urllib.request.OpenerDirector,
        read_timeout_s: float,
        advice: Advice,
    ) -> None:
        self._request = request
        self._opener = opener
        self._read_timeout_s = read_timeout_s
        self._advice = advice
        self._arrived: queue.Queue[http.client.HTTPResponse | bytes | Exception] = queue.Queue(
            _MOST_UNHASHED_CHUNKS
        )
        self._write: Callable[[bytes], None] | None = None
        self._may_read = threading.Event()
        self._writing = threading.Lock()
        self._is_left = False
        self._thread = threading.Thread(target=self._read, name="octavo-download", daemon=True)
        self._thread.start()

    def head(self, tick: Callable[[], None]) -> http.client.HTTPResponse:
        """Status and headers; `tick` is called now and then while they do not come.

        Raises:
            TransientError: the connection failed, or the server is busy.
            DownloadError: the server refuses.
        """
        item = self._next(tick)
        assert isinstance(item, http.client.HTTPResponse)
        return item

    def chunks(
        self, tick: Callable[[], None], write: Callable[[bytes], None]
    ) -> Iterator[memoryview]:
        """The body as it arrives, until it or the connection ends; raises as `head` and `write`.

        Args:
            write: gets every chunk before it is given here, on the reading thread, and none any
                more once `leave` has returned.
        """
        self._write = write
        self._may_read.set()
        while chunk := self._next(tick):
            assert isinstance(chunk, bytes)
            yield memoryview(chunk)

    def leave(self) -> None:
        """No more is wanted."""
        with self._writing:
            self._is_left = True
        self._may_read.set()

    def _next(self, tick: Callable[[], None]) -> http.client.HTTPResponse | bytes:
        while True:
            try:
                item = self._arrived.get(timeout=0.1)
            except queue.Empty:
                tick()
                continue
            if isinstance(item, Exception):
                raise self._as_ours(item) from item
            return item

    def _as_ours(self, error: Exception) -> Exception:
        """The network library's error as one to try again after, or one that ends the download."""
        if isinstance(error, _WriteError):
            return error.cause
        if isinstance(error, urllib.error.HTTPError):
            return _status_error(error, self._request, self._advice)
        reason: object = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            return DownloadError(
                f"The server's certificate is not trusted: {reason.verify_message}.",
                hint=self._advice.certificate,
            )
        if isinstance(reason, TimeoutError):
            return TransientError(f"the server was silent for {self._read_timeout_s:.0f} s")
        if isinstance(error, ValueError):
            return DownloadError(f"The address of the download cannot be used: {error}.")
        return TransientError(str(reason) or type(reason).__name__)

    def _read(self) -> None:
        try:
            with self._opener.open(self._request, timeout=self._read_timeout_s) as response:
                self._put(response)
                self._may_read.wait()
                while True:
                    chunk = response.read1(_CHUNK_BYTES)
                    with self._writing:
                        if self._is_left:
                            return
                        if chunk and self._write is not None:
                            self._write_chunk(self._write, chunk)
                    self._put(chunk)
                    if not chunk:
                        return
        except urllib.error.HTTPError as error:
            error.close()
            self._put(error)
        except (OSError, http.client.HTTPException, ValueError, _WriteError) as error:
            self._put(error)

    def _write_chunk(self, write: Callable[[bytes], None], chunk: bytes) -> None:
        try:
            write(chunk)
        except (OSError, WrongContentError) as error:
            # A full disk must not look like a broken connection.
            raise _WriteError(error) from error

    def _put(self, item: http.client.HTTPResponse | bytes | Exception) -> None:
        while not self._is_left:
            try:
                self._arrived.put(item, timeout=0.5)
            except queue.Full:
                continue
            return


class _WriteError(Exception):
    """What `write` raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _status_error(
    error: urllib.error.HTTPError, request: urllib.request.Request, advice: Advice
) -> Exception:
    said = f"{error.code} {error.reason}"
    if error.code in _RETRIED_STATUSES:
        retry_after = error.headers.get("Retry-After", "") if error.headers else ""
        seconds = float(retry_after) if retry_after.isdigit() else 0.0
        return TransientError(
            f"the server answered {said}", retry_after_s=min(seconds, _LONGEST_RETRY_AFTER_S)
        )
    if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return WrongContentError("the server has less of the file than is here already")
    if error.code in (401, 403) and _origin(error.url) != _origin(request.full_url):
        return TransientError(f"the signed address has expired ({said})")
    if error.code in (401, 403, 407):
        return DownloadError(f"The server refuses the download: {said}.", hint=advice.refused)
    return DownloadError(f"The server does not have the file: {said}.", hint="Try again later.")
