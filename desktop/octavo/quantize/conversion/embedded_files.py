"""The tokenizer's files of a folder as metadata of a GGUF file, and as files again."""

import json
from collections.abc import Mapping
from typing import Any

from octavo.checkpoint.folder import CONFIG_FILE, GENERATION_FILE, FolderHeader
from octavo.engine.embedded_tokenizer import NOTE_KEY, EmbeddedFolder, key_of_file
from octavo.engine.folder_roles import TOKENIZER_CONFIG_FILE
from octavo.engine.sentencepiece_folder import SENTENCEPIECE_FILE
from octavo.engine.tokenizer_json import TOKENIZER_FILE
from octavo.quantize.conversion.gguf_values import GGUFValue, GGUFValueType, array, string

ROLES_FILE = "special_tokens_map.json"
_CHAT_TEMPLATE = "chat_template"


def embedded_files(header: FolderHeader, note: str) -> dict[str, GGUFValue]:
    """Metadata with all that a folder says about its tokenizer; chat templates have own keys.

    Args:
        header: the folder.
        note: why they are embedded, as a sentence.
    """
    texts = {
        CONFIG_FILE: json.dumps(_token_ids(header.config)),
        GENERATION_FILE: json.dumps(_token_ids(header.generation_config)),
        TOKENIZER_FILE: header.read_text(TOKENIZER_FILE),
        ROLES_FILE: header.read_text(ROLES_FILE),
    }
    config = header.read_json(TOKENIZER_CONFIG_FILE)
    if config is not None:
        config.pop(_CHAT_TEMPLATE, None)
        texts[TOKENIZER_CONFIG_FILE] = json.dumps(config)
    values = {key_of_file(name): string(text) for name, text in texts.items() if text is not None}
    pieces = header.read_bytes(SENTENCEPIECE_FILE)
    if texts[TOKENIZER_FILE] is None and pieces is not None:
        values[key_of_file(SENTENCEPIECE_FILE)] = array(GGUFValueType.UINT8, pieces)
    return {NOTE_KEY: string(note), **values}


def files_again(
    folder: EmbeddedFolder, chat_template: str | list[dict[str, str]] | None
) -> dict[str, bytes]:
    """The tokenizer's files of a folder, by name, from what a GGUF file carries.

    Args:
        folder: what it carries.
        chat_template: as tokenizer_config.json writes it; None if there is none.
    """
    files = {
        name: content
        for name, content in folder.files.items()
        if name not in (CONFIG_FILE, GENERATION_FILE)
    }
    if chat_template is not None:
        config = folder.read_json(TOKENIZER_CONFIG_FILE) or {}
        config[_CHAT_TEMPLATE] = chat_template
        files[TOKENIZER_CONFIG_FILE] = json.dumps(config, indent=2).encode()
    return files


def _token_ids(config: Mapping[str, Any]) -> dict[str, Any]:
    """What configurations say of tokens: `eos_token_id` and its like."""
    return {key: value for key, value in config.items() if key.endswith("_token_id")}
