"""What every test may use: the starter model, and folders of its own."""

import os
from pathlib import Path

import platformdirs
import pytest

from octavo.engine.device import detect_devices
from octavo.engine.kernels.cpu.simd_tier import cache_key
from octavo.hub.catalog import load_catalog
from octavo.hub.starter import pull
from octavo.jobs import JobControl
from octavo.paths import HOME_VARIABLE, AppPaths, resources_dir

# Kernels are compiled once and kept for the next run, until their sources change. Numba reads this
# when it is imported, and child processes inherit it.
KERNEL_CACHE = Path(platformdirs.user_cache_dir("octavo-tests", appauthor=False)) / "kernels"
os.environ.setdefault("NUMBA_CACHE_DIR", str(KERNEL_CACHE / cache_key()))

# Without a card Triton's kernels are tested in its interpreter. It must know when it is imported,
# which whoever comes first does: transformers, torch or a kernel.
if all(device.kind == "cpu" for device in detect_devices()):
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def starter_model() -> Path:
    """The real starter model, fetched on first use and kept for the next run."""
    cache = Path(platformdirs.user_cache_dir("octavo-tests", appauthor=False))
    return pull(load_catalog(resources_dir())["starter"], cache, cache, JobControl())


@pytest.fixture(autouse=True)
def no_hub_of_this_person(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test sees the models or the token of whoever runs it, or asks their keyring."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path_factory.getbasetemp() / "no-hub-cache"))
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")
    for variable in ("HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppPaths:
    """Folders of this test alone; child processes find them through the environment."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "octavo"))
    return AppPaths.default()
