"""Sets Octavo up in a checkout and starts it; needs nothing but Python 3.11 or newer.

    python3 packaging/launch.py                    sets up and opens the window
    python3 packaging/launch.py run "Hello!"       all further words go to `octavo`
    python3 packaging/launch.py test [-k NAME]     sets up with the test tools and runs every check
    python3 packaging/launch.py setup              sets up and starts nothing

Options come first:

    --torch cpu|cuda|SPEC    which PyTorch; SPEC is what `pip install` takes: a version, the path
                             of a wheel, or several words in quotes
    --reset                  makes the private environment (.venv) anew

Everything is installed into `.venv` beside pyproject.toml. A stamp in it says what was set up, and
a later start that finds it matching runs no pip. An interrupted set-up is finished by the next one.

Which PyTorch: with an NVIDIA driver the CUDA build, else the CPU build. PyTorch's plain Linux wheel
drags in gigabytes of CUDA libraries, which a machine without such a GPU must never get. So pip is
asked for its plan before anything is downloaded, with these requests in turn, and the first plan of
the right kind is installed:

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
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  (this check is the reason the sentence can be said)
    sys.exit("Octavo needs Python 3.11 or newer; this is Python %d.%d." % sys.version_info[:2])  # noqa: UP031

import contextlib
import ctypes
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "octavo-setup.json"
UNFINISHED = VENV / "octavo-setup.unfinished"
STAMP_FORMAT = 1

TORCH_VERSION = "2.13.0"
PYTORCH_PAGE = "https://download.pytorch.org/whl/"
CUDA_BUILD = "cu130"
NEEDED_GB = {"cpu": 3, "cuda": 14}
CPU, CUDA = "cpu", "cuda"

# What Qt's window plugins need of a bare Debian or Ubuntu, library by library.
QT_PACKAGES = {
    "libEGL.so.1": "libegl1",
    "libGL.so.1": "libgl1",
    "libX11-xcb.so.1": "libx11-xcb1",
    "libX11.so.6": "libx11-6",
    "libdbus-1.so.3": "libdbus-1-3",
    "libfontconfig.so.1": "libfontconfig1",
    "libfreetype.so.6": "libfreetype6",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libgthread-2.0.so.0": "libglib2.0-0",
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-image.so.0": "libxcb-image0",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-randr.so.0": "libxcb-randr0",
    "libxcb-render-util.so.0": "libxcb-render-util0",
    "libxcb-render.so.0": "libxcb-render0",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libxcb-shm.so.0": "libxcb-shm0",
    "libxcb-sync.so.1": "libxcb-sync1",
    "libxcb-util.so.1": "libxcb-util1",
    "libxcb-xfixes.so.0": "libxcb-xfixes0",
    "libxcb-xkb.so.1": "libxcb-xkb1",
    "libxcb.so.1": "libxcb1",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
    "libxkbcommon.so.0": "libxkbcommon0",
    "libz.so.1": "zlib1g",
    "libzstd.so.1": "libzstd1",
}
# Run in the private environment: the import finds Qt's own needs, the plugin those of the display.
QT_PROBE = """
import ctypes, pathlib, sys
try:
    import PySide6.QtWidgets
    if sys.platform == "linux":
        folder = pathlib.Path(PySide6.__file__).parent / "Qt" / "plugins" / "platforms"
        ctypes.CDLL(str(folder / "libqxcb.so"))
except (ImportError, OSError) as error:
    sys.exit(str(error))
"""


class SetupError(Exception):
    """Stops the launcher; the text is one sentence with the next step."""


class Options(NamedTuple):
    """The command line, taken apart."""

    torch: str = ""
    reset: bool = False
    words: tuple[str, ...] = ()

    @property
    def extras(self) -> tuple[str, ...]:
        """Optional dependencies of pyproject.toml that this run needs."""
        return ("test",) if self.words[:1] == ("test",) else ()


class Stamp(NamedTuple):
    """What a finished set-up was made from."""

    format: int
    project: str
    """Hash of what pyproject.toml says about dependencies."""
    root: str
    python: str
    torch: str
    """The word given with --torch, or the launcher's own choice."""
    extras: tuple[str, ...]
    qt_problem: str

    def covers(self, wanted: "Stamp", torch_option: str) -> bool:
        """Whether nothing needs to be installed. Without --torch, what was chosen once stays."""
        return (
            (self.format, self.project, self.root, self.python)
            == (wanted.format, wanted.project, wanted.root, wanted.python)
            and set(wanted.extras) <= set(self.extras)
            and torch_option in ("", self.torch)
        )


class Driver(NamedTuple):
    """The NVIDIA driver of this machine."""

    cuda_major: int | None
    """The newest CUDA it runs; None if it did not say."""


class Plan(NamedTuple):
    """What pip would install: names in lower case, and versions."""

    packages: tuple[tuple[str, str], ...]

    @property
    def cuda_major(self) -> int | None:
        """The CUDA that comes along, 0 if its version cannot be told; None without CUDA."""
        found = None
        for name, version in self.packages:
            build = re.search(r"\+cu(\d+)\d$", version)
            if name == "torch" and build:
                return int(build[1])
            if name.startswith(("nvidia-cuda-runtime", "cuda-toolkit")):
                return int(version.split(".")[0])
            if name.startswith(("nvidia-", "cuda-")) and name != "nvidia-ml-py":
                found = 0
        return found


class TorchChoice(NamedTuple):
    """What to hand to `pip install` for PyTorch."""

    arguments: tuple[str, ...]
    kind: str
    """cpu, cuda, or the person's own SPEC."""
    note: str = ""

    @property
    def label(self) -> str:
        """How it is announced."""
        sizes = {CPU: "The CPU build, about 200 MB", CUDA: "The CUDA build, about 3 GB"}
        return sizes.get(self.kind, f"As you asked: {self.kind}")


def main(arguments: Sequence[str]) -> int:
    """Sets up what is missing, then starts what was asked for."""
    try:
        options = parse_arguments(arguments)
        python = ensure_environment(options)
        if options.words[:1] == ("test",):
            return run_checks(python, options.words[1:])
        if options.words == ("setup",):
            say(f"Octavo is set up in {VENV}.")
            return 0
    except SetupError as error:
        print(f"octavo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on where this one stopped.", file=sys.stderr)
        return 130
    return start([str(python), "-m", "octavo", *options.words])


def parse_arguments(arguments: Sequence[str]) -> Options:
    """Takes the launcher's options off the front; the first other word ends them."""
    torch, reset = "", False
    rest = list(arguments)
    while rest and rest[0].partition("=")[0] in ("--reset", "--torch"):
        name, equals, value = rest.pop(0).partition("=")
        if name == "--reset":
            reset = True
            continue
        torch = value if equals else (rest.pop(0) if rest else "")
        if not torch.strip():
            raise SetupError("--torch needs a word after it: cpu, cuda, or what pip install takes.")
    return Options(torch, reset, tuple(rest))


def start(command: Sequence[str]) -> int:
    """Becomes the app where the system can do that; else runs it and returns its exit code."""
    if os.name == "posix":
        sys.stdout.flush()
        os.execv(command[0], list(command))  # noqa: S606  (no shell is what we want)
    try:
        return subprocess.call(command)
    except KeyboardInterrupt:
        return 130


def ensure_environment(options: Options) -> Path:
    """The Python of a complete private environment."""
    python = venv_python()
    stamp = read_stamp(STAMP)
    if not options.reset and stamp is not None and is_current(stamp, options):
        if stamp.qt_problem and not options.words:
            stamp = stamp._replace(qt_problem=check_window(python))
            write_stamp(STAMP, stamp)
        return python
    with one_at_a_time():
        stamp = read_stamp(STAMP)
        if options.reset or stamp is None or not is_current(stamp, options):
            set_up(python, stamp or read_stamp(UNFINISHED), options)
    return python


def is_current(stamp: Stamp, options: Options) -> bool:
    """Whether the stamp belongs to this checkout as it is, and its Python is still there."""
    wanted = Stamp(STAMP_FORMAT, project_hash(), str(ROOT), stamp.python, "", options.extras, "")
    return stamp.covers(wanted, options.torch) and base_python_is(stamp.python)


def base_python_is(version: str) -> bool:
    """False if the Python that .venv was made from is gone or was replaced by another one."""
    python = venv_python()
    named = re.fullmatch(r"python(\d+\.\d+)", python.resolve().name)
    return python.exists() and (named is None or named[1] == version)


def set_up(python: Path, last: Stamp | None, options: Options) -> None:
    """Installs everything; each step may have been done before and then takes seconds.

    Args:
        last: the last set-up, finished or not; what was chosen for it stays chosen.
    """
    extras = tuple(sorted({*options.extras, *(last.extras if last else ())}))
    torch = options.torch or (last.torch if last and not options.reset else "")
    step = Steps(5 if "test" in options.extras else 4)

    step("Making a private environment in .venv")
    plan = Stamp(STAMP_FORMAT, project_hash(), str(ROOT), "", torch, extras, "")
    is_new = make_venv(python, plan, reset=options.reset)
    remove_half_installed(python)

    step(f"Choosing PyTorch {TORCH_VERSION}; pip is asked what it would install")
    driver = find_nvidia_driver()
    choice = choose_torch(torch, sys.platform, driver, lambda request: ask_pip(python, request))
    if choice.note:
        say(f"      {choice.note}")
    if is_new:
        check_room(choice.kind)
    say(f"      {choice.label}")
    pip_install(python, choice.arguments, "PyTorch")

    step("Installing Octavo and what it needs")
    target = f".[{','.join(extras)}]" if extras else "."
    pip_install(python, ("--editable", target), "Octavo")

    step("Checking the window's system libraries")
    qt_problem = check_window(python)

    if "test" in options.extras:
        step("Looking for a display for the window's tests")
        prepare_display()
    done = plan._replace(python=version_of(python), torch=choice.kind, qt_problem=qt_problem)
    write_stamp(STAMP, done)
    UNFINISHED.unlink(missing_ok=True)


def make_venv(python: Path, plan: Stamp, *, reset: bool) -> bool:
    """Makes .venv, or keeps the one that is there; True if it is new.

    From the first change on, the environment counts as unfinished.
    """
    unfinished = read_stamp(UNFINISHED)
    is_ours = STAMP.exists() or UNFINISHED.exists()
    # Without a Python in it, the note was left while the old environment was being deleted.
    is_half_deleted = unfinished is not None and not unfinished.python
    is_usable = python.exists() and runs(python, "-m", "pip", "--version")
    if is_usable and not is_half_deleted and not reset:
        if tuple(map(int, version_of(python).split("."))) < (3, 11):
            raise SetupError(
                f"{VENV} was made by Python {version_of(python)}, and Octavo needs 3.11 or newer: "
                "run `python3 packaging/launch.py --reset`."
            )
        write_stamp(UNFINISHED, plan._replace(python=version_of(python)))
        STAMP.unlink(missing_ok=True)
        return False
    if VENV.exists() and not (reset or is_ours):
        raise SetupError(
            f"{VENV} is no working environment and was not made by this launcher: "
            "delete it, or run `python3 packaging/launch.py --reset`."
        )
    ensure_venv_module()
    try:
        VENV.mkdir(exist_ok=True)
        write_stamp(UNFINISHED, plan)
        STAMP.unlink(missing_ok=True)
        for path in VENV.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != UNFINISHED:
                path.unlink()
    except OSError as error:
        raise SetupError(
            f"{VENV} cannot be made ({error.strerror}): move the checkout to a folder "
            "you may write to."
        ) from error
    result = subprocess.run(
        [sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SetupError(failure_sentence(result.stdout + result.stderr, "the environment", ROOT))
    write_stamp(UNFINISHED, plan._replace(python=version_of(python)))
    return True


def ensure_venv_module() -> None:
    """Debian packs venv and ensurepip apart from Python."""
    if importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip"):
        return
    package = "python{}.{}-venv".format(*sys.version_info[:2])
    say(f"      Python's venv module is missing; it is in the system package {package}.")
    if not (may_use_apt() and apt_install([package])):
        raise SetupError(
            f"Python's venv module is missing: run `sudo apt-get install {package}` "
            "(or your system's package of that kind), then the same command again."
        )


def remove_half_installed(python: Path) -> None:
    """Makes pip install again what a killed pip left behind: it writes INSTALLER last."""
    for folder in half_installed(python.parent.parent):
        shutil.rmtree(folder, ignore_errors=True)


def half_installed(venv: Path) -> list[Path]:
    """The records of packages whose installation did not come to its end."""
    pattern = "Lib/site-packages" if os.name == "nt" else "lib/python*/site-packages"
    return [
        info
        for site_packages in venv.glob(pattern)
        for info in site_packages.glob("*.dist-info")
        if not (info / "INSTALLER").exists() or not (info / "RECORD").exists()
    ]


def check_room(kind: str) -> None:
    """Stops before gigabytes are downloaded onto a disk that is too small."""
    free_gb = shutil.disk_usage(VENV).free / 1e9
    needed_gb = NEEDED_GB.get(kind, NEEDED_GB[CPU])
    if free_gb < needed_gb:
        raise SetupError(
            f"The set-up needs about {needed_gb} GB and {free_gb:.1f} GB are free in {ROOT}: "
            "make room, then run the same command again."
        )


def torch_requests(kind: str, platform: str) -> list[tuple[str, ...]]:
    """What to ask pip for, in turn; the module's docstring says why."""
    plain = f"torch=={TORCH_VERSION}"
    if kind == CPU and platform.startswith("linux"):
        cpu = f"{plain}+cpu"
        return [(cpu,), (cpu, "--extra-index-url", f"{PYTORCH_PAGE}cpu"), (plain,)]
    if kind == CUDA and platform != "darwin":
        cuda = f"{plain}+{CUDA_BUILD}"
        page = (cuda, "--extra-index-url", f"{PYTORCH_PAGE}{CUDA_BUILD}")
        return [page] if platform == "win32" else [(f"torch==={TORCH_VERSION}",), page]
    return [(plain,)]


def choose_torch(
    option: str,
    platform: str,
    driver: Driver | None,
    ask: Callable[[tuple[str, ...]], Plan | None],
) -> TorchChoice:
    """Decides on a build of PyTorch.

    Args:
        option: what --torch said; empty for the launcher's own decision.
        ask: pip's plan for a request, None if it finds nothing.
    """
    if option not in ("", CPU, CUDA):
        words = shlex.split(option, posix=os.name == "posix")
        # pip runs in the checkout: a wheel's path counts from where the person is.
        return TorchChoice(
            tuple(str(Path(word).resolve()) if Path(word).is_file() else word for word in words),
            option,
        )
    wants_cuda = option == CUDA or (not option and driver is not None and platform != "darwin")
    if wants_cuda and platform == "darwin":
        raise SetupError("There is no CUDA on macOS: leave --torch away.")
    note = ""
    if wants_cuda:
        for request in torch_requests(CUDA, platform):
            plan = ask(request)
            if plan is None or (plan.packages and plan.cuda_major is None):
                continue
            too_old = is_too_old(driver, plan)
            if not too_old or option == CUDA:
                return TorchChoice(request, CUDA, too_old)
            note = f"{too_old} Until then Octavo takes the CPU build."
            break
        else:
            if option == CUDA:
                raise SetupError(
                    f"pip finds no CUDA build of PyTorch {TORCH_VERSION} for this Python: check "
                    "the network, or name a wheel with --torch PATH."
                )
            note = "There is an NVIDIA driver, but pip finds no CUDA build; taking the CPU build."
    found_any = False
    for request in torch_requests(CPU, platform):
        plan = ask(request)
        found_any = found_any or plan is not None
        if plan is not None and plan.cuda_major is None:
            return TorchChoice(request, CPU, note)
    if found_any:
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


def is_too_old(driver: Driver | None, plan: Plan) -> str:
    """A sentence if the driver cannot run the CUDA of the plan; else empty."""
    if driver is None or not driver.cuda_major or not plan.cuda_major:
        return ""
    if driver.cuda_major >= plan.cuda_major:
        return ""
    return (
        f"The NVIDIA driver runs CUDA {driver.cuda_major} and this PyTorch needs CUDA "
        f"{plan.cuda_major}: update the driver, then run this with `--torch cuda`."
    )


def find_nvidia_driver() -> Driver | None:
    """Asks NVIDIA's management library for a GPU; where it is missing, looks for other traces."""
    try:
        nvml = ctypes.CDLL("nvml.dll" if os.name == "nt" else "libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() == 0:
            count, version = ctypes.c_uint(), ctypes.c_int()
            nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
            nvml.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(version))
            nvml.nvmlShutdown()
            return Driver(version.value // 1000 or None) if count.value else None
    except (OSError, AttributeError):
        if shutil.which("nvidia-smi"):
            return Driver(None)
    return Driver(None) if Path("/proc/driver/nvidia/version").exists() else None


def ask_pip(python: Path, request: tuple[str, ...]) -> Plan | None:
    """What pip would install into an empty environment; None if it finds nothing."""
    # The page of PyTorch may be blocked: one retry, or a person waits for minutes.
    result = subprocess.run(
        [
            *(str(python), "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-"),
            *("--ignore-installed", "--only-binary=:all:", "--retries", "1", *request),
        ],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=pip_environment(),
        check=False,
    )
    return parse_plan(result.stdout) if result.returncode == 0 else None


def parse_plan(report: str) -> Plan | None:
    """pip's installation report; nothing to install is an empty plan."""
    try:
        found = [item["metadata"] for item in json.loads(report)["install"]]
        return Plan(tuple((item["name"].lower(), item["version"]) for item in found))
    except (ValueError, LookupError, TypeError):
        return None


def pip_install(python: Path, arguments: Sequence[str], what: str) -> None:
    """Runs pip; its own progress bars on a terminal, its downloads line by line elsewhere."""
    on_terminal = sys.stdout.isatty()
    said: list[str] = []
    with subprocess.Popen(
        [str(python), "-m", "pip", "install", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=None if on_terminal else subprocess.PIPE,
        stderr=subprocess.PIPE if on_terminal else subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=pip_environment(),
    ) as process:
        stream = process.stderr if on_terminal else process.stdout
        assert stream is not None
        for line in stream:
            said.append(line)
            if line.lstrip().startswith(("Downloading ", "Installing ")) or "Retrying" in line:
                say(f"      {shorten(line.strip())}")
    if process.returncode:
        raise SetupError(failure_sentence("".join(said), what, ROOT))


def pip_environment() -> dict[str, str]:
    """The person's mirrors and proxies count; what would lead pip out of .venv does not."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX")
    }
    return kept | {
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_REQUIRE_VIRTUALENV": "0",
        "PIP_USER": "0",
    }


def failure_sentence(output: str, what: str, folder: Path) -> str:
    """What a failed pip or venv means, in one sentence with the next step."""
    again = "then run the same command again; it goes on from here"
    errors = [line.partition("ERROR: ")[2].strip() for line in output.splitlines()]
    last = next((line for line in reversed(errors) if line), output.strip()[-300:])
    if "No space left on device" in output or "Errno 28" in output:
        free_gb = shutil.disk_usage(folder).free / 1e9
        return (
            f"The disk is full while installing {what} ({free_gb:.1f} GB free): make room, {again}."
        )
    if "CERTIFICATE_VERIFY_FAILED" in output:
        return (
            f"{what} cannot be downloaded, since this machine does not trust the index's "
            f"certificate: set PIP_CERT to your company's certificate file, {again}."
        )
    signs = ("NewConnectionError", "name resolution", "Max retries exceeded", "ProxyError")
    if any(
        sign in output for sign in (*signs, "Read timed out", "ConnectTimeout", "IncompleteRead")
    ):
        return (
            f"{what} cannot be downloaded, since the package index does not answer: check the "
            f"network (behind a proxy set HTTPS_PROXY), {again}."
        )
    if "Permission denied" in output or "Errno 13" in output:
        return f"{what} cannot be written ({last}): check who owns {folder}, {again}."
    return f"{what} could not be installed: {last or 'pip gave no reason'}"


def check_window(python: Path) -> str:
    """Installs what Qt misses where it may; returns what to say about what is missing still."""
    error = probe_qt(python)
    if not error:
        return ""
    libraries = missing_libraries(error, can_load)
    packages = sorted({QT_PACKAGES[name] for name in libraries if name in QT_PACKAGES})
    if packages and may_use_apt():
        say(f"      Installing {', '.join(packages)}")
        if apt_install(packages):
            error = probe_qt(python)
    if error:
        error = qt_sentence(error, packages)
        say(f"      {error}")
    return error


def probe_qt(python: Path) -> str:
    """Qt's own complaint, empty if it can open a window."""
    result = subprocess.run(
        [str(python), "-c", QT_PROBE], capture_output=True, text=True, check=False
    )
    return result.stderr.strip()[-500:] if result.returncode else ""


def missing_libraries(error: str, can_load: Callable[[str], bool]) -> list[str]:
    """The library an error names, and every other one of the table that is missing, too."""
    named = re.search(r"(\S+\.so[.\d]*): cannot open shared object", error)
    if named is None:
        return []
    others = [name for name in QT_PACKAGES if name != named[1] and not can_load(name)]
    return [named[1], *others]


def can_load(library: str) -> bool:
    """Whether the system has a shared library."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def qt_sentence(error: str, packages: Sequence[str]) -> str:
    """What is missing for the window, and how to get it."""
    if packages and shutil.which("apt-get"):
        return (
            f"The window needs system packages: run `sudo apt-get install {' '.join(packages)}`. "
            "The chat on the terminal works without them."
        )
    return (
        f"The window cannot open ({shorten(error)}): install the system package with that library. "
        "The chat on the terminal works without it."
    )


def prepare_display() -> None:
    """The window's tests run in a display of their own, or skip themselves and say so."""
    if sys.platform != "linux" or shutil.which("Xvfb"):
        return
    if may_use_apt() and apt_install(["xvfb"]):
        return
    say("      No Xvfb (`sudo apt-get install xvfb`): tests that need a display are skipped.")


def may_use_apt() -> bool:
    """Whether system packages can be installed without asking for a password."""
    return os.name == "posix" and os.geteuid() == 0 and shutil.which("apt-get") is not None


def apt_install(packages: Sequence[str]) -> bool:
    """True if the system's packages are installed now."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    commands = (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *packages],
    )
    result = None
    for command in commands:
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
    assert result is not None
    if result.returncode:
        say(f"      apt-get could not install {' '.join(packages)}: {shorten(result.stderr)}")
    return result.returncode == 0


def run_checks(python: Path, pytest_arguments: Sequence[str]) -> int:
    """Runs the linters, the types and the tests; pytest's closing line comes last."""
    folders = ("desktop", "packaging", "tests")
    # Not the script of that name: it holds the path of the checkout it was installed in.
    lint_imports = "from importlinter.cli import lint_imports_command as lint; lint()"
    checks = {
        "ruff check": [str(python), "-m", "ruff", "check", *folders],
        "ruff format --check": [str(python), "-m", "ruff", "format", "--check", *folders],
        "lint-imports": [str(python), "-c", lint_imports],
        "mypy": [str(python), "-m", "mypy"],
    }
    failed = []
    for name, command in checks.items():
        say(f"== {name}")
        if subprocess.call(command, cwd=ROOT):
            failed.append(name)
    if failed:
        say(f"== Failed so far: {', '.join(failed)}; the exit code will say so")
    say("== pytest")
    code = subprocess.call([str(python), "-m", "pytest", *pytest_arguments], cwd=ROOT)
    return code or (1 if failed else 0)


class Steps:
    """Counts the steps aloud."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0

    def __call__(self, what: str) -> None:
        self._done += 1
        say(f"[{self._done}/{self._total}] {what}")


def say(line: str) -> None:
    """Prints at once, in order with what pip and the tests print."""
    print(line, flush=True)


def shorten(text: str, limit: int = 200) -> str:
    """One line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]} ..."


def venv_python() -> Path:
    """The interpreter of the private environment."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def version_of(python: Path) -> str:
    """`3.11`, as the environment's own Python says."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    result = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return result.stdout.strip() or "0.0"


def runs(*command: object) -> bool:
    """Whether a command ends well."""
    result = subprocess.run([str(word) for word in command], capture_output=True, check=False)
    return result.returncode == 0


def project_hash() -> str:
    """Changes when a dependency or the way of building changes, not with every tool's setting."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    relevant = [
        project.get("build-system"),
        project.get("project"),
        project.get("tool", {}).get("hatch"),
    ]
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def read_stamp(path: Path) -> Stamp | None:
    """None if there is none, or one by a launcher of another time."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Stamp(**{**fields, "extras": tuple(fields["extras"])})
    except (OSError, ValueError, LookupError, TypeError):
        return None


def write_stamp(path: Path, stamp: Stamp) -> None:
    """Puts the whole stamp into place at once."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(stamp._asdict(), indent=1), encoding="utf-8")
    new.replace(path)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Two set-ups of one checkout wait for each other, where the system can lock a folder."""
    if os.name != "posix":
        yield
        return
    import fcntl

    handle = os.open(ROOT, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another set-up is running here; waiting for it.")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            # A network drive without locks: two set-ups at once are then the person's own care.
            pass
        yield
    finally:
        os.close(handle)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
