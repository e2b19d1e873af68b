"""Reads GGUF models that are split into several files as one."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from octavo.checkpoint.gguf import GGUFHeader, TensorInfo, read_gguf_header
from octavo.errors import CheckpointError

_PART_NAME = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})(\.gguf)", re.IGNORECASE)
_MAX_PARTS = 1024
_DOWNLOAD_ANEW = "Download all parts of the model again, into one folder."


def read_gguf_model(path: Path) -> GGUFHeader:
    """Reads a file's header; of a split model, those of all its parts, whichever is given.

    Raises:
        CheckpointError: a part is missing, damaged or belongs to another model.
        UnsupportedModelError, StorageError: as `read_gguf_header`.
    """
    given = read_gguf_header(path)
    num_parts = _number(given, "split.count", default=1)
    if num_parts <= 1:
        return given
    match = _PART_NAME.fullmatch(path.name)
    if match is None or int(match[3]) != num_parts or not 1 <= int(match[2]) <= num_parts:
        raise CheckpointError(
            f"{path.name} is one of {num_parts} parts of a model, but its name does not say which, "
            "so the others cannot be found.",
            path=path,
            hint=f"Give it the name it was published under: NAME-00001-of-{num_parts:05d}.gguf.",
        )
    names = [f"{match[1]}-{i:05d}-of-{match[3]}{match[4]}" for i in range(1, num_parts + 1)]
    missing = [name for name in names if not path.with_name(name).is_file()]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"The model is incomplete: {missing[0]}{others} of its {num_parts} parts cannot be "
            f"found beside {path.name}.",
            path=path.with_name(missing[0]),
            hint=f"Download {missing[0]} into the same folder.",
        )
    return join_gguf_parts(
        [given if name == path.name else read_gguf_header(path.with_name(name)) for name in names]
    )


def join_gguf_parts(parts: Sequence[GGUFHeader]) -> GGUFHeader:
    """One header of all parts' tensors, with the first part's metadata.

    Args:
        parts: all of them, in order; a single file is returned as it is.

    Raises:
        CheckpointError: they do not belong together.
    """
    first = parts[0]
    if len(parts) == 1 and _number(first, "split.count", default=1) <= 1:
        return first
    tensors: dict[str, TensorInfo] = {}
    for index, part in enumerate(parts):
        place, count = _number(part, "split.no", default=-1), _number(part, "split.count")
        if (place, count) != (index, len(parts)):
            raise _wrong(
                part,
                f"says that it is part {place + 1} of {count}, not {index + 1} of {len(parts)}",
            )
        for name, tensor in part.tensors.items():
            if name in tensors:
                raise _wrong(
                    part, f"holds the tensor {name!r}, which {tensors[name].path.name} holds", name
                )
            tensors[name] = tensor
    num_tensors = _number(first, "split.tensors.count", default=len(tensors))
    if num_tensors != len(tensors):
        raise _wrong(
            first, f"says that all parts hold {num_tensors:,} tensors, but it is {len(tensors):,}"
        )
    return replace(first, tensors=tensors, file_bytes=sum(part.file_bytes for part in parts))


def _number(header: GGUFHeader, key: str, *, default: int = 0) -> int:
    value = header.metadata.get(key, default)
    most = 1 << 31 if key == "split.tensors.count" else _MAX_PARTS
    if type(value) is not int or not -1 <= value <= most:
        raise _wrong(header, f"says {key} = {value!r:.80}")
    return value


def _wrong(part: GGUFHeader, problem: str, tensor: str | None = None) -> CheckpointError:
    return CheckpointError(
        f"The parts of the model do not belong together: {part.path.name} {problem}.",
        path=part.path,
        tensor=tensor,
        hint=_DOWNLOAD_ANEW,
    )
