"""The language model inside a folder of a model that also sees; the rest is left unread."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from octavo.checkpoint.safetensors import SafetensorsTensor
from octavo.units import format_bytes

_OUTER_KEYS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "quantization_config",
    "compression_config",
)
"""What counts for the language model, too, and may stand outside of its part."""
_LANGUAGE = re.compile(r"language_model\.(?=model\.|lm_head\.)|(?<=^model\.)language_model\.")
"""As transformers 4 begins the names of its tensors, and as 5 does."""
_OTHERS = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\..+")


@dataclass(frozen=True, slots=True)
class _Outer:
    """A kind of model that has a language model as one of its parts."""

    causal_class: str
    text_type: str
    """`model_type` of the language model."""
    defaults: Mapping[str, Any]
    """What a nested configuration leaves out where it is so."""


_KINDS: Mapping[str, _Outer] = MappingProxyType(
    {
        "gemma3": _Outer(
            "Gemma3ForConditionalGeneration",
            "gemma3_text",
            MappingProxyType(
                {
                    "vocab_size": 262_208,
                    "hidden_size": 2304,
                    "intermediate_size": 9216,
                    "num_hidden_layers": 26,
                    "num_attention_heads": 8,
                    "num_key_value_heads": 4,
                    "head_dim": 256,
                    "hidden_activation": "gelu_pytorch_tanh",
                    "max_position_embeddings": 131_072,
                    "rms_norm_eps": 1e-6,
                    "tie_word_embeddings": True,
                    "query_pre_attn_scalar": 256,
                    "sliding_window": 4096,
                }
            ),
        ),
        "mistral3": _Outer(
            "Mistral3ForConditionalGeneration",
            "mistral",
            MappingProxyType(
                {
                    "vocab_size": 32_000,
                    "hidden_size": 4096,
                    "intermediate_size": 14_336,
                    "num_hidden_layers": 32,
                    "num_attention_heads": 32,
                    "num_key_value_heads": 8,
                    "hidden_act": "silu",
                    "max_position_embeddings": 131_072,
                    "rms_norm_eps": 1e-6,
                    "tie_word_embeddings": False,
                    "sliding_window": 4096,
                }
            ),
        ),
    }
)
"""By `model_type`."""


@dataclass(frozen=True, slots=True)
class TextPart:
    """What of a folder is read."""

    config: Mapping[str, Any]
    """As config.json of the language model alone would be."""
    tensors: Mapping[str, SafetensorsTensor]
    """By the names that they have in a language model alone."""
    left_out: str
    """What is not read, as a sentence; empty: nothing."""


def text_part(config: Mapping[str, Any], tensors: Mapping[str, SafetensorsTensor]) -> TextPart:
    """The part of a folder that is a language model: most often all of it."""
    outer = _KINDS.get(str(config.get("model_type")))
    nested = config.get("text_config")
    if outer is None or not isinstance(nested, dict):
        return TextPart(config, tensors, "")
    # Only one class of each kind is known; another keeps its name and is refused by it.
    classes = config.get("architectures")
    names = {"model_type": outer.text_type}
    if classes not in (None, [outer.causal_class]):
        names["architectures"] = classes
    shared = {key: config[key] for key in _OUTER_KEYS if config.get(key) is not None}
    inner = {key: value for key, value in nested.items() if key != "architectures"}
    found: dict[str, SafetensorsTensor] = {}
    others: list[SafetensorsTensor] = []
    for name, tensor in tensors.items():
        if _OTHERS.fullmatch(name):
            others.append(tensor)
        else:
            found[_LANGUAGE.sub("", name, count=1)] = tensor
    left_out = ""
    if others:
        num_bytes = sum(tensor.num_bytes for tensor in others)
        left_out = (
            f"Its vision part ({len(others):,} tensors, {format_bytes(num_bytes)}) is not read:"
            " the model runs as a text model, without images."
        )
    return TextPart({**outer.defaults, **names, **shared, **inner}, found, left_out)
