"""Reads the headers of a model folder as Hugging Face lays it out: config.json and safetensors."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.checkpoint.merged_experts import merged_experts
from octavo.checkpoint.quantization_config import CONFIG_KEYS, LEGACY_FILES, read_weight_format
from octavo.checkpoint.safetensors import (
    MAX_JSON_BYTES,
    SafetensorsTensor,
    parse_json_object,
    read_bounded,
    read_safetensors_header,
    unreadable,
)
from octavo.checkpoint.stored_weights import StoredWeight, stored_weights
from octavo.checkpoint.text_part import text_part
from octavo.checkpoint.weight_format import WeightFormat
from octavo.errors import CheckpointError, ModelError, UnsupportedModelError

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
WEIGHTS_SUFFIX = ".safetensors"

_CACHED = "models--"
"""How the hub's cache begins the name of a repository's folder: models--ORG--NAME."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_PICKLED_WEIGHTS = re.compile(r"(pytorch_model|model|consolidated).*\.(bin|pt|pth|ckpt)")
_DOWNLOAD_ANEW = "Download the model's folder again, all files of it."


@dataclass(frozen=True, slots=True)
class FolderHeader:
    """All that a model folder says about itself, but for the tokenizer's files."""

    path: Path
    config: Mapping[str, Any]
    """config.json, or its part about the language model; `quantization_config` may come from a
    file beside it."""
    generation_config: Mapping[str, Any]
    """generation_config.json, empty if there is none."""
    tensors: Mapping[str, SafetensorsTensor]
    """By the name of a language model alone, file by file in the order in which they lie."""
    left_out: str = ""
    """What of the folder is not read, as a sentence: the parts that are no language model."""

    @property
    def architecture(self) -> str:
        """`llama`, `mistral`, …: the family the tensors belong to."""
        return str(self.config["model_type"])

    @property
    def quantization(self) -> str:
        """`BF16`, `GPTQ 4-bit g128`, …: the data type of most bytes, or how they are packed."""
        try:
            weight_format = self.weight_format()
        except UnsupportedModelError:
            packed = next((self.config[key] for key in CONFIG_KEYS if self.config.get(key)), None)
            method = packed.get("quant_method") if isinstance(packed, dict) else None
            return method[:40].upper() if isinstance(method, str) and method else "unknown"
        if weight_format is not None:
            return weight_format.title
        num_bytes: Counter[str] = Counter()
        for tensor in self.tensors.values():
            num_bytes[tensor.dtype] += tensor.num_bytes
        return num_bytes.most_common(1)[0][0] if num_bytes else "none"

    @property
    def num_parameters(self) -> int:
        """Values of all weights, whatever packs them; scales and zero points are none."""
        try:
            return sum(weight.num_elements for weight in self.weights().values())
        except ModelError:  # It will not run; how large it looks must still be known.
            pass
        return sum(tensor.num_elements for tensor in self.tensors.values())

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    @property
    def title(self) -> str:
        """The folder's name; in a hub's cache, where that is a commit, the repository's."""
        path = self.path if self.path.name else self.path.resolve()
        repository = path.parent.parent.name
        if path.parent.name == "snapshots" and repository.startswith(_CACHED):
            return repository.removeprefix(_CACHED).split("--", 1)[-1]
        return path.name

    @property
    def license(self) -> str:
        """Folders say it in prose only."""
        return ""

    @property
    def context_length(self) -> int:
        """In tokens; 0 if it is not stated."""
        length = self.config.get("max_position_embeddings")
        return length if type(length) is int else 0

    def weight_format(self) -> WeightFormat | None:
        """How the weights are quantised; None if they are not.

        Raises:
            UnsupportedModelError: in a way that is not understood.
        """
        return read_weight_format(self.config, self.title)

    def weights(self) -> dict[str, StoredWeight]:
        """The parameters that the tensors make up, by name.

        Raises:
            UnsupportedModelError: a kind of quantisation or a data type that is not understood.
            CheckpointError: a quantised weight lacks one of its tensors.
        """
        weight_format = self.weight_format()
        merged, others = merged_experts(self.tensors, self.architecture, weight_format)
        return merged | stored_weights(others, weight_format)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Reads another file of the folder; None if it is not there.

        Raises:
            CheckpointError: it is no JSON object.
            StorageError: it cannot be read.
        """
        content = self.read_bytes(name)
        return (
            None if content is None else parse_json_object(content, self.path / name, "its content")
        )

    def read_text(self, name: str) -> str | None:
        """As `read_json`, for plain text."""
        content = self.read_bytes(name)
        return None if content is None else content.decode("utf-8", "replace")

    def read_bytes(self, name: str) -> bytes | None:
        """As `read_json`, for any content."""
        return _read_if_there(self.path / name)


def read_folder_header(path: Path) -> FolderHeader:
    """Reads config.json and the headers of all weights, in memory and time bounded.

    Raises:
        CheckpointError: a file is missing, damaged, incomplete or contradicts another.
        UnsupportedModelError: the weights are pickles, or of a data type that is not known.
        StorageError: a file cannot be read.
    """
    config = _read_json(path / CONFIG_FILE)
    if config is None:
        raise CheckpointError(
            f"{path.name} has no {CONFIG_FILE}, so it does not say what model it is.",
            path=path,
            hint=_DOWNLOAD_ANEW,
        )
    if not isinstance(config.get("model_type"), str) or not config["model_type"]:
        raise CheckpointError(
            f"{CONFIG_FILE} in {path.name} does not say of which architecture the model is.",
            path=path / CONFIG_FILE,
            hint=_DOWNLOAD_ANEW,
        )
    if not any(config.get(key) for key in CONFIG_KEYS):
        config |= _legacy_quantization(path)
    part = text_part(config, _read_tensors(path))
    return FolderHeader(
        path=path,
        config=part.config,
        generation_config=_read_json(path / GENERATION_FILE) or {},
        tensors=part.tensors,
        left_out=part.left_out,
    )


def is_model_folder(path: Path) -> bool:
    """Whether a folder claims to be a model."""
    try:
        return (path / CONFIG_FILE).is_file()
    except OSError:
        return False


def is_pickled_weights(file_name: str) -> bool:
    """Whether a file's name is one under which weights are pickled."""
    return _PICKLED_WEIGHTS.fullmatch(file_name) is not None


def pickled_weights_error(model_name: str, pickle: str) -> UnsupportedModelError:
    """Why a model of which there is but a pickle is not used."""
    return _pickle_error(f"{model_name} holds its weights only as a pickle ({pickle})")


def pickled_file_error(path: Path) -> UnsupportedModelError:
    """Why a file of pickled weights is not used."""
    return _pickle_error(f"{path.name} is a pickle")


def _pickle_error(finding: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{finding}, a format that can run any program when it is opened; Octavo never opens one.",
        hint="Download a version of this model in safetensors or GGUF.",
    )


def _read_tensors(path: Path) -> dict[str, SafetensorsTensor]:
    if (path / SINGLE_FILE).exists():
        return read_safetensors_header(path / SINGLE_FILE)
    index = _read_json(path / INDEX_FILE)
    if index is None:
        raise _no_weights(path)
    listed = index.get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(
            f"{INDEX_FILE} in {path.name} lists no weights.",
            path=path / INDEX_FILE,
            hint=_DOWNLOAD_ANEW,
        )
    tensors: dict[str, SafetensorsTensor] = {}
    for file_name in sorted({_file_name(path, name) for name in listed.values()}):
        if not (path / file_name).exists():
            num_missing = sum(name == file_name for name in listed.values())
            raise CheckpointError(
                f"{path.name} is incomplete: the file {file_name} with {num_missing:,} of its "
                f"{len(listed):,} tensors is missing.",
                path=path / file_name,
                tensor=next(name for name, file in listed.items() if file == file_name),
                hint=f"Download {file_name} into the folder.",
            )
        for name, tensor in read_safetensors_header(path / file_name).items():
            if name in tensors:
                raise CheckpointError(
                    f"The tensor {name!r} is in {tensors[name].path.name} and in {file_name} of "
                    f"{path.name}.",
                    path=tensor.path,
                    tensor=name,
                    hint=_DOWNLOAD_ANEW,
                )
            tensors[name] = tensor
    for name, file_name in listed.items():
        if name not in tensors or tensors[name].path.name != file_name:
            raise CheckpointError(
                f"{file_name} in {path.name} does not hold the tensor {name!r}, "
                f"but {INDEX_FILE} says so.",
                path=path / file_name,
                tensor=name,
                hint=f"Download {file_name} and {INDEX_FILE} again.",
            )
    return tensors


def _file_name(path: Path, name: object) -> str:
    """Checks that a name of the index stays in the folder."""
    is_plain = isinstance(name, str) and not re.search(r"[/\\\0:]", name)
    if not isinstance(name, str) or not is_plain or not name.endswith(WEIGHTS_SUFFIX):
        raise CheckpointError(
            f"{INDEX_FILE} in {path.name} names the file {str(name)[:120]!r}, "
            "which is no safetensors file of the folder.",
            path=path / INDEX_FILE,
            hint=_DOWNLOAD_ANEW,
        )
    return name


def _no_weights(path: Path) -> CheckpointError | UnsupportedModelError:
    try:
        shards = sorted(file.name for file in path.glob(f"*{WEIGHTS_SUFFIX}"))
        pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    except OSError:
        shards, pickles = [], []
    if shards:
        return CheckpointError(
            f"{path.name} has {shards[0]}, but neither {SINGLE_FILE} nor {INDEX_FILE}, "
            "which says what lies where.",
            path=path / INDEX_FILE,
            hint=f"Download {INDEX_FILE} into the folder.",
        )
    pickle = next(filter(is_pickled_weights, pickles), None)
    if pickle is not None:
        return pickled_weights_error(path.name, pickle)
    return CheckpointError(
        f"{path.name} has a {CONFIG_FILE} but no weights: {SINGLE_FILE} is missing.",
        path=path / SINGLE_FILE,
        hint=_DOWNLOAD_ANEW,
    )


def _legacy_quantization(path: Path) -> dict[str, Any]:
    """What early writers say in a file of its own, as if config.json said it."""
    for name, method in LEGACY_FILES.items():
        section = _read_json(path / name)
        if section is not None:
            return {"quantization_config": {"quant_method": method, **section}}
    return {}


def _read_json(path: Path) -> dict[str, Any] | None:
    content = _read_if_there(path)
    return None if content is None else parse_json_object(content, path, "its content")


def _read_if_there(path: Path) -> bytes | None:
    try:
        if not path.exists():
            return None
    except OSError as error:
        raise unreadable(path, error) from error
    return read_bounded(path, MAX_JSON_BYTES)
