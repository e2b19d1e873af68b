"""Threads that run a program's operations together: each portion once, in order, asleep after."""

import threading
import time
from typing import Any

import numba
import numpy as np
import psutil

from octavo.engine.kernels.cpu.simd import at, atomic_add, read_u64
from octavo.engine.kernels.cpu.step_loop import FIRST_ARGUMENT, OPERATION_WORDS
from octavo.engine.kernels.cpu.worker_threads import WorkerThreads

EXTENT_WORD = 3


@numba.cfunc("void(int64, int64, int64, int64, int64)", nogil=True)
def count_visits(operation, step, scratch, begin, end):
    """Counts who comes by; `counts` of an operation lie where its first argument says."""
    counts = read_u64(at(numba.uint64(operation), 8 * FIRST_ARGUMENT))
    for index in range(begin, end):
        atomic_add(at(counts, 8 * index), numba.int64(1))


@numba.cfunc("void(int64, int64, int64, int64, int64)", nogil=True)
def copy_total(operation, step, scratch, begin, end):
    """Reads all of what the operation before has written, and adds it to its own."""
    source = read_u64(at(numba.uint64(operation), 8 * FIRST_ARGUMENT))
    target = read_u64(at(numba.uint64(operation), 8 * FIRST_ARGUMENT + 8))
    length = read_u64(at(numba.uint64(operation), 8 * FIRST_ARGUMENT + 16))
    total = numba.int64(0)
    for index in range(length):
        total += atomic_add(at(source, 8 * numba.int64(index)), numba.int64(0))
    atomic_add(target, total)


class Programs:
    """A program of operations that depend on each other, and what comes of them."""

    def __init__(self, num_operations: int, extent: int, grain: int) -> None:
        self.extent = extent
        self.counts = np.zeros((num_operations, extent), dtype=np.int64)
        self.totals = np.zeros(num_operations, dtype=np.int64)
        self.operations = np.zeros((2 * num_operations, OPERATION_WORDS), dtype=np.int64)
        self.step = np.zeros(8, dtype=np.int64)
        self.step[EXTENT_WORD] = extent
        self.step[EXTENT_WORD + 1] = 1
        for index in range(num_operations):
            counts = self.counts[index].ctypes.data
            self.operations[2 * index, :5] = (count_visits.address, EXTENT_WORD, 1, grain, counts)
            self.operations[2 * index + 1, :7] = (
                *(copy_total.address, EXTENT_WORD + 1, 1, 1),
                *(counts, self.totals[index:].ctypes.data, extent),
            )

    def start(self, threads: WorkerThreads) -> int:
        operations = self.operations
        return threads.start(operations.ctypes.data, len(operations), self.step.ctypes.data, self)

    def run(self, threads: WorkerThreads) -> None:
        threads.run(self.operations.ctypes.data, len(self.operations), self.step.ctypes.data)


def test_each_portion_runs_once_and_operations_in_order() -> None:
    threads = WorkerThreads(3, 64)
    programs = Programs(20, 37, 4)
    for _ in range(200):
        programs.run(threads)
    threads.close()
    assert (programs.counts == 200).all()
    # Each total sees all visits of its operation, those of the same run included.
    assert (programs.totals == programs.extent * 200 * 201 // 2).all()


def test_operations_without_anything_to_do_are_passed_over() -> None:
    threads = WorkerThreads(2, 64)
    programs = Programs(3, 8, 1)
    programs.step[EXTENT_WORD] = 0
    programs.run(threads)
    threads.close()
    assert not programs.counts.any()
    assert not programs.totals.any()


def test_programs_run_in_order_while_the_caller_goes_on() -> None:
    threads = WorkerThreads(3, 64)
    many = [Programs(4, 7, 2) for _ in range(5)]
    for turn in range(100):
        # More than may wait at a time; all write what the first one reads in the next turn.
        numbers = [programs.start(threads) for programs in (*many, *many, *many)]
        assert numbers == list(range(15 * turn + 1, 15 * turn + 16))
        threads.finish(numbers[2])
        assert (many[2].counts >= 3 * turn + 1).all()
    threads.finish_all()
    threads.close()
    for programs in many:
        assert (programs.counts == 300).all()
        assert (programs.totals == programs.extent * 300 * 301 // 2).all()


def test_what_a_program_works_with_outlives_its_owners() -> None:
    threads: Any = WorkerThreads(2, 64)
    programs = Programs(2000, 64, 1)
    counts = programs.counts
    programs.start(threads)
    workers = [thread for thread in threading.enumerate() if thread.name.startswith("octavo-cpu")]
    del threads, programs
    for worker in workers:
        worker.join(30)
        assert not worker.is_alive()
    assert counts.max() <= 1


def test_a_program_ends_without_the_other_threads() -> None:
    threads = WorkerThreads(2, 64)
    threads.close()
    programs = Programs(5, 8, 2)
    programs.run(threads)
    assert (programs.counts == 1).all()


def test_threads_sleep_between_requests_and_wake_again() -> None:
    others = set(threading.enumerate())
    threads = WorkerThreads(2, 64)
    (worker,) = set(threading.enumerate()) - others
    programs = Programs(2, 16, 1)
    programs.run(threads)
    time.sleep(0.2)
    me = psutil.Process()
    before = {thread.id: thread.user_time + thread.system_time for thread in me.threads()}
    time.sleep(0.3)
    after = {thread.id: thread.user_time + thread.system_time for thread in me.threads()}
    assert worker.native_id is not None
    assert after[worker.native_id] == before[worker.native_id]
    programs.run(threads)
    threads.close()
    assert (programs.counts == 2).all()


def test_threads_end_with_their_owner() -> None:
    """One that comes back from a kernel while the interpreter closes would abort the process."""
    before = set(threading.enumerate())
    threads: Any = WorkerThreads(3, 64)
    workers = set(threading.enumerate()) - before
    assert len(workers) == 2
    Programs(3, 8, 1).run(threads)
    del threads
    assert not any(worker.is_alive() for worker in workers)
