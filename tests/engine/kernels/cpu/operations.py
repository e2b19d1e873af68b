"""One operation of a kernel, run by itself."""

from typing import Any

import numpy as np

from octavo.engine.kernels.cpu import step_words
from octavo.engine.kernels.cpu.program import Program, Words
from octavo.engine.kernels.cpu.step_arrays import StepArrays
from octavo.engine.kernels.cpu.worker_threads import WorkerThreads


def run_operations(
    kernels: list[tuple[Any, int, int]],
    words: Words,
    step: dict[int, int] | StepArrays,
    *,
    scratch_bytes: int = 1024,
) -> None:
    """Runs kernels one after the other on two threads.

    Args:
        kernels: each with the word of its extent and the extent's factor.
        words: of all of them.
        step: words of the step, by their places, or as a model's steps have them.
        scratch_bytes: that each thread works in.
    """
    program = Program()
    for kernel, extent, factor in kernels:
        program.add(kernel, words, extent=extent, factor=factor)
    array = np.zeros(step_words.num_step_words(1), dtype=np.int64)
    if isinstance(step, dict):
        for place, word in step.items():
            array[place] = word
    threads = WorkerThreads(2, scratch_bytes)
    program.run(threads, step.address if isinstance(step, StepArrays) else array.ctypes.data)
    threads.close()
