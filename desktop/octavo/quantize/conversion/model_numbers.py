"""What a model is in the words of the other kind of file, checked by reading it again."""

from collections.abc import Mapping
from typing import Any

from octavo.checkpoint.folder import FolderHeader
from octavo.checkpoint.gguf import GGMLType, GGUFHeader, TensorInfo
from octavo.checkpoint.safetensors import SafetensorsTensor
from octavo.engine.checkpoint_parts import read_model_config
from octavo.quantize.conversion.config_numbers import config_numbers
from octavo.quantize.conversion.gguf_numbers import gguf_numbers
from octavo.quantize.conversion.gguf_values import GGUFValue, string
from octavo.quantize.conversion.no_place import no_place
from octavo.quantize.conversion.same_model import check_same_model
from octavo.quantize.conversion.weight_sources import weight_sources

_READ = frozenset(
    {
        "vocab_size",
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "attention.scale",
        "attention.sliding_window",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "embedding_scale",
        "residual_scale",
        "logit_scale",
        "expert_count",
        "expert_used_count",
        "expert_feed_forward_length",
        "expert_shared_feed_forward_length",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.freq_base_swa",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.attn_factor",
        "rope.scaling.original_context_length",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scaling.yarn_log_multiplier",
    }
)
"""Keys that say what model it is; without the architecture in front."""
_MATTER_TO_OTHERS = frozenset({"rope.scaling.finetuned", "tensor_data_layout"})


def config_of_gguf(header: GGUFHeader) -> dict[str, Any]:
    """The keys of a config.json but for tokens, data type and packing.

    Raises:
        UnsupportedModelError: no config.json can say what the model is.
        CheckpointError: the source is damaged or incomplete.
        StorageError: it cannot be read.
    """
    known = {f"{header.architecture}.{key}" for key in _READ | _MATTER_TO_OTHERS}
    for key, value in header.metadata.items():
        if key.startswith(f"{header.architecture}.") and key not in known and value:
            raise no_place(header, f"says {key} = {value!r:.80}")
    tensors = {
        weight.name: SafetensorsTensor(weight.name, weight.shape, "F32", 0, 0, header.path)
        for weight in weight_sources(header, "safetensors")
    }
    config = config_numbers(read_model_config(header), header)
    check_same_model(header, FolderHeader(header.path, config, {}, tensors))
    return config


def gguf_keys_of_folder(header: FolderHeader) -> dict[str, GGUFValue]:
    """The keys of a GGUF file but for tokens and what is known of the file only.

    Raises as `config_of_gguf`.
    """
    tensors = {
        weight.name: TensorInfo(weight.name, weight.shape, GGMLType.F32, 0, 0, header.path)
        for weight in weight_sources(header, "gguf")
    }
    numbers = gguf_numbers(read_model_config(header), header)
    architecture = next(iter(numbers)).partition(".")[0]
    values = {"general.architecture": string(architecture), **numbers}
    check_same_model(header, _gguf_header(header, values, tensors))
    return values


def _gguf_header(
    source: FolderHeader, values: Mapping[str, GGUFValue], tensors: Mapping[str, TensorInfo]
) -> GGUFHeader:
    return GGUFHeader(
        path=source.path,
        version=3,
        metadata={key: value.plain for key, value in values.items()},
        value_types={key: value.type for key, value in values.items()},
        tensors=tensors,
        data_offset=0,
        file_bytes=0,
    )
