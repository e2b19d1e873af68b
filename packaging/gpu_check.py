"""Runs the GPU tests and measures, on a machine with an NVIDIA card and no internet.

    python3 packaging/gpu_check.py                     tests, then all shapes and formats
    python3 packaging/gpu_check.py --bench-only --shapes Llama-3.2-1B --formats bf16

Needs PyTorch's CUDA build with Triton, pytest, and the few small packages that the engine imports;
no Qt, no model files, no network. What is missing is said in one sentence.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("torch", "triton", "pytest", "numpy", "psutil", "pynvml", "platformdirs", "tokenizers")
SHAPES = ("Llama-3.2-1B", "Llama-3.1-8B", "Qwen3-0.6B", "Qwen3-8B")
FORMATS = ("bf16", "int4", "q4_k_m")
# The project's own settings name plugins for Qt and asyncio that such a machine need not have.
PYTEST_SETTINGS = """[pytest]
addopts = --strict-markers --import-mode=importlib -ra
pythonpath = {root} {root}/desktop {root}/packaging
markers =
    gui: opens a window on a real X server
    gpu: needs an NVIDIA GPU
    whole_card: measures or fills a GPU, so that nothing else may use it
    slow: takes more than half a minute
    starter: needs the starter model, fetched on first use
"""


def main(arguments: list[str]) -> int:
    """Returns 0 if the tests passed and every measurement ended."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tests-only", action="store_true")
    parser.add_argument("--bench-only", action="store_true")
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), metavar="SHAPE")
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), metavar="NAME")
    parser.add_argument("--batch-sizes", nargs="*", default=["1", "8", "32", "128", "256"])
    options, pytest_arguments = parser.parse_known_args(arguments)
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(
            f"These packages are missing: {', '.join(missing)}. Install them, from wheels if need"
            " be."
        )
        return 1
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'desktop'}:{os.environ.get('PYTHONPATH', '')}",
    }
    status = 0
    if not options.bench_only:
        status |= _test(pytest_arguments, environment)
    if not options.tests_only:
        for shape in options.shapes:
            for weight_format in options.formats:
                status |= _bench(shape, weight_format, options.batch_sizes, environment)
    return status


def _test(pytest_arguments: list[str], environment: dict[str, str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "pytest.ini"
        settings.write_text(PYTEST_SETTINGS.format(root=ROOT))
        command = [sys.executable, "-m", "pytest", "-c", str(settings), "--rootdir", str(ROOT)]
        command += ["-q", *pytest_arguments, str(ROOT / "tests" / "engine")]
        one_process = ["-n", "0"] if "-n" in pytest_arguments else []
        status = 0
        for marked in (["gpu and not whole_card"], ["gpu and whole_card", *one_process]):
            run = subprocess.run([*command, "-m", *marked], cwd=ROOT, env=environment, check=False)
            status |= run.returncode
        return status


def _bench(
    shape: str, weight_format: str, batch_sizes: list[str], environment: dict[str, str]
) -> int:
    command = [sys.executable, "-m", "octavo", "bench", "--dummy-weights", shape]
    command += ["--weight-format", weight_format, "--batch-sizes", *batch_sizes]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
