"""The graphics cards of this machine, and which programs can use each, with the reason."""

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.monitor.catalog import CatalogCard, GpuCatalog, load_gpu_catalog
from octavo.monitor.chip_names import ChipNames
from octavo.monitor.nvml import NvmlCard, NvmlProbe
from octavo.monitor.pci import PciCard, find_pci_cards
from octavo.units import format_bytes

OCTAVO = "Octavo"
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a program can use a card."""

    software: str
    is_supported: bool | None
    """None where it cannot be said from here."""
    reason: str
    """A sentence."""


@dataclass(frozen=True, slots=True)
class InventoryCard:
    """One card found here."""

    manufacturer: str
    model: str
    vram_bytes: int | None
    """As the driver reports it."""
    vram_gb: tuple[int, ...]
    """As the catalogue has it."""
    interface: str | None
    compute_capability: tuple[int, int] | None
    verdicts: tuple[Verdict, ...]
    problem: str = ""
    """Why it cannot be used now although it might be able to, as a sentence."""

    @property
    def vram_text(self) -> str:
        if self.vram_bytes is not None:
            return format_bytes(self.vram_bytes)
        return " or ".join(str(size) for size in self.vram_gb) + " GB" if self.vram_gb else UNKNOWN

    @property
    def compute_capability_text(self) -> str:
        if self.compute_capability is None:
            return UNKNOWN if self.manufacturer == "NVIDIA" else "–"
        return _dotted(self.compute_capability)

    @property
    def is_usable(self) -> bool:
        """Whether Octavo can compute on it now; if not, the CPU is used."""
        return not self.problem and self._octavo_says is True

    @property
    def could_be_used(self) -> bool:
        """Whether only a driver stands between this card and Octavo, as far as is known."""
        return bool(self.problem) and self._octavo_says is not False

    @property
    def _octavo_says(self) -> bool | None:
        return next(one.is_supported for one in self.verdicts if one.software == OCTAVO)


def take_inventory(
    catalog: GpuCatalog | None = None,
    nvml: NvmlProbe | None = None,
    pci_cards: Sequence[PciCard] | None = None,
    chip_names: ChipNames | None = None,
) -> list[InventoryCard]:
    """The cards NVML reports, then those only the PCI bus knows; never raises."""
    catalog = catalog or load_gpu_catalog()
    probe = nvml or NvmlProbe()
    try:
        reported, driver_problem = probe.cards()
    finally:
        probe.close()
    names = chip_names or ChipNames(catalog.names)
    on_bus = find_pci_cards() if pci_cards is None else pci_cards
    reported_bus_ids = {card.bus_id for card in reported}
    return [_from_nvml(card, catalog) for card in reported] + [
        _from_pci(card, catalog, names, driver_problem)
        for card in on_bus
        if card.bus_id not in reported_bus_ids
    ]


def judge(capability: tuple[int, int] | None, catalog: GpuCatalog) -> tuple[Verdict, ...]:
    """What each program says to an NVIDIA card of that compute capability."""
    verdicts = []
    for requirement in catalog.requirements:
        software, least = requirement.software, requirement.compute_capability
        if capability is None:
            reason = (
                f"Its compute capability is not known; {_dotted(least)} is {requirement.because}."
            )
            verdicts.append(Verdict(software, None, reason))
            continue
        is_supported = capability >= least
        reason = (
            f"Compute capability {_dotted(capability)} is"
            f" {'at or above' if is_supported else 'below'} {_dotted(least)},"
            f" {requirement.because}{_cpu_instead(software, is_supported)}."
        )
        verdicts.append(Verdict(software, is_supported, reason))
    return tuple(verdicts)


def _from_nvml(card: NvmlCard, catalog: GpuCatalog) -> InventoryCard:
    known = catalog.find(card.name, card.pci_id)
    capability = card.compute_capability or (known.compute_capability if known else None)
    return InventoryCard(
        manufacturer="NVIDIA",
        model=card.name.removeprefix("NVIDIA "),
        vram_bytes=card.vram_bytes,
        vram_gb=known.vram_gb if known else (),
        interface=known.interface if known else card.interface,
        compute_capability=capability,
        verdicts=judge(capability, catalog),
    )


def _from_pci(
    card: PciCard, catalog: GpuCatalog, names: ChipNames, driver_problem: str
) -> InventoryCard:
    known = catalog.find(card.product_name, card.pci_id)
    is_nvidia = card.manufacturer == "NVIDIA"
    capability = known.compute_capability if known else None
    return InventoryCard(
        manufacturer=card.manufacturer,
        model=_model(card, known, names),
        vram_bytes=card.vram_bytes,
        vram_gb=known.vram_gb if known else (),
        interface=known.interface if known else card.interface,
        compute_capability=capability,
        verdicts=judge(capability, catalog) if is_nvidia else _judge_foreign(card.manufacturer),
        problem=_problem(driver_problem) if is_nvidia else "",
    )


def _model(card: PciCard, known: CatalogCard | None, names: ChipNames) -> str:
    if known is not None:
        return known.name
    name = card.product_name or names.find(card.pci_id)
    # The table names the maker beside it.
    return name.removeprefix(f"{card.manufacturer} ")


def _problem(driver_problem: str) -> str:
    reason = driver_problem or "NVIDIA's driver is loaded but does not report this card."
    return f"{reason} The CPU is used."


def _judge_foreign(manufacturer: str) -> tuple[Verdict, ...]:
    """AMD and Intel have no compute capability; what Octavo itself does is all that is certain."""
    build = "ROCm" if manufacturer == "AMD" else "XPU"
    elsewhere = f"Depends on the card; its documentation lists the {manufacturer} cards."
    return (
        Verdict("PyTorch", None, f"Needs PyTorch's {build} build, which lists its own cards."),
        Verdict(
            OCTAVO,
            False,
            f"Octavo's engine computes on NVIDIA cards and on the CPU, not on {manufacturer} cards"
            " yet; the CPU is used.",
        ),
        Verdict("vLLM", None, elsewhere),
        Verdict("Ollama", None, elsewhere),
    )


def _cpu_instead(software: str, is_supported: bool) -> str:
    return "; the CPU is used" if software == OCTAVO and not is_supported else ""


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
