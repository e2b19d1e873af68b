"""A hub, its repositories and a queue of downloads, as the window sees them; no network."""

import dataclasses
import threading

from octavo.errors import DownloadError, ModelNotFoundError, OctavoError
from octavo.events import Event
from octavo.hub.download_queue import Download, DownloadState
from octavo.hub.hub_files import HubAddress, HubFile, HubRepository, HubVariant
from octavo.hub.hugging_face import HubModel

GIB = 2**30
COMMIT = "c" * 40


def make_variant(label: str, size_bytes: int, kind: str = "gguf") -> HubVariant:
    path = f"model-{label}.gguf" if kind == "gguf" else "config.json"
    files = [HubFile(path, size_bytes, "a" * 64, "a" * 64)]
    if kind != "gguf":
        files.append(HubFile("model.safetensors", 0, "b" * 64, "b" * 64))
    return HubVariant(label, kind, tuple(files))


VARIANTS = (
    make_variant("Q3_K_M", 3 * GIB),
    make_variant("Q4_K_M", 4 * GIB),
    make_variant("Q5_K_M", 5 * GIB),
    make_variant("Q6_K", 6 * GIB),
    make_variant("Q8_0", 8 * GIB),
    make_variant("F16", 16 * GIB),
    make_variant("safetensors", 16 * GIB, "safetensors"),
)


def make_repository(name: str = "acme/Road-8B-Instruct-GGUF", **fields: object) -> HubRepository:
    repository = HubRepository(
        name,
        COMMIT,
        VARIANTS,
        license="apache-2.0",
        downloads=1_234_567,
        likes=890,
        last_modified="2026-10-02",
    )
    return dataclasses.replace(repository, **fields)  # type: ignore[arg-type]


def make_hub_model(repository: str, **fields: object) -> HubModel:
    model = HubModel(
        repository,
        downloads=1_234_567,
        likes=890,
        num_parameters=8_030_000_000,
        architecture="llama",
        is_gated=False,
        last_modified="2026-10-02",
        kind="gguf",
    )
    return dataclasses.replace(model, **fields)  # type: ignore[arg-type]


class FakeHub:
    """Answers from its tables; `gates` hold an answer back until they are set."""

    def __init__(self) -> None:
        self.endpoint = "https://hub.example.org"
        self.token = ""
        self.results: dict[str, list[HubModel]] = {}
        self.repositories: dict[str, HubRepository] = {}
        self.error: OctavoError | None = None
        self.gates: dict[str, threading.Event] = {}
        self.searches: list[tuple[str, str, str]] = []
        self.asked: list[HubAddress] = []

    def search(
        self, text: str, *, limit: int = 20, sort: str = "downloads", kind: str = "gguf"
    ) -> list[HubModel]:
        self.searches.append((text, sort, kind))
        if text in self.gates:
            self.gates[text].wait(60)
        if self.error is not None:
            raise self.error
        return self.results.get(text, [])[:limit]

    def repository(self, address: HubAddress) -> HubRepository:
        self.asked.append(address)
        if self.error is not None:
            raise self.error
        if address.repository not in self.repositories:
            raise ModelNotFoundError(f"The hub has no model {address.repository}.")
        return self.repositories[address.repository]


def make_download(download_id: str = "one", **fields: object) -> Download:
    download = Download(
        download_id,
        "acme/Road-8B-Instruct-GGUF",
        "Q4_K_M",
        "main",
        4 * GIB,
        DownloadState.RUNNING,
        "Downloading",
        done_bytes=GIB,
        bytes_per_second=12.0 * 2**20,
    )
    return dataclasses.replace(download, **fields)  # type: ignore[arg-type]


class FakeDownloads:
    """A queue in which nothing moves by itself."""

    def __init__(self) -> None:
        self.changed: Event[None] = Event()
        self.downloads: tuple[Download, ...] = ()
        self.problem = ""
        self.is_owner = True
        self.calls: list[tuple[str, str]] = []

    def show(self, *downloads: Download) -> None:
        self.downloads = downloads
        self.changed.emit(None)

    def add(
        self, repository: str, label: str, revision: str = "main", size_bytes: int = 0
    ) -> Download:
        if not self.is_owner:
            raise DownloadError("Another Octavo window fetches the downloads.")
        download = Download(f"{repository}:{label}", repository, label, revision, size_bytes)
        self.show(*self.downloads, download)
        return download

    def pause(self, download_id: str) -> None:
        self.calls.append(("pause", download_id))

    def resume(self, download_id: str) -> None:
        self.calls.append(("resume", download_id))

    def cancel(self, download_id: str) -> None:
        self.calls.append(("cancel", download_id))
        self.show(*(each for each in self.downloads if each.id != download_id))

    def clear_done(self) -> None:
        self.calls.append(("clear_done", ""))
        self.show(*(each for each in self.downloads if each.state is not DownloadState.DONE))

    def start(self) -> None:
        self.calls.append(("start", ""))

    async def close(self) -> None:
        self.calls.append(("close", ""))
