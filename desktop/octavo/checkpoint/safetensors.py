"""Reads the header of a safetensors file: what each tensor is and where it lies, but no weights."""

import json
import math
import os
import reprlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeGuard

from octavo.errors import CheckpointError, StorageError, UnsupportedModelError
from octavo.units import format_bytes

MAX_HEADER_BYTES = 100_000_000
"""As in the reference implementation."""
MAX_JSON_BYTES = 100_000_000

_MAX_JSON_VALUES = 8_000_000
"""A vocabulary of 256k tokens with its merges has 2 million. Two bytes of JSON can take a hundred
bytes of memory, so the length alone bounds little."""
_MAX_TENSORS = 262_144
_MAX_DIMENSIONS = 8
_MAX_ELEMENTS = 1 << 48
_LENGTH_BYTES = 8
_DOWNLOAD_AGAIN = "Download the file again."
_DTYPE_BITS: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 8,
        "F4": 4,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "U8": 8,
        "I8": 8,
        "F8_E5M2": 8,
        "F8_E4M3": 8,
        "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8,
        "I16": 16,
        "U16": 16,
        "F16": 16,
        "BF16": 16,
        "I32": 32,
        "U32": 32,
        "F32": 32,
        "C64": 64,
        "F64": 64,
        "I64": 64,
        "U64": 64,
    }
)


@dataclass(frozen=True, slots=True)
class SafetensorsTensor:
    """One tensor: what it is, and in which file its bytes lie."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As the file writes it: `F32`, `BF16`, …"""
    offset: int
    """In bytes, from the start of the file."""
    num_bytes: int
    path: Path

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


def read_safetensors_header(path: Path) -> dict[str, SafetensorsTensor]:
    """Reads and checks one file's header; by name, in the order in which the tensors lie.

    After this every tensor is known to lie inside the file and clear of the others, and all of
    the file belongs to one.

    Raises:
        CheckpointError: the file is no safetensors file, damaged, incomplete or inconsistent.
        UnsupportedModelError: a data type that is not known.
        StorageError: the file cannot be read.

    Source: https://github.com/huggingface/safetensors#format
    """
    content, data_offset, file_bytes = _read_header_bytes(path)
    entries = parse_json_object(content, path, "its header")
    entries.pop("__metadata__", None)
    if len(entries) > _MAX_TENSORS:
        raise _damaged(
            path, f"it claims {len(entries):,} tensors; {_MAX_TENSORS:,} are the most accepted"
        )
    tensors = [_tensor(path, name, entry, data_offset) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.num_bytes))
    _check_layout(path, tensors, data_offset, file_bytes)
    return {tensor.name: tensor for tensor in tensors}


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Reads a small file whole.

    Raises:
        CheckpointError: it is longer than `max_bytes`.
        StorageError: it is missing, no plain file, or cannot be read.
    """
    try:
        # Asked before opening: a pipe would block there for ever.
        if path.exists() and not path.is_file():
            raise StorageError(f"{path.name} is not a file.", path=path, hint=_DOWNLOAD_AGAIN)
        with path.open("rb") as file:
            # `read` takes the memory that it is asked for, whatever is there.
            size = os.fstat(file.fileno()).st_size
            content = file.read(min(size, max_bytes) + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(content) > max_bytes:
        raise _damaged(path, f"it is longer than {format_bytes(max_bytes)}")
    return content


def parse_json_object(content: bytes, path: Path, what: str) -> dict[str, Any]:
    """Parses a JSON object that has no key twice; `what` names it in the sentence of an error."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed = dict(pairs)
        if len(parsed) != len(pairs):
            [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
            raise _damaged(path, f"{what} has {_quote(twice)} twice", tensor=twice)
        return parsed

    num_values = sum(map(content.count, (b",", b"[", b"{")))
    if num_values > _MAX_JSON_VALUES:
        raise _damaged(
            path, f"{what} has about {num_values:,} values; {_MAX_JSON_VALUES:,} are accepted"
        )
    try:
        parsed = json.loads(content.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"{what} is no valid JSON") from error
    if not isinstance(parsed, dict):
        raise _damaged(path, f"{what} is no JSON object")
    return parsed


def unreadable(path: Path, error: OSError) -> StorageError:
    """The error for a file that the system does not let us read."""
    return StorageError(
        f"{path.name} cannot be read: {error.strerror or error}.",
        path=path,
        hint="Check that the file is still there and that you may read it.",
    )


def _read_header_bytes(path: Path) -> tuple[bytes, int, int]:
    """The JSON text, where the data begins, and the length of the file."""
    try:
        if path.exists() and not path.is_file():
            raise StorageError(f"{path.name} is not a file.", path=path, hint=_DOWNLOAD_AGAIN)
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            start = file.read(_LENGTH_BYTES)
            length = int.from_bytes(start, "little")
            data_offset = _LENGTH_BYTES + length
            if len(start) < _LENGTH_BYTES:
                raise _damaged(path, f"it is only {len(start)} bytes long")
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{path.name} is no safetensors file: it begins with {_begins_with(start)}, "
                    f"and no header is longer than {format_bytes(MAX_HEADER_BYTES)}.",
                    path=path,
                    hint="Download the file again, with git-lfs if git fetched it.",
                )
            if data_offset > file_bytes:
                raise CheckpointError(
                    f"{path.name} is incomplete: it is {format_bytes(file_bytes)} long, but its "
                    f"header alone reaches to {format_bytes(data_offset)}.",
                    path=path,
                    hint=_DOWNLOAD_AGAIN,
                )
            return file.read(length), data_offset, file_bytes
    except OSError as error:
        raise unreadable(path, error) from error


def _tensor(path: Path, name: str, entry: object, data_offset: int) -> SafetensorsTensor:
    where = f"the tensor {_quote(name)}"
    if not isinstance(entry, dict):
        raise _damaged(path, f"{where} has no description", tensor=name)
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    span: Any = entry.get("data_offsets")
    if not isinstance(dtype, str):
        raise _damaged(path, f"{where} has no data type", tensor=name)
    if dtype not in _DTYPE_BITS:
        raise UnsupportedModelError(
            f"{path.name} holds {where} in the data type {_quote(dtype)}, "
            "which Octavo does not know.",
            hint="Choose another version of this model, in BF16, F16 or F32.",
        )
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS or math.prod(shape) > _MAX_ELEMENTS:
        raise _damaged(path, f"{where} has the impossible shape {_quote(shape)}", tensor=name)
    if not _are_sizes(span) or len(span) != 2 or span[0] > span[1]:
        raise _damaged(path, f"{where} lies at the impossible place {_quote(span)}", tensor=name)
    num_bits = math.prod(shape) * _DTYPE_BITS[dtype]
    begin, end = span
    if num_bits != (end - begin) * 8:
        raise _damaged(
            path,
            f"{where} takes {end - begin:,} bytes, but {_quote(shape)} values of {dtype} are "
            f"{num_bits / 8:,.0f}",
            tensor=name,
        )
    return SafetensorsTensor(name, tuple(shape), dtype, data_offset + begin, end - begin, path)


def _check_layout(
    path: Path, tensors: list[SafetensorsTensor], data_offset: int, file_bytes: int
) -> None:
    end, before = data_offset, ""
    for tensor in tensors:
        if tensor.offset < end:
            raise _damaged(
                path,
                f"the tensors {_quote(before)} and {_quote(tensor.name)} overlap",
                tensor=tensor.name,
            )
        if tensor.offset > end:
            raise _damaged(
                path,
                f"{tensor.offset - end:,} bytes before the tensor {_quote(tensor.name)} "
                "belong to none",
                tensor=tensor.name,
            )
        end, before = tensor.offset + tensor.num_bytes, tensor.name
    if end > file_bytes:
        raise CheckpointError(
            f"{path.name} is incomplete: it is {format_bytes(file_bytes)} ({file_bytes:,} bytes) "
            f"long, but its tensors, {_quote(before)} the last, reach to {end:,} bytes.",
            path=path,
            tensor=before,
            hint=_DOWNLOAD_AGAIN,
        )
    if end < file_bytes:
        raise _damaged(path, f"{file_bytes - end:,} bytes after its last tensor belong to none")


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _begins_with(start: bytes) -> str:
    return repr(start.decode("ascii")) if start.isascii() else "the bytes " + start.hex(" ")


def _damaged(path: Path, problem: str, *, tensor: str | None = None) -> CheckpointError:
    return CheckpointError(
        f"{path.name} is damaged: {problem}.", path=path, tensor=tensor, hint=_DOWNLOAD_AGAIN
    )


def _quote(value: object) -> str:
    """The value as Python writes it, cut to a readable length: files may claim anything."""
    return reprlib.repr(value) if not isinstance(value, str) or len(value) > 120 else repr(value)
