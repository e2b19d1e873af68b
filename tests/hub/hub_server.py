"""A small hub on this machine: search, repositories, gates, signed addresses; faults on demand."""

import contextlib
import hashlib
import json
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.hub.counting_server import CountingServer
from tests.hub.file_server import wait_for_client

COMMIT = "a" * 39 + "1"
TOKEN = "hf_test"
CHUNK_BYTES = 8192


@dataclass
class Repo:
    """One repository; gated ones list their files to all and send them to `TOKEN` alone."""

    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    downloads: int = 1000
    tags: tuple[str, ...] = ("gguf", "text-generation", "license:apache-2.0")
    gate: str = "manual"
    """How a gated one lets people in."""
    likes: int = 5
    commit: str = COMMIT
    last_modified: str = "2026-05-01T10:00:00.000Z"
    claimed_sizes: dict[str, int] = field(default_factory=dict)
    """Sizes that the hub claims of files, whatever they are."""

    def is_large(self, path: str) -> bool:
        """Whether a file lies in the store; small ones come from the hub itself."""
        return path.endswith((".gguf", ".safetensors", ".bin", "tokenizer.json"))


@dataclass(frozen=True)
class Fault:
    """How one request for a file's bytes is answered; the default is as it should."""

    file: str = ""
    """The path of the file it waits for; empty: any in the store."""

    status: int = 0
    """403: as for a signed address that has expired."""
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None
    stall_after: int | None = None
    ignores_range: bool = False
    content: bytes | None = None
    """Other bytes than the file's."""
    tag: str = ""
    """Another version's etag, whose content is the file's."""


class HubServer(CountingServer):
    """The hub and, under another origin, the store with the bytes, as the real one has it."""

    def __init__(self, repos: dict[str, Repo], *faults: Fault) -> None:
        super().__init__()
        self.repos = repos
        self.faults = list(faults)
        """For the first requests for bytes; all later ones are answered well."""
        self.status = 0
        """Of every answer of the hub itself, if not 0."""
        self.status_headers: dict[str, str] = {}
        self.pause_s = 0.0
        """Between two chunks: a slow line."""
        self.answer_pause_s = 0.0
        """Before each answer of the hub itself: somebody waits."""
        self.chunk_bytes = CHUNK_BYTES
        self.send_buffer_bytes = 0
        """What the system may hold back of what is sent; 0: as much as it likes."""
        self.arrived: Callable[[], int] | None = None
        """Counts what the client has written: the server keeps `window_bytes` ahead at most."""
        self.window_bytes = 4 * CHUNK_BYTES
        self.ranges: list[str] = []
        self.requested: list[str] = []
        """The path of each request for a file's bytes."""
        self.hub_paths: list[str] = []
        self.store_authorizations: list[str] = []
        self.ended = threading.Event()
        self._hub = _Listener(self, _HubHandler)
        self._store = _Listener(self, _StoreHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._hub.server_address[1]}"

    @property
    def store_url(self) -> str:
        return f"http://127.0.0.1:{self._store.server_address[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator["HubServer"]:
        listeners = (self._hub, self._store)
        threads = [
            threading.Thread(target=each.serve_forever, args=(0.02,), daemon=True)
            for each in listeners
        ]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self.ended.set()
            for each in listeners:
                each.shutdown()
                each.server_close()
            for thread in threads:
                thread.join()


def serving_hub(
    repos: dict[str, Repo], *faults: Fault
) -> contextlib.AbstractContextManager[HubServer]:
    """A hub while the block runs."""
    return HubServer(repos, *faults).running()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.hub = hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: _Listener

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Says nothing."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Says nothing."""

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def send_content(self, repo: Repo, path: str, *, always: bool) -> None:
        """Sends a file's bytes, or what a fault makes of them."""
        hub = self.hub
        content = repo.files[path]
        if self.command == "HEAD":
            self.reply(200, content, ETag=f'"{etag(repo, path)}"', X_Repo_Commit=repo.commit)
            return
        fault = next(
            (each for each in hub.faults if each.file == path or (always and not each.file)),
            Fault(),
        )
        if fault in hub.faults:
            hub.faults.remove(fault)
        wanted = self.headers.get("Range", "")
        hub.ranges.append(wanted)
        hub.requested.append(path)
        tag = fault.tag or f'"{etag(repo, path)}"'
        content = content if fault.content is None else fault.content
        if fault.status:
            self.reply(fault.status, b"<Error>no</Error>", **fault.headers)
            return
        start, end = 0, len(content)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
        is_part = (
            match is not None
            and not fault.ignores_range
            and self.headers.get("If-Range", tag) == tag
        )
        if match is not None and is_part:
            start, end = int(match[1]), int(match[2] or len(content) - 1) + 1
            if start >= len(content):
                self.reply(416, Content_Range=f"bytes */{len(content)}")
                return
        if hub.send_buffer_bytes:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, hub.send_buffer_bytes)
        self.send_response(206 if is_part else 200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("ETag", tag)
        self.send_header("X-Repo-Commit", repo.commit)
        if is_part:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.end_headers()
        written = hub.arrived() if hub.arrived else 0
        for offset in range(start, end, hub.chunk_bytes):
            if fault.drop_after is not None and offset - start >= fault.drop_after:
                return
            if fault.stall_after is not None and offset - start >= fault.stall_after:
                hub.ended.wait(30)
                return
            if hub.arrived is not None:
                wait_for_client(hub.arrived, written + offset - start - hub.window_bytes)
            chunk = content[offset : min(offset + hub.chunk_bytes, end)]
            hub.send(self.wfile, chunk)
            if hub.pause_s:
                time.sleep(hub.pause_s)

    def reply(self, status: int, body: object = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class _HubHandler(_Handler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.hub
        hub.hub_paths.append(self.path)
        address = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(address.path)
        end = time.monotonic() + hub.answer_pause_s
        while time.monotonic() < end and hub.answer_pause_s and not hub.ended.is_set():
            time.sleep(0.01)
        if hub.status:
            self.reply(hub.status, b"<html>no</html>", **hub.status_headers)
        elif path == "/api/whoami-v2":
            if self._is_known:
                self.reply(200, {"name": "ada", "type": "user", "orgs": []})
            else:
                self._refuse(401, "", "Invalid credentials in Authorization header")
        elif path == "/api/models":
            self._search(urllib.parse.parse_qs(address.query))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self._model(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3])
        else:
            self._refuse(404, "", "not found")

    @property
    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.reply(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def _search(self, query: dict[str, list[str]]) -> None:
        text, limit = query.get("search", [""])[0].lower(), int(query.get("limit", ["1000"])[0])
        found = [
            (name, repo)
            for name, repo in self.hub.repos.items()
            if text in name.lower()
            and set(query.get("filter", []) + query.get("pipeline_tag", [])) <= set(repo.tags)
        ]
        key = {"downloads": "downloads", "likes": "likes", "lastModified": "last_modified"}
        found.sort(key=lambda item: getattr(item[1], key[query["sort"][0]]), reverse=True)
        wanted = {"id", *query.get("expand", [])}
        items = [_facts(name, repo) for name, repo in found[:limit]]
        self.reply(200, [{key: item[key] for key in item if key in wanted} for item in items])

    def _repo(self, name: str, revision: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._is_known):
            self._refuse(404 if self._is_known else 401, "RepoNotFound", "Repository not found")
            return None
        if revision not in ("main", repo.commit):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo

    def _model(self, name: str, revision: str) -> None:
        repo = self._repo(name, revision)
        if repo is None:
            return
        siblings = []
        for path, content in repo.files.items():
            size = repo.claimed_sizes.get(path, len(content))
            sibling: dict[str, Any] = {"rfilename": path, "size": size, "blobId": git_sha1(content)}
            if repo.is_large(path):
                sibling["lfs"] = {"sha256": _sha256(content), "size": size, "pointerSize": 134}
            siblings.append(sibling)
        self.reply(200, _facts(name, repo) | {"siblings": siblings})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repo = self._repo(name, revision)
        if repo is None:
            return
        if repo.gated and not self._is_known:
            status = 403 if self.headers.get("Authorization") else 401
            self._refuse(status, "GatedRepo", f"Access to model {name} is restricted.")
        elif path not in repo.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
        elif not repo.is_large(path):
            self.send_content(repo, path, always=False)
        else:
            self.reply(
                302,
                X_Repo_Commit=repo.commit,
                X_Linked_Size=str(len(repo.files[path])),
                X_Linked_ETag=f'"{etag(repo, path)}"',
                ETag=f'"{etag(repo, path)}"',
                Accept_Ranges="bytes",
                Location=f"{self.hub.store_url}/{name}/{urllib.parse.quote(path)}?Signature=z",
            )


class _StoreHandler(_Handler):
    def do_GET(self) -> None:
        self.hub.store_authorizations.append(self.headers.get("Authorization", ""))
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        _, org, name, file = path.split("/", 3)
        self.send_content(self.hub.repos[f"{org}/{name}"], file, always=True)


def etag(repo: Repo, path: str) -> str:
    """What the hub calls a file's content."""
    content = repo.files[path]
    return _sha256(content) if repo.is_large(path) else git_sha1(content)


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _facts(name: str, repo: Repo) -> dict[str, Any]:
    return {
        "_id": "0" * 24,
        "id": name,
        "modelId": name,
        "sha": repo.commit,
        "private": repo.private,
        "gated": repo.gate if repo.gated else False,
        "downloads": repo.downloads,
        "likes": repo.likes,
        "lastModified": repo.last_modified,
        "tags": list(repo.tags),
        "gguf": {"total": 135_000_000, "architecture": "llama", "context_length": 8192},
    }


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
