"""Times products with packed matrices on an NVIDIA card, in graphs, with weights beyond the cache.

    python -m tests.engine.kernels.measure_tiles --forms q4_k q6_k --inputs 1 32
    python -m tests.engine.kernels.measure_tiles --forms q4_k --inputs 1 --tune
    python -m tests.engine.kernels.measure_tiles --forms q4_k dense --inputs 512 --unpack

The matrices are those of Llama-3.1-8B; `dense` is cuBLAS in bfloat16. Each figure: microseconds,
and the GB/s at which weights and scales are read, and those that are unpacked written.
"""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch

from octavo.engine.kernels.triton.gemv import GATED, PLAIN
from octavo.engine.kernels.triton.matrices import DenseMatrix, TiledMatrix
from octavo.engine.kernels.triton.tiled_gemm import TiledGemmShape, tiled_gemm
from octavo.engine.kernels.triton.tiled_gemv import TiledGemvShape, tiled_gemv
from octavo.engine.kernels.triton.tiled_unpack import unpack_rows
from octavo.engine.kernels.triton.tiles import TiledWeights
from tests.support.tiled_weights import MAKERS, make_tiled

MATRICES = {
    "qkv": (6144, 4096),
    "o": (4096, 4096),
    "gate_up": (28672, 4096),
    "down": (4096, 14336),
    "head": (128256, 4096),
}
DENSE = "dense"
_COLD_BYTES = 160 * 2**20
"""Of all copies together; more than the cache holds."""
_WARM_UP_S = 0.06
Shape = TiledGemvShape | TiledGemmShape | None
Case = tuple[str, str, int, Shape]


def portions(num_inputs: int, *, tunes: bool) -> list[Shape]:
    """What programs may take."""
    if not tunes:
        return [None]
    if num_inputs == 1:
        return [
            TiledGemvShape(rows, cells)
            for rows, cells in itertools.product((2, 4, 8), (32, 64, 128))
        ]
    return [
        TiledGemmShape(rows, warps, stages, splits)
        for (rows, warps), stages, splits in itertools.product(
            ((64, 4), (128, 8)), (3, 4), (1, 2, 4, 8)
        )
    ]


def run(weights: TiledWeights, matrix: str, inputs: torch.Tensor, shape: Shape) -> None:
    """One product."""
    if len(inputs) == 1:
        assert not isinstance(shape, TiledGemmShape)
        epilogue = GATED if matrix == "gate_up" else PLAIN
        output = inputs.new_empty(1, weights.out_features // (2 if epilogue == GATED else 1))
        tiled_gemv(inputs, weights, output, epilogue=epilogue, shape=shape, overlap=_OVERLAP)
    elif shape is None:
        TiledMatrix(weights).multiply(inputs)
    else:
        assert not isinstance(shape, TiledGemvShape)
        output = inputs.new_empty(len(inputs), weights.out_features)
        tiled_gemm(inputs, weights, output, shape=shape)


def unpack(weights: TiledWeights) -> None:
    """The whole matrix, as bfloat16."""
    size = weights.out_features, weights.in_features
    dense = torch.empty(size, dtype=torch.bfloat16, device=weights.words.device)
    unpack_rows(weights, 0, weights.out_features, dense)


def graph_us(runs: Sequence[Callable[[], object]]) -> float:
    """Microseconds of one run, from replays of all of them."""
    for one in runs:
        one()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for one in runs:
            one()
    # An idle card sleeps: it takes a while to reach its clock.
    started_at = time.perf_counter()
    while time.perf_counter() - started_at < _WARM_UP_S:
        graph.replay()
        torch.cuda.synchronize()
    times: list[float] = []
    for _ in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1000 / len(runs))
    return statistics.median(times)


def compile_case(case: Case) -> None:
    """Compiles for the others, into Triton's cache."""
    matrix, form, num_inputs, shape = case
    weights = make_tiled(form, MATRICES[matrix][0], MATRICES[matrix][1], torch.device("cuda"))
    if weights is None:
        return
    inputs = torch.randn(num_inputs, MATRICES[matrix][1], device="cuda", dtype=torch.bfloat16)
    try:
        run(weights, matrix, inputs, shape)
    except Exception as error:  # noqa: BLE001
        print("cannot run", case, type(error).__name__, flush=True)


def measure(form: str, matrix: str, sizes: list[int], *, tunes: bool) -> None:
    """Prints a line for each number of inputs, or for each portion."""
    num_rows, num_columns = MATRICES[matrix]
    device = torch.device("cuda")
    first = make_tiled(form, num_rows, num_columns, device)
    if first is None:
        return
    copies = [first]
    while sum(one.num_bytes for one in copies) < _COLD_BYTES:
        next_one = make_tiled(form, num_rows, num_columns, device, seed=len(copies))
        assert next_one is not None
        copies.append(next_one)
    rounds = max(1, 12 // len(copies))
    for num_inputs in sizes:
        inputs = torch.randn(num_inputs, num_columns, device=device, dtype=torch.bfloat16)
        for shape in portions(num_inputs, tunes=tunes):
            runs = [partial(run, one, matrix, inputs, shape) for one in copies * rounds]
            try:
                time_us = graph_us(runs)
            except Exception as error:  # noqa: BLE001
                print(form, matrix, num_inputs, shape, type(error).__name__, flush=True)
                continue
            rate = first.num_bytes / time_us / 1000
            print(
                f"{form} {matrix} M={num_inputs} {time_us:.2f} us {rate:.0f} GB/s {shape}",
                flush=True,
            )


def measure_unpacking(form: str, matrix: str) -> None:
    """Prints a line."""
    weights = make_tiled(form, *MATRICES[matrix], torch.device("cuda"))
    if weights is None:
        return
    time_us = graph_us([partial(unpack, weights)] * 4)
    num_bytes = weights.num_bytes + 2 * weights.out_features * weights.in_features
    print(f"{form} {matrix} unpack {time_us:.2f} us {num_bytes / time_us / 1000:.0f} GB/s")


def measure_dense(matrix: str, sizes: list[int]) -> None:
    """Prints a line for each number of inputs."""
    num_rows, num_columns = MATRICES[matrix]
    num_copies = 1 + _COLD_BYTES // (2 * num_rows * num_columns)
    copies = [
        torch.randn(num_rows, num_columns, device="cuda", dtype=torch.bfloat16)
        for _ in range(num_copies)
    ]
    for num_inputs in sizes:
        inputs = torch.randn(num_inputs, num_columns, device="cuda", dtype=torch.bfloat16)
        time_us = graph_us([partial(DenseMatrix(one).multiply, inputs) for one in copies])
        rate = copies[0].nbytes / time_us / 1000
        print(f"dense {matrix} M={num_inputs} {time_us:.2f} us {rate:.0f} GB/s", flush=True)


def main() -> None:
    """Compiles in many processes, then measures in one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--forms", nargs="+", default=["int4 g128", "q4_k", "q6_k"], choices=[*MAKERS, DENSE]
    )
    parser.add_argument("--matrices", nargs="+", default=[*MATRICES][:4], choices=MATRICES)
    parser.add_argument("--inputs", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--unpack", action="store_true", help="Also without a product.")
    parser.add_argument("--plain-launches", action="store_true", help="Without overlap.")
    options = parser.parse_args()
    global _OVERLAP
    _OVERLAP = not options.plain_launches
    forms = [form for form in options.forms if form != DENSE]
    all_cases = [
        (matrix, form, size, shape)
        for matrix in options.matrices
        for form in forms
        for size in options.inputs
        for shape in portions(size, tunes=options.tune)
    ]
    processes = min(14, os.cpu_count() or 1)
    with ProcessPoolExecutor(
        processes, mp_context=torch.multiprocessing.get_context("spawn")
    ) as pool:
        list(pool.map(compile_case, all_cases))
    for matrix in options.matrices:
        for form in forms:
            if options.unpack:
                measure_unpacking(form, matrix)
            measure(form, matrix, options.inputs, tunes=options.tune)
        if DENSE in options.forms:
            measure_dense(matrix, options.inputs)


_OVERLAP = True


if __name__ == "__main__":
    main()
