"""Compiles the kernels, or reads them from the cache of an earlier start."""

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numba

from octavo.engine.kernels.cpu.simd_tier import cache_key

_MODULES = ("step_loop", "worker_threads", "rotary", "rows", "attention", "linear")
"""Importing one compiles what is in it."""
_MARKER = "complete"


def prepare_kernels(
    forms: Iterable[str], cache_dir: Path | None, report: Callable[[int, int], None]
) -> None:
    """Has all kernels ready that a model with these forms of tiles needs.

    Args:
        forms: names of `tiles_forms.FORMS`.
        cache_dir: where compiled kernels are kept, apart for each processor and version; None:
            where Numba keeps them.
        report: told how many of how many parts are ready, where they are not in the cache.
    """
    names = [*_MODULES, *sorted(set(forms))]
    marker = None
    if cache_dir is not None and not numba.config.CACHE_DIR:
        folder = cache_dir / cache_key()
        folder.mkdir(parents=True, exist_ok=True)
        numba.config.CACHE_DIR = str(folder)
    if numba.config.CACHE_DIR:
        marker = Path(numba.config.CACHE_DIR)
    for done, name in enumerate(names):
        if marker is None or not (marker / f"{name}.{_MARKER}").exists():
            report(done, len(names))
        if name in _MODULES:
            importlib.import_module(f"octavo.engine.kernels.cpu.{name}")
        else:
            from octavo.engine.kernels.cpu.linear import compile_kernel

            compile_kernel(name)
        if marker is not None:
            (marker / f"{name}.{_MARKER}").touch()
