"""`Architecture`: how a model's numbers are called in GGUF metadata and in config.json.

A new architecture is an entry of the tables here and one of `checkpoint.gguf_names`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from octavo.checkpoint.gguf_names import TENSOR_NAMES, TensorNames
from octavo.checkpoint.header import CheckpointHeader
from octavo.engine.model_config import ModelConfig
from octavo.errors import UnsupportedModelError
from octavo.quantize.conversion.gguf_values import GGUFValue, float32, uint32


@dataclass(frozen=True, slots=True)
class Number:
    """One number of a model under its three names."""

    field: str
    """Of `ModelConfig`."""
    gguf: str
    """Without the architecture in front."""
    config: str
    """In config.json."""
    make: Callable[[Any], GGUFValue] = uint32


@dataclass(frozen=True, slots=True)
class Architecture:
    """One family of models in GGUF and in folders."""

    name: str
    """`general.architecture`."""
    model_types: tuple[str, ...]
    """What config.json may call it; the first is what a folder written here says."""
    model_class: str
    numbers: tuple[Number, ...]
    expressed: frozenset[str]
    """Fields of `ModelConfig` that the conversion writes in another way than as a number. All
    others must have their default: there is no place for them."""
    settings: Mapping[str, object]
    """What config.json says of every such model."""
    ignored: frozenset[str] = frozenset()
    """GGUF keys of such models that follow from other things, or matter only to writers."""

    @property
    def tensor_names(self) -> TensorNames:
        """The names of its tensors."""
        return TENSOR_NAMES[self.name]

    def refuse_what_has_no_place(self, config: ModelConfig, header: CheckpointHeader) -> None:
        """Refuses a model of which this entry would lose something.

        Raises:
            UnsupportedModelError: it has a property beyond those of the table.
        """
        expressed = self.expressed.union(number.field for number in self.numbers)
        for field in dataclasses.fields(config):
            if field.name in expressed or field.default is dataclasses.MISSING:
                continue
            value = getattr(config, field.name)
            if value != field.default:
                raise UnsupportedModelError(
                    f"{header.path.name} cannot be converted: its {field.name} is {value!r}, "
                    f"for which the conversion of {self.name!r} models has no place.",
                    hint="Choose a method that keeps the kind of file the model has.",
                )


_DECODER_NUMBERS = (
    Number("vocab_size", "vocab_size", "vocab_size"),
    Number("max_position_embeddings", "context_length", "max_position_embeddings"),
    Number("hidden_size", "embedding_length", "hidden_size"),
    Number("num_layers", "block_count", "num_hidden_layers"),
    Number("intermediate_size", "feed_forward_length", "intermediate_size"),
    Number("num_heads", "attention.head_count", "num_attention_heads"),
    Number("num_kv_heads", "attention.head_count_kv", "num_key_value_heads"),
    Number("rms_norm_eps", "attention.layer_norm_rms_epsilon", "rms_norm_eps", float32),
)

_LLAMA = Architecture(
    name="llama",
    model_types=("llama", "mistral"),
    model_class="LlamaForCausalLM",
    numbers=_DECODER_NUMBERS,
    expressed=frozenset(
        {
            "rope",
            "head_dim",
            "tie_word_embeddings",
            "attention_bias",
            "attention_output_bias",
        }
    ),
    settings=MappingProxyType({"hidden_act": "silu", "mlp_bias": False}),
    ignored=frozenset({"tensor_data_layout", "expert_used_count"}),
)

ARCHITECTURES: tuple[Architecture, ...] = (_LLAMA,)


def architecture_of_gguf(header: CheckpointHeader) -> Architecture:
    """Finds the entry for a GGUF file; raises UnsupportedModelError if there is none."""
    return _find(header, lambda architecture: architecture.name == header.architecture)


def architecture_of_folder(header: CheckpointHeader) -> Architecture:
    """Finds the entry for a model folder; raises UnsupportedModelError if there is none."""
    return _find(header, lambda architecture: header.architecture in architecture.model_types)


def _find(header: CheckpointHeader, fits: Callable[[Architecture], bool]) -> Architecture:
    found = next(filter(fits, ARCHITECTURES), None)
    if found is None:
        known = ", ".join(name for one in ARCHITECTURES for name in one.model_types)
        raise UnsupportedModelError(
            f"{header.path.name} is of the architecture {header.architecture!r}, which Octavo "
            "cannot write into another kind of file yet.",
            hint=f"Octavo converts today: {known}. Choose a method that keeps the kind of file.",
        )
    return found
