"""Keeps the window moving while torch is loaded on another thread; torch is not imported here.

`import torch` holds the interpreter while the system loads half a gigabyte of libraries, and the
window freezes for as long. `dlopen` called through ctypes lets the other threads run meanwhile. The
rest of the import is Python code, which gives way in small steps and collects no garbage.
"""

import contextlib
import ctypes
import gc
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

LIBRARIES = (
    "libtorch_global_deps.so",
    "libc10.so",
    "libtorch_cpu.so",
    "libc10_cuda.so",
    "libtorch_cuda.so",
    "libtorch.so",
)
"""In the order they need each other; libtorch_python is not here, for it needs the interpreter."""

SWITCH_INTERVAL_S = 0.0005
"""How soon a thread that computes gives way; at Python's 5 ms each of the window's many calls into
Qt would wait as long."""


@contextlib.contextmanager
def giving_way() -> Iterator[None]:
    """For the first load: the threads take short turns, and nobody stops them to collect garbage.

    What the import leaves is then kept out of later collections, which would each look through it.
    """
    if "torch" in sys.modules:
        yield
        return
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        sys.setswitchinterval(interval_s)


def preload_torch_libraries() -> int:
    """Blocking, for a worker thread; returns how many libraries were loaded, 0 off Linux."""
    if not sys.platform.startswith("linux") or "torch" in sys.modules:
        return 0
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return 0
    folder = Path(spec.origin).parent / "lib"
    libc = ctypes.CDLL(None)
    libc.dlopen.restype = ctypes.c_void_p
    libc.dlopen.argtypes = [ctypes.c_char_p, ctypes.c_int]
    num_loaded = 0
    for name in LIBRARIES:
        path = folder / name
        if path.exists():
            scope = os.RTLD_GLOBAL if "global_deps" in name else os.RTLD_LOCAL
            num_loaded += libc.dlopen(os.fsencode(path), os.RTLD_NOW | scope) is not None
    logger.info("Preloaded %d of torch's libraries", num_loaded)
    return num_loaded
