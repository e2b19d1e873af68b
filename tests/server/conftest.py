"""A real host with a tiny model, and the endpoint in front of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from octavo.engine.config import EngineConfig
from octavo.host import ModelHost
from octavo.hub.library import ModelLibrary
from octavo.running import RunningModels
from octavo.server import thread as thread_module
from octavo.server.thread import ServerThread
from tests.support.gguf_files import write_tiny_llama


@dataclass(frozen=True)
class Served:
    """The endpoint and what stands behind it."""

    server: ServerThread
    host: ModelHost
    library: ModelLibrary
    url: str


def wait_until(is_so: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def _time_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """That a stop ends by itself is tested, not that a busy machine is done within seconds."""
    monkeypatch.setattr(thread_module, "STOP_TIMEOUT_S", 60.0)
    monkeypatch.setattr(thread_module, "START_TIMEOUT_S", 60.0)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ModelLibrary:
    folder: Path = tmp_path_factory.mktemp("models")
    write_tiny_llama(folder / "tiny.gguf")
    write_tiny_llama(folder / "other.gguf", seed=5)
    return ModelLibrary(lambda: [folder])


@pytest.fixture(scope="session")
def loaded_host(
    library: ModelLibrary, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelHost]:
    """Loaded by a loop of its own: whoever generates afterwards does so from another one."""
    config = EngineConfig(device="cpu", num_kv_blocks=400, block_size=8)
    host = ModelHost(lambda: config, RunningModels(tmp_path_factory.mktemp("run")))
    asyncio.run(host.load(library.find("tiny")))
    yield host
    assert asyncio.run(host.close())


@pytest.fixture(scope="session")
def endpoint(loaded_host: ModelHost, library: ModelLibrary) -> Iterator[Served]:
    server = ServerThread(loaded_host, library)
    yield Served(server, loaded_host, library, server.start(port=0).url)
    assert server.stop()


@pytest.fixture
def served(endpoint: Served) -> Iterator[Served]:
    """The endpoint of all tests, which each of them leaves empty."""
    yield endpoint
    wait_until(lambda: not endpoint.server.board.live())
    wait_until(lambda: not endpoint.host.stats.num_used_blocks)


@pytest.fixture
def fresh(loaded_host: ModelHost, library: ModelLibrary) -> Iterator[Served]:
    """An endpoint of this test alone, for those that stop or count."""
    server = ServerThread(loaded_host, library)
    yield Served(server, loaded_host, library, server.start(port=0).url)
    assert server.stop()
    wait_until(lambda: not loaded_host.stats.num_used_blocks)
    assert server.board.live() == ()


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(served: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{served.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client
