"""Compiles the CPU's kernels for the processor it runs on, so that no first load has to wait.

    python packaging/compile_kernels.py              for the files that people download most
    python packaging/compile_kernels.py q5_k q6_k    for these forms of weights

For whoever installs Octavo for others: run it in the place where Octavo stays, with the Python that
runs it. What is compiled belongs to a processor and to Octavo's files with their paths and times,
so it cannot be copied elsewhere; `--cache-dir` says where it goes, if not into the cache folder of
whoever runs this.
"""

import argparse
import sys
from pathlib import Path

from octavo.engine.kernels.cpu.kernel_cache import USUAL_FORMS, KernelCompiler, kernel_folder
from octavo.engine.kernels.cpu.tiles_forms import FORMS
from octavo.engine.planning import why_not_on_this_machine
from octavo.paths import AppPaths


def main(arguments: list[str]) -> int:
    """Returns 0 if all kernels are compiled, or if this processor has none."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("forms", nargs="*", metavar="FORM", help=", ".join(FORMS))
    parser.add_argument("--cache-dir", type=Path, default=AppPaths.default().kernels_dir)
    options = parser.parse_args(arguments)
    if unknown := [form for form in options.forms if form not in FORMS]:
        parser.error(f"there is no form {', '.join(unknown)}")
    if reason := why_not_on_this_machine():
        print(reason)
        return 0
    folder = kernel_folder(str(options.cache_dir))
    assert folder is not None
    folder.mkdir(parents=True, exist_ok=True)
    compiler = KernelCompiler(folder, options.forms or USUAL_FORMS)

    def show(done: int, total: int) -> None:
        print(f"\r{done} of {total} parts are compiled", end="", flush=True)

    is_done = compiler.wait(show)
    print(f"\nThe kernels lie in {folder}." if is_done else f"\n{compiler.last_words}")
    return 0 if is_done else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
