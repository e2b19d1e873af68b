import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from octavo.checkpoint.gguf import read_gguf_header
from octavo.checkpoint.header import CheckpointHeader
from octavo.errors import (
    CheckpointError,
    DownloadError,
    ModelNotFoundError,
    OctavoError,
    StorageError,
    UnsupportedModelError,
)
from octavo.hub import hub_pull
from octavo.hub.download import Patience
from octavo.hub.hub_files import HubAddress
from octavo.hub.hub_pull import HubPull, pull_from_hub
from octavo.hub.hugging_face import HuggingFace
from octavo.hub.library import ModelLibrary
from octavo.jobs import JobCancelled, JobControl, Progress
from tests.hub.hub_server import CHUNK_BYTES, TOKEN, Fault, HubServer, Repo, serving_hub
from tests.support.gguf_files import write_tiny_llama

NAME = "acme/Tiny-GGUF"
FILE = "tiny-Q4_0.gguf"
MIB = 1 << 20
IMPATIENT = Patience(
    read_timeout_s=0.3, first_pause_s=0.01, longest_pause_s=0.02, tries_without_progress=3
)


def padded_gguf(folder: Path, num_bytes: int) -> bytes:
    """A real header and its tensors, and bytes that no tensor uses up to the wanted size."""
    content = write_tiny_llama(folder / "tiny.gguf").read_bytes()
    return content + random.Random(0).randbytes(num_bytes - len(content))


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return padded_gguf(tmp_path_factory.mktemp("gguf"), 3 * MIB)


def repos(content: bytes, *, gated: bool = False, private: bool = False) -> dict[str, Repo]:
    return {NAME: Repo({"README.md": b"# Tiny", FILE: content}, gated=gated, private=private)}


def pull(
    server: HubServer,
    models: Path,
    *,
    quant: str = "",
    token: str = "",
    control: JobControl | None = None,
    check: hub_pull.Check = lambda header: None,
) -> HubPull:
    return pull_from_hub(
        HuggingFace(server.url, token),
        HubAddress(NAME, quant),
        models,
        control or JobControl(),
        check=check,
        patience=IMPATIENT,
    )


def leftovers(models: Path) -> list[str]:
    """What is left of downloads, but for the locks."""
    return [path.name for path in (models / ".downloads").iterdir() if path.suffix != ".lock"]


def test_a_file_comes_into_the_library_with_every_byte_sent_once(
    tmp_path: Path, content: bytes
) -> None:
    seen: list[Progress] = []
    with serving_hub(repos(content)) as server:
        pulled = pull(server, tmp_path, token=TOKEN, control=JobControl(seen.append))
        assert pulled.path == tmp_path / "acme" / "Tiny-GGUF" / FILE
        assert pulled.path.read_bytes() == content
        assert server.num_bytes_sent == len(content)
        assert server.ranges == [f"bytes=0-{MIB - 1}", f"bytes={MIB}-"]
        # The token is for the hub, not for the store it sends us on to; and nobody phones home.
        assert set(server.store_authorizations) == {""}
        assert not [path for path in server.hub_paths if "telemetry" in path or "agent" in path]
        assert seen[-1] == Progress(f"Downloading {FILE}", len(content), len(content))
        assert leftovers(tmp_path) == []
        assert [model.path for model in ModelLibrary(lambda: [tmp_path]).scan()] == [pulled.path]
        assert pull(server, tmp_path).was_here
        assert server.num_bytes_sent == len(content)


def test_what_the_engine_cannot_run_is_refused_after_its_header(
    tmp_path: Path, content: bytes
) -> None:
    def refuse(header: CheckpointHeader) -> None:
        raise UnsupportedModelError(f"Octavo does not run {header.architecture}.")

    with serving_hub(repos(content)) as server:
        with pytest.raises(UnsupportedModelError, match="does not run llama"):
            pull(server, tmp_path, check=refuse)
        assert server.num_bytes_sent <= MIB
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "acme").exists()


def test_what_is_no_gguf_file_is_refused_after_its_first_bytes(tmp_path: Path) -> None:
    with serving_hub(repos(b"x" * 3 * MIB)) as server:
        with pytest.raises(CheckpointError, match=f"{FILE} is not a GGUF file"):
            pull(server, tmp_path)
        assert server.num_bytes_sent <= MIB


@pytest.mark.parametrize("first_bytes", [8, 64, 300, 1021, 4096])
def test_a_header_longer_than_what_is_fetched_first(
    tmp_path: Path, content: bytes, first_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_pull, "_FIRST_BYTES", first_bytes)
    headers: list[CheckpointHeader] = []
    with serving_hub(repos(content)) as server:
        path = pull(server, tmp_path, check=headers.append).path
        assert server.num_bytes_sent == len(content)
    whole = read_gguf_header(path)
    (header,) = headers
    assert (header.num_parameters, header.tensor_bytes) == (
        whole.num_parameters,
        whole.tensor_bytes,
    )
    assert getattr(header, "metadata", None) == whole.metadata
    assert getattr(header, "tensors", None) == whole.tensors


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([Fault(drop_after=CHUNK_BYTES * n) for n in (3, 1, 9)], id="drop"),
        pytest.param([Fault(), Fault(stall_after=CHUNK_BYTES)], id="stall"),
        pytest.param([Fault(), Fault(ignores_range=True)], id="ignored-range"),
        pytest.param([Fault(ignores_range=True)], id="ignored-first-range"),
        pytest.param([Fault(), Fault(content=b"y" * 3 * MIB)], id="wrong-bytes"),
        pytest.param([Fault(), Fault(tag='"other"')], id="changed-etag"),
        pytest.param([Fault(status=403), Fault(), Fault(status=403)], id="expired-address"),
        pytest.param([Fault(status=429, headers={"Retry-After": "0"})], id="429"),
        pytest.param([Fault(), Fault(status=503), Fault(status=500)], id="503"),
    ],
)
def test_faults_on_the_way(tmp_path: Path, content: bytes, faults: list[Fault]) -> None:
    with serving_hub(repos(content), *faults) as server:
        assert pull(server, tmp_path).path.read_bytes() == content
        assert server.faults == []
    assert leftovers(tmp_path) == []


def test_wrong_bytes_twice_are_an_error(tmp_path: Path, content: bytes) -> None:
    wrong = Fault(content=content[:MIB] + b"y" * 2 * MIB)
    with (
        serving_hub(repos(content), *[wrong] * 4) as server,
        pytest.raises(DownloadError, match=r"does not send the right file: its sha256 is"),
    ):
        pull(server, tmp_path)
    assert not (tmp_path / "acme").exists()


def test_an_address_that_is_always_refused_is_given_up(tmp_path: Path, content: bytes) -> None:
    with (
        serving_hub(repos(content), *[Fault(status=403)] * 9) as server,
        pytest.raises(DownloadError, match=r"3 times in a row: the signed address has expired"),
    ):
        pull(server, tmp_path)


def test_a_cancelled_pull_goes_on_later(tmp_path: Path, content: bytes) -> None:
    control = JobControl(lambda progress: control.cancel() if progress.done > 2 * MIB else None)
    with serving_hub(repos(content)) as server:
        server.pause_s = 0.001
        with pytest.raises(JobCancelled):
            pull(server, tmp_path, control=control)
        server.pause_s = 0.0
        assert pull(server, tmp_path).path.read_bytes() == content
        assert int(server.ranges[-1].strip("bytes=-")) > 2 * MIB


def test_a_gated_model(tmp_path: Path, content: bytes) -> None:
    with serving_hub(repos(content, gated=True)) as server:
        with pytest.raises(DownloadError, match=r"gated: .*set \$HF_TOKEN"):
            pull(server, tmp_path)
        with pytest.raises(DownloadError, match=r"gated, and the account of \$HF_TOKEN has no"):
            pull(server, tmp_path, token="hf_other")
        assert not list(tmp_path.iterdir())
        assert pull(server, tmp_path, token=TOKEN).path.read_bytes() == content


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=MIB))
    with (
        serving_hub(repos(content)) as server,
        pytest.raises(StorageError, match=r"needs 3.0 MiB in .*1.0 MiB are free.*Make 2.0 MiB"),
    ):
        pull(server, tmp_path)
    assert server.num_bytes_sent == 0


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (401, {}, "401"),
        (403, {}, r"refuses the request \(403\)"),
        (404, {}, "status 404"),
        (429, {"Retry-After": "7"}, r"too many requests.*in 7 s.*\$HF_TOKEN raises"),
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
    with pytest.raises(DownloadError, match="cannot be reached"):
        hub.repository(HubAddress(NAME))


def test_no_such_repository_revision_or_login(content: bytes) -> None:
    with serving_hub(repos(content, private=True)) as server:
        hub = HuggingFace(server.url)
        with pytest.raises(ModelNotFoundError, match=r"no model acme/None, or it is private"):
            hub.repository(HubAddress("acme/None"))
        with pytest.raises(ModelNotFoundError, match=r"private and \$HF_TOKEN is not set"):
            hub.repository(HubAddress(NAME))
        known = HuggingFace(server.url, TOKEN)
        assert [file.path for file in known.repository(HubAddress(NAME)).files] == [FILE]
        with pytest.raises(ModelNotFoundError, match="no such revision"):
            known.repository(HubAddress(NAME, revision="v9"))


def test_search_lists_gguf_repositories_by_downloads() -> None:
    there = {f"bulk/m{n:02d}-GGUF": Repo({"a.gguf": b"1"}, downloads=n) for n in range(9)}
    there["acme/weights"] = Repo({"m.safetensors": b"1"}, tags=("text-generation",))
    there["acme/gated-GGUF"] = Repo({"a.gguf": b"1"}, gated=True, downloads=5000)
    with serving_hub(there) as server:
        found = HuggingFace(server.url).search("m0", limit=3)
        assert [model.repository for model in found] == [f"bulk/m{n:02d}-GGUF" for n in (8, 7, 6)]
        assert (found[0].architecture, found[0].num_parameters) == ("llama", 135_000_000)
        (gated,) = HuggingFace(server.url).search("gated")
        assert gated.is_gated
        assert gated.downloads == 5000
        assert HuggingFace(server.url).search("nothing") == []


# Imports once and forks for each try: what is killed is a real process, its start is not measured.
PULLER = """
import os
import sys
from pathlib import Path
from octavo.hub.hub_files import HubAddress
from octavo.hub.hub_pull import pull_from_hub
from octavo.hub.hugging_face import HuggingFace
from octavo.jobs import JobControl
import huggingface_hub
huggingface_hub.HfApi, huggingface_hub.hf_hub_url
_, url, name, models = sys.argv
for _ in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            pull_from_hub(
                HuggingFace(url), HubAddress(name), Path(models), JobControl(),
                check=lambda header: None,
            )
            os._exit(0)
        finally:
            os._exit(1)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
@pytest.mark.parametrize(
    "size_bytes", [20_000_000, pytest.param(100_000_000, marks=pytest.mark.slow)]
)
def test_killed_ten_times_it_arrives_with_two_percent_more_at_most(
    tmp_path: Path, size_bytes: int
) -> None:
    content = padded_gguf(tmp_path, size_bytes)
    models = tmp_path / "models"
    chance = random.Random(7)
    kill_points = sorted(chance.randrange(size_bytes) for _ in range(10))
    with (
        serving_hub(repos(content)) as server,
        subprocess.Popen(
            [sys.executable, "-c", PULLER, server.url, NAME, str(models)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as puller,
    ):
        assert puller.stdin is not None
        assert puller.stdout is not None
        # Some 8 MB/s: what is on its way when the process dies is lost.
        server.pause_s = 0.001
        for point in kill_points:
            print(file=puller.stdin, flush=True)
            pid = int(puller.stdout.readline())
            while server.num_bytes_sent < point:
                time.sleep(0.001)
            os.kill(pid, signal.SIGKILL)
            assert int(puller.stdout.readline()) == signal.SIGKILL
        print(file=puller.stdin, flush=True)
        puller.stdout.readline()
        assert int(puller.stdout.readline()) == 0
        puller.stdin.close()
        sent_bytes = server.num_bytes_sent
    arrived = (models / "acme" / "Tiny-GGUF" / FILE).read_bytes()
    assert hashlib.sha256(arrived).digest() == hashlib.sha256(content).digest()
    assert sent_bytes <= 1.02 * size_bytes
    assert leftovers(models) == []
