"""The loop that all threads run through a program's operations together, without the GIL.

An operation is cut into portions; whoever is free takes the next one, so that a fast core takes
more of them and a thread that the system has put aside holds up nothing but its own portion. Who
finishes an operation's last portion opens the next operation.

The threads meet in one word, `CURRENT`: a serial number of the operation and, in its lowest bits,
the next portion. It only ever changes by compare-and-exchange or from the thread that finished the
operation, and so what it was read with (which operation, how many portions) was true if taking a
portion succeeds. Threads need not arrive: a program runs to its end with one of them.

Programs wait for their turn in a ring; who finishes one opens the next. So the caller may go on
with something else while the others work, and helps them when it wants the result.
"""

from numba import int64, njit, uint64

from octavo.engine.kernels.cpu.atomics import compare_exchange, yield_thread
from octavo.engine.kernels.cpu.simd import (
    at,
    atomic_add,
    atomic_load,
    atomic_store,
    call_kernel,
    pause,
    read_i64,
    read_u64,
    write_i64,
)

MAX_PROGRAMS = 8
"""Programs that may wait or run at a time."""

# Words of the control block. What everybody writes has a cache line of its own.
_CURRENT = 0
_DONE = 8
_OPERATION = 16  # its address; 0: nothing to do
_PORTIONS = 17
_END = 18  # where the program's operations end
_STEP = 19
_FINISHED = 24  # programs that have run to their end
_PENDING = 32  # programs that have not
_ADDED = 40  # programs that were ever added; for the caller alone
_PROGRAMS = 48  # MAX_PROGRAMS times: operations, their end, step
_PROGRAM_WORDS = 4
CONTROL_WORDS = _PROGRAMS + _PROGRAM_WORDS * MAX_PROGRAMS

OPERATION_WORDS = 32
# Words of an operation; kernels have the others for themselves.
KERNEL = 0
"""Address of a C function of `KERNEL_SIGNATURE`."""
EXTENT = 1
"""Which word of the step says how much there is to do."""
FACTOR = 2
"""By how much that is multiplied."""
GRAIN = 3
"""How much of it is a portion."""
FIRST_ARGUMENT = 4
KERNEL_SIGNATURE = "void(int64, int64, int64, int64, int64)"
"""Of kernels: operation, step, scratch, begin, end."""

_PORTION_BITS = 24
_PORTION_MASK = (1 << _PORTION_BITS) - 1
_PAUSES = 4000
"""A wait inside a step spins so often before it lets others have the core. Where another program
is busy, who steps aside comes back milliseconds later and misses the step; this long, only threads
wait for one that was put aside itself."""


_ANY = 1 << 62
"""More programs than there will ever be."""


@njit("int64(uint64)", nogil=True, cache=True)
def _take_program(control):
    """Makes the program next in the ring the present one; returns its first operation."""
    number = atomic_load(at(control, 8 * _FINISHED)) % MAX_PROGRAMS
    program = at(control, 8 * (_PROGRAMS + _PROGRAM_WORDS * number))
    write_i64(at(control, 8 * _END), read_i64(at(program, 8)))
    write_i64(at(control, 8 * _STEP), read_i64(at(program, 16)))
    return read_i64(program)


@njit("void(uint64, int64)", nogil=True, cache=True, inline="never")
def _open_next(control, operation):
    """Opens the first operation from an address on that has anything to do.

    If the program has no more, it is finished, and the next one's turn comes.
    """
    word = at(control, 8 * _CURRENT)
    while True:
        # Closed first: who has read the old number of portions and then a new one must not succeed.
        current = atomic_load(word)
        atomic_add(word, (1 << _PORTION_BITS) + _PORTION_MASK - (current & _PORTION_MASK))
        end = read_i64(at(control, 8 * _END))
        step = read_u64(at(control, 8 * _STEP))
        portions = int64(0)
        while operation < end:
            address = uint64(operation)
            extent = read_i64(at(step, 8 * read_i64(at(address, 8 * EXTENT))))
            grain = read_i64(at(address, 8 * GRAIN))
            portions = (extent * read_i64(at(address, 8 * FACTOR)) + grain - 1) // grain
            if portions > 0:
                break
            operation += 8 * OPERATION_WORDS
        if operation >= end:
            operation = int64(0)
        write_i64(at(control, 8 * _OPERATION), operation)
        write_i64(at(control, 8 * _PORTIONS), portions)
        write_i64(at(control, 8 * _DONE), int64(0))
        atomic_store(word, ((current >> _PORTION_BITS) + 1) << _PORTION_BITS)
        if operation != 0:
            return
        # In this order: whoever adds a program when none is pending opens it alone.
        atomic_add(at(control, 8 * _FINISHED), int64(1))
        if atomic_add(at(control, 8 * _PENDING), int64(-1)) == 1:
            return
        operation = _take_program(control)


@njit("int64(uint64, int64, int64, int64)", cache=True)
def add_program(control, operations, num_operations, step):
    """Lets the threads run a program after those added before; one caller at a time.

    Args:
        control: uint64; CONTROL_WORDS int64, zero before the first program.
        operations: address of [num_operations, OPERATION_WORDS], int64.
        num_operations: how many.
        step: address of the step's words.

    Returns:
        The program's number, from 1. Number - MAX_PROGRAMS must be finished already.
    """
    number = read_i64(at(control, 8 * _ADDED))
    program = at(control, 8 * (_PROGRAMS + _PROGRAM_WORDS * (number % MAX_PROGRAMS)))
    write_i64(program, operations)
    write_i64(at(program, 8), operations + 8 * OPERATION_WORDS * num_operations)
    write_i64(at(program, 16), step)
    write_i64(at(control, 8 * _ADDED), number + 1)
    if atomic_add(at(control, 8 * _PENDING), int64(1)) == 0:
        _open_next(control, _take_program(control))
    return number + 1


@njit("boolean(uint64, int64)", cache=True)
def is_finished(control, number):
    """Whether a program has run to its end, by its number."""
    return atomic_load(at(control, 8 * _FINISHED)) >= number


@njit("void(uint64, uint64, int64)", nogil=True, cache=True)
def finish_program(control, scratch, number):
    """Takes portions, of whatever program, until one has run to its end.

    Args:
        control: uint64; the control block.
        scratch: address of memory that only this thread uses.
        number: the program's; `_ANY`: until there is nothing to do.
    """
    word, finished = at(control, 8 * _CURRENT), at(control, 8 * _FINISHED)
    waits = 0
    while atomic_load(finished) < number:
        current = atomic_load(word)
        operation = read_i64(at(control, 8 * _OPERATION))
        portions = read_i64(at(control, 8 * _PORTIONS))
        portion = current & _PORTION_MASK
        if operation == 0:
            if number == _ANY and atomic_load(word) == current:
                return
            continue
        if portion >= portions:
            waits += 1
            if waits % _PAUSES == 0:
                yield_thread()
            else:
                pause()
            continue
        if not compare_exchange(word, current, current + 1):
            continue
        waits = 0
        address = uint64(operation)
        step = read_i64(at(control, 8 * _STEP))
        grain = read_i64(at(address, 8 * GRAIN))
        extent = read_i64(at(uint64(step), 8 * read_i64(at(address, 8 * EXTENT))))
        extent *= read_i64(at(address, 8 * FACTOR))
        begin = portion * grain
        end = min(begin + grain, extent)
        call_kernel(read_u64(address), (operation, step, int64(scratch), begin, end))
        if atomic_add(at(control, 8 * _DONE), int64(1)) + 1 == portions:
            _open_next(control, operation + 8 * OPERATION_WORDS)


@njit("boolean(uint64)", nogil=True, cache=True)
def has_program(control):
    """Whether there is something to do."""
    return atomic_load(at(control, 8 * _OPERATION)) != 0


@njit("boolean(uint64, int64)", nogil=True, cache=True)
def _wait_for_program(control, num_pauses):
    """Spins until there is something to do, for so many turns at most; says whether there is."""
    for _ in range(num_pauses):
        if has_program(control):
            return True
        pause()
    return has_program(control)


@njit("void(uint64, uint64, int64)", nogil=True, cache=True)
def work(control, scratch, num_pauses):
    """Runs whatever programs are added, until none has been for so many turns.

    In one call, for a thread that comes back to Python must wait for Python's lock.
    """
    while _wait_for_program(control, num_pauses):
        finish_program(control, scratch, int64(_ANY))
