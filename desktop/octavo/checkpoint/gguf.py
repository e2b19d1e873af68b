"""Reads the header of a GGUF file: metadata and where each tensor lies, but no weights."""

import io
import math
import os
import reprlib
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from octavo.checkpoint.gguf_types import (
    BLOCK_LAYOUT,
    FILE_TYPE_NAMES,
    GGMLType,
    GGUFValueType,
)
from octavo.errors import CheckpointError, StorageError, UnsupportedModelError
from octavo.units import format_bytes

__all__ = ["BLOCK_LAYOUT", "GGMLType", "GGUFHeader", "TensorInfo", "read_gguf_header"]


_FILE_TYPE_GUESSED = 1024
"""Bit of `general.file_type` that says the writer was not sure."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint: what it is and where its bytes lie."""

    name: str
    shape: tuple[int, ...]
    """Outermost first, as torch has it (the file has it the other way round)."""
    ggml_type: GGMLType
    offset: int
    """In bytes, from the start of the file."""
    num_bytes: int
    path: Path
    """The file; one of several where a model is split."""

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """All that a GGUF file, or all parts of a split one, say about themselves."""

    path: Path
    """Of a split model, the first part."""
    version: int
    metadata: Mapping[str, Any]
    """Numbers, booleans, strings, and lists of those."""
    value_types: Mapping[str, GGUFValueType]
    """By key; of a list's elements, where the value is a list."""
    tensors: Mapping[str, TensorInfo]
    """By name, in the order of the file's header."""
    data_offset: int
    file_bytes: int

    @property
    def architecture(self) -> str:
        """`llama`, `qwen3`, …: the family the tensors belong to."""
        return str(self.metadata["general.architecture"])

    @property
    def quantization(self) -> str:
        """`Q4_K_M`, `F16`, …: what the file calls itself, else the type of most of its bytes."""
        file_type = self.metadata.get("general.file_type")
        if isinstance(file_type, int):
            name = FILE_TYPE_NAMES.get(file_type & ~_FILE_TYPE_GUESSED)
            if name is not None:
                return name
        num_bytes: Counter[GGMLType] = Counter()
        for tensor in self.tensors.values():
            num_bytes[tensor.ggml_type] += tensor.num_bytes
        return num_bytes.most_common(1)[0][0].name if num_bytes else "none"

    @property
    def num_parameters(self) -> int:
        return sum(tensor.num_elements for tensor in self.tensors.values())

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    @property
    def title(self) -> str:
        """What the file calls the model, empty if it does not."""
        return self._text("general.name")

    @property
    def license(self) -> str:
        """Empty if it is not stated."""
        return self._text("general.license")

    @property
    def left_out(self) -> str:
        """What of the model is not read, as a sentence; other parts have files of their own."""
        return ""

    @property
    def context_length(self) -> int:
        """In tokens; 0 if it is not stated."""
        length = self.metadata.get(f"{self.architecture}.context_length")
        return length if isinstance(length, int) else 0

    def _text(self, key: str) -> str:
        value = self.metadata.get(key)
        return value.strip() if isinstance(value, str) else ""


_MAGIC = b"GGUF"
_MAX_HEADER_BYTES = 256 << 20
_MAX_KEYS = 65_536
_MAX_TENSORS = 262_144
_MAX_ARRAY_ELEMENTS = 8_000_000
"""Of all arrays together. A vocabulary of 256k tokens with its merges has 1.5 million."""
_MAX_NAME_BYTES = 65_535
_MAX_DIMENSIONS = 4
_MAX_ELEMENTS = 1 << 48
_MAX_ALIGNMENT = 1 << 20
_CHUNK_BYTES = 1 << 20
_DOWNLOAD_AGAIN = "Download the file again."

_STRING, _ARRAY = 8, 9
_NUMBERS: Mapping[int, struct.Struct] = MappingProxyType(
    {
        0: struct.Struct("<B"),
        1: struct.Struct("<b"),
        2: struct.Struct("<H"),
        3: struct.Struct("<h"),
        4: struct.Struct("<I"),
        5: struct.Struct("<i"),
        6: struct.Struct("<f"),
        7: struct.Struct("<?"),
        10: struct.Struct("<Q"),
        11: struct.Struct("<q"),
        12: struct.Struct("<d"),
    }
)
"""Value types of fixed size, by their number in the file."""
_UINT32, _UINT64 = _NUMBERS[4], _NUMBERS[10]


def read_gguf_header(path: Path) -> GGUFHeader:
    """Reads and checks one file's header, in memory and time bounded whatever the file says.

    A part of a split model is read as what it is: `gguf_split` reads all parts.

    After this every tensor is known to lie inside the file, aligned, and clear of the others.

    Raises:
        CheckpointError: the file is no GGUF file, damaged, incomplete or inconsistent.
        UnsupportedModelError: an old or big-endian version, or a tensor type that is not known.
        StorageError: the file cannot be read.

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    try:
        # Asked before opening: a pipe would block there for ever.
        if path.exists() and not path.is_file():
            raise StorageError(
                f"{path.name} is not a file.", path=path, hint="Choose a file that ends in .gguf."
            )
        with path.open("rb", buffering=0) as file:
            file_bytes = os.fstat(file.fileno()).st_size
            return _HeaderReader(path, file, file_bytes).read()
    except OSError as error:
        raise StorageError(
            f"{path.name} cannot be read: {error.strerror or error}.",
            path=path,
            hint="Check that the file is still there and that you may read it.",
        ) from error


class _HeaderReader:
    """Walks through one file from its start, a chunk at a time."""

    def __init__(self, path: Path, file: io.FileIO, file_bytes: int) -> None:
        self._path = path
        self._file = file
        self._file_bytes = file_bytes
        self._buffer = b""
        self._buffer_start = 0
        self._position = 0
        self._elements_left = _MAX_ARRAY_ELEMENTS
        self._where = "the first bytes"

    def read(self) -> GGUFHeader:
        version = self._read_version()
        self._where = "the counts"
        num_tensors = self._number(_UINT64)
        num_keys = self._number(_UINT64)
        # 13 and 24 bytes are the least that a key with its value and a tensor's entry take.
        self._check_count("metadata keys", num_keys, 13, _MAX_KEYS)
        self._check_count("tensors", num_tensors, 24, _MAX_TENSORS)
        metadata, value_types = self._read_metadata(num_keys)
        alignment = self._alignment(metadata)
        self._where = "the list of tensors"
        entries = [self._read_tensor_entry() for _ in range(num_tensors)]
        data_offset = _round_up(self._buffer_start + self._position, alignment)
        return GGUFHeader(
            path=self._path,
            version=version,
            metadata=metadata,
            value_types=value_types,
            tensors=self._place_tensors(entries, data_offset, alignment),
            data_offset=data_offset,
            file_bytes=self._file_bytes,
        )

    def _read_version(self) -> int:
        start = self._file.read(64)
        if not start.startswith(_MAGIC):
            raise CheckpointError(
                f"{self._path.name} is not a GGUF file: {_what_begins_with(start)}.",
                path=self._path,
                hint="Download the model's .gguf file itself.",
            )
        self._file.seek(len(_MAGIC))
        self._buffer_start = len(_MAGIC)
        version: int = self._number(_UINT32)
        if version in (2, 3):
            return version
        if version & 0xFFFF == 0:
            raise UnsupportedModelError(
                f"{self._path.name} was written for big-endian machines.",
                hint="Download the usual (little-endian) file of this model.",
            )
        raise UnsupportedModelError(
            f"{self._path.name} has version {version} of the GGUF format; "
            "Octavo reads versions 2 and 3.",
            hint="Download a newer file of this model." if version < 2 else "Update Octavo.",
        )

    def _read_metadata(self, num_keys: int) -> tuple[dict[str, Any], dict[str, GGUFValueType]]:
        metadata: dict[str, Any] = {}
        value_types: dict[str, GGUFValueType] = {}
        for index in range(num_keys):
            self._where = f"metadata key {index + 1} of {num_keys}"
            key = self._name()
            if key in metadata:
                raise self._damaged(f"it has the metadata key {_quote(key)} twice")
            self._where = f"the metadata value {_quote(key)}"
            value_type = self._number(_UINT32)
            if value_type == _ARRAY:
                value_type = self._number(_UINT32)
                metadata[key] = self._array(value_type)
            else:
                metadata[key] = self._scalar(value_type)
            value_types[key] = GGUFValueType(value_type)
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            raise self._damaged("it does not say of which architecture the model is")
        return metadata, value_types

    def _alignment(self, metadata: Mapping[str, Any]) -> int:
        alignment = metadata.get("general.alignment", 32)
        is_power_of_two = isinstance(alignment, int) and alignment.bit_count() == 1
        if not is_power_of_two or not 0 < alignment <= _MAX_ALIGNMENT:
            raise self._damaged(
                f"its alignment is {reprlib.repr(alignment)}, which is no power of two"
            )
        return int(alignment)

    def _read_tensor_entry(self) -> TensorInfo:
        """Reads one entry; its offset still counts from the start of the tensor data."""
        name = self._name()
        where = f"the tensor {_quote(name)}"
        num_dimensions = self._number(_UINT32)
        if num_dimensions > _MAX_DIMENSIONS:
            raise self._damaged(f"{where} has {num_dimensions} dimensions", tensor=name)
        sizes = [self._number(_UINT64) for _ in range(num_dimensions)]
        type_number = self._number(_UINT32)
        offset = self._number(_UINT64)
        if not all(sizes) or math.prod(sizes) > _MAX_ELEMENTS:
            raise self._damaged(f"{where} has the impossible shape {sizes}", tensor=name)
        if type_number not in BLOCK_LAYOUT:
            raise UnsupportedModelError(
                f"{self._path.name} holds {where} in the storage type number {type_number}, "
                "which Octavo does not know.",
                hint="Choose another quantisation of this model, such as Q4_K_M or Q8_0.",
            )
        ggml_type = GGMLType(type_number)
        block_elements, block_bytes = BLOCK_LAYOUT[ggml_type]
        row_elements = sizes[0] if sizes else 1
        if row_elements % block_elements:
            raise self._damaged(
                f"{where} has rows of {row_elements} values, "
                f"but {ggml_type.name} stores them in blocks of {block_elements}",
                tensor=name,
            )
        return TensorInfo(
            name=name,
            shape=tuple(reversed(sizes)),
            ggml_type=ggml_type,
            offset=offset,
            num_bytes=math.prod(sizes) // block_elements * block_bytes,
            path=self._path,
        )

    def _place_tensors(
        self, entries: Sequence[TensorInfo], data_offset: int, alignment: int
    ) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for entry in entries:
            if entry.name in tensors:
                raise self._damaged(f"it has {_quote(entry.name)} twice", tensor=entry.name)
            if entry.offset % alignment:
                raise self._damaged(
                    f"the tensor {_quote(entry.name)} begins at byte {entry.offset:,} of the data, "
                    f"which is no multiple of {alignment}",
                    tensor=entry.name,
                )
            tensors[entry.name] = replace(entry, offset=data_offset + entry.offset)
        end = 0
        before = ""
        for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                raise self._damaged(
                    f"the tensors {_quote(before)} and {_quote(tensor.name)} overlap",
                    tensor=tensor.name,
                )
            end = tensor.offset + tensor.num_bytes
            before = tensor.name
        if end > self._file_bytes:
            raise CheckpointError(
                f"{self._path.name} is incomplete: it is {format_bytes(self._file_bytes)} long "
                f"but its tensors reach to {format_bytes(end)}.",
                path=self._path,
                tensor=before,
                hint=_DOWNLOAD_AGAIN,
            )
        return tensors

    def _scalar(self, value_type: int) -> Any:
        if value_type == _STRING:
            return self._string()
        return self._number(self._number_type(value_type))

    def _number_type(self, value_type: int) -> struct.Struct:
        if value_type not in _NUMBERS:
            raise self._damaged(f"{self._where} has the unknown type {value_type}")
        return _NUMBERS[value_type]

    def _array(self, element_type: int) -> list[Any]:
        count = self._number(_UINT64)
        if element_type == _ARRAY:
            raise self._damaged(f"{self._where} is an array of arrays")
        number = None if element_type == _STRING else self._number_type(element_type)
        # A string takes at least the eight bytes of its length.
        self._check_count(
            f"elements in {self._where}", count, number.size if number else 8, self._elements_left
        )
        self._elements_left -= count
        if number is None:
            return self._strings(count)
        num_bytes = count * number.size
        self._require(num_bytes)
        values = struct.unpack_from(f"<{count}{number.format[1:]}", self._buffer, self._position)
        self._position += num_bytes
        return list(values)

    def _strings(self, count: int) -> list[str]:
        """Reads strings in one loop without calls: vocabularies have hundreds of thousands."""
        strings = []
        unpack_length = _UINT64.unpack_from
        buffer, position, available = self._buffer, self._position, len(self._buffer)
        for _ in range(count):
            start = position + 8
            if start <= available:
                end = start + unpack_length(buffer, position)[0]
            if start > available or end > available:
                self._position = position
                strings.append(self._string())
                buffer, position, available = self._buffer, self._position, len(self._buffer)
                continue
            strings.append(buffer[start:end].decode(errors="replace"))
            position = end
        self._position = position
        return strings

    def _string(self) -> str:
        # Vocabularies made from bytes are not always valid UTF-8; such a token is still usable.
        return self._take(self._number(_UINT64)).decode(errors="replace")

    def _name(self) -> str:
        length = self._number(_UINT64)
        if length > _MAX_NAME_BYTES:
            raise self._damaged(f"{self._where} has a name of {length:,} bytes")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise self._damaged(f"{self._where} has a name that is not UTF-8") from error

    def _number(self, number: struct.Struct) -> Any:
        self._require(number.size)
        (value,) = number.unpack_from(self._buffer, self._position)
        self._position += number.size
        return value

    def _take(self, num_bytes: int) -> bytes:
        self._require(num_bytes)
        start = self._position
        self._position += num_bytes
        return self._buffer[start : self._position]

    def _require(self, num_bytes: int) -> None:
        """Sees to it that the buffer holds the next `num_bytes` bytes."""
        missing = self._position + num_bytes - len(self._buffer)
        if missing <= 0:
            return
        start = self._buffer_start + self._position
        if start + num_bytes > self._file_bytes:
            raise self._cut_off(start + num_bytes)
        if start + num_bytes > _MAX_HEADER_BYTES:
            raise self._damaged(
                f"{self._where} reaches to {format_bytes(start + num_bytes)}, and no header is "
                f"longer than {format_bytes(_MAX_HEADER_BYTES)}"
            )
        parts = [self._buffer[self._position :]]
        wanted = max(missing, _CHUNK_BYTES)
        while wanted > 0 and (part := self._file.read(wanted)):
            parts.append(part)
            wanted -= len(part)
        self._buffer = b"".join(parts)
        self._buffer_start = start
        self._position = 0
        if len(self._buffer) < num_bytes:
            raise self._cut_off(start + num_bytes)

    def _check_count(self, what: str, count: int, least_bytes: int, limit: int) -> None:
        """Refuses a count that the rest of the file cannot hold, before anything is allocated."""
        left = self._file_bytes - self._buffer_start - self._position
        if count * least_bytes > left:
            raise CheckpointError(
                f"{self._path.name} is damaged or incomplete: it claims {count:,} {what}, "
                f"but only {left:,} bytes follow.",
                path=self._path,
                hint=_DOWNLOAD_AGAIN,
            )
        if count > limit:
            raise self._damaged(f"it claims {count:,} {what}; {limit:,} are the most accepted")

    def _cut_off(self, end: int) -> CheckpointError:
        return CheckpointError(
            f"{self._path.name} is damaged or incomplete: it is {self._file_bytes:,} bytes long "
            f"but {self._where} reaches to byte {end:,}.",
            path=self._path,
            hint=_DOWNLOAD_AGAIN,
        )

    def _damaged(self, problem: str, *, tensor: str | None = None) -> CheckpointError:
        return CheckpointError(
            f"{self._path.name} is damaged: {problem}.",
            path=self._path,
            tensor=tensor,
            hint=_DOWNLOAD_AGAIN,
        )


def _what_begins_with(start: bytes) -> str:
    """Says what a file that does not begin with the magic bytes probably is."""
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is the pointer that Git LFS leaves in place of the model"
    if start.lstrip()[:1] == b"<":
        return "it is a web page"
    if not start.strip(b"\0"):
        return "it begins with zeros, as a download that was never filled in"
    return f"it begins with {start[:4]!r} instead of {_MAGIC!r}"


def _quote(name: str) -> str:
    """The name in quotes, with control characters made visible and cut to a readable length."""
    return repr(name if len(name) <= 80 else name[:77] + "...")


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
