"""Which tensor of a GGUF file holds which parameter, and in which order its rows stand there."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from octavo.checkpoint.folder import FolderHeader
from octavo.checkpoint.gguf_names import FREQ_FACTORS, OUTPUT_TENSOR
from octavo.checkpoint.header import CheckpointHeader
from octavo.engine.checkpoint_parts import read_model_config
from octavo.quantize.conversion.architectures import (
    Architecture,
    architecture_of_folder,
    architecture_of_gguf,
)

if TYPE_CHECKING:
    from torch import Tensor

_OF_EXPERTS = re.compile(r"\.mlp\.(experts|gate|shared_expert|shared_expert_gate)\.")
"""Names of mixtures of experts, none of which is converted yet."""


def architecture_of(header: CheckpointHeader) -> Architecture:
    """Finds the conversion's entry for a model; raises UnsupportedModelError if there is none."""
    if isinstance(header, FolderHeader):
        return architecture_of_folder(header)
    return architecture_of_gguf(header)


def gguf_tensor_names(header: CheckpointHeader) -> Mapping[str, str]:
    """GGUF's tensor name of every parameter of the model, by Hugging Face's, in order.

    Divisors of the rotary frequencies come under the engine's name `FREQ_FACTORS`; a folder has
    no such tensor, `rope_factors` gives the values.

    Raises:
        ModelError: the header cannot be understood, or its architecture is not converted.
    """
    config = read_model_config(header)
    architecture = architecture_of(header)
    architecture.refuse_what_has_no_place(config, header)
    names = architecture.tensor_names
    absent = set()
    if config.tie_word_embeddings:
        absent.add(names.parameter_name(OUTPUT_TENSOR))
    if config.rope.scaling not in ("llama3", "factors"):
        absent.add(FREQ_FACTORS)

    def is_there(parameter: str) -> bool:
        if parameter in absent or _OF_EXPERTS.search(parameter):
            return False
        if not parameter.endswith(".bias"):
            return True
        is_output = parameter.endswith("self_attn.o_proj.bias")
        return config.attention_output_bias if is_output else config.attention_bias

    return {
        parameter: tensor
        for parameter, tensor in names.all(config.num_layers)
        if is_there(parameter)
    }


def permuted_parameters(header: CheckpointHeader) -> frozenset[str]:
    """Those parameters of `gguf_tensor_names` whose rows `permute_rows` must reorder for GGUF.

    Raises as `gguf_tensor_names`.
    """
    names = architecture_of(header).tensor_names
    return frozenset(filter(names.is_permuted, gguf_tensor_names(header)))


def permute_rows(weight: "Tensor", head_dim: int, rotary_dim: int) -> "Tensor":
    """Reorders the rows of each head from halves, as in Hugging Face's layout, to neighbours.

    The engine's reader of GGUF files undoes it. Rows are moved whole, so those of packed weights
    may be given as well.

    Args:
        weight: [num_heads * head_dim, ...].
        head_dim: rows of a head.
        rotary_dim: rows of a head that turn; the others stay where they are.

    Returns:
        A new tensor, as `weight`.
    """
    heads = weight.clone().view(-1, head_dim, *weight.shape[1:])
    turned = heads[:, :rotary_dim]
    halves = turned.reshape(len(heads), 2, rotary_dim // 2, *weight.shape[1:])
    heads[:, :rotary_dim] = halves.transpose(1, 2).reshape(turned.shape)
    return heads.view(weight.shape)
