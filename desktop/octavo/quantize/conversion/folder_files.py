"""`write_folder_files`: everything of a model's folder but the weights."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.checkpoint.folder import CONFIG_FILE, GENERATION_FILE, FolderHeader
from octavo.checkpoint.gguf import GGMLType, GGUFHeader
from octavo.checkpoint.header import CheckpointHeader
from octavo.engine.checkpoint_parts import read_tokenizer
from octavo.engine.embedded_tokenizer import folder_inside
from octavo.engine.folder_roles import TOKENIZER_CONFIG_FILE
from octavo.engine.tokenizer import Tokenizer
from octavo.engine.tokenizer_json import TOKENIZER_FILE, tokenizer_from_folder
from octavo.errors import StorageError
from octavo.quantize.conversion.chat_templates import (
    folder_chat_template_value,
    gguf_file_chat_templates,
)
from octavo.quantize.conversion.embedded_files import ROLES_FILE, files_again
from octavo.quantize.conversion.folder_tokenizer import (
    special_tokens,
    tokenizer_config,
    tokenizer_json,
)
from octavo.quantize.conversion.model_numbers import config_of_gguf
from octavo.quantize.conversion.same_tokens import check_same_tokens

_COPIED = (
    GENERATION_FILE,
    TOKENIZER_FILE,
    "tokenizer.model",
    TOKENIZER_CONFIG_FILE,
    ROLES_FILE,
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
"""What a folder's model consists of beside weights and config.json; no programs."""
_PACKING_KEYS = ("quantization_config", "compression_config")
_DTYPES: Mapping[GGMLType, str] = {GGMLType.F32: "float32", GGMLType.BF16: "bfloat16"}


def write_folder_files(
    header: CheckpointHeader,
    folder: Path,
    quantization_config: dict[str, Any] | None,
    *,
    dtype: str | None = None,
) -> None:
    """Writes config.json, the tokenizer's files and the chat template into a folder.

    Args:
        header: of the model that the weights come from.
        folder: exists; files of the same names are replaced.
        quantization_config: how the weights will be packed; None: they are not.
        dtype: `bfloat16`, …: of weights that are not packed; None: as in the source, and
            float16 where that is packed.

    Raises:
        UnsupportedModelError: something about the model has no place in a folder.
        CheckpointError: the source is damaged.
        StorageError: a file cannot be read or written.
    """
    try:
        if isinstance(header, FolderHeader):
            _copy(header, folder, quantization_config, dtype)
        else:
            _Translation(header).write(folder, quantization_config, dtype)
    except OSError as error:
        raise StorageError(
            f"The files of the model cannot be written to {folder}: {error.strerror or error}.",
            path=folder,
            hint="Check that the disk has room and that you may write there.",
        ) from error


def _copy(
    header: FolderHeader,
    folder: Path,
    quantization_config: Mapping[str, Any] | None,
    dtype: str | None,
) -> None:
    for pattern in _COPIED:
        for source in sorted(header.path.glob(pattern)):
            if source.is_file():
                target = folder / source.relative_to(header.path)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(source, target)
    config = {key: value for key, value in header.config.items() if key not in _PACKING_KEYS}
    if dtype is not None:
        config.pop("dtype", None)
        config["torch_dtype"] = dtype
    _write_json(folder / CONFIG_FILE, _with_packing(config, quantization_config))


class _Translation:
    """The files of a folder from one GGUF file."""

    def __init__(self, header: GGUFHeader) -> None:
        self._header = header
        self._numbers = config_of_gguf(header)
        self._tokenizer: Tokenizer = read_tokenizer(header)

    def write(
        self, folder: Path, quantization_config: Mapping[str, Any] | None, dtype: str | None
    ) -> None:
        config = _with_packing(self._model_config(dtype), quantization_config)
        generation = self._generation_config()
        _write_json(folder / CONFIG_FILE, config)
        _write_json(folder / GENERATION_FILE, generation)
        for name, content in self._tokenizer_files().items():
            (folder / name).write_bytes(content)
        written = FolderHeader(folder, config, generation, tensors={})
        check_same_tokens(
            self._tokenizer, tokenizer_from_folder(written), self._header, "a tokenizer.json"
        )

    def _tokenizer_files(self) -> dict[str, bytes]:
        inside = folder_inside(self._header)
        if inside is not None:
            templates = gguf_file_chat_templates(self._header)
            return files_again(inside, folder_chat_template_value(templates))
        tokens = tokenizer_json(self._tokenizer, self._header)
        return {
            TOKENIZER_FILE: _json_bytes(tokens, indent=None),
            TOKENIZER_CONFIG_FILE: _json_bytes(tokenizer_config(self._tokenizer, self._header)),
            ROLES_FILE: _json_bytes(special_tokens(self._tokenizer, self._header)),
        }

    def _model_config(self, dtype: str | None) -> dict[str, Any]:
        padding = special_tokens(self._tokenizer, self._header).get("pad_token")
        # Said even where there is none: some families have one by default, beyond small
        # vocabularies.
        pad_id = None if padding is None else self._tokenizer.special_tokens[padding]
        return {
            **self._numbers,
            "torch_dtype": dtype or self._dtype(),
            **self._generation_config(),
            "pad_token_id": pad_id,
        }

    def _generation_config(self) -> dict[str, Any]:
        roles = {"bos_token_id": self._tokenizer.bos_token_id, "eos_token_id": self._eos()}
        return {key: value for key, value in roles.items() if value is not None}

    def _eos(self) -> int | list[int] | None:
        """EOS first, then the other tokens that end a turn."""
        eos = self._tokenizer.eos_token_id
        others = sorted(self._tokenizer.stop_token_ids - {eos})
        stops = [*([] if eos is None else [eos]), *others]
        return stops[0] if len(stops) == 1 else stops or None

    def _dtype(self) -> str:
        kinds = {
            tensor.ggml_type for tensor in self._header.tensors.values() if len(tensor.shape) > 1
        }
        # What packs weights in GGUF has scales in float16.
        return _DTYPES.get(kinds.pop(), "float16") if len(kinds) == 1 else "float16"


def _with_packing(
    config: dict[str, Any], quantization_config: Mapping[str, Any] | None
) -> dict[str, Any]:
    return (
        config
        if quantization_config is None
        else {
            **config,
            "quantization_config": dict(quantization_config),
        }
    )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_bytes(_json_bytes(content))


def _json_bytes(content: Mapping[str, Any], *, indent: int | None = 2) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=indent) + "\n").encode()
