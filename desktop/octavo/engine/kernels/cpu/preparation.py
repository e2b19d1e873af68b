"""Has the kernels ready: compiled by a child process, then read from the cache.

As a program, `python -m octavo.engine.kernels.cpu.preparation FORM...`, it is that child.
"""

import contextlib
import importlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numba
import psutil

from octavo.engine.kernels.cpu.kernel_cache import (
    MODULES,
    KernelCompiler,
    ReportParts,
    is_cache_given,
    kernel_folder,
    mark_ready,
    mark_used,
    missing_parts,
    parts,
)
from octavo.errors import EngineError

_LOW_PRIORITY = 10
_POLL_S = 0.2


def prepare_kernels(
    forms: Iterable[str],
    cache_dir: str | None,
    report: ReportParts,
    *,
    in_child_only: bool = False,
) -> None:
    """Has all kernels ready that a model with these forms of tiles needs.

    Args:
        forms: names of `tiles_forms.FORMS`.
        cache_dir: where compiled kernels are kept; None: where Numba keeps them.
        report: told how far it is while they are compiled.
        in_child_only: does not try in this process what the child failed at: other threads of it
            would stand still for most of a minute.

    Raises:
        EngineError: the child failed, and nothing is tried here.
    """
    forms = tuple(forms)
    folder = kernel_folder(cache_dir)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        numba.config.CACHE_DIR = str(folder)
        if missing_parts(folder, forms):
            compiler = KernelCompiler(folder, forms)
            # If it fails, the same happens here, where an error can be seen.
            if not compiler.wait(report) and in_child_only:
                reason = compiler.last_words.removesuffix(".")
                raise EngineError(
                    f"The processor's kernels could not be compiled: {reason}.",
                    hint="Load the model again to try once more.",
                )
    names = parts(forms)
    for number, part in enumerate(names):
        report(number, len(names))
        _load(part)
        if folder is not None:
            mark_ready(folder, part)
    if folder is not None and not is_cache_given():
        mark_used(folder)


def _load(part: str) -> None:
    """Compiles a part, or reads it from the cache."""
    if part in MODULES:
        importlib.import_module(f"octavo.engine.kernels.cpu.{part}")
        return
    from octavo.engine.kernels.cpu.linear import compile_kernel

    compile_kernel(part)


def main() -> None:
    """Compiles into the folder that the environment names."""
    if hasattr(os, "nice"):
        with contextlib.suppress(OSError):
            os.nice(_LOW_PRIORITY)
    folder = kernel_folder(None)
    assert folder is not None
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        for part in parts(sys.argv[1:]):
            _load(part)
            mark_ready(folder, part)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Waits for another child that compiles into the same folder, so that nothing is done twice."""
    lock = folder / "compiling"
    while True:
        try:
            with lock.open("x", encoding="ascii") as file:
                file.write(str(os.getpid()))
            break
        except FileExistsError:
            if not _is_compiling(lock):
                lock.unlink(missing_ok=True)
            time.sleep(_POLL_S)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _is_compiling(lock: Path) -> bool:
    """Whether the process that wrote the file lives: it may have been killed, its number reused."""
    try:
        process = psutil.Process(int(lock.read_text(encoding="ascii") or "0"))
        return any(__spec__.name in argument for argument in process.cmdline())
    except (OSError, ValueError, psutil.Error):
        # A file that is just being written is left a moment.
        return lock.exists() and time.time() - lock.stat().st_mtime < 1.0


if __name__ == "__main__":
    main()
