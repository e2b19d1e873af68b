"""Measures how decode attention runs fastest on the GPU at hand."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from triton import OutOfResources

from octavo.engine.device import Device
from octavo.engine.executors import triton_refusal
from octavo.engine.kernels.triton.attention_tiling import AttentionTiling, TunedTiling
from octavo.engine.kernels.triton.decode_attention import (
    DecodeShape,
    SplitScratch,
    decode_attention,
    num_splits,
)
from octavo.engine.kernels.triton.launch import overlaps_launches
from octavo.engine.layer_cache import AttentionRule, LayerCache
from octavo.errors import ResourceError

HEAD_DIMS = (64, 128)
SEQUENCES = (1, 8, 32, 64, 256)
_NUM_HEADS, _NUM_KV_HEADS = 32, 8
_CONTEXT_TOKENS = 1024
_BLOCK_SIZE = 16
_NUM_LAYERS = 3
"""Caches in turn, so that none is found in the card's own cache."""
_ROUNDS = 9
_LEAST_GAIN = 0.02
"""A smaller one may be noise."""
_TILES = ((64, 2, 4), (64, 3, 4), (32, 2, 2), (64, 2, 2), (64, 4, 2), (128, 3, 4))
_PROGRAMS = (2, 4, 8)


@dataclass(frozen=True, slots=True)
class TuningResult:
    """One case: what was found, and what it gains."""

    row: TunedTiling
    default_us: float
    best_us: float


def tune_attention(card: Device) -> Iterator[TuningResult]:
    """Yields each case when it is measured.

    Raises:
        ResourceError: our kernels do not run on this card.
    """
    if refusal := triton_refusal(card, max(HEAD_DIMS), "bfloat16"):
        raise ResourceError(refusal, hint="Models run on it by plain torch, untuned.")
    device = torch.device(card.torch_name)
    for head_dim in HEAD_DIMS:
        shape = DecodeShape(_NUM_HEADS, _NUM_KV_HEADS, head_dim, _BLOCK_SIZE)
        for num_seqs in SEQUENCES:
            yield _tune_case(shape, num_seqs, device, card.name)


def _tune_case(shape: DecodeShape, num_seqs: int, device: torch.device, card: str) -> TuningResult:
    run = _make_case(shape, num_seqs, device)
    default = AttentionTiling()
    times: dict[AttentionTiling, float] = {}
    known: dict[tuple[int, int, int, int], float] = {}
    for keys, stages, warps in _TILES:
        for programs in _PROGRAMS:
            tiling = AttentionTiling(keys, stages, warps, programs)
            splits = _splits(shape, num_seqs, tiling, device)
            case = keys, stages, warps, splits
            if case not in known:
                known[case] = _time(run, SplitScratch(num_seqs, shape, splits, device, tiling))
            times[tiling] = known[case]
    best = min(times, key=times.__getitem__)
    if times[best] > times[default] * (1 - _LEAST_GAIN):
        best = default
    row = TunedTiling(card, shape.head_dim, num_seqs, best)
    return TuningResult(row, times[default], times[best])


def _splits(
    shape: DecodeShape, num_seqs: int, tiling: AttentionTiling, device: torch.device
) -> int:
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    programs = tiling.programs * processors
    return num_splits(num_seqs, shape.num_kv_heads, _CONTEXT_TOKENS, programs)


def _make_case(
    shape: DecodeShape, num_seqs: int, device: torch.device
) -> Callable[[SplitScratch], None]:
    """A few layers of a step, over caches whose blocks lie scattered."""
    blocks_each = _CONTEXT_TOKENS // shape.block_size
    num_blocks = num_seqs * blocks_each + 1
    size = num_blocks, shape.block_size, shape.num_kv_heads, shape.head_dim

    def random(*size: int) -> torch.Tensor:
        return torch.randn(size, dtype=torch.bfloat16, device=device)

    caches = [LayerCache(random(*size), random(*size)) for _ in range(_NUM_LAYERS)]
    order = torch.randperm(num_blocks - 1, device=device, dtype=torch.int32) + 1
    tables = order.view(num_seqs, blocks_each)
    rows = torch.arange(num_seqs, dtype=torch.int32, device=device)
    context_lens = torch.full_like(rows, _CONTEXT_TOKENS)
    projected = random(num_seqs, (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim)
    rule = AttentionRule(shape.head_dim**-0.5)
    overlap = overlaps_launches(device)

    def run(scratch: SplitScratch) -> None:
        for cache in caches:
            decode_attention(
                projected,
                cache,
                tables,
                rows,
                context_lens,
                rule,
                shape,
                scratch,
                is_projected=True,
                overlap=overlap,
            )

    return run


def _time(run: Callable[[SplitScratch], None], scratch: SplitScratch) -> float:
    """Microseconds of one layer; endless where the card has too little shared memory."""
    try:
        run(scratch)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run(scratch)
    except OutOfResources:
        return float("inf")
    return statistics.median(_replay_times(graph)) / _NUM_LAYERS


def _replay_times(graph: torch.cuda.CUDAGraph) -> Sequence[float]:
    times = []
    for _ in range(_ROUNDS):
        begun = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begun.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        times.append(1000 * begun.elapsed_time(ended))
    return times
