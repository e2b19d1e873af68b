"""Which tensors of a source each weight of the output is made from, and what changes on the way."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from octavo.checkpoint.folder import FolderHeader
from octavo.checkpoint.gguf import GGUFHeader
from octavo.checkpoint.gguf_names import TENSOR_NAMES
from octavo.checkpoint.header import CheckpointHeader
from octavo.engine.checkpoint_parts import read_model_config
from octavo.engine.families import BY_MODEL_TYPE
from octavo.engine.model_config import ModelConfig
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.quantize.conversion.config_numbers import family_in_folders
from octavo.quantize.conversion.no_place import HINT, no_place, other_kind
from octavo.quantize.conversion.rope_scaling import DIVISOR_PARAMETERS, rope_factors

RowOrder = Literal["kept", "to_gguf", "from_gguf"]

_STACKED = re.compile(r"(.+)\.mlp\.experts\.(gate|up|down)_proj")
_MERGED = re.compile(r"(.+)\.mlp\.experts\.(gate_up|down)_proj")
_MIXTRAL_PARTS: Mapping[str, str] = MappingProxyType({"gate": "w1", "down": "w2", "up": "w3"})
_LAYER = re.compile(r"model\.layers\.([0-9]+)\.(.+)")
_ALWAYS_THERE = ("model.embed_tokens.weight", "model.norm.weight")
_SHARED_GATE = ".mlp.shared_expert_gate.weight"
_FOLLOWS_FROM_CONFIG = re.compile(
    r"model\.(layers\.[0-9]+\.self_attn\.)?rotary_emb\.inv_freq"
    r"|blk\.[0-9]+\.attn_rot_embd(\.weight)?"
)
"""Tables of early checkpoints."""


@dataclass(frozen=True, slots=True)
class SourcePart:
    """A tensor of the source, or one matrix of a stack of them."""

    tensor: str
    expert: int | None = None
    """Which matrix; None: all of the tensor."""
    rows: tuple[int, int] | None = None
    """From which row of it to which; None: all of them."""


@dataclass(frozen=True, slots=True)
class WeightSource:
    """One weight of the output, before anything is said about its encoding."""

    name: str
    """In the output."""
    shape: tuple[int, ...]
    """In the output, outermost first."""
    parts: tuple[SourcePart, ...]
    """Each fills as many rows as it has, one after the other."""
    row_order: RowOrder = "kept"
    offset: float = 0.0
    """Added to every value."""
    values: tuple[float, ...] = ()
    """What it holds where no tensor of the source does."""


def weight_sources(
    header: CheckpointHeader, container: Literal["gguf", "safetensors"]
) -> list[WeightSource]:
    """Every weight of the output, in the order of the source or of the other kind's tables.

    In the kind of file that the source has, all is copied, names and order of rows included.

    Raises:
        UnsupportedModelError: the source has a tensor for which the other kind has no place.
        CheckpointError: it lacks one.
    """
    if isinstance(header, FolderHeader):
        is_kept, sources = container == "safetensors", _for_gguf
        return _copied(header) if is_kept else list(sources(header))
    return _copied(header) if container == "gguf" else list(_for_folder(header))


def _copied(header: CheckpointHeader) -> list[WeightSource]:
    if isinstance(header, GGUFHeader):
        return [
            WeightSource(name, tensor.shape, (SourcePart(name),))
            for name, tensor in header.tensors.items()
        ]
    return [
        WeightSource(name, shape, (part,))
        for name, (shape, part) in _folder_weights(header).items()
    ]


def _folder_weights(header: FolderHeader) -> dict[str, tuple[tuple[int, ...], SourcePart]]:
    """What a folder holds, by name, with shapes: experts that it stores as one taken apart.

    transformers 5 may keep gate and up of all experts in one tensor, and down in another.
    """
    family = BY_MODEL_TYPE[header.architecture]
    if family.has_expert_biases:
        raise UnsupportedModelError(
            f"{header.path.name} is of the architecture {header.architecture!r}, whose experts "
            "Octavo cannot quantise from a folder yet.",
            hint="Quantise a GGUF of this model, or download a smaller one.",
        )
    found: dict[str, tuple[tuple[int, ...], SourcePart]] = {}
    for name, tensor in header.tensors.items():
        merged = _MERGED.fullmatch(name)
        if merged is None or len(tensor.shape) != 3:
            if not _FOLLOWS_FROM_CONFIG.fullmatch(name):
                found[name] = tensor.shape, SourcePart(name)
            continue
        kinds = merged[2].split("_")
        num_experts, num_rows, width = tensor.shape
        each = num_rows // len(kinds)
        for expert in range(num_experts):
            for index, kind in enumerate(kinds):
                names = _expert_names(merged[1], kind, expert)
                rows = (index * each, (index + 1) * each)
                part = SourcePart(name, expert, rows)
                found[names[int(family.experts == "mixtral")]] = (each, width), part
    return found


def _for_gguf(header: FolderHeader) -> Iterator[WeightSource]:
    config = read_model_config(header)
    family = BY_MODEL_TYPE[header.architecture]
    names = TENSOR_NAMES.get(family.gguf_architecture)
    if names is None or family.has_expert_biases:
        raise _not_converted(header)
    if config.moe is not None and config.moe.dense_layers:
        raise no_place(header, "has experts in a part of its layers only")
    factors = rope_factors(header)
    for parameter, values in factors.items():
        tensor_name = names.tensor_name(parameter)
        if tensor_name is None:
            raise no_place(header, "scales its positions by a list of factors")
        yield WeightSource(tensor_name, (len(values),), (), values=values)
    weights = _folder_weights(header)
    found: dict[str, list[str]] = {}
    for parameter, _ in names.all(config.num_layers):
        named = _names_in_folder(parameter, config, weights, header)
        if named and _has_place(parameter, config):
            found[parameter] = named
    used = {name for named in found.values() for name in named}
    for name, (_, part) in weights.items():
        if name not in used:
            raise _no_place_for_tensor(header, part.tensor)
    _refuse_incomplete(header, found, config)
    for parameter, named in found.items():
        tensor_name = names.tensor_name(parameter)
        assert tensor_name is not None
        shape = weights[named[0]][0]
        if _STACKED.fullmatch(parameter):
            shape = (len(named), *shape)
        elif parameter.endswith(_SHARED_GATE):
            shape = shape[-1:]
        yield WeightSource(
            tensor_name,
            shape,
            tuple(weights[name][1] for name in named),
            "to_gguf" if names.is_permuted(parameter) else "kept",
            family.norm_offset if _is_norm(parameter) else 0.0,
        )


def _for_folder(header: GGUFHeader) -> Iterator[WeightSource]:
    config = read_model_config(header)
    family = family_in_folders(config, header)
    names = TENSOR_NAMES[header.architecture]
    if family.has_expert_biases:
        raise _not_converted(header)
    found: dict[str, str] = {}
    for tensor_name in header.tensors:
        parameter = names.parameter_name(tensor_name)
        if parameter is None and not _FOLLOWS_FROM_CONFIG.fullmatch(tensor_name):
            raise _no_place_for_tensor(header, tensor_name)
        # config.json says divisors in other words.
        if parameter is not None and parameter not in DIVISOR_PARAMETERS:
            found[parameter] = tensor_name
    _refuse_incomplete(header, found, config)
    for parameter, tensor_name in found.items():
        shape = header.tensors[tensor_name].shape
        stacked = _STACKED.fullmatch(parameter)
        if stacked is not None:
            for expert in range(shape[0]):
                names_of = _expert_names(stacked[1], stacked[2], expert)
                name = names_of[int(family.experts == "mixtral")]
                yield WeightSource(name, shape[1:], (SourcePart(tensor_name, expert),))
            continue
        if parameter.endswith(_SHARED_GATE):
            shape = (1, *shape[-1:])
        name = _router_names(parameter)[int(family.experts == "mixtral")]
        yield WeightSource(
            name,
            shape,
            (SourcePart(tensor_name),),
            "from_gguf" if names.is_permuted(parameter) else "kept",
            -family.norm_offset if _is_norm(parameter) else 0.0,
        )


def _names_in_folder(
    parameter: str, config: ModelConfig, weights: Collection[str], header: FolderHeader
) -> list[str]:
    """What of a folder makes up a parameter; empty: it has none of it."""
    stacked = _STACKED.fullmatch(parameter)
    if stacked is None:
        return [name for name in _router_names(parameter) if name in weights][:1]
    num_experts = 0 if config.moe is None else config.moe.num_experts
    for style in range(2):
        names = [_expert_names(stacked[1], stacked[2], i)[style] for i in range(num_experts)]
        there = [name for name in names if name in weights]
        if there and there != names:
            raise _incomplete(header, next(name for name in names if name not in weights))
        if there:
            return names
    return []


def _expert_names(layer: str, kind: str, expert: int) -> tuple[str, str]:
    """As most families and as Mixtral's folders call an expert's matrix."""
    return (
        f"{layer}.mlp.experts.{expert}.{kind}_proj.weight",
        f"{layer}.block_sparse_moe.experts.{expert}.{_MIXTRAL_PARTS[kind]}.weight",
    )


def _router_names(parameter: str) -> tuple[str, str]:
    """As most families and as Mixtral's folders call what is no expert's; mostly the same."""
    return parameter, parameter.replace(".mlp.gate.weight", ".block_sparse_moe.gate.weight")


def _is_norm(parameter: str) -> bool:
    return parameter.endswith("norm.weight")


def _has_place(parameter: str, config: ModelConfig) -> bool:
    """Whether a model of these numbers has such a parameter, where that depends on them."""
    if not parameter.endswith(".bias"):
        return True
    if ".mlp." in parameter:
        return config.mlp_bias
    is_output = parameter.endswith("o_proj.bias")
    return config.attention_output_bias if is_output else config.attention_bias


def _refuse_incomplete(header: CheckpointHeader, found: Iterable[str], config: ModelConfig) -> None:
    """Every layer has what any layer has."""
    parameters = set(found)
    layers = [match for name in parameters if (match := _LAYER.fullmatch(name))]
    wanted = {
        f"model.layers.{layer}.{part}"
        for part in {match[2] for match in layers}
        for layer in range(config.num_layers)
    }
    for name in sorted(wanted.union(_ALWAYS_THERE) - parameters):
        raise _incomplete(header, name)


def _incomplete(header: CheckpointHeader, name: str) -> CheckpointError:
    return CheckpointError(
        f"{header.path.name} has no weights for {name!r}: it is incomplete.",
        path=header.path,
        tensor=name,
        hint="Download it again.",
    )


def _no_place_for_tensor(header: CheckpointHeader, name: str) -> UnsupportedModelError:
    return no_place(header, f"has the tensor {name!r}")


def _not_converted(header: CheckpointHeader) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{header.path.name} is of the architecture {header.architecture!r}, which Octavo cannot "
        f"write as a {other_kind(header)} yet.",
        hint=HINT,
    )
