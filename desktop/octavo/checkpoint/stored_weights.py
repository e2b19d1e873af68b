"""Which tensors of a model folder make up which parameter, and whether they fit; no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from octavo.checkpoint.safetensors import SafetensorsTensor
from octavo.checkpoint.weight_format import ROW, WHOLE, Layout, LinearFormat, WeightFormat
from octavo.errors import CheckpointError, UnsupportedModelError

PLAIN_DTYPES = frozenset({"F32", "F16", "BF16"})
"""Data types of weights that are not quantised."""

_FLOAT8_DTYPES = frozenset({"F8_E4M3", "F8_E5M2"})
_SCALE_DTYPES = PLAIN_DTYPES
_MAX_NAME_LENGTH = 200
_MAX_JSON_TENSOR_BYTES = 1 << 16

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Roles:
    """The tensors of a quantised module by the end of their names."""

    main: str
    """Holds the values."""
    main_dtypes: frozenset[str]
    required: Mapping[str, frozenset[str]]
    """Besides `main`, with the data types they may have."""
    optional: Mapping[str, frozenset[str]] = field(default_factory=dict)


_INT32, _INT8, _UINT8 = frozenset({"I32"}), frozenset({"I8"}), frozenset({"U8"})
_STATE = "weight.quant_state.bitsandbytes__"
_ROLES: Mapping[Layout, _Roles] = MappingProxyType(
    {
        Layout.PACKED_INTEGERS: _Roles(
            "weight_packed",
            _INT32,
            {"weight_scale": _SCALE_DTYPES},
            {
                "weight_zero_point": frozenset({"I32", "I8"}),
                "weight_g_idx": _INT32,
                "weight_shape": frozenset({"I64", "I32"}),
            },
        ),
        Layout.INTEGERS: _Roles(
            "weight",
            _INT8,
            {"weight_scale": _SCALE_DTYPES},
            {"weight_zero_point": _INT8, "weight_g_idx": _INT32},
        ),
        Layout.FLOAT8: _Roles(
            "weight",
            _FLOAT8_DTYPES,
            {},
            {
                "weight_scale": _SCALE_DTYPES | {"F8_E8M0"},
                "weight_scale_inv": _SCALE_DTYPES | {"F8_E8M0"},
                "weight_zero_point": _FLOAT8_DTYPES | _INT8 | _SCALE_DTYPES,
            },
        ),
        Layout.GPTQ: _Roles(
            "qweight",
            _INT32,
            {"qzeros": _INT32, "scales": _SCALE_DTYPES},
            {"g_idx": _INT32},
        ),
        Layout.AWQ: _Roles("qweight", _INT32, {"qzeros": _INT32, "scales": _SCALE_DTYPES}),
        Layout.BITSANDBYTES_4BIT: _Roles(
            "weight",
            _UINT8 | PLAIN_DTYPES,
            {"weight.absmax": frozenset({"F32", "U8"}), "weight.quant_map": frozenset({"F32"})},
            {
                "weight.nested_absmax": frozenset({"F32"}),
                "weight.nested_quant_map": frozenset({"F32"}),
                _STATE + "nf4": _UINT8,
                _STATE + "fp4": _UINT8,
            },
        ),
        Layout.BITSANDBYTES_8BIT: _Roles(
            "weight", _INT8, {"SCB": frozenset({"F32"})}, {"weight_format": _UINT8}
        ),
        # `merged_experts` finds them; no module has tensors of these names.
        Layout.MXFP4: _Roles("blocks", _UINT8, {"scales": _UINT8}),
    }
)
_UNUSED = (
    "input_scale",
    "input_scale_ub",
    "input_zero_point",
    "activation_scale",
    "output_scale",
    "k_scale",
    "v_scale",
    "q_scale",
)
"""Scales for quantised activations and caches. What is quantised here has scales of its own."""


@dataclass(frozen=True, slots=True)
class ExpertRows:
    """Which output features of a stack of experts a parameter is, and how they lie.

    The stack is [experts, output features, input features], or one dimension less for biases.
    """

    first: int = 0
    """Of the parameters that take turns, which it is."""
    step: int = 1
    """How many parameters take turns."""
    part: int = 0
    """Of the parameters that lie one after the other in each expert, which it is."""
    num_parts: int = 1
    """How many those are."""
    is_transposed: bool = False
    """Whether input features come before output features."""

    @property
    def share(self) -> int:
        """How many times as many output features the stack has as the parameter."""
        return self.step * self.num_parts

    def stack_shape(self, shape: Shape) -> Shape:
        """The shape of the stack that a parameter of this shape is taken from."""
        num_experts, num_features, *inputs = shape
        if self.is_transposed:
            return num_experts, *inputs, num_features * self.share
        return num_experts, num_features * self.share, *inputs

    def features(self, num_features: int) -> range:
        """Where in an expert's output features those of the parameter lie.

        Args:
            num_features: of the parameter.
        """
        begin = self.part * num_features * self.step
        return range(begin + self.first, begin + num_features * self.step, self.step)


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """The tensors of one parameter."""

    parameter: str
    main: SafetensorsTensor
    format: LinearFormat | None = None
    """None: `main` holds the parameter as it is."""
    companions: Mapping[str, SafetensorsTensor] = field(default_factory=dict)
    """By the end of their names: `weight_scale`, `qzeros`, …"""
    rows: ExpertRows | None = None
    """Which part of its tensors the parameter is; None: all of them."""

    @property
    def name(self) -> str:
        """In its file."""
        return self.main.name

    @property
    def path(self) -> Path:
        return self.main.path

    @property
    def offset(self) -> int:
        return self.main.offset

    @property
    def num_bytes(self) -> int:
        """Of its part of all its tensors."""
        tensors = (self.main, *self.companions.values())
        share = 1 if self.rows is None else self.rows.share
        return sum(tensor.num_bytes for tensor in tensors) // share

    @property
    def num_elements(self) -> int:
        """Of the parameter; where the last word of a row is padded, those that fit into it."""
        share = 1 if self.rows is None else self.rows.share
        if self.format is None:
            return self.main.num_elements // share
        return self.main.num_bytes * 8 // self.format.bits // share

    def check(self, shape: Shape) -> None:
        """Checks that all tensors have the shapes that a parameter of this shape needs.

        Raises:
            CheckpointError: one has another.
        """
        fitting: dict[str, tuple[SafetensorsTensor, tuple[Shape, ...]]]
        if self.rows is not None:
            shape = self.rows.stack_shape(shape)
        fitting = {self.main.name: (self.main, (shape,))}
        if self.format is not None:
            shapes = _shapes(self, shape)
            tensors = {_ROLES[self.format.layout].main: self.main, **self.companions}
            fitting = {
                tensor.name: (tensor, shapes[role])
                for role, tensor in tensors.items()
                if role in shapes
            }
        for tensor, allowed in fitting.values():
            if tensor.shape not in allowed:
                wanted = " or ".join(str(list(one)) for one in allowed)
                raise _damaged(tensor, f"has the shape {list(tensor.shape)} instead of {wanted}")


def stored_weights(
    tensors: Mapping[str, SafetensorsTensor], weight_format: WeightFormat | None
) -> dict[str, StoredWeight]:
    """Groups tensors into parameters, in the order in which the first of each lies.

    Raises:
        CheckpointError: a quantised weight lacks one of its tensors.
        UnsupportedModelError: a tensor has a data type that nothing here explains.
    """
    modules: dict[str, dict[str, SafetensorsTensor]] = {}
    plain: dict[str, SafetensorsTensor] = {}
    weights: dict[str, StoredWeight] = {}
    roles = {} if weight_format is None else _role_names(weight_format)
    for name, tensor in tensors.items():
        module, role = _split(name, roles)
        if weight_format is not None and name.rpartition(".")[2] in _UNUSED:
            continue
        if role:
            modules.setdefault(module, {})[role] = tensor
        else:
            plain[name] = tensor
    for module, by_role in modules.items():
        if set(by_role) == {"weight"} and by_role["weight"].dtype in PLAIN_DTYPES:
            plain[f"{module}.weight"] = by_role["weight"]
        elif weight_format is not None:
            weight = _quantized(module, by_role, weight_format)
            weights[weight.parameter] = weight
    for name, tensor in plain.items():
        if tensor.dtype not in PLAIN_DTYPES:
            raise UnsupportedModelError(
                f"The tensor {name!r} in {tensor.path.name} of {tensor.path.parent.name} has the "
                f"data type {tensor.dtype}, which Octavo cannot read yet.",
                hint="Choose a version of this model in BF16, F16 or F32, or a GGUF of it.",
            )
        weights[name] = StoredWeight(name, tensor)
    first = {tensor.name: place for place, tensor in enumerate(tensors.values())}
    return dict(sorted(weights.items(), key=lambda item: first[item[1].name]))


def _role_names(weight_format: WeightFormat) -> dict[str, None]:
    """The ends of names that tensors of this model may have, longest first."""
    formats = [weight_format.default, *(rule.format for rule in weight_format.rules)]
    names = {
        role
        for layout in {linear.layout for linear in formats if linear is not None}
        for known in [_ROLES[layout]]
        for role in (known.main, *known.required, *known.optional)
    }
    return dict.fromkeys(sorted({*names, "weight"}, key=len, reverse=True))


def _split(name: str, roles: Mapping[str, None]) -> tuple[str, str]:
    for role in roles:
        if name.endswith("." + role):
            return name[: -len(role) - 1], role
    return name, ""


def _quantized(
    module: str, by_role: dict[str, SafetensorsTensor], weight_format: WeightFormat
) -> StoredWeight:
    role, some = next(iter(by_role.items()))
    if len(module) > _MAX_NAME_LENGTH:
        raise _damaged(some, "has a name of absurd length")
    # Rules call it as the file does, which may be otherwise where the model is part of another.
    linear = weight_format.linear(module, some.name.removesuffix("." + role))
    if linear is None:
        raise UnsupportedModelError(
            f"The tensor {some.name!r} in {some.path.name} is quantised, but the model's "
            f"configuration ({weight_format.title}) does not say how.",
            hint="Choose another version of this model.",
        )
    roles = _ROLES[linear.layout]
    some = by_role.get(roles.main, some)
    required = dict(roles.required)
    if linear.has_zero_points and "weight_zero_point" in roles.optional:
        # Packed as the values are, unless there is only one.
        is_packed = linear.layout is Layout.PACKED_INTEGERS and linear.group_size != WHOLE
        required["weight_zero_point"] = _INT32 if is_packed else _INT8
    dtypes = {roles.main: roles.main_dtypes, **roles.optional, **required}
    for role in (roles.main, *required):
        if role not in by_role:
            raise _damaged(some, f"is there, but not {module + '.' + role!r} that belongs to it")
    for role, tensor in by_role.items():
        if role not in dtypes:
            raise UnsupportedModelError(
                f"The tensor {tensor.name!r} in {tensor.path.name} does not belong to weights "
                f"in {weight_format.title}.",
                hint="Choose another version of this model.",
            )
        if tensor.dtype not in dtypes[role]:
            wanted = " or ".join(sorted(dtypes[role]))
            raise _damaged(tensor, f"has the data type {tensor.dtype} instead of {wanted}")
    _check_choices(linear, some, by_role)
    companions = {role: tensor for role, tensor in by_role.items() if role != roles.main}
    return StoredWeight(f"{module}.weight", by_role[roles.main], linear, companions)


def _check_choices(
    linear: LinearFormat, some: SafetensorsTensor, by_role: Mapping[str, SafetensorsTensor]
) -> None:
    """What may be there in one of several ways."""
    if linear.layout is Layout.FLOAT8:
        scales = [role for role in ("weight_scale", "weight_scale_inv") if role in by_role]
        if len(scales) != 1:
            raise _damaged(some, f"comes with {len(scales)} scales instead of one")
    if linear.layout is Layout.BITSANDBYTES_4BIT:
        states = [tensor for role, tensor in by_role.items() if role.startswith(_STATE)]
        if len(states) != 1:
            raise _damaged(some, f"comes with {len(states)} descriptions instead of one")
        if states[0].num_bytes > _MAX_JSON_TENSOR_BYTES:
            raise _damaged(states[0], f"is {states[0].num_bytes:,} bytes of description")
        is_nested = by_role["weight.absmax"].dtype == "U8"
        for role in ("weight.nested_absmax", "weight.nested_quant_map"):
            if is_nested and role not in by_role:
                raise _damaged(some, f"is there, but not its {role!r}")


def _shapes(weight: StoredWeight, shape: Shape) -> dict[str, tuple[Shape, ...]]:
    """By role, the shapes that a tensor of a weight of that shape may have."""
    linear = weight.format
    if linear is not None and linear.layout is Layout.MXFP4 and len(shape) == 3:
        *stack, columns = shape
        groups = num_groups(linear.group_size, columns)
        if columns % linear.group_size:
            raise _damaged(weight.main, f"cannot hold rows of {columns} values in whole blocks")
        return {
            "blocks": ((*stack, groups, linear.group_size // 2),),
            "scales": ((*stack, groups),),
        }
    if linear is None or len(shape) != 2:
        raise _damaged(weight.main, f"is quantised, but a weight of shape {list(shape)} is not")
    rows, columns = shape
    groups = num_groups(linear.group_size, columns)
    per_word = 32 // linear.bits
    if linear.layout is Layout.PACKED_INTEGERS:
        zero_shapes: tuple[Shape, ...] = ((math.ceil(rows / per_word), groups),)
        if linear.group_size == WHOLE:
            zero_shapes = ((1,), ())
        return {
            "weight_packed": ((rows, math.ceil(columns / per_word)),),
            "weight_scale": _scale_shapes(linear, rows, groups),
            **({"weight_zero_point": zero_shapes} if linear.has_zero_points else {}),
            "weight_g_idx": ((columns,),),
            "weight_shape": ((2,),),
        }
    if linear.layout is Layout.INTEGERS:
        scale_shapes = _scale_shapes(linear, rows, groups)
        return {
            "weight": (shape,),
            "weight_scale": scale_shapes,
            **({"weight_zero_point": scale_shapes} if linear.has_zero_points else {}),
            "weight_g_idx": ((columns,),),
        }
    if linear.layout is Layout.FLOAT8:
        scales: tuple[Shape, ...]
        if linear.block_shape is not None:
            block = linear.block_shape
            scales = ((math.ceil(rows / block[0]), math.ceil(columns / block[1])),)
        else:
            scales = (*_WHOLE_SHAPES, (rows, 1), (rows,))
        return {"weight": (shape,), "weight_scale": scales, "weight_scale_inv": scales}
    if linear.layout is Layout.GPTQ:
        _refuse_part_words(weight, rows, columns)
        return {
            "qweight": ((columns * linear.bits // 32, rows),),
            "qzeros": ((groups, rows * linear.bits // 32),),
            "scales": ((groups, rows),),
            "g_idx": ((columns,),),
        }
    if linear.layout is Layout.AWQ:
        _refuse_part_words(weight, rows)
        return {
            "qweight": ((columns, rows * linear.bits // 32),),
            "qzeros": ((groups, rows * linear.bits // 32),),
            "scales": ((groups, rows),),
        }
    if linear.layout is Layout.BITSANDBYTES_8BIT:
        return {"weight": (shape,), "SCB": ((rows,),), "weight_format": ((), (1,))}
    # How many scales there are follows from its description, which is no part of the header.
    values_per_element = 8 * weight.main.num_bytes // max(1, weight.main.num_elements) // 4
    flat = math.ceil(rows * columns / max(1, values_per_element))
    return {"weight": ((flat, 1), (1, flat)), "weight.quant_map": ((16,),)}


_WHOLE_SHAPES: tuple[Shape, ...] = ((), (1,), (1, 1))


def _scale_shapes(linear: LinearFormat, rows: int, groups: int) -> tuple[Shape, ...]:
    if linear.group_size == WHOLE:
        return _WHOLE_SHAPES
    return ((rows, groups), (rows,)) if linear.group_size == ROW else ((rows, groups),)


def num_groups(group_size: int, columns: int) -> int:
    """How many scales stand beside each other for a row of so many input features."""
    return math.ceil(columns / group_size) if group_size > 0 else 1


def _refuse_part_words(weight: StoredWeight, *packed_sizes: int) -> None:
    bits = 0 if weight.format is None else weight.format.bits
    for size in packed_sizes:
        if size * bits % 32:
            raise _damaged(weight.main, f"cannot hold {size} values of {bits} bits in whole words")


def _damaged(tensor: SafetensorsTensor, problem: str) -> CheckpointError:
    return CheckpointError(
        f"The tensor {tensor.name!r} in {tensor.path.name} {problem}.",
        path=tensor.path,
        tensor=tensor.name,
        hint="Download the file again, or another version of this model.",
    )
