"""What the monitor strip says, and what it leaves out first where there is little room."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from octavo.engine.request import EngineStats
from octavo.monitor.engine_rate import EngineRate
from octavo.monitor.readings import GpuReading, MachineReading
from octavo.units import format_bytes

UNKNOWN = "–"


@dataclass(frozen=True, slots=True)
class StripPart:
    """One figure of the strip."""

    name: str
    figure: str
    exact: str
    """A sentence with the whole numbers, for the tool tip and for screen readers."""


def editions(
    reading: MachineReading, stats: EngineStats, rate: EngineRate
) -> Iterator[tuple[StripPart, ...]]:
    """The strip from its longest form to its shortest; the first that fits is shown."""
    engine = _engine_parts(stats, rate)
    machine = _machine_parts(reading)
    if len(reading.gpus) > 1:
        yield (*machine, *engine)
        machine = [_sum_of_gpus(reading.gpus)]
    for num_engine_parts in range(len(engine), -1, -1):
        yield (*machine, *engine[:num_engine_parts])
    yield tuple(machine[-1:])


def _machine_parts(reading: MachineReading) -> list[StripPart]:
    if reading.gpus:
        is_single = len(reading.gpus) == 1
        return [
            _gpu_part("GPU" if is_single else f"GPU {index}", gpu)
            for index, gpu in enumerate(reading.gpus)
        ]
    cpu, memory = reading.cpu, reading.memory
    percent = _percent(cpu.utilization_percent)
    used, total = format_bytes(memory.used_bytes), format_bytes(memory.total_bytes)
    return [
        StripPart("CPU", percent, f"CPU: {percent} of {cpu.num_threads} threads."),
        StripPart(
            "Memory",
            f"{used} / {total}",
            f"Memory: {memory.used_bytes / 2**20:,.0f} of {memory.total_bytes / 2**20:,.0f} MiB"
            f" in use, {memory.available_bytes / 2**20:,.0f} MiB free.",
        ),
    ]


def _gpu_part(name: str, gpu: GpuReading) -> StripPart:
    if gpu.problem:
        return StripPart(name, "lost", f"{name}, {gpu.name}: {gpu.problem}")
    memory = _memory(gpu.vram_used_bytes, gpu.vram_total_bytes)
    percent = _percent(gpu.utilization_percent)
    return StripPart(
        name,
        f"{memory} · {percent}",
        f"{name}, {gpu.name}: {_exact_memory(gpu.vram_used_bytes, gpu.vram_total_bytes)},"
        f" utilisation {percent}.",
    )


def _sum_of_gpus(gpus: Sequence[GpuReading]) -> StripPart:
    used = _sum_or_none([gpu.vram_used_bytes for gpu in gpus if not gpu.problem])
    total = _sum_or_none([gpu.vram_total_bytes for gpu in gpus if not gpu.problem])
    loads = [gpu.utilization_percent for gpu in gpus if gpu.utilization_percent is not None]
    percent = _percent(sum(loads) / len(loads) if loads else None)
    each = " ".join(_gpu_part(f"GPU {index}", gpu).exact for index, gpu in enumerate(gpus))
    return StripPart(f"{len(gpus)} GPUs", f"{_memory(used, total)} · {percent}", each)


def _engine_parts(stats: EngineStats, rate: EngineRate) -> list[StripPart]:
    """The most important first."""
    if not stats.num_blocks:
        return [StripPart("Engine", "no model", "Engine: no model is loaded.")]
    output, prompts = rate.output_tokens_per_s, rate.prompt_tokens_per_s
    has_rate = output is not None and prompts is not None
    exact = f"output {output:,.1f}, prompts {prompts:,.1f}" if has_rate else "not known yet"
    used_percent = _percent(100 * stats.num_used_blocks / stats.num_blocks)
    return [
        StripPart(
            "",
            UNKNOWN if output is None else f"{output:,.0f} tok/s",
            f"Tokens per second: {exact}.",
        ),
        StripPart(
            "KV",
            used_percent,
            f"KV cache: {stats.num_used_blocks:,} of {stats.num_blocks:,} blocks in use,"
            f" {stats.num_cached_blocks:,} hold a cached prefix;"
            f" {stats.block_size} tokens in a block.",
        ),
        StripPart(
            "Requests",
            f"{stats.num_running} running, {stats.num_waiting} waiting",
            f"Requests: {stats.num_running} running, {stats.num_waiting} waiting.",
        ),
    ]


def _memory(used_bytes: int | None, total_bytes: int | None) -> str:
    if used_bytes is None:
        return UNKNOWN
    used = format_bytes(used_bytes)
    return used if total_bytes is None else f"{used} / {format_bytes(total_bytes)}"


def _exact_memory(used_bytes: int | None, total_bytes: int | None) -> str:
    if used_bytes is None or total_bytes is None:
        return "VRAM not reported"
    return f"VRAM {used_bytes / 2**20:,.0f} of {total_bytes / 2**20:,.0f} MiB"


def _sum_or_none(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f} %"
