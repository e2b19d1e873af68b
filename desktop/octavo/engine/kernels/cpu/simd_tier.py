"""Which SIMD instructions the kernels use: decided before anything is compiled.

LLVM aborts the whole process when it meets an instruction that the processor it compiles for lacks,
so nothing is tried out: the tier follows from the features that Numba will compile for.
"""

import hashlib
import os
import platform
import sys
from enum import StrEnum
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

from octavo.errors import InvalidSettingsError

CPU_NAME = "NUMBA_CPU_NAME"
CPU_FEATURES = "NUMBA_CPU_FEATURES"


class Tier(StrEnum):
    """A set of instructions that kernels are written for; the best first."""

    AVX512VNNI = "avx512vnni"
    AVXVNNI = "avxvnni"
    AVX2 = "avx2"
    NEON = "neon"
    """ARM with dot products of bytes."""
    NONE = "none"
    """No kernels: torch computes."""


REQUIRED_FEATURES: dict[Tier, frozenset[str]] = {
    Tier.AVX512VNNI: frozenset(
        ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx2", "fma", "f16c")
    ),
    Tier.AVXVNNI: frozenset(("avxvnni", "avx2", "fma", "f16c")),
    Tier.AVX2: frozenset(("avx2", "fma", "f16c")),
    Tier.NEON: frozenset(("neon", "dotprod")),
    Tier.NONE: frozenset(),
}
"""As LLVM names them."""

_ABOVE: dict[Tier, tuple[str, ...]] = {
    Tier.AVXVNNI: ("avx512", "avx10", "amx", "evex"),
    Tier.AVX2: ("avx512", "avx10", "amx", "evex", "avxvnni", "avxifma", "avxneconvert"),
}
"""Beginnings of the features that a tier does without where the processor has a better one."""


def tier_of(features: frozenset[str]) -> Tier:
    """The best tier for a processor with these features, as LLVM names them."""
    return next(tier for tier, required in REQUIRED_FEATURES.items() if required <= features)


def host_features() -> frozenset[str]:
    """What this processor and the operating system offer."""
    return frozenset(name for name, is_there in llvm.get_host_cpu_features().items() if is_there)


def _compiled_features() -> frozenset[str]:
    configured = os.environ.get(CPU_FEATURES)
    if configured is None:
        return host_features()
    return frozenset(name[1:] for name in configured.split(",") if name.startswith("+"))


def compiled_tier() -> Tier:
    """The tier of what Numba compiles for in this process, which may be less than the processor."""
    return tier_of(_compiled_features())


def has_bfloat_dots() -> bool:
    """Whether what Numba compiles for multiplies pairs of bfloat16, twice as many as float32."""
    features = _compiled_features()
    return tier_of(features) is Tier.AVX512VNNI and "avx512bf16" in features


def select_tier(wanted: str = "auto") -> Tier:
    """Settles the tier of this process, before Numba is imported for the first time.

    Args:
        wanted: `auto`, or a tier that this processor has.

    Raises:
        InvalidSettingsError: there is no such tier, this processor lacks it, or another one is
            already in use.
    """
    if wanted not in ("auto", *Tier):
        raise InvalidSettingsError(
            f"The CPU tier is {wanted!r}; it must be auto, {', '.join(Tier)}."
        )
    features = host_features()
    tier = tier_of(features) if wanted == "auto" else Tier(wanted)
    missing = REQUIRED_FEATURES[tier] - features
    if missing:
        raise InvalidSettingsError(
            f"This processor lacks {', '.join(sorted(missing))} for the CPU tier {tier}.",
            hint=f"Its best is {tier_of(features)}; choose that, or auto.",
        )
    if tier in (compiled_tier(), Tier.NONE):
        return tier
    if "numba" in sys.modules:
        raise InvalidSettingsError(
            f"The CPU tier {compiled_tier()} is in use already.", hint="Start Octavo again."
        )
    above = _ABOVE.get(tier, ())
    # Numba keys its cache by these two, so the tiers never mix on disk.
    os.environ[CPU_NAME] = llvm.get_host_cpu_name()
    os.environ[CPU_FEATURES] = ",".join(
        f"{'-' if name.startswith(above) else '+'}{name}" for name in sorted(features)
    )
    return tier


def cache_key() -> str:
    """Names a folder for compiled kernels that is right for this code, tier and compiler.

    Numba looks at the file of a cached function alone; a change of the emitters it calls would go
    unseen.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return (
        f"{compiled_tier()}-{platform.machine()}-py{python}-llvmlite{llvmlite.__version__}"
        f"-{digest.hexdigest()[:16]}"
    )
