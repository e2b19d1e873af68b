"""Reads the bytes of one stored weight piece by piece; what all formats share."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from octavo.errors import CheckpointError, StorageError

PIECE_BYTES = 4 << 20


class StoredTensor(Protocol):
    """A tensor in a file, under the name that the file gives it."""

    @property
    def name(self) -> str: ...
    @property
    def offset(self) -> int:
        """In bytes, from the start of the file."""

    @property
    def num_bytes(self) -> int: ...


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


def read_pieces(path: Path, tensor: StoredTensor, sizes: Sequence[int]) -> Iterator[Tensor]:
    """Yields the tensor's bytes, [size] uint8 each, in one buffer that is used again.

    Raises:
        CheckpointError: the file ends before the tensor.
        StorageError: the file cannot be read.
    """
    buffer = torch.empty(max(sizes), dtype=torch.uint8)
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(tensor.offset)
            for size in sizes:
                raw = buffer[:size]
                view = raw.numpy().data
                while view:
                    num_read = file.readinto(view)
                    if not num_read:
                        raise damaged(path, tensor, "ends too early: the file became shorter")
                    view = view[num_read:]
                yield raw
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
