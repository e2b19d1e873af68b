"""`Door`: who may ask at all. It stands before every route, known or not.

Three checks: the Host header (a foreign name means DNS rebinding), the Origin header (a web page of
another site, if it is not one that the person has allowed), and the API key, if one is set.
"""

import asyncio
import hmac
import ipaddress
import logging
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.errors import ForeignSiteError, OctavoError, WrongKeyError
from octavo.server.error_table import error_body, kind_of
from octavo.server.json_response import encode_json

HEADER_NAMES = re.compile(r"[A-Za-z0-9-]+( *, *[A-Za-z0-9-]+)*")
PREFLIGHT_SECONDS = b"600"
"""How long a browser may remember that it may ask."""

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 2**20
"""More than any context holds; keeps one client from filling the memory."""


@dataclass(frozen=True, slots=True)
class AccessRules:
    """What a request must show."""

    key: str = field(default="", repr=False)
    """Empty: none is needed."""
    host_names: Sequence[str] = ()
    """Names this server goes by beside `localhost`; addresses in numbers always count."""
    allowed_origins: Sequence[str] = ()
    """Web pages of other sites that may ask, as `https://app.example.org`."""

    def check_site(self, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """The page of another site that asks and may; empty for programs and pages of our own.

        Raises:
            ForeignSiteError: the host or the page is not one of ours, nor allowed.
        """
        host = self._check_host(_values(headers, b"host")).lower()
        origins = _values(headers, b"origin")
        foreign = [
            one for one in origins if one.lower() not in (f"http://{host}", f"https://{host}")
        ]
        for origin in foreign:
            if origin.lower() not in (one.lower() for one in self.allowed_origins):
                raise ForeignSiteError(
                    f"A web page of {origin[:200]!r} may not use this endpoint.",
                    hint="Octavo's server page and `octavo serve --allow-origin` allow pages;"
                    " programs send no Origin header.",
                )
        if len(origins) > 1:
            raise ForeignSiteError("The request names several web pages as its origin.")
        return foreign[0] if foreign else ""

    def check_key(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Raises WrongKeyError."""
        if self.key:
            self._check_key(_values(headers, b"authorization"))

    def _check_host(self, hosts: Sequence[str]) -> str:
        host = hosts[0] if len(hosts) == 1 else ""
        if not self._is_ours(host):
            raise ForeignSiteError(
                f"This endpoint does not go by the name {host[:200]!r}.",
                hint="Use the address that Octavo shows, such as http://127.0.0.1:8000.",
            )
        return host

    def _is_ours(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if name == "localhost" or name in (one.lower() for one in self.host_names):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _check_key(self, given: Sequence[str]) -> None:
        scheme, _, key = (given[0] if len(given) == 1 else "").partition(" ")
        is_right = hmac.compare_digest(
            key.strip().encode("utf-8", "surrogateescape"),
            self.key.encode("utf-8", "surrogateescape"),
        )
        if scheme.lower() != "bearer" or not is_right:
            raise WrongKeyError(
                "The API key is missing or not the right one.",
                hint="Send the header `Authorization: Bearer KEY` with the key set in Octavo.",
            )


def own_host_names() -> tuple[str, ...]:
    """What other machines may call this one."""
    name = socket.gethostname()
    return tuple({name, name.partition(".")[0], f"{name.partition('.')[0]}.local"} - {""})


class Door:
    """The outermost ASGI app: checks, passes on, and logs what nobody inside caught."""

    def __init__(self, app: ASGIApp, rules: AccessRules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "the server speaks nothing else"
        headers = scope["headers"]
        try:
            origin = self._rules.check_site(headers)
        except OctavoError as error:
            await _refuse(error, send)
            return
        if origin:
            if _is_preflight(scope):
                # Browsers send no key with it; what it tells is what a page of this site may do.
                await _allow_preflight(origin, headers, send)
                return
            send = _readable_by(origin, send)
        try:
            self._rules.check_key(headers)
        except OctavoError as error:
            await _refuse(error, send)
            return
        try:
            await self._app(scope, _bounded(receive), send)
        except asyncio.CancelledError:
            logger.info("A request did not end in its time while the server stopped")
        except Exception:  # (the server's one catch-all; its answer is the inner app's)
            logger.exception("A request failed")


def _bounded(receive: Receive) -> Receive:
    """Refuses a body that goes on for too long, whatever its headers say."""
    num_bytes = 0

    async def receive_some() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > MAX_BODY_BYTES:
            raise HTTPException(413, f"The body has more than {MAX_BODY_BYTES} bytes")
        return message

    return receive_some


def _is_preflight(scope: Scope) -> bool:
    """Whether a browser asks on behalf of a page what that page may ask."""
    return scope["method"] == "OPTIONS" and bool(
        _values(scope["headers"], b"access-control-request-method")
    )


async def _allow_preflight(origin: str, asked: Sequence[tuple[bytes, bytes]], send: Send) -> None:
    headers = [
        *_cors_headers(origin),
        (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
        (b"access-control-max-age", PREFLIGHT_SECONDS),
    ]
    # The names it asks for, sent back: clients of the API add headers of their own.
    headers += [
        (b"access-control-allow-headers", names.encode())
        for names in _values(asked, b"access-control-request-headers")
        if HEADER_NAMES.fullmatch(names)
    ]
    if _values(asked, b"access-control-request-private-network"):
        headers.append((b"access-control-allow-private-network", b"true"))
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _readable_by(origin: str, send: Send) -> Send:
    """Lets a page of that site read the answer, whatever it is."""

    async def send_on(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_cors_headers(origin)]
        await send(message)

    return send_on


def _cors_headers(origin: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-origin", origin.encode("utf-8", "surrogateescape")),
        (b"vary", b"Origin"),
    ]


async def _refuse(error: OctavoError, send: Send) -> None:
    body = encode_json(error_body(error))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    status = kind_of(error).status
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    start: Message = {"type": "http.response.start", "status": status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})


def _values(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("utf-8", "surrogateescape") for header, value in headers if header == name]
