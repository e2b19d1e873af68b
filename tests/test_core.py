"""`Core`: the endpoint on and off, and the order in which the parts end."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from octavo.core import Core
from octavo.errors import StorageError
from octavo.hub.download_queue import DownloadState
from octavo.hub.hub_cache import HubCache
from octavo.hub.hugging_face import HuggingFace
from octavo.hub.queue_transfer import QueueTransfer
from octavo.paths import AppPaths
from octavo.settings import Hub, Server, Storage
from tests.hub.hub_server import HubServer, Repo, serving_hub
from tests.support.gguf_files import write_tiny_llama


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
    assert not {"downloads", "server", "sampler", "chats"} & core.__dict__.keys()


async def until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.01)


async def until_it_stays(count: Callable[[], int], for_s: float) -> None:
    """Waits for a count that has not grown for so long."""
    end = time.monotonic() + 30
    before = count() - 1
    while before != (before := count()):
        assert time.monotonic() < end, "it goes on and on"
        await asyncio.sleep(for_s)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    content = write_tiny_llama(tmp_path / "tiny.gguf").read_bytes()
    with serving_hub({"acme/Tiny-GGUF": Repo({"tiny-Q8_0.gguf": content})}) as server:
        yield server


async def test_a_download_ends_in_the_library_over_pause_and_restart(
    core: Core, hub: HubServer
) -> None:
    core.settings.update(hub=Hub(endpoint=hub.url))
    hub.pause_s = 0.05
    changes: list[None] = []
    core.library.changed.connect(changes.append)
    download = core.downloads.add("acme/Tiny-GGUF", "Q8_0")
    await until(lambda: core.downloads.downloads[0].done_bytes > 0)
    core.downloads.pause(download.id)
    await until_it_stays(lambda: hub.num_bytes_sent, for_s=0.3)
    assert core.downloads.downloads[0].state is DownloadState.PAUSED
    await core.close()
    hub.pause_s = 0
    again = Core(core.paths)
    again.library.changed.connect(changes.append)
    again.downloads.start()
    again.downloads.resume(download.id)
    await until(lambda: again.downloads.downloads[0].state is DownloadState.DONE)
    assert changes == [None]
    (model,) = again.library.scan()
    assert (model.repository, model.path) == (
        "acme/Tiny-GGUF",
        again.downloads.downloads[0].path,
    )
    assert model.path.is_relative_to(again.hub_cache.root)
    await again.close()


async def test_a_cancelled_download_leaves_nothing_in_the_cache(core: Core, hub: HubServer) -> None:
    core.settings.update(hub=Hub(endpoint=hub.url))
    # Longer than what is read for the header.
    hub.repos["acme/Tiny-GGUF"].files["tiny-Q8_0.gguf"] += b"\0" * (3 << 20)
    hub.pause_s = 0.01
    download = core.downloads.add("acme/Tiny-GGUF", "Q8_0")
    folder = core.hub_cache.download_folder("acme/Tiny-GGUF", "Q8_0")
    await until(lambda: folder.is_dir() and any(folder.glob("*.part")))
    core.downloads.cancel(download.id)
    file = core.paths.downloads_file
    await until(lambda: json.loads(file.read_text(encoding="utf-8"))["cancelled"] == [])
    await core.close()
    assert not any(core.hub_cache.root.glob("models--*"))


async def test_offline_downloads_wait_until_the_settings_say_otherwise(
    core: Core, hub: HubServer
) -> None:
    core.settings.update(hub=Hub(endpoint=hub.url, is_offline=True))
    core.downloads.add("acme/Tiny-GGUF", "Q8_0")
    await asyncio.sleep(0.2)
    assert hub.hub_paths == []
    core.settings.update(hub=Hub(endpoint=hub.url))
    await until(lambda: core.downloads.downloads[0].state is DownloadState.DONE)
    await core.close()


def test_a_disk_below_the_floor_is_said_with_its_numbers(tmp_path: Path) -> None:
    cache = HubCache(tmp_path / "cache")
    transfer = QueueTransfer(
        HuggingFace,
        lambda: cache,
        check=lambda _: None,
        looks_dir=tmp_path,
        free_bytes=lambda _: 100 << 20,
    )
    with pytest.raises(StorageError, match=r"100\.0 MiB are free") as refused:
        transfer.require_room()
    assert "kept" in refused.value.hint


def test_the_hub_is_put_together_from_option_settings_and_token(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://environment.test")
    assert core.hub().endpoint == "https://environment.test"
    core.settings.update(hub=Hub(endpoint="https://settings.test", proxy="http://proxy.test"))
    core.tokens.write("hf_kept")
    hub = core.hub()
    assert (hub.endpoint, hub.proxy, hub.token) == (
        "https://settings.test",
        "http://proxy.test",
        "hf_kept",
    )
    assert "hf_kept" not in repr(hub)
    assert core.hub("https://option.test/").endpoint == "https://option.test"


def test_downloads_go_to_the_shared_cache_unless_a_folder_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    monkeypatch.setenv("HF_HUB_CACHE", str(shared))
    core = Core(replace(AppPaths.below(tmp_path), is_one_folder=False))
    assert core.hub_cache.root == shared
    core.settings.update(storage=Storage(models_dir=str(tmp_path / "chosen")))
    assert core.hub_cache.root == tmp_path / "chosen" / "hub"
    assert Core(AppPaths.below(tmp_path / "stick")).hub_cache.root.is_relative_to(
        tmp_path / "stick"
    )
