"""`Door`: who may ask at all. It stands before every route, known or not.

Three checks: the Host header (a foreign name means DNS rebinding), the Origin header (a web page of
another site), and the API key, if one is set.
"""

import asyncio
import hmac
import ipaddress
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.errors import ForeignSiteError, OctavoError, WrongKeyError
from octavo.server.error_table import error_body, kind_of
from octavo.server.json_response import encode_json

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

    def check(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Raises ForeignSiteError or WrongKeyError."""
        host = self._check_host(_values(headers, b"host"))
        for origin in _values(headers, b"origin"):
            if origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
                raise ForeignSiteError(
                    f"A web page of {origin[:200]!r} may not use this endpoint.",
                    hint="Only pages that it serves itself may; programs send no Origin header.",
                )
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
        try:
            self._rules.check(scope["headers"])
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
