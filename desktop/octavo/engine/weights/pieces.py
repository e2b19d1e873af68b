"""Reads the bytes of one stored weight piece by piece; what all formats share."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from octavo.engine.quantization.packed import PackedWeight
from octavo.errors import CheckpointError, StorageError

PIECE_BYTES = 4 << 20
DEVICE_PIECE_BYTES = 16 << 20
"""The same on the way to a card: two of them for each thread lie in pinned memory."""


class StoredTensor(Protocol):
    """A tensor in a file, under the name that the file gives it."""

    @property
    def name(self) -> str: ...
    @property
    def offset(self) -> int:
        """In bytes, from the start of the file."""

    @property
    def num_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class PackedTarget:
    """Where a matrix, or a stack of matrices, is to lie as it is stored."""

    shape: tuple[int, ...]
    """Of the parameter."""
    dtype: torch.dtype
    """What it will be unpacked to."""
    device: torch.device

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(rows of all matrices, columns)."""
        return math.prod(self.shape[:-1]), self.shape[-1]


class CheckpointWeights(Protocol):
    """The weights of one checkpoint. Holds nothing open, and any thread may read from it."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """By the name of their parameter."""

    def read_into(self, name: str, out: Tensor) -> None:
        """Unpacks one weight into memory that is already there.

        Args:
            name: as in `tensors`.
            out: contiguous, of that tensor's shape, any floating type, on any device.

        Raises:
            CheckpointError: the shapes differ, or a value is infinite, NaN or makes no sense.
            StorageError: the file cannot be read to the tensor's end.
        """

    def read_packed(self, name: str, target: PackedTarget) -> Tensor | PackedWeight:
        """Reads one matrix, or stack of matrices, into memory of its own.

        Args:
            name: as in `tensors`.
            target: what the model wants.

        Returns:
            Of the target's `matrix_shape`: as it is stored, or unpacked, if it is stored as plain
            numbers that take no less memory.

        Raises:
            As `read_into`.
        """


def piece_bytes(device: torch.device) -> int:
    """How much is read at a time for a device."""
    return PIECE_BYTES if device.type == "cpu" else DEVICE_PIECE_BYTES


def read_pieces(
    path: Path,
    tensor: StoredTensor,
    sizes: Sequence[int],
    device: torch.device = torch.device("cpu"),  # noqa: B008  (immutable)
) -> Iterator[Tensor]:
    """Yields the tensor's bytes, [size] uint8 each, in one buffer that is used again.

    Args:
        path: the file.
        tensor: in it.
        sizes: of the pieces, in bytes.
        device: where the buffer is.

    Raises:
        CheckpointError: the file ends before the tensor.
        StorageError: the file cannot be read.
    """
    buffer = torch.empty(max(sizes), dtype=torch.uint8, device=device)
    yield from _fill(path, tensor, [buffer[:size] for size in sizes])


def read_into_memory(path: Path, tensor: StoredTensor, out: Tensor) -> None:
    """Reads all of a tensor's bytes to where they stay.

    Args:
        path: the file.
        tensor: in it.
        out: [num_bytes], uint8, contiguous, on any device.

    Raises:
        CheckpointError: the file ends before the tensor.
        StorageError: the file cannot be read.
    """
    for _ in _fill(path, tensor, torch.split(out, piece_bytes(out.device))):
        pass


def _fill(path: Path, tensor: StoredTensor, targets: Sequence[Tensor]) -> Iterator[Tensor]:
    """Reads a tensor's bytes into one target after the other; yields each when it is full.

    A card is reached through two pinned buffers: while one travels, the other is read into. What
    is done with a target must be done on the thread's current stream.
    """
    if targets[0].device.type == "cpu":
        yield from _fill_in_turn(path, tensor, targets)
        return
    num_buffers = min(2, len(targets))
    size = max(map(len, targets))
    buffers = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(num_buffers)]
    sent: list[torch.cuda.Event] = []

    def free_buffers() -> Iterator[Tensor]:
        for turn, target in enumerate(targets):
            if turn >= num_buffers:
                sent[turn - num_buffers].synchronize()
            yield buffers[turn % num_buffers][: len(target)]

    for target, raw in zip(targets, _fill_in_turn(path, tensor, free_buffers()), strict=True):
        target.copy_(raw, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        sent.append(event)
        yield target


def _fill_in_turn(path: Path, tensor: StoredTensor, targets: Iterable[Tensor]) -> Iterator[Tensor]:
    """Reads on from where a tensor begins; yields each target, [size] uint8, when it is full."""
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(tensor.offset)
            for target in targets:
                view = target.numpy().data
                while view:
                    num_read = file.readinto(view)
                    if not num_read:
                        raise damaged(path, tensor, "ends too early: the file became shorter")
                    view = view[num_read:]
                yield target
    except OSError as error:
        raise StorageError(
            f"{path.name} cannot be read: {error.strerror or error}.",
            path=path,
            hint="Check that the file is still there and that its disk is well.",
        ) from error


def damaged(path: Path, tensor: StoredTensor, problem: str) -> CheckpointError:
    """The error for a weight that cannot be used."""
    return CheckpointError(
        f"The tensor {tensor.name!r} in {path.name} {problem}.",
        path=path,
        tensor=tensor.name,
        hint="Download the file again.",
    )


def not_finite(path: Path, tensor: StoredTensor, dtype: torch.dtype) -> CheckpointError:
    """The error for a weight with values that a type cannot hold."""
    kind = str(dtype).removeprefix("torch.")
    return damaged(path, tensor, f"holds values that are NaN or infinite in {kind}")


def is_held_dense(stored: torch.dtype | None, dtype: torch.dtype) -> bool:
    """Whether plain numbers of a type take no less memory as they are stored than unpacked.

    Args:
        stored: None: the weight is quantised.
        dtype: what it would be unpacked to.
    """
    return stored is not None and stored.itemsize >= dtype.itemsize
