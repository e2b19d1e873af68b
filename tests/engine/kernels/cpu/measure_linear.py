"""Times the product with packed tiles, read bandwidth and torch's ways, interleaved in one run.

    python -m tests.engine.kernels.cpu.measure_linear --form q4_0 --form q4_k --tokens 1 16 512

Each thread multiplies by its own part of the tiles, over copies of the matrix that together do not
fit the caches (one copy from 64 tokens on). Activations are quantised beforehand. Torch's times
include what its operations do to their input; its int8 has one scale for all activations.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from octavo.engine.kernels.cpu import linear, quantize_activations, simd
from octavo.engine.kernels.cpu.read_memory import read_memory
from octavo.engine.kernels.cpu.tiles import empty_matrix
from octavo.engine.kernels.cpu.tiles_forms import FORMS

SHAPES = (
    (1536, 576),
    (576, 1536),
    (49152, 576),
    (8192, 2048),
    (2048, 8192),
    (8192, 3072),
    (3072, 8192),
)
"""SmolLM2-135M's feed-forward and head, and the feed-forward of models of 1B and 3B."""
COLD_BYTES = 120 << 20
"""Of all copies together; far more than the last cache holds."""


class Runner:
    """Runs one piece of work on each of some threads and waits for all."""

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads)

    def seconds(self, work: Callable[[int], None]) -> float:
        start = time.perf_counter()
        for future in [self._pool.submit(work, index) for index in range(self.num_threads)]:
            future.result()
        return time.perf_counter() - start


def kernel_work(
    runner: Runner, form: str, shape: tuple[int, int], num_tokens: int
) -> tuple[Callable[[], float], int]:
    """A function that times one product, and the bytes of the matrix."""
    matrix = empty_matrix(form, *shape)
    matrix.tiles.copy_(torch.randint(0, 64, matrix.tiles.shape, dtype=torch.uint8))
    num_copies = 1 if num_tokens >= 64 else max(1, COLD_BYTES // matrix.tiles.numel())
    copies = [matrix.tiles.clone() for _ in range(num_copies)]
    activations = torch.randn(num_tokens, shape[1])
    inputs = activations
    if matrix.form.is_quantized:
        inputs = quantize_activations.quantize_rows(activations)
    out = torch.empty(num_tokens, shape[0])
    kernel = linear.compile_kernel(form).ctypes
    num_tiles = len(matrix.tiles)

    def work(index: int) -> None:
        first = index * num_tiles // runner.num_threads
        last = (index + 1) * num_tiles // runner.num_threads
        for tiles in copies:
            kernel(
                tiles.data_ptr(),
                tiles.shape[1],
                first,
                last,
                matrix.padded_columns,
                matrix.num_rows,
                num_tokens,
                inputs.data_ptr(),
                inputs.stride(0) * inputs.element_size(),
                out.data_ptr(),
                out.stride(0) * 4,
                matrix.group_size,
            )

    return lambda: runner.seconds(work) / num_copies, matrix.tiles.numel()


def read_work(runner: Runner) -> tuple[Callable[[], float], int]:
    memory = torch.ones(COLD_BYTES, dtype=torch.uint8)
    size = COLD_BYTES // runner.num_threads & ~255
    read_memory(np.uint64(memory.data_ptr()), 256)

    def work(index: int) -> None:
        read_memory(np.uint64(memory.data_ptr() + index * size), size)

    return lambda: runner.seconds(work), COLD_BYTES


def torch_works(
    shape: tuple[int, int], num_tokens: int
) -> dict[str, tuple[Callable[[], float], int]]:
    """Torch's 4-bit and 8-bit products and float32, by name."""
    num_rows, num_columns = shape
    activations = torch.randn(num_tokens, num_columns)
    works = {}

    def add(
        name: str,
        num_bytes: int,
        make: Callable[[], Any],
        multiply: Callable[[Any], object],
    ) -> None:
        num_copies = 1 if num_tokens >= 64 else max(1, min(COLD_BYTES // num_bytes, 40))
        copies = [make() for _ in range(num_copies)]

        def seconds() -> float:
            start = time.perf_counter()
            for copy in copies:
                multiply(copy)
            return (time.perf_counter() - start) / num_copies

        works[name] = (seconds, num_bytes)

    half = activations.bfloat16()
    codes = torch.randint(0, 16, shape, dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales = torch.full((num_columns // 32, num_rows, 2), 0.01).bfloat16()
    add(
        "torch int4pack",
        packed.numel(),
        packed.clone,
        lambda w: torch.ops.aten._weight_int4pack_mm_for_cpu(half, w, 32, scales),
    )
    weights = torch.randn(shape)
    add(
        "torch float32",
        4 * weights.numel(),
        weights.clone,
        lambda w: functional.linear(activations, w),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = torch.quantize_per_channel(
            weights,
            torch.full((num_rows,), 0.02),
            torch.zeros(num_rows, dtype=torch.long),
            0,
            torch.qint8,
        )
    add(
        "torch int8",
        rows.numel(),
        lambda: torch.ops.quantized.linear_prepack(rows, None),
        lambda w: torch.ops.quantized.linear_dynamic(activations, w, True),
    )
    return works


def measure(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    runner = Runner(arguments.threads)
    print(f"tier {simd.TIER}, {arguments.threads} thread(s); median of {arguments.rounds} rounds")
    print("| rows x columns, tokens | what | us | GB/s of weights | GMAC/s | share of read |")
    for shape in arguments.shape or SHAPES:
        for num_tokens in arguments.tokens:
            works = {"read": read_work(runner)}
            for form in arguments.form:
                works[form] = kernel_work(runner, form, shape, num_tokens)
            if arguments.torch:
                works |= torch_works(shape, num_tokens)
            samples: dict[str, list[float]] = {name: [] for name in works}
            for _ in range(arguments.rounds + 1):
                for name, (seconds, _) in works.items():
                    if num_tokens >= 64:
                        # What ran before has emptied the caches.
                        seconds()
                    samples[name].append(seconds())
            rates = {}
            for name, (_, num_bytes) in works.items():
                taken = statistics.median(samples[name][1:])
                rates[name] = num_bytes / taken
                products = 0 if name == "read" else shape[0] * shape[1] * num_tokens
                print(
                    f"| {shape[0]}x{shape[1]}, {num_tokens} | {name} | {taken * 1e6:,.0f} "
                    f"| {rates[name] / 1e9:.1f} | {products / taken / 1e9:.1f} "
                    f"| {rates[name] / rates['read']:.2f} |",
                    flush=True,
                )


def _shape(text: str) -> tuple[int, int]:
    rows, columns = text.split("x")
    return int(rows), int(columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--form", action="append", choices=FORMS, required=True)
    parser.add_argument("--shape", action="append", type=_shape, help="rows x columns: 8192x2048")
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 4, 16, 512])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torch", action="store_true", help="torch's int4pack and float32, too")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
