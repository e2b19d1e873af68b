"""Which build of PyTorch this machine gets, and why.

With an NVIDIA driver the CUDA build, else the CPU build. PyTorch's plain Linux wheel drags in
gigabytes of CUDA libraries, which a machine without such a GPU must never get. So pip is asked for
its plan before anything is downloaded, with these requests in turn, and the first plan of the right
kind is installed:

    CPU, Linux     torch==V+cpu from the sources pip is set up with (mirrors, local wheels),
                   torch==V+cpu from PyTorch's own download page,
                   torch==V if that plan holds no CUDA library
    CUDA, Linux    torch===V (three signs: a local CPU wheel of that version does not count),
                   torch==V+cu130 from PyTorch's own download page
    CUDA, Windows  torch==V+cu130 from PyTorch's own download page
    else           torch==V

If no plan has the right kind, the launcher stops with one sentence, or, where it chose CUDA by
itself, takes the CPU build and says so. Installing the plain wheel without its CUDA libraries is no
way out: it is linked against them and cannot be imported.

A CUDA version is a major number here: 0 if there is CUDA but it does not say which, None if there
is no CUDA.
"""

import ctypes
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from launcher.console import SetupError
from launcher.pip import Plan

TORCH_VERSION = "2.13.0"
PYTORCH_PAGE = "https://download.pytorch.org/whl/"
CUDA_BUILD = "cu130"
CPU, CUDA = "cpu", "cuda"
DOWNLOADS = {CPU: "The CPU build, about 200 MB", CUDA: "The CUDA build, about 3 GB"}
NEEDED_GB = {CPU: 3, CUDA: 14}

Request = tuple[str, ...]
"""Words after `pip install`."""
Ask = Callable[[Request], Plan | None]
"""Asks pip for its plan; None if it finds nothing."""


class TorchBuild(NamedTuple):
    """What to hand to `pip install` for PyTorch."""

    request: Request
    kind: str
    """cpu, cuda, or the person's own SPEC."""
    cuda: int | None = None
    """The CUDA that comes along, where pip's plan was looked at."""
    note: str = ""
    """A sentence on why it is not what one would expect."""

    @property
    def label(self) -> str:
        """How it is announced."""
        return DOWNLOADS.get(self.kind, f"As you asked: {self.kind}")

    @property
    def needed_gb(self) -> int:
        """Room on the disk for the whole set-up with this build."""
        return NEEDED_GB.get(self.kind, NEEDED_GB[CPU])


def choose_build(option: str, platform: str, driver_cuda: int | None, ask: Ask) -> TorchBuild:
    """Decides on a build.

    Args:
        option: what --torch said; empty for the launcher's own decision.
        platform: as `sys.platform`.
        driver_cuda: the newest CUDA that the NVIDIA driver runs.
    """
    if option == CPU:
        return cpu_build(platform, ask)
    if option == CUDA:
        return wanted_cuda_build(platform, driver_cuda, ask)
    if option:
        return build_as_asked(option)
    if driver_cuda is None or platform == "darwin":
        return cpu_build(platform, ask)
    return best_build(platform, driver_cuda, ask)


def build_as_asked(option: str) -> TorchBuild:
    """The person's own words for pip."""
    words = shlex.split(option, posix=os.name == "posix")
    # pip runs in the checkout: a wheel's path counts from where the person is.
    request = tuple(str(Path(word).resolve()) if Path(word).is_file() else word for word in words)
    return TorchBuild(request, option)


def best_build(platform: str, driver_cuda: int, ask: Ask) -> TorchBuild:
    """The CUDA build, or the CPU build with a note why the GPU is not used."""
    build = find_cuda_build(platform, ask)
    if build is None:
        note = "There is an NVIDIA driver, but pip finds no CUDA build; taking the CPU build."
    else:
        too_old = too_old_sentence(driver_cuda, build.cuda)
        if not too_old:
            return build
        note = f"{too_old} Until then Octavo takes the CPU build."
    return cpu_build(platform, ask)._replace(note=note)


def wanted_cuda_build(platform: str, driver_cuda: int | None, ask: Ask) -> TorchBuild:
    """The CUDA build or an error: the person wants no other."""
    if platform == "darwin":
        raise SetupError("There is no CUDA on macOS: leave --torch away.")
    build = find_cuda_build(platform, ask)
    if build is None:
        raise SetupError(
            f"pip finds no CUDA build of PyTorch {TORCH_VERSION} for this Python: check "
            "the network, or name a wheel with --torch PATH."
        )
    return build._replace(note=too_old_sentence(driver_cuda, build.cuda))


def find_cuda_build(platform: str, ask: Ask) -> TorchBuild | None:
    """The first CUDA build pip finds."""
    for request in requests_for(CUDA, platform):
        cuda = plan_cuda(ask(request) or ())
        if cuda is not None:
            return TorchBuild(request, CUDA, cuda)
    return None


def cpu_build(platform: str, ask: Ask) -> TorchBuild:
    """The first build pip finds that brings no CUDA along."""
    plans = []
    for request in requests_for(CPU, platform):
        plan = ask(request)
        if plan is not None and plan_cuda(plan) is None:
            return TorchBuild(request, CPU)
        plans.append(plan)
    if any(plan is not None for plan in plans):
        raise SetupError(
            f"pip offers PyTorch {TORCH_VERSION} for this machine only with about 3 GB of CUDA "
            f"libraries, and {PYTORCH_PAGE}cpu cannot be reached: add `--torch cuda` to accept "
            "them, or name a CPU wheel with `--torch PATH`."
        )
    raise SetupError(
        f"pip finds no PyTorch {TORCH_VERSION} for Python {sys.version_info[0]}."
        f"{sys.version_info[1]} on this machine: check the network and `pip config list`, try "
        "another Python (3.11 to 3.14), or name a wheel with `--torch PATH`."
    )


def requests_for(kind: str, platform: str) -> list[Request]:
    """What to ask pip for, in turn; the module's docstring says why."""
    plain = f"torch=={TORCH_VERSION}"
    if kind == CUDA:
        cuda = f"{plain}+{CUDA_BUILD}"
        page = (cuda, "--extra-index-url", f"{PYTORCH_PAGE}{CUDA_BUILD}")
        return [page] if platform == "win32" else [(f"torch==={TORCH_VERSION}",), page]
    if platform.startswith("linux"):
        cpu = f"{plain}+cpu"
        return [(cpu,), (cpu, "--extra-index-url", f"{PYTORCH_PAGE}cpu"), (plain,)]
    return [(plain,)]


def plan_cuda(plan: Plan) -> int | None:
    """The CUDA that comes along with a plan."""
    found = None
    for name, version in plan:
        build = re.search(r"\+cu(\d+)\d$", version)
        if name == "torch" and build:
            return int(build[1])
        if name.startswith(("nvidia-cuda-runtime", "cuda-toolkit")):
            return int(version.split(".")[0])
        if name.startswith(("nvidia-", "cuda-")) and name != "nvidia-ml-py":
            found = 0
    return found


def too_old_sentence(driver_cuda: int | None, needed_cuda: int | None) -> str:
    """What to do if the driver cannot run that CUDA; empty if it can, or nobody knows."""
    if not driver_cuda or not needed_cuda or driver_cuda >= needed_cuda:
        return ""
    return (
        f"The NVIDIA driver runs CUDA {driver_cuda} and this PyTorch needs CUDA "
        f"{needed_cuda}: update the driver, then run this with `--torch cuda`."
    )


def find_driver_cuda() -> int | None:
    """The newest CUDA that the NVIDIA driver runs; without its library, looks for other traces."""
    try:
        nvml = ctypes.CDLL("nvml.dll" if os.name == "nt" else "libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() == 0:
            count, version = ctypes.c_uint(), ctypes.c_int()
            nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
            nvml.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(version))
            nvml.nvmlShutdown()
            return version.value // 1000 if count.value else None
    except (OSError, AttributeError):
        if shutil.which("nvidia-smi"):
            return 0
    return 0 if Path("/proc/driver/nvidia/version").exists() else None
