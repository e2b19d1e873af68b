"""`read_checkpoint`: the one door to a model's header, of whatever kind its files are."""

from pathlib import Path
from typing import TypeAlias

from octavo.checkpoint.folder import (
    FolderHeader,
    is_pickled_weights,
    pickled_file_error,
    read_folder_header,
)
from octavo.checkpoint.gguf import GGUFHeader
from octavo.checkpoint.gguf_split import read_gguf_model
from octavo.checkpoint.safetensors import unreadable

CheckpointHeader: TypeAlias = GGUFHeader | FolderHeader
"""Both have path, architecture, quantization, num_parameters, tensor_bytes, title, license,
context_length and left_out."""


def read_checkpoint(path: Path) -> CheckpointHeader:
    """Reads the header of a .gguf file with all its parts, or of a folder of safetensors.

    Raises:
        CheckpointError: a file is damaged, incomplete or inconsistent.
        UnsupportedModelError: a format, or a variant of it, that Octavo does not read.
        StorageError: a file cannot be read.
    """
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise unreadable(path, error) from error
    if is_folder:
        return read_folder_header(path)
    if is_pickled_weights(path.name):
        raise pickled_file_error(path)
    return read_gguf_model(path)
