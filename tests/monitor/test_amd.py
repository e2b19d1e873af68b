"""AMD cards from sysfs trees as the kernel lays them out."""

from pathlib import Path

from octavo.monitor.amd import AmdProbe
from octavo.monitor.catalog import load_gpu_catalog
from octavo.monitor.chip_names import ChipNames
from octavo.monitor.readings import GpuReading
from tests.monitor.machine_readings import write_files


def test_a_whole_card(tmp_path: Path) -> None:
    write_files(
        tmp_path / "card1" / "device",
        vendor="0x1002",
        device="0x744c",
        unique_id="9ee43c1f2b3a5d60",
        product_name="Radeon RX 7900 XTX",
        mem_info_vram_used="3221225472",
        mem_info_vram_total="25753026560",
        gpu_busy_percent="42",
        hwmon__hwmon3__temp1_input="56000",
        hwmon__hwmon3__power1_average="123000000",
        hwmon__hwmon3__power1_cap="339000000",
        hwmon__hwmon3__freq1_input="2304000000",
        hwmon__hwmon3__freq2_input="1249000000",
    )
    assert AmdProbe(tmp_path).read() == (
        GpuReading(
            name="Radeon RX 7900 XTX",
            uuid="9ee43c1f2b3a5d60",
            vram_used_bytes=3221225472,
            vram_total_bytes=25753026560,
            utilization_percent=42.0,
            temperature_c=56.0,
            power_w=123.0,
            power_limit_w=339.0,
            clock_sm_mhz=2304,
            clock_memory_mhz=1249,
        ),
    )


def test_files_that_are_missing_are_none(tmp_path: Path) -> None:
    write_files(tmp_path / "card0" / "device", vendor="0x1002", device="0x1638")
    write_files(
        tmp_path / "card0" / "device", gpu_busy_percent="busy", hwmon__hwmon1__name="amdgpu"
    )
    assert AmdProbe(tmp_path, ChipNames({})).read() == (
        GpuReading(name="AMD graphics card 1002:1638"),
    )


def test_newer_kernels_name_the_power_differently(tmp_path: Path) -> None:
    device = tmp_path / "card0" / "device"
    write_files(device, vendor="0x1002", device="0x1638", hwmon__hwmon1__power1_input="9000000")
    assert AmdProbe(tmp_path).read()[0].power_w == 9.0


def test_other_makers_and_connectors_are_no_amd_cards(tmp_path: Path) -> None:
    write_files(tmp_path / "card0" / "device", vendor="0x10de", device="0x2684")
    write_files(tmp_path / "card1-DP-1" / "device", vendor="0x1002", device="0x744c")
    assert AmdProbe(tmp_path).read() == ()


def test_a_machine_without_the_folder(tmp_path: Path) -> None:
    assert AmdProbe(tmp_path / "none").read() == ()


def test_a_card_that_goes_away(tmp_path: Path) -> None:
    device = write_files(tmp_path / "card0" / "device", vendor="0x1002", device="0x1638")
    probe = AmdProbe(tmp_path)
    assert probe.read()[0].problem == ""
    device.rename(tmp_path / "gone")
    assert probe.read()[0].problem == "The driver no longer lists this card."


def test_a_card_without_a_product_name_is_named_by_its_id(tmp_path: Path) -> None:
    write_files(tmp_path / "card0" / "device", vendor="0x1002", device="0x744C")
    names = ChipNames(load_gpu_catalog().names, files=())
    assert AmdProbe(tmp_path, names).read()[0].name == "Radeon RX 7900 XT / 7900 XTX / 7900 GRE"
