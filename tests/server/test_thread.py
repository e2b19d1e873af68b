"""The endpoint's life: ports, starts and stops, clients that leave, nothing left behind."""

import asyncio
import gc
import os
import random
import socket
import threading
import time
from typing import Any

import httpx
import psutil
import pytest

from octavo.engine.engine import Engine
from octavo.errors import InvalidInputError, ServerError
from octavo.host import ModelHost
from octavo.hub.library import ModelLibrary
from octavo.server.address import bind
from octavo.server.board import RequestState
from octavo.server.thread import ServerThread
from tests.server.conftest import Served, wait_until

LONG = {"prompt": "hello", "max_tokens": 230, "ignore_eos": True}


def server_threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("octavo-server")]


def num_tasks_of_others(loop: asyncio.AbstractEventLoop) -> int:
    """Unfinished tasks of every loop but one."""
    tasks = [one for one in gc.get_objects() if issubclass(type(one), asyncio.Task)]
    return sum(not task.done() and task.get_loop() is not loop for task in tasks)


def test_five_starts_on_one_port_leave_nothing(
    loaded_host: ModelHost, library: ModelLibrary
) -> None:
    server = ServerThread(loaded_host, library)
    num_before = len(server_threads())
    port = server.start(port=0).port
    assert server.stop()
    num_open = psutil.Process().num_fds() if os.name == "posix" else 0
    for _ in range(5):
        address = server.start(port=port)
        assert (address.port, address.note) == (port, "")
        assert httpx.get(f"{address.url}/health").status_code == 200
        with pytest.raises(ServerError, match="already"):
            server.start(port=0)
        assert server.stop()
        assert server.address is None
    wait_until(lambda: len(server_threads()) <= num_before)
    if os.name == "posix":
        assert psutil.Process().num_fds() <= num_open
    assert server.stop(), "a second stop is no error"


def test_small_writes_do_not_wait_for_acknowledgements() -> None:
    listener, _ = bind("127.0.0.1", 0, has_key=False)
    with listener:
        assert listener.proto == socket.IPPROTO_TCP  # what asyncio asks before it sets TCP_NODELAY


def test_a_taken_port_names_its_holder(loaded_host: ModelHost, library: ModelLibrary) -> None:
    server = ServerThread(loaded_host, library)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        address = server.start(port=port)
        assert server.stop()
    assert port < address.port <= port + 20
    assert f"Port {port} is held by" in address.note
    assert f"process {os.getpid()}" in address.note


def test_other_machines_need_a_key(loaded_host: ModelHost, library: ModelLibrary) -> None:
    server = ServerThread(loaded_host, library)
    for host in ("0.0.0.0", "::"):
        with pytest.raises(InvalidInputError, match="no API key is set") as caught:
            server.start(host, port=0)
        assert caught.value.hint
    address = server.start("0.0.0.0", port=0, key="k")
    try:
        name = {"Host": f"{socket.gethostname()}:1", "Authorization": "Bearer k"}
        assert httpx.get(f"{address.url}/health", headers=name).status_code == 200
        assert httpx.get(f"{address.url}/health").status_code == 401
    finally:
        assert server.stop()


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", 0), ("no such host", 0)])
def test_addresses_that_are_not_ours(
    loaded_host: ModelHost, library: ModelLibrary, host: str, port: int
) -> None:
    before = server_threads()
    with pytest.raises(ServerError) as caught:
        ServerThread(loaded_host, library).start(host, port, key="k")
    assert caught.value.hint
    assert server_threads() == before


def test_a_port_out_of_range(loaded_host: ModelHost, library: ModelLibrary) -> None:
    with pytest.raises(InvalidInputError, match="0 to 65535"):
        ServerThread(loaded_host, library).start(port=70000)


@pytest.mark.parametrize("stream", [True, False])
def test_a_closed_connection_frees_its_blocks(
    served: Served, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tiny model would be done before a busy machine has looked at the connection.
    step = Engine.step

    def slow_step(engine: Engine) -> Any:
        time.sleep(0.05)
        return step(engine)

    monkeypatch.setattr(Engine, "step", slow_step)
    body = LONG | {"n": 4, "stream": stream}
    with socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1]))) as client:
        content = httpx.Request("POST", f"{served.url}/v1/completions", json=body)
        lines = [f"{name}: {value}" for name, value in content.headers.items()]
        head = "\r\n".join(["POST /v1/completions HTTP/1.1", *lines]) + "\r\n\r\n"
        client.sendall(head.encode() + content.read())
        wait_until(lambda: served.host.stats.num_running == 4)
        num_steps = served.host.stats.num_steps
    wait_until(lambda: not served.host.stats.num_used_blocks)
    assert served.host.stats.num_steps < num_steps + 100, "it was not computed to its end"
    wait_until(lambda: not served.server.board.live())
    assert served.server.board.recent()[0].state is RequestState.DISCONNECTED


def test_stopping_ends_streams_with_an_error(fresh: Served) -> None:
    lines: list[str] = []
    statuses: list[int] = []

    def read(stream: bool) -> None:
        url = f"{fresh.url}/v1/completions"
        body = LONG | {"n": 8, "stream": stream}
        with httpx.stream("POST", url, json=body) as response:
            statuses.append(response.status_code)
            lines.extend(response.iter_lines())

    threads = [threading.Thread(target=read, args=(stream,)) for stream in (True, False)]
    for thread in threads:
        thread.start()
    wait_until(lambda: fresh.host.stats.num_running == 16)
    assert fresh.server.stop()
    for thread in threads:
        thread.join(30)
    assert sorted(statuses) == [200, 503]
    assert sum("server_stopping" in line for line in lines) == 2
    assert not any("[DONE]" in line for line in lines)


def test_stop_does_not_wait_for_a_client_that_does_not_read(fresh: Served) -> None:
    body = httpx.Request("POST", fresh.url, json=LONG | {"stream": True, "logprobs": 20, "n": 60})
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    client.connect(("127.0.0.1", int(fresh.url.rsplit(":", 1)[1])))
    with client:
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
        client.sendall(f"{head}{body.headers['content-length']}\r\n\r\n".encode() + body.read())
        wait_until(lambda: bool(fresh.server.board.live()))
        time.sleep(0.5)
        num_threads = len(server_threads())
        assert fresh.server.stop()
    wait_until(lambda: len(server_threads()) < num_threads)


@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=pytest.mark.slow)])
async def test_many_clients_with_random_disconnects(fresh: Served, seconds: float) -> None:
    """32 clients at once; each request ends whole, or is left somewhere in between."""
    deadline = time.monotonic() + seconds
    num_whole = 0

    def has_both() -> bool:
        """On a slow machine it takes longer until some were served and some were left."""
        return bool(num_whole and fresh.server.board.totals().get(RequestState.DISCONNECTED))

    async def client(number: int) -> None:
        nonlocal num_whole
        chance = random.Random(number)
        async with httpx.AsyncClient(base_url=fresh.url, timeout=None) as http:
            while time.monotonic() < deadline or not has_both():
                body = {
                    "prompt": "hello " * chance.randint(1, 20),
                    "max_tokens": chance.randint(1, 40),
                    "n": chance.choice([1, 1, 2]),
                    "stream": chance.random() < 0.7,
                    "ignore_eos": True,
                }
                try:
                    async with asyncio.timeout(chance.choice([0.02, 0.1, 0.5, None])):
                        response = await http.post("/v1/completions", json=body)
                    assert response.status_code == 200
                    num_whole += 1
                except TimeoutError:
                    pass

    own_loop = asyncio.get_running_loop()
    await asyncio.to_thread(server_threads)  # starts this loop's own worker
    num_threads = threading.active_count()
    num_tasks = num_tasks_of_others(own_loop)
    num_open = psutil.Process().num_fds() if os.name == "posix" else 0
    await asyncio.gather(*(client(number) for number in range(32)))
    await asyncio.to_thread(wait_until, lambda: not fresh.server.board.live())
    await asyncio.to_thread(wait_until, lambda: not fresh.host.stats.num_used_blocks)
    stats = fresh.host.stats
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert threading.active_count() <= num_threads + 4 + 1  # the two pools' workers
    totals = fresh.server.board.totals()
    assert num_whole > 0
    assert totals[RequestState.FINISHED] >= num_whole
    assert totals[RequestState.DISCONNECTED] > 0
    assert RequestState.FAILED not in totals
    await asyncio.to_thread(wait_until, lambda: num_tasks_of_others(own_loop) <= num_tasks)
    if os.name == "posix":
        await asyncio.to_thread(wait_until, lambda: psutil.Process().num_fds() <= num_open)
