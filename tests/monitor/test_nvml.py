"""The real NVML binding in a child process on a pretended driver library; a real card if marked."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from octavo.monitor.nvml import NvmlProbe

SOURCE = Path(__file__).parent / "fake_nvml.c"
COMPILER = shutil.which("gcc") or shutil.which("cc")
GIB = 1 << 30

PRELUDE = """\
import json, os
from dataclasses import asdict
from octavo.monitor.nvml import NvmlProbe
now = [0.0]
probe = NvmlProbe(clock=lambda: now[0])
def show(value): print(json.dumps(asdict(value)))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


def build(folder: Path, *flags: str) -> Path:
    if COMPILER is None or not sys.platform.startswith("linux"):
        pytest.skip("the pretended driver needs Linux and a C compiler")
    target = folder / "libnvidia-ml.so.1"
    command = [COMPILER, "-shared", "-fPIC", *flags, "-o", str(target), str(SOURCE)]
    subprocess.run(command, check=True, timeout=60)
    return folder


def run(library: Path, code: str, **environment: str) -> list[Any]:
    """What a fresh interpreter prints, line by line, with that folder's NVML."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FAKE_NVML")}
    completed = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + code],
        env={**kept, "LD_LIBRARY_PATH": str(library), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return [json.loads(line) for line in completed.stdout.splitlines()]


def test_everything_is_read_in_its_unit(library: Path) -> None:
    environment = {"FAKE_NVML_PID": str(os.getpid()), "FAKE_NVML_COUNT": "2"}
    [report] = run(library, "show(probe.read())", **environment)
    first, second = report["gpus"]
    processes = first.pop("processes")
    assert first == {
        "name": "NVIDIA GeForce RTX 4090",
        "uuid": "GPU-1",
        "vram_used_bytes": 3 * GIB,
        "vram_total_bytes": 24 * GIB,
        "utilization_percent": 87.0,
        "temperature_c": 61,
        "power_w": 215.3,
        "power_limit_w": 450.0,
        "clock_sm_mhz": 2520,
        "clock_memory_mhz": 10501,
        "problem": "",
    }
    assert second["uuid"] == "GPU-2"
    assert report["problem"] == ""
    computing, unknown = processes
    assert computing["pid"] == os.getpid()
    assert computing["name"]
    assert computing["vram_bytes"] == 2 * GIB, "computing and drawing count once"
    assert unknown == {"pid": 999999999, "name": "", "vram_bytes": None}


def test_a_refused_field_leaves_the_others(library: Path) -> None:
    [report] = run(library, "show(probe.read())", FAKE_NVML_NO_POWER="1")
    [gpu] = report["gpus"]
    assert gpu["power_w"] is None
    assert gpu["power_limit_w"] == 450.0
    assert gpu["vram_used_bytes"] == 3 * GIB


def test_an_old_driver_lacks_functions(tmp_path: Path) -> None:
    [report] = run(build(tmp_path, "-DOLD_DRIVER"), "show(probe.read())")
    [gpu] = report["gpus"]
    assert gpu["vram_used_bytes"] == 4 * GIB, "the older call counts the driver's reserve"
    assert gpu["processes"] is None
    assert gpu["temperature_c"] == 61


def test_a_card_that_supports_nothing_is_named_and_says_so(library: Path) -> None:
    [report] = run(library, "show(probe.read())", FAKE_NVML_BARE="1")
    [gpu] = report["gpus"]
    name, problem = gpu.pop("name"), gpu.pop("problem")
    assert name == "NVIDIA GeForce RTX 4090"
    assert problem == "The driver reports nothing about this card."
    assert gpu.pop("uuid") == "GPU-1"
    assert set(gpu.values()) == {None}


def test_a_lost_card_says_so_and_is_found_again(library: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = """
show(probe.read())
os.environ["FAKE_NVML_LOST"] = "2"
show(probe.read())
for now[0] in (1.0, 2.0, 9.9, 10.0, 11.0, 15.0): probe.read()
show(probe.read())
del os.environ["FAKE_NVML_LOST"]
now[0] = 19.0
show(probe.read())
now[0] = 20.0
show(probe.read())
for now[0] in (21.0, 40.0, 60.0): probe.read()
"""
    reports = run(library, code, FAKE_NVML_COUNT="2", FAKE_NVML_LOG=str(log))
    problems = [[gpu["problem"] for gpu in report["gpus"]] for report in reports]
    assert problems[0] == ["", ""]
    assert all(report["gpus"][0]["temperature_c"] == 61 for report in reports), "the other goes on"
    for lost in problems[1:4]:
        assert lost[0] == ""
        assert lost[1].startswith("The driver has lost this card.")
    assert [gpu["uuid"] for gpu in reports[2]["gpus"]] == ["GPU-1", "GPU-2"], "it keeps its name"
    assert problems[4] == ["", ""]
    assert log.read_text().count("init") == 3, "at the start, at 10 s and at 20 s"


def test_a_card_that_needs_a_reset(library: Path) -> None:
    code = "probe.read()\nos.environ['FAKE_NVML_LOST'] = '1'\nshow(probe.read())"
    [report] = run(library, code, FAKE_NVML_ERROR="16")
    assert "must be reset" in report["gpus"][0]["problem"]


def test_a_card_lost_before_the_start_is_not_hidden(library: Path) -> None:
    [report] = run(library, "show(probe.read())", FAKE_NVML_LOST="1")
    [gpu] = report["gpus"]
    assert gpu["name"] == "NVIDIA GPU"
    assert gpu["problem"].startswith("The driver has lost this card.")


@pytest.mark.parametrize(
    ("code", "sentence"),
    [("9", "not loaded"), ("18", "updated while"), ("4", "refuses"), ("999", "does not answer")],
)
def test_a_driver_that_does_not_answer(library: Path, code: str, sentence: str) -> None:
    [report] = run(library, "show(probe.read())", FAKE_NVML_INIT=code)
    assert report["gpus"] == []
    assert sentence in report["problem"]
    assert report["problem"].endswith(".")


def test_a_driver_that_comes_back_is_used(library: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = """
for now[0] in (0.0, 1.0, 9.0): report = probe.read()
show(report)
del os.environ["FAKE_NVML_INIT"]
now[0] = 10.0
show(probe.read())
probe.close()
"""
    absent, present = run(library, code, FAKE_NVML_INIT="9", FAKE_NVML_LOG=str(log))
    assert absent["problem"]
    assert present["problem"] == ""
    assert len(present["gpus"]) == 1
    assert log.read_text().count("init") == 2


def test_no_library(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")
    [report] = run(tmp_path, "show(probe.read())")
    assert report == {"gpus": [], "problem": "No NVIDIA driver was found on this machine."}


def test_cards_for_the_inventory(library: Path) -> None:
    [card] = run(library, "show(probe.cards()[0][0])")
    assert card == {
        "name": "NVIDIA GeForce RTX 4090",
        "bus_id": "0000:01:00.0",
        "pci_id": "10de:2684",
        "vram_bytes": 24 * GIB,
        "compute_capability": [8, 9],
        "interface": "PCIe 4.0 x16",
    }


@pytest.mark.gpu
def test_a_real_card_is_plausible() -> None:
    probe = NvmlProbe()
    report = probe.read()
    cards, problem = probe.cards()
    probe.close()
    assert report.problem == problem == ""
    assert len(report.gpus) == len(cards) >= 1
    gpu, card = report.gpus[0], cards[0]
    assert gpu.problem == ""
    assert gpu.vram_used_bytes is not None
    assert gpu.vram_total_bytes is not None
    assert 0 <= gpu.vram_used_bytes < gpu.vram_total_bytes
    assert GIB <= gpu.vram_total_bytes <= 1024 * GIB
    assert gpu.temperature_c is None or 5 <= gpu.temperature_c <= 110
    assert gpu.power_w is None or 1 <= gpu.power_w <= 1500
    assert gpu.clock_sm_mhz is None or 50 <= gpu.clock_sm_mhz <= 5000
    assert card.compute_capability is not None
    assert card.pci_id is not None
    assert card.pci_id.startswith("10de:")


LOOK = """
import json, os, sys

def look():
    from octavo.monitor.nvml import NvmlProbe
    probe = NvmlProbe()
    report = probe.read()
    listed = [p.vram_bytes for gpu in report.gpus for p in gpu.processes or () if p.pid in PIDS]
    return probe, listed

def own_pids():
    # Inside a container the driver may list the process by its number outside.
    for line in open("/proc/self/status"):
        if line.startswith("NSpid:"):
            return {int(word) for word in line.split()[1:]} | {os.getpid()}
    return {os.getpid()}

PIDS = own_pids()
"""

WATCH = (
    LOOK
    + """
print("ready", flush=True)
sys.stdin.readline()
if sys.argv[1] == "context":
    import torch
    held = torch.ones(64 << 20, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
probe, listed = look()
libraries = {line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}
cuda = sorted(name for name in libraries if "/libcuda.so" in name)
print(json.dumps({"listed": listed, "cuda": cuda}), flush=True)
sys.stdin.readline()
"""
)
NOISE_BYTES = 16 << 20
LEAST_CONTEXT_BYTES = 100 << 20
"""The 64 MiB that the control holds, and what a context itself takes: some hundred MiB."""


@dataclass(frozen=True)
class Watched:
    """What a fresh process left on the card while it lived."""

    growth_bytes: int
    """Of the card's used memory, as another process saw it."""
    is_listed: bool
    cuda_libraries: list[str]


def watch(doing: str) -> Watched:
    """Starts a process that only looks at the card ("look"), or makes a CUDA context ("context").

    The card is asked from a second, fresh process that has NVML open all the time: this one may
    hold CUDA memory of other tests.
    """
    observer_code = (
        LOOK
        + """
probe, _ = look()
while line := sys.stdin.readline():
    print(probe.read().gpus[0].vram_used_bytes, flush=True)
"""
    )
    with (
        start(observer_code) as observer,
        start(WATCH, doing) as watched,
    ):
        assert read_line(watched) == "ready"
        before_bytes = int(ask(observer))
        seen = json.loads(ask(watched))
        after_bytes = int(ask(observer))
        for process in (watched, observer):
            assert process.stdin is not None
            process.stdin.close()
    assert (watched.returncode, observer.returncode) == (0, 0)
    return Watched(after_bytes - before_bytes, bool(seen["listed"]), seen["cuda"])


def start(code: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def read_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the process ended before its time"
    return line.strip()


def ask(process: "subprocess.Popen[str]") -> str:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return read_line(process)


@pytest.mark.gpu
def test_looking_makes_no_cuda_context() -> None:
    """A context is memory on the card and an entry in its list of processes.

    Neither an open `/dev/nvidia-uvm` nor a mapped libcuda says anything: a process that has only
    started NVML showed both (driver 580.159), and took no memory. Another program on the card may
    take memory between the two looks, so a rise counts only if it comes twice.
    """
    seen = watch("look")
    if seen.growth_bytes >= NOISE_BYTES:
        seen = watch("look")
    assert seen.growth_bytes < NOISE_BYTES
    assert not seen.is_listed


@pytest.mark.gpu
def test_a_cuda_context_would_have_been_seen() -> None:
    """The check above, where there is something to find; the list may be closed to a container."""
    seen = watch("context")
    assert seen.growth_bytes >= LEAST_CONTEXT_BYTES
    if not seen.is_listed:
        pytest.skip("memory was seen; this driver lists no processes to a container")
