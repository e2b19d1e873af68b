"""Kernels are compiled once and kept for the next run, until their sources change."""

import os
from pathlib import Path

import platformdirs

from octavo.engine.kernels.cpu.simd_tier import cache_key

_cache = Path(platformdirs.user_cache_dir("octavo-tests", appauthor=False))
# Before Numba is imported: it reads this once.
os.environ.setdefault("NUMBA_CACHE_DIR", str(_cache / "kernels" / cache_key()))
