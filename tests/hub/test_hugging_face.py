"""What the hub answers, and what Octavo makes of it."""

import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from octavo.errors import DownloadError, InvalidInputError, ModelNotFoundError, OctavoError
from octavo.hub.hub_files import HubAddress
from octavo.hub.hugging_face import HuggingFace
from tests.hub.hub_server import COMMIT, TOKEN, Repo, git_sha1, serving_hub

NAME = "acme/Tiny-GGUF"
FILE = "tiny-Q4_0.gguf"


def repos(*, gated: bool = False, private: bool = False) -> dict[str, Repo]:
    return {NAME: Repo({"README.md": b"# Tiny", FILE: b"GGUF"}, gated=gated, private=private)}


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (401, {}, "401"),
        (403, {}, r"refuses the request \(403\)"),
        (404, {}, "status 404"),
        (429, {"Retry-After": "7"}, r"too many requests.*in 7 s.*settings or \$HF_TOKEN raises"),
        (503, {}, r"problem of its own \(503\)"),
        (200, {}, "does not answer as a hub does"),
    ],
)
@pytest.mark.parametrize("question", ["search", "repository"])
def test_a_hub_that_says_no(
    status: int, headers: dict[str, str], words: str, question: str
) -> None:
    with serving_hub({}) as server:
        server.status, server.status_headers = status, headers
        hub = HuggingFace(server.url)
        with pytest.raises(OctavoError) as failure:
            _ = hub.search("x") if question == "search" else hub.repository(HubAddress(NAME))
    if status not in (401, 404):
        failure.match(words)
    assert isinstance(failure.value, DownloadError | ModelNotFoundError)
    assert failure.value.hint
    assert "Traceback" not in str(failure.value)


def test_nobody_there() -> None:
    with serving_hub({}) as server:
        hub = HuggingFace(server.url)
    with pytest.raises(DownloadError, match=r"cannot be reached.*\$HF_ENDPOINT"):
        hub.search("x")
    with pytest.raises(DownloadError, match=r"cannot be reached: Connection refused\. "):
        hub.repository(HubAddress(NAME))


def test_no_such_repository_revision_or_login() -> None:
    with serving_hub(repos(private=True)) as server:
        hub = HuggingFace(server.url)
        with pytest.raises(ModelNotFoundError, match=r"no model acme/None, or it is private"):
            hub.repository(HubAddress("acme/None"))
        with pytest.raises(
            ModelNotFoundError, match=r"private and Octavo has no token.*settings or \$HF_TOKEN"
        ):
            hub.repository(HubAddress(NAME))
        known = HuggingFace(server.url, TOKEN)
        (variant,) = known.repository(HubAddress(NAME)).variants
        assert [file.path for file in variant.files] == [FILE]
        with pytest.raises(ModelNotFoundError, match="no such revision"):
            known.repository(HubAddress(NAME, revision="v9"))


def test_search_lists_gguf_repositories_by_downloads() -> None:
    there = {f"bulk/m{n:02d}-GGUF": Repo({"a.gguf": b"1"}, downloads=n) for n in range(9)}
    there["acme/weights"] = Repo({"m.safetensors": b"1"}, tags=("text-generation", "safetensors"))
    there["acme/gated-GGUF"] = Repo({"a.gguf": b"1"}, gated=True, downloads=5000)
    with serving_hub(there) as server:
        found = HuggingFace(server.url).search("m0", limit=3)
        assert [model.repository for model in found] == [f"bulk/m{n:02d}-GGUF" for n in (8, 7, 6)]
        assert (found[0].architecture, found[0].num_parameters) == ("llama", 135_000_000)
        (gated,) = HuggingFace(server.url).search("gated")
        assert gated.is_gated
        assert gated.downloads == 5000
        assert HuggingFace(server.url).search("nothing") == []


def test_search_by_kind_and_order() -> None:
    there = {
        "a/one-GGUF": Repo({}, likes=1, last_modified="2026-01-02T00:00:00.000Z"),
        "a/two": Repo({}, tags=("text-generation", "safetensors"), likes=3),
        "a/three-pictures": Repo({}, tags=("text-to-image", "safetensors"), likes=9),
        "a/four": Repo({}, tags=("text-generation", "pytorch"), likes=8),
        "a/five": Repo({}, tags=("text-generation", "safetensors"), likes=4),
    }
    with serving_hub(there) as server:
        hub = HuggingFace(server.url)
        assert [
            (model.repository, model.kind, model.last_modified)
            for model in hub.search("", kind="any", sort="likes")
        ] == [
            ("a/five", "safetensors", "2026-05-01"),
            ("a/two", "safetensors", "2026-05-01"),
            ("a/one-GGUF", "gguf", "2026-01-02"),
        ]
        found = hub.search("", kind="safetensors", sort="updated")
        assert {model.repository for model in found} == {"a/two", "a/five"}
    for sort, kind in (("beauty", "gguf"), ("likes", "pickle")):
        with pytest.raises(InvalidInputError, match="cannot be searched"):
            hub.search("", sort=sort, kind=kind)


def test_what_a_repository_says_about_itself() -> None:
    there = repos(gated=True)
    there[NAME].gate = "auto"
    there[NAME].files |= {"config.json": b"{}", "model.safetensors": b"weights"}
    with serving_hub(there) as server:
        found = HuggingFace(server.url).repository(HubAddress(NAME))
    assert (found.name, found.commit, found.revision) == (NAME, COMMIT, "main")
    assert (found.gated, found.license, found.last_modified) == ("auto", "apache-2.0", "2026-05-01")
    assert (found.downloads, found.likes) == (1000, 5)
    assert [variant.label for variant in found.variants] == ["Q4_0", "safetensors"]
    config, weights = found.variants[1].files
    assert (config.sha256, config.blob_id) == ("", git_sha1(b"{}"))
    assert weights.sha256 == weights.blob_id != ""


@pytest.mark.parametrize("size", [-1, 1 << 60])
def test_impossible_sizes_are_no_answer_of_a_hub(size: int) -> None:
    there = repos()
    there[NAME].claimed_sizes[FILE] = size
    with serving_hub(there) as server, pytest.raises(DownloadError, match="does not answer as a"):
        HuggingFace(server.url).repository(HubAddress(NAME))


def test_offline_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_hub(repos(gated=True)) as server:
        repository = HuggingFace(server.url).repository(HubAddress(NAME))
        server.hub_paths.clear()
        hub = HuggingFace(server.url, is_offline=True)
        file = repository.variants[0].files[0]
        for question in (
            lambda: hub.search("x"),
            lambda: hub.repository(HubAddress(NAME)),
            lambda: hub.require_access(repository, file),
            hub.make_opener,
        ):
            with pytest.raises(DownloadError, match="offline by its settings"):
                question()
        assert server.hub_paths == []


class _Proxy(ThreadingHTTPServer):
    """Fetches what it is asked for, and remembers it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        self.asked: list[str] = []


class _ProxyHandler(BaseHTTPRequestHandler):
    server: _Proxy

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.path) as response:
            content = response.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Says nothing."""


@pytest.fixture
def proxy() -> Iterator[_Proxy]:
    with _Proxy() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_proxy_counts_for_questions_and_for_files(
    proxy: _Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with serving_hub(repos()) as server:
        address = f"http://127.0.0.1:{proxy.server_address[1]}"
        hub = HuggingFace(server.url, proxy=address)
        repository = hub.repository(HubAddress(NAME))
        hub.search("tiny")
        url = hub.file_url(repository, repository.variants[0].files[0])
        with hub.make_opener().open(url) as response:
            assert response.read() == b"GGUF"
    assert [path.removeprefix(server.url).partition("?")[0] for path in proxy.asked] == [
        f"/api/models/{NAME}",
        "/api/models",
        f"/{NAME}/resolve/{COMMIT}/{FILE}",
    ]
    # It may hold a password.
    assert address not in repr(hub)
