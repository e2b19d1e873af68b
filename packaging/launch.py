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
Which PyTorch is taken without --torch, and why, stands in launcher/torch_build.py.
"""

import sys

# An older Python must be able to parse this file; those in launcher/ it never sees.
if sys.version_info < (3, 11):  # noqa: UP036  (this check is the reason the sentence can be said)
    sys.exit("Octavo needs Python 3.11 or newer; this is Python %d.%d." % sys.version_info[:2])  # noqa: UP031

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# Python puts a script's folder there itself, but not with PYTHONSAFEPATH or -P.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from launcher.checks import prepare_display, run_checks
from launcher.console import SetupError, Steps, detail, say
from launcher.environment import Environment
from launcher.pip import Pip
from launcher.qt_libraries import check_window
from launcher.torch_build import TORCH_VERSION, choose_build, find_driver_cuda

ROOT = Path(__file__).resolve().parent.parent


class Options(NamedTuple):
    """The command line, taken apart."""

    torch: str = ""
    reset: bool = False
    words: tuple[str, ...] = ()

    @property
    def is_test(self) -> bool:
        """Whether the checks are to run."""
        return self.words[:1] == ("test",)

    @property
    def extras(self) -> tuple[str, ...]:
        """Optional dependencies of pyproject.toml that this run needs."""
        return ("test",) if self.is_test else ()


def main(arguments: Sequence[str]) -> int:
    """Sets up what is missing, then starts what was asked for."""
    environment = Environment(ROOT)
    try:
        options = parse_arguments(arguments)
        ensure_set_up(environment, options)
        if options.is_test:
            return run_checks(environment.python, ROOT, options.words[1:])
        if options.words == ("setup",):
            say(f"Octavo is set up in {environment.folder}.")
            return 0
    except SetupError as error:
        print(f"octavo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on where this one stopped.", file=sys.stderr)
        return 130
    return start([str(environment.python), "-m", "octavo", *options.words])


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


def ensure_set_up(environment: Environment, options: Options) -> None:
    """Sets up only what is not there yet, and not twice at once."""

    def is_done() -> bool:
        return not options.reset and environment.is_current(options.torch, options.extras)

    if is_done():
        if not options.words:
            check_window_again(environment)
        return
    with environment.one_at_a_time():
        # Another launcher may have done it while this one waited.
        if not is_done():
            set_up(environment, options)


def set_up(environment: Environment, options: Options) -> None:
    """Installs everything; each step may have been done before and then takes seconds."""
    # What was chosen for the last set-up, finished or not, stays chosen.
    last = environment.stamp
    extras = tuple(sorted({*options.extras, *(last.extras if last else ())}))
    torch = options.torch or (last.torch if last and not options.reset else "")
    pip = Pip(environment.python, ROOT)
    step = Steps(5 if options.is_test else 4)

    step("Making a private environment in .venv")
    is_new = environment.make(torch, extras, reset=options.reset)
    environment.remove_half_installed()

    step(f"Choosing PyTorch {TORCH_VERSION}; pip is asked what it would install")
    build = choose_build(torch, sys.platform, find_driver_cuda(), pip.plan)
    if build.note:
        detail(build.note)
    if is_new:
        environment.check_room(build.needed_gb)
    detail(build.label)
    pip.install(build.request, "PyTorch")

    step("Installing Octavo and what it needs")
    target = f".[{','.join(extras)}]" if extras else "."
    pip.install(("--editable", target), "Octavo")

    step("Checking the window's system libraries")
    qt_problem = check_window(environment.python)

    if options.is_test:
        step("Looking for a display for the window's tests")
        prepare_display()
    environment.finish(build.kind, qt_problem)


def check_window_again(environment: Environment) -> None:
    """Before a window: what its set-up found missing may have been installed since."""
    stamp = environment.stamp
    if stamp is not None and stamp.qt_problem:
        environment.stamp = stamp._replace(qt_problem=check_window(environment.python))


def start(command: Sequence[str]) -> int:
    """Becomes the app where the system can do that; else runs it and returns its exit code."""
    if os.name == "posix":
        sys.stdout.flush()
        os.execv(command[0], list(command))  # noqa: S606  (no shell is what we want)
    try:
        return subprocess.call(command)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
