"""`Core`: the endpoint on and off, and the order in which the parts end."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from octavo.core import Core
from octavo.paths import AppPaths
from octavo.settings import Server


@pytest.fixture
def core(tmp_path: Path) -> Core:
    return Core(AppPaths.below(tmp_path))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def read_json(url: str) -> Any:
    with urlopen(url) as answer:
        return json.load(answer)


async def test_endpoint_starts_with_the_settings_and_stops_again_and_again(core: Core) -> None:
    for _ in range(2):
        port = free_port()
        core.settings.update(server=Server(port=port))
        address = await core.start_server()
        assert core.server.address == address
        assert address.url == f"http://127.0.0.1:{port}"
        models = await asyncio.to_thread(read_json, f"{address.url}/v1/models")
        assert models["data"] == []
        assert await core.stop_server()
        assert core.server.address is None
    assert await core.close()


async def test_close_ends_the_endpoint_before_the_model(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    core.settings.update(server=Server(port=free_port()))
    await core.start_server()
    addresses: list[object] = []

    async def close_host() -> bool:
        addresses.append(core.server.address)
        return True

    monkeypatch.setattr(core.host, "close", close_host)
    assert await core.close()
    assert addresses == [None]


async def test_close_ends_the_sampler(core: Core) -> None:
    core.sampler.listen(lambda _: None)
    assert core.sampler.is_sampling
    await core.close()
    assert not core.sampler.is_sampling


async def test_parts_nobody_used_are_not_made_to_be_closed(core: Core) -> None:
    await core.close()
    assert not {"server", "sampler", "chats"} & core.__dict__.keys()
