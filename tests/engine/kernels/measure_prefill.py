"""Times attention of prompts on an NVIDIA card, in graphs, beside torch's where that can do it.

    python -m tests.engine.kernels.measure_prefill
    python -m tests.engine.kernels.measure_prefill --tune

32 query heads, 8 key heads, bfloat16. Each figure: microseconds of one layer, and the TFLOP/s of
its products, those that the mask hides left out.
"""

import argparse
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch

from octavo.engine.kernels.triton.decode_attention import DecodeShape
from octavo.engine.kernels.triton.prefill_attention import (
    TileShape,
    plan_tiles,
    prefill_attention,
    tile_shape,
)
from octavo.engine.layer_cache import AttentionRule, LayerCache
from tests.engine.kernels.measure_tiles import graph_us

NUM_HEADS, NUM_KV_HEADS, BLOCK_SIZE = 32, 8, 16
CASES = {
    "32 prompts of 512": (32, 512, 0),
    "a prompt of 3,000": (1, 3000, 0),
    "64 of 64 after 2,048": (64, 64, 2048),
    "4,096 after 12,288": (1, 4096, 12288),
}
"""Number of sequences, tokens of each, and of their contexts before."""
_RUNS = 4


def make_run(
    case: tuple[int, int, int], head_dim: int, tile: TileShape | None
) -> Callable[[], object]:
    """Our kernel's; a tile of None: the usual one."""
    count, length, before = case
    device, dtype = torch.device("cuda"), torch.bfloat16
    shape = DecodeShape(NUM_HEADS, NUM_KV_HEADS, head_dim, BLOCK_SIZE)
    context = length + before
    blocks_each = -(-context // BLOCK_SIZE)
    size = count * blocks_each, BLOCK_SIZE, NUM_KV_HEADS, head_dim
    keys, values = (torch.randn(size, device=device, dtype=dtype) for _ in range(2))
    tables = torch.randperm(size[0], device=device).view(count, -1).int()
    query = torch.randn(count * length, NUM_HEADS, head_dim, device=device, dtype=dtype)
    if tile is None:
        tile = tile_shape(shape, dtype, device)
    tiles = plan_tiles([length] * count, tile.rows // (NUM_HEADS // NUM_KV_HEADS))
    return partial(
        prefill_attention,
        query,
        LayerCache(keys, values),
        torch.from_numpy(tiles).to(device),
        tables,
        torch.arange(count + 1, device=device, dtype=torch.int32) * length,
        torch.full((count,), context, device=device, dtype=torch.int32),
        AttentionRule(head_dim**-0.5),
        shape,
        torch.empty_like(query),
        tile=tile,
    )


def make_torch_run(case: tuple[int, int, int], head_dim: int) -> Callable[[], object]:
    """Torch's, for prompts without a context."""
    count, length, _ = case
    query, key, value = (
        torch.randn(count * length, heads, head_dim, device="cuda", dtype=torch.bfloat16)
        for heads in (NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS)
    )
    ends = torch.arange(count + 1, device="cuda", dtype=torch.int32) * length
    return partial(
        torch.ops.aten._flash_attention_forward,
        query,
        key,
        value,
        ends,
        ends,
        length,
        length,
        0.0,
        is_causal=True,
        return_debug_mask=False,
        scale=head_dim**-0.5,
    )


def portions() -> list[TileShape]:
    """What programs may take."""
    return [
        TileShape(rows, keys, warps, stages)
        for (rows, warps), keys, stages in itertools.product(
            ((64, 4), (128, 4), (128, 8), (256, 8)), (32, 64, 128), (2, 3)
        )
    ]


def compile_portion(arguments: tuple[int, TileShape]) -> None:
    """Compiles for the others, into Triton's cache."""
    head_dim, tile = arguments
    try:
        for count in (1, 16):
            make_run((count, 64, 0), head_dim, tile)()
    except Exception as error:  # noqa: BLE001
        print("cannot run", arguments, type(error).__name__, flush=True)


def report(name: str, case: tuple[int, int, int], head_dim: int, run: Callable[[], object]) -> None:
    """Prints a line."""
    count, length, before = case
    pairs = count * (length * before + length * (length + 1) // 2)
    try:
        time_us = graph_us([run] * _RUNS)
    except Exception as error:  # noqa: BLE001
        print(head_dim, name, type(error).__name__, flush=True)
        return
    rate = 4 * pairs * NUM_HEADS * head_dim / time_us / 1e6
    print(f"heads of {head_dim}, {name}: {time_us:.1f} us {rate:.0f} TFLOP/s", flush=True)


def main() -> None:
    """Compiles in many processes, then measures in one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--head-dims", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--tune", action="store_true")
    options = parser.parse_args()
    tiles: list[TileShape | None] = [*portions()] if options.tune else [None]
    processes = min(14, os.cpu_count() or 1)
    context = torch.multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        pairs = [
            (head_dim, tile) for head_dim in options.head_dims for tile in tiles if tile is not None
        ]
        list(pool.map(compile_portion, pairs))
    for head_dim in options.head_dims:
        for name, case in CASES.items():
            if case[2] == 0:
                report(f"{name}, torch", case, head_dim, make_torch_run(case, head_dim))
            for tile in tiles:
                report(f"{name}, {tile}", case, head_dim, make_run(case, head_dim, tile))


if __name__ == "__main__":
    main()
