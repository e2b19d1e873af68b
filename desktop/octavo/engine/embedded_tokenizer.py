"""The tokenizer's files of a model folder inside a GGUF file, where GGUF's own keys do not suffice.

`tokenizer.huggingface.json` is a key of the GGUF specification ("the entirety of the HF
`tokenizer.json`"). The files beside it, which say what tokens are for, have keys of Octavo's.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from octavo.checkpoint.folder import CONFIG_FILE, GENERATION_FILE, FolderHeader
from octavo.checkpoint.gguf import GGUFHeader
from octavo.checkpoint.gguf_names import EMBEDDING_TENSOR
from octavo.checkpoint.safetensors import SafetensorsTensor, parse_json_object
from octavo.engine.folder_roles import EMBEDDING_WEIGHT
from octavo.errors import CheckpointError

NOTE_KEY: Final = "octavo.tokenizer.note"
"""Why the files are there, as a sentence. Without it nobody knows whether they are complete."""

_FILE_KEYS: Final = "octavo.tokenizer.file."
_JSON_FILE: Final = "tokenizer.json"
_JSON_KEY: Final = "tokenizer.huggingface.json"


@dataclasses.dataclass(frozen=True, slots=True)
class EmbeddedFolder(FolderHeader):
    """What a folder says about its tokenizer, from files that lie in memory."""

    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """As `FolderHeader`."""
        content = self.files.get(name)
        what = f"the file {name} inside it"
        return None if content is None else parse_json_object(content, self.path, what)

    def read_bytes(self, name: str) -> bytes | None:
        """As `FolderHeader`."""
        return self.files.get(name)


def key_of_file(name: str) -> str:
    """The metadata key under which a GGUF file holds a file of a folder."""
    return _JSON_KEY if name == _JSON_FILE else f"{_FILE_KEYS}{name}"


def folder_inside(header: GGUFHeader) -> EmbeddedFolder | None:
    """The folder that a GGUF file carries; None if its own keys are all there is.

    Raises:
        CheckpointError: the files are damaged.
    """
    embedding = header.tensors.get(EMBEDDING_TENSOR)
    tensors = {}
    if embedding is not None:
        tensors[EMBEDDING_WEIGHT] = SafetensorsTensor(
            EMBEDDING_WEIGHT, embedding.shape, "U8", 0, embedding.num_bytes, header.path
        )
    return embedded_folder(header.metadata, header.path, tensors)


def embedded_folder(
    metadata: Mapping[str, Any], path: Path, tensors: Mapping[str, SafetensorsTensor]
) -> EmbeddedFolder | None:
    """As `folder_inside`, of metadata that need not have been written yet.

    Args:
        metadata: values by key, as a header that was read has them.
        path: of the GGUF file, for errors.
        tensors: of the model; the embedding says how many tokens there are.
    """
    if NOTE_KEY not in metadata:
        return None
    keys = {key: key.removeprefix(_FILE_KEYS) for key in metadata if key.startswith(_FILE_KEYS)}
    if _JSON_KEY in metadata:
        keys[_JSON_KEY] = _JSON_FILE
    files = {name: _bytes_of(metadata[key], path, name) for key, name in keys.items()}
    folder = EmbeddedFolder(path, {}, {}, tensors, files=files)
    return dataclasses.replace(
        folder,
        config=folder.read_json(CONFIG_FILE) or {},
        generation_config=folder.read_json(GENERATION_FILE) or {},
    )


def _bytes_of(value: Any, path: Path, name: str) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list) and all(type(byte) is int and 0 <= byte < 256 for byte in value):
        return bytes(value)
    raise CheckpointError(
        f"{path.name} is damaged: the file {name} inside it is neither text nor bytes.",
        path=path,
        hint="Download or convert it anew.",
    )
