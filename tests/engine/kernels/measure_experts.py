"""Times the kernels of packed experts on an NVIDIA card, in graphs, with weights beyond the cache.

    python -m tests.engine.kernels.measure_experts --forms q4_k --tokens 1 32
    python -m tests.engine.kernels.measure_experts --forms "int4 g128" --tokens 1 128 --tune
    python -m tests.engine.kernels.measure_experts --forms q4_k --tokens 512 2048 --whole

The layer is that of Qwen3-30B-A3B: 128 experts of 768 features, of which a token picks 8; every run
picks others. Each figure: microseconds, and the GB/s at which the weights of picked experts are
read once. `--whole` times both products of a layer, multiplied packed and unpacked before.
"""

import argparse
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch

from octavo.engine.kernels.triton import experts
from octavo.engine.kernels.triton.experts import TiledExperts
from octavo.engine.kernels.triton.moe_routing import Picks, group_picks, pick_experts
from octavo.engine.kernels.triton.tiled_expert_gemm import (
    TiledGroupedShape,
    multiply_grouped_tiled,
    tiled_grouped_shape,
)
from octavo.engine.kernels.triton.tiled_expert_gemv import add_picked_tiled, multiply_picked_tiled
from octavo.engine.kernels.triton.tiled_gemv import TiledGemvShape
from octavo.engine.kernels.triton.tiles import TiledWeights
from tests.engine.kernels.measure_tiles import graph_us
from tests.support.tiled_weights import MAKERS, make_tiled

NUM_EXPERTS, NUM_PICKS, HIDDEN, INNER = 128, 8, 2048, 768
NUM_RUNS = 16
_MAX_VECTOR_TOKENS = 16
GATED, DOWNS = "gates and ups", "downs"
Shape = TiledGemvShape | TiledGroupedShape | None
Case = tuple[str, str, int, Shape]


def portions(part: str, num_tokens: int, *, tunes: bool) -> list[Shape]:
    """What programs may take."""
    if not tunes:
        return [None]
    takes_all_picks = part == DOWNS and num_tokens == 1
    vectors: list[Shape] = [
        TiledGemvShape(rows, cells)
        for rows, cells in itertools.product(
            (2, 4, 8), (32, 64, 128, 256) if takes_all_picks else (32, 64)
        )
    ]
    if num_tokens == 1:
        return vectors
    grouped: list[Shape] = [
        TiledGroupedShape(picks, rows, warps, stages)
        for picks, (rows, warps), stages in itertools.product(
            (16, 32), ((32, 2), (64, 4), (128, 8)), (3, 4)
        )
    ]
    return vectors + grouped if num_tokens <= _MAX_VECTOR_TOKENS else grouped


def make_weights(form: str, part: str, num_experts: int = NUM_EXPERTS) -> TiledWeights:
    """One layer's."""
    size = (2 * INNER, HIDDEN) if part == GATED else (HIDDEN, INNER)
    weights = make_tiled(form, num_experts * size[0], size[1], torch.device("cuda"))
    assert weights is not None, form
    return weights


def make_picks(num_tokens: int, seed: int, num_experts: int = NUM_EXPERTS) -> Picks:
    """As a router of random weights picks."""
    torch.manual_seed(seed)
    logits = torch.randn(num_tokens, num_experts, device="cuda", dtype=torch.bfloat16)
    return pick_experts(logits, NUM_PICKS, renormalizes=True)


def make_run(
    weights: TiledWeights,
    part: str,
    num_tokens: int,
    shape: Shape,
    *,
    seed: int = 0,
    num_experts: int = NUM_EXPERTS,
) -> Callable[[], object]:
    """One product, without the sorting before it."""
    picks = make_picks(num_tokens, seed, num_experts)
    gated = part == GATED
    count = num_tokens if gated else num_tokens * NUM_PICKS
    size = count, HIDDEN if gated else INNER
    rows = torch.randn(size, device="cuda", dtype=torch.bfloat16)
    num_picks = num_tokens * NUM_PICKS
    if num_tokens == 1 and not gated:
        assert not isinstance(shape, TiledGroupedShape)
        hidden = torch.zeros(1, HIDDEN, device="cuda", dtype=torch.bfloat16)
        return partial(add_picked_tiled, rows, weights, picks, hidden, shape=shape, overlap=True)
    is_few = num_picks <= experts._MAX_VECTOR_PICKS * num_experts
    if isinstance(shape, TiledGemvShape) or (shape is None and is_few):
        return partial(
            multiply_picked_tiled,
            rows,
            weights,
            picks,
            num_experts,
            gated=gated,
            shape=shape,
            overlap=True,
        )
    if shape is None:
        shape = tiled_grouped_shape(num_picks, num_experts, weights.form, rows.device)
    groups = group_picks(picks, num_experts, shape.picks)
    return partial(
        multiply_grouped_tiled,
        rows,
        weights,
        groups,
        num_picks,
        num_experts,
        gated=gated,
        shape=shape,
        overlap=True,
    )


def compile_case(case: Case) -> None:
    """Compiles for the others, into Triton's cache."""
    form, part, num_tokens, shape = case
    try:
        weights = make_weights(form, part, NUM_PICKS)
        make_run(weights, part, num_tokens, shape, num_experts=NUM_PICKS)()
    except Exception as error:  # noqa: BLE001
        print("cannot run", case, type(error).__name__, flush=True)


def measure(form: str, part: str, counts: Sequence[int], *, tunes: bool) -> None:
    """Prints a line for each number of tokens, or for each portion."""
    weights = make_weights(form, part)
    for num_tokens in counts:
        picked = [make_picks(num_tokens, seed).experts.flatten() for seed in range(NUM_RUNS)]
        num_read = sum(len(set(one.tolist())) for one in picked) / NUM_RUNS
        num_bytes = weights.num_bytes / NUM_EXPERTS * num_read
        for shape in portions(part, num_tokens, tunes=tunes):
            try:
                runs = [
                    make_run(weights, part, num_tokens, shape, seed=seed)
                    for seed in range(NUM_RUNS)
                ]
                time_us = graph_us(runs)
            except Exception as error:  # noqa: BLE001
                print(form, part, num_tokens, shape, type(error).__name__, flush=True)
                continue
            print(
                f"{form} {part} tokens={num_tokens} {time_us:.2f} us"
                f" {num_bytes / time_us / 1000:.0f} GB/s {shape}",
                flush=True,
            )


def measure_whole(form: str, counts: Sequence[int]) -> None:
    """Prints a line for each number of tokens and way."""
    stack = TiledExperts(make_weights(form, GATED), make_weights(form, DOWNS), NUM_EXPERTS)
    usual = experts._MAX_VECTOR_PICKS
    for num_tokens in counts:
        rows = torch.randn(num_tokens, HIDDEN, device="cuda", dtype=torch.bfloat16)
        runs = [partial(stack.multiply, rows, make_picks(num_tokens, seed)) for seed in range(4)]
        for way, limit in (("packed", num_tokens * NUM_PICKS), ("unpacked", 0)):
            experts._MAX_TILED_PICKS = experts._MAX_SCALED_PICKS = limit
            experts._MAX_VECTOR_PICKS = min(usual, limit)
            print(f"{form} whole tokens={num_tokens} {way} {graph_us(runs):.1f} us", flush=True)


def main() -> None:
    """Compiles in many processes, then measures in one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--forms", nargs="+", default=["int4 g128", "q4_k", "q6_k"], choices=MAKERS)
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--whole", action="store_true")
    options = parser.parse_args()
    if options.whole:
        for form in options.forms:
            measure_whole(form, options.tokens)
        return
    all_cases = [
        (form, part, num_tokens, shape)
        for form in options.forms
        for part in (GATED, DOWNS)
        for num_tokens in options.tokens
        for shape in portions(part, num_tokens, tunes=options.tune)
    ]
    processes = min(14, os.cpu_count() or 1)
    context = torch.multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        list(pool.map(compile_case, all_cases))
    for form in options.forms:
        for part in (GATED, DOWNS):
            measure(form, part, options.tokens, tunes=options.tune)


if __name__ == "__main__":
    main()
