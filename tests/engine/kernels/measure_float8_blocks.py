"""Times many rows times 8-bit floats in blocks of 128, on a card whose matrix units take them.

    python -m tests.engine.kernels.measure_float8_blocks --inputs 64 256 2048

Per matrix of Llama-3.1-8B, in graphs and with weights beyond the cache: `units` rounds the inputs
and multiplies 8-bit floats, `rounding` is the first half of that alone, `exact` is what
`TiledMatrix` does without it. Each figure: microseconds, and TFLOP/s of the products.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch

from octavo.engine.kernels.triton.float8_blocks import float8_groups_linear, quantize_groups
from octavo.engine.kernels.triton.matrices import TiledMatrix
from tests.engine.kernels.measure_tiles import MATRICES, graph_us
from tests.support.tiled_weights import make_tiled

_COLD_BYTES = 160 * 2**20
"""Of all copies together; more than the cache holds."""


@torch.inference_mode()
def measure(name: str, sizes: list[int]) -> None:
    """Prints a line for each number of inputs."""
    num_rows, num_columns = MATRICES[name]
    num_copies = max(1, -(-_COLD_BYTES // (num_rows * num_columns)))
    copies = []
    for seed in range(num_copies):
        weights = make_tiled(
            "float8 blocks", num_rows, num_columns, torch.device("cuda"), seed=seed
        )
        assert weights is not None
        copies.append(weights)
    for num_inputs in sizes:
        inputs = torch.randn(num_inputs, num_columns, device="cuda", dtype=torch.bfloat16)
        paths: dict[str, list[Callable[[], object]]] = {
            "units": [partial(float8_groups_linear, inputs, one) for one in copies],
            "rounding": [partial(quantize_groups, inputs)],
            "exact": [partial(TiledMatrix(one).multiply, inputs) for one in copies],
        }
        found = {path: graph_us(runs) for path, runs in paths.items()}
        operations = 2 * num_inputs * num_rows * num_columns
        figures = [f"{path} {time_us:.1f} us" for path, time_us in found.items()]
        rates = [f"{path} {operations / found[path] / 1e6:.0f}" for path in ("units", "exact")]
        print(name, f"M={num_inputs}", ", ".join(figures), "TFLOP/s:", *rates, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--matrices", nargs="+", default=["qkv", "o", "gate_up", "down"])
    parser.add_argument("--inputs", nargs="+", type=int, default=[64, 128, 256, 512, 2048, 8192])
    options = parser.parse_args()
    print(torch.cuda.get_device_name(), torch.__version__, flush=True)
    for name in options.matrices:
        measure(name, options.inputs)


if __name__ == "__main__":
    main()
