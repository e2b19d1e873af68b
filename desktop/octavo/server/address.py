"""Where the endpoint listens: the socket, the next free port, and who holds the wanted one."""

import errno
import ipaddress
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass

import psutil

from octavo.errors import InvalidInputError, ServerError

MAX_PORTS_TRIED = 20


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where the endpoint can be reached."""

    host: str
    """In numbers, as it was bound."""
    port: int
    note: str = ""
    """A sentence if the port is not the wanted one: who holds that."""

    @property
    def url(self) -> str:
        """What clients take as base URL, without `/v1`."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only programs of this machine can reach it."""
        return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback


def check_wanted(host: str, port: int, *, has_key: bool) -> tuple[socket.AddressFamily, str]:
    """Refuses what can be refused before a port is bound, and says which address a host is.

    Raises:
        InvalidInputError: the port is out of range; other machines could come without a key.
        ServerError: the address is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise InvalidInputError(f"The port is {port}; it must be 0 to 65535.")
    family, ip = _resolve(host)
    if not has_key and not ServerAddress(ip, port).is_local:
        raise InvalidInputError(
            f"At {host} other machines could use the endpoint, and no API key is set.",
            hint="Set an API key, or stay at 127.0.0.1.",
        )
    return family, ip


def bind(host: str, port: int, *, has_key: bool) -> tuple[socket.socket, ServerAddress]:
    """Binds the port or the next free one; 0 takes any.

    Raises:
        InvalidInputError: the port is out of range; other machines could come without a key.
        ServerError: the address is not this machine's, or no port is free.
    """
    family, ip = check_wanted(host, port, has_key=has_key)
    ports = range(port, min(port + MAX_PORTS_TRIED, 65535) + 1) if port else [0]
    for candidate in ports:
        listener = _listen(family, ip, candidate)
        if listener is not None:
            bound_port = listener.getsockname()[1]
            note = ""
            if port not in (0, bound_port):
                note = f"{_taken_note(port)} The endpoint is at port {bound_port} instead."
            return listener, ServerAddress(ip, bound_port, note)
    raise ServerError(
        f"The ports {ports[0]} to {ports[-1]} of {host} are all taken. {_taken_note(port)}",
        hint="Choose another port, or 0 for any free one.",
    )


def holder_of(port: int) -> str:
    """Name and process id of who listens at a port; empty where the system does not tell."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.laddr.port == port
                and connection.pid is not None
            ):
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return ""


def _taken_note(port: int) -> str:
    return f"Port {port} is held by {holder_of(port) or 'another program'}."


def _resolve(host: str) -> tuple[socket.AddressFamily, str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ServerError(
            f"{host!r} is no address: {error}.", hint="127.0.0.1 is this machine."
        ) from error
    # `localhost` is to mean 127.0.0.1, which every client tries.
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    family, _, _, _, address = found[0]
    return family, str(address[0])


def _listen(family: socket.AddressFamily, ip: str, port: int) -> socket.socket | None:
    """None: another program holds the port."""
    # With the protocol named, asyncio switches Nagle's algorithm off: without, an answer in two
    # writes waits 40 ms for the client's acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if sys.platform == "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            # Connections of a stopped server must not hold the port for a minute.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ip, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            return None
        if error.errno == errno.EACCES:
            raise ServerError(
                f"Port {port} of {ip} may not be opened.",
                hint="Ports below 1024 belong to the system; choose a higher one.",
            ) from error
        raise ServerError(
            f"The endpoint cannot listen at {ip}, port {port}: {error.strerror or error}.",
            hint="127.0.0.1 is always there.",
        ) from error
    return listener
