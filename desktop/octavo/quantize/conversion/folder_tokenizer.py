"""tokenizer.json and its companions from the vocabulary inside a GGUF file."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from octavo.checkpoint.gguf import GGUFHeader
from octavo.engine.tokenizer import (
    SPACE_SYMBOL,
    ByteLevelTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    TokenType,
)
from octavo.errors import UnsupportedModelError
from octavo.quantize.conversion.chat_templates import (
    folder_chat_template_value,
    gguf_file_chat_templates,
)

logger = logging.getLogger(__name__)

_ROLES: Mapping[str, str] = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
"""Keys of tokenizer_config.json and of `tokenizer.ggml`."""


def tokenizer_json(tokenizer: Tokenizer, header: GGUFHeader) -> dict[str, Any]:
    """The content of a tokenizer.json that gives the ids of `tokenizer`.

    It holds what the engine's own backend holds, and beside it what the engine keeps out of its
    backend: control tokens, and what happens to text before and after.

    Raises:
        UnsupportedModelError: a kind of vocabulary for which there is no such file.
    """
    content: dict[str, Any] = json.loads(tokenizer.backend.to_str())
    vocabulary = tokenizer.vocabulary
    model = content["model"]
    added = vocabulary.ids_of(TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
    texts = {token_id: vocabulary.tokens[token_id] for token_id in added}
    # The backend numbers added tokens anew, unless the vocabulary knows them.
    model["vocab"] |= {text: token_id for token_id, text in texts.items()}
    content["added_tokens"] = [
        {
            "id": token_id,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": token_id in tokenizer.special_token_ids,
        }
        for token_id, text in texts.items()
    ]
    if isinstance(tokenizer, SentencePieceTokenizer):
        content |= _sentence_piece_steps(tokenizer)
        unknown = vocabulary.ids_of(TokenType.UNKNOWN)
        model["unk_token"] = texts[unknown[0]] if unknown else model["unk_token"]
    elif isinstance(tokenizer, ByteLevelTokenizer):
        content["decoder"] = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        }
    else:
        raise UnsupportedModelError(
            f"Octavo cannot write the tokenizer of {header.path.name} as a tokenizer.json.",
            hint="Choose a method that writes a GGUF file.",
        )
    content["post_processor"] = _post_processor(tokenizer, adds_eos=_adds_eos(header))
    return content


def tokenizer_config(tokenizer: Tokenizer, header: GGUFHeader) -> dict[str, Any]:
    """The content of tokenizer_config.json: roles of tokens, and the chat template.

    Raises:
        CheckpointError: a chat template that the file lists is missing.
    """
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": header.context_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": tokenizer.adds_bos,
        "add_eos_token": _adds_eos(header),
        **special_tokens(tokenizer, header),
    }
    template = folder_chat_template_value(gguf_file_chat_templates(header))
    if template is not None:
        config["chat_template"] = template
    return config


def special_tokens(tokenizer: Tokenizer, header: GGUFHeader) -> dict[str, str]:
    """The content of special_tokens_map.json: the texts of tokens with a role.

    A role that belongs to ordinary text is left out: readers of the file would make a control
    token of it.
    """
    roles = {}
    for role, key in _ROLES.items():
        token_id = header.metadata.get(f"tokenizer.ggml.{key}")
        # Some converters write -1 or the largest number for "none".
        if type(token_id) is not int or not 0 <= token_id < tokenizer.vocab_size:
            continue
        if token_id in tokenizer.special_token_ids:
            roles[role] = tokenizer.vocabulary.tokens[token_id]
        else:
            logger.warning(
                "%s: %s is ordinary text (%d); left out", header.path.name, role, token_id
            )
    return roles


def _adds_eos(header: GGUFHeader) -> bool:
    return bool(header.metadata.get("tokenizer.ggml.add_eos_token", False))


def _sentence_piece_steps(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """What SentencePiece does to blanks, before and after."""
    before: list[dict[str, Any]] = []
    if tokenizer.removes_extra_whitespaces:
        before += [_replace({"Regex": " +"}, " "), _replace({"Regex": r"\A +| +\z"}, "")]
    if tokenizer.strips_leading_space:
        before.append({"type": "Prepend", "prepend": SPACE_SYMBOL})
    before.append(_replace({"String": " "}, SPACE_SYMBOL))
    after: list[dict[str, Any]] = [
        _replace({"String": SPACE_SYMBOL}, " "),
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if tokenizer.strips_leading_space:
        after.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": before},
        "decoder": {"type": "Sequence", "decoders": after},
    }


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _post_processor(tokenizer: Tokenizer, *, adds_eos: bool) -> dict[str, Any] | None:
    """Puts BOS before and EOS after text, as the file asks for."""
    before = [tokenizer.bos_token_id] if tokenizer.adds_bos else []
    after = [tokenizer.eos_token_id] if adds_eos else []
    token_ids = [token_id for token_id in (*before, *after) if token_id is not None]
    if not token_ids:
        return None
    texts = {token_id: tokenizer.vocabulary.tokens[token_id] for token_id in token_ids}

    def part(sequence: str, kind: int) -> list[dict[str, Any]]:
        def special(token_id: int | None) -> list[dict[str, Any]]:
            if token_id is None:
                return []
            return [{"SpecialToken": {"id": texts[token_id], "type_id": kind}}]

        return [
            *(one for token_id in before for one in special(token_id)),
            {"Sequence": {"id": sequence, "type_id": kind}},
            *(one for token_id in after for one in special(token_id)),
        ]

    return {
        "type": "TemplateProcessing",
        "single": part("A", 0),
        "pair": part("A", 0) + part("B", 1),
        "special_tokens": {
            text: {"id": text, "ids": [token_id], "tokens": [text]}
            for token_id, text in texts.items()
        },
    }
