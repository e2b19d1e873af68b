"""The metadata of a new GGUF file, from the GGUF file or the folder that the weights come from."""

import contextlib
from collections.abc import Mapping
from typing import Any

from octavo.checkpoint.folder import FolderHeader
from octavo.checkpoint.gguf import GGUFHeader
from octavo.checkpoint.gguf_types import FILE_TYPE_NAMES
from octavo.checkpoint.header import CheckpointHeader
from octavo.checkpoint.safetensors import unreadable
from octavo.errors import UnsupportedModelError
from octavo.quantize.conversion.gguf_tokenizer import tokenizer_values
from octavo.quantize.conversion.gguf_values import GGUFValue, string, uint32
from octavo.quantize.conversion.model_numbers import gguf_keys_of_folder

FILE_TYPE_KEY = "general.file_type"

_NOT_KEPT = ("split.", "quantize.imatrix.", "general.alignment")
"""Beginnings of keys that are true of one file only, and not of the model."""
_REPLACEMENT = "\ufffd"


def gguf_metadata(header: CheckpointHeader) -> dict[str, GGUFValue]:
    """The metadata for a GGUF file with this model's weights, each value with its type.

    `general.file_type` is that of the source; a writer that stores the weights in another type
    sets it anew.

    Raises:
        UnsupportedModelError: something about the model has no place in a GGUF file.
        CheckpointError: the source is damaged.
        StorageError: a file cannot be read.
    """
    if isinstance(header, FolderHeader):
        return _from_folder(header)
    return _from_gguf(header)


def _from_gguf(header: GGUFHeader) -> dict[str, GGUFValue]:
    _refuse_lost_bytes(header)
    return {
        key: GGUFValue(header.value_types[key], tuple(value) if isinstance(value, list) else value)
        for key, value in header.metadata.items()
        if not key.startswith(_NOT_KEPT)
    }


def _refuse_lost_bytes(header: GGUFHeader) -> None:
    """Refuses metadata with text that is no UTF-8: reading it has replaced some of its bytes."""
    num_read = sum(text.count(_REPLACEMENT) for text in _texts_in(header.metadata))
    if not num_read:
        return
    try:
        with header.path.open("rb") as file:
            num_written = file.read(header.data_offset).count(_REPLACEMENT.encode())
    except OSError as error:
        raise unreadable(header.path, error) from error
    if num_read > num_written:
        raise UnsupportedModelError(
            f"{header.path.name} has metadata that is no valid UTF-8, so that Octavo cannot copy "
            "it unchanged.",
            hint="Choose another conversion of this model.",
        )


def _texts_in(metadata: Mapping[str, Any]) -> list[str]:
    texts: list[Any] = []
    for value in metadata.values():
        texts += value if isinstance(value, list) else [value]
    return [text for text in texts if isinstance(text, str)]


def _from_folder(header: FolderHeader) -> dict[str, GGUFValue]:
    values = {
        **gguf_keys_of_folder(header),
        "general.type": string("model"),
        "general.name": string(_name(header)),
        "general.quantization_version": uint32(2),
    }
    with contextlib.suppress(StopIteration):
        values[FILE_TYPE_KEY] = uint32(
            next(n for n, name in FILE_TYPE_NAMES.items() if name == header.quantization)
        )
    return values | tokenizer_values(header)


def _name(header: FolderHeader) -> str:
    """The folder's name, or the repository's where the folder is a snapshot in a hub's cache."""
    snapshots = header.path.absolute().parent
    repository = snapshots.parent.name
    if snapshots.name == "snapshots" and repository.startswith("models--"):
        return repository.rpartition("--")[2]
    return header.title
