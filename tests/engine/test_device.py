"""Devices as NVML reports them, from a pretended driver; the CPU as it is."""

import os
from types import SimpleNamespace
from typing import Any

import pytest

from octavo.engine import device as device_module
from octavo.engine.config import EngineConfig
from octavo.engine.device import Device, choose_device, detect_devices
from octavo.errors import InvalidSettingsError, ResourceError

CPU = Device("cpu", 0, "CPU", 16 << 30, 8 << 30)


class FakeNVMLError(Exception):
    pass


class FakeNVML:
    """GPUs as (name, compute capability, free bytes); None for a call that fails."""

    NVMLError = FakeNVMLError

    def __init__(self, *gpus: tuple[str, tuple[int, int] | None, int | None]) -> None:
        self.gpus = gpus
        self.is_open = False

    def nvmlInit(self) -> None:
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self.is_open = False

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:
        return f"GPU-{handle}{handle}aa".encode()

    def nvmlDeviceGetName(self, handle: int) -> str:
        return self.gpus[handle][0]

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        capability = self.gpus[handle][1]
        if capability is None:
            raise FakeNVMLError("lost")
        return capability

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        free_bytes = self.gpus[handle][2]
        if free_bytes is None:
            raise FakeNVMLError("not supported")
        return SimpleNamespace(total=24 << 30, free=free_bytes)


class AbsentNVML(FakeNVML):
    def nvmlInit(self) -> None:
        raise FakeNVMLError("no driver")


@pytest.fixture
def cuda_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "_torch_cuda_version", lambda: "12.8")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_this_machine_has_a_cpu() -> None:
    devices = detect_devices()
    assert devices[-1].kind == "cpu"
    assert devices[-1].supported
    assert devices[-1].name
    assert 0 < devices[-1].free_bytes <= devices[-1].total_bytes


def test_no_driver_no_gpu() -> None:
    assert [device.kind for device in detect_devices(AbsentNVML())] == ["cpu"]


@pytest.mark.usefixtures("cuda_torch")
def test_gpus_come_first_and_old_ones_say_why() -> None:
    nvml = FakeNVML(("RTX 4090", (8, 9), 20 << 30), ("GTX 1080", (6, 1), 7 << 30))
    new, old, cpu = detect_devices(nvml)
    assert (new.torch_name, new.supported, new.free_bytes) == ("cuda:0", True, 20 << 30)
    assert (old.torch_name, old.supported) == ("cuda:1", False)
    assert "6.1" in old.reason
    assert "7.5" in old.reason
    assert cpu.torch_name == "cpu"
    assert not nvml.is_open


@pytest.mark.usefixtures("cuda_torch")
def test_failing_gpus() -> None:
    nvml = FakeNVML(("lost", None, 1), ("unified", (12, 1), None))
    gpu, cpu = detect_devices(nvml)
    assert gpu.name == "unified"
    assert 0 < gpu.free_bytes <= gpu.total_bytes
    assert cpu.kind == "cpu"


@pytest.mark.usefixtures("cuda_torch")
@pytest.mark.parametrize(
    ("visible", "names"),
    [("1", ["b"]), ("", []), ("2,0", ["c", "a"]), ("-1", []), ("1,9,0", ["b"]), ("GPU-22", ["c"])],
)
def test_visible_devices(visible: str, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", visible)
    nvml = FakeNVML(*[(name, (8, 6), 1 << 30) for name in "abc"])
    gpus = detect_devices(nvml)[:-1]
    assert [gpu.name for gpu in gpus] == names
    assert [gpu.index for gpu in gpus] == list(range(len(names)))


def test_a_cpu_build_of_torch_cannot_use_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "_torch_cuda_version", lambda: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpu, cpu = detect_devices(FakeNVML(("RTX 4090", (8, 9), 20 << 30)))
    assert "build for the CPU" in gpu.reason
    assert choose_device(EngineConfig(), [gpu, cpu]) is cpu
    with pytest.raises(ResourceError, match=r"RTX 4090 .* cannot be used"):
        choose_device(EngineConfig(device="cuda"), [gpu, cpu])


def test_choice() -> None:
    small = Device("cuda", 0, "small", 8 << 30, 6 << 30, (8, 6))
    large = Device("cuda", 1, "large", 24 << 30, 20 << 30, (8, 9))
    old = Device("cuda", 2, "old", 48 << 30, 40 << 30, (7, 0), supported=False, reason="Too old.")
    devices = [small, large, old, CPU]
    assert choose_device(EngineConfig(), devices) is large
    assert choose_device(EngineConfig(device="cuda"), devices) is large
    assert choose_device(EngineConfig(device="cuda:0"), devices) is small
    assert choose_device(EngineConfig(device="cpu"), devices) is CPU
    assert choose_device(EngineConfig(), [old, CPU]) is CPU
    with pytest.raises(ResourceError, match="Too old"):
        choose_device(EngineConfig(device="cuda:2"), devices)
    with pytest.raises(ResourceError, match="no cuda:5") as caught:
        choose_device(EngineConfig(device="cuda:5"), devices)
    assert "cuda:0, cuda:1, cuda:2, cpu" in caught.value.hint
    with pytest.raises(InvalidSettingsError, match="'tpu'"):
        choose_device(EngineConfig(device="tpu"), devices)
