"""`octavo bench --tune`: measures this machine's GPU once, for every model."""

import argparse
import json

import tomli_w

from octavo.cli.terminal import print_table
from octavo.engine.config import EngineConfig
from octavo.engine.device import choose_device, detect_devices
from octavo.errors import ResourceError, StorageError
from octavo.paths import AppPaths


def tune(options: argparse.Namespace, paths: AppPaths) -> int:
    """Measures, prints what was gained, and writes the table that loads read from then on.

    Raises:
        ResourceError: there is no GPU that our kernels run on.
        StorageError: the table cannot be written.
    """
    device = choose_device(EngineConfig(device=options.device or "cuda"), detect_devices())
    if device.kind != "cuda":
        raise ResourceError(
            "There is nothing to tune on a processor: its kernels fit themselves to it.",
            hint="Leave --device out, or name a GPU.",
        )
    # Here, because torch comes with it.
    from octavo.engine.kernels.triton.attention_tiling import table_of
    from octavo.engine.tuning import tune_attention

    results = []
    for result in tune_attention(device):
        results.append(result)
        if not options.json:
            row = result.row
            print(f"{row.head_dim} channels, {row.sequences} sequences: measured", flush=True)
    path = paths.gpu_tuning_table
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(tomli_w.dumps(table_of([one.row for one in results])), encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"The tuning table {path} cannot be written: {error.strerror or error}.",
            hint="Free some space or correct the folder's permissions, then try again.",
            path=path,
        ) from error
    if options.json:
        rows = table_of([one.row for one in results])
        print(json.dumps({"card": device.name, "file": str(path), **rows}, indent=2))
        return 0
    print_table(
        ("HEADS OF", "SEQUENCES", "BEFORE", "NOW", "GAIN"),
        [
            (
                str(one.row.head_dim),
                f"up to {one.row.sequences}",
                f"{one.default_us:.1f} µs",
                f"{one.best_us:.1f} µs",
                f"{100 * (1 - one.best_us / one.default_us):.0f} %",
            )
            for one in results
        ],
    )
    print(f"Kept in {path} for every load from now on.")
    return 0
