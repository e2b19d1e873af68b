"""`quantization_config` of config.json, and its older forms, into a `WeightFormat`; no torch."""

import re
import reprlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from octavo.checkpoint.weight_format import (
    ROW,
    WHOLE,
    Layout,
    LinearFormat,
    ModuleRule,
    WeightFormat,
)
from octavo.errors import UnsupportedModelError

CONFIG_KEYS = ("quantization_config", "compression_config")
LEGACY_FILES: Mapping[str, str] = MappingProxyType(
    {"quantize_config.json": "gptq", "quant_config.json": "awq"}
)
"""Files beside config.json in which early writers say it, and the method they mean."""

_MAX_GROUP_SIZE = 1 << 20
_MAX_RULES = 4096
_MAX_PATTERN_LENGTH = 300
_MAX_PATTERN_COST = 10**8
"""Steps that a pattern may take at worst: four `.*` and a few alternatives, as writers use."""
_USUAL_NAME_LENGTH = 60
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_REMEDY = (
    "Choose the original model in BF16 or F16, a GGUF of it, or a version in GPTQ, AWQ, "
    "bitsandbytes, FP8 or compressed-tensors int4 or int8."
)


def read_weight_format(config: Mapping[str, Any], model_name: str) -> WeightFormat | None:
    """Reads how a model's weights are quantised; None if they are not.

    Args:
        config: config.json.
        model_name: for the errors.

    Raises:
        UnsupportedModelError: a method, or a variant of it, that is not understood.
    """
    for key in CONFIG_KEYS:
        packed = config.get(key)
        if packed is None:
            continue
        if not isinstance(packed, dict):
            raise UnsupportedModelError(
                f"{model_name} is quantised in a way that Octavo does not understand: "
                f"{key} is {reprlib.repr(packed)}, not an object.",
                hint=_REMEDY,
            )
        return _Section(packed, model_name, _method(packed)).read()
    return None


def _method(packed: Mapping[str, Any]) -> object:
    method = packed.get("quant_method")
    if method is not None:
        return method
    if "config_groups" in packed:
        return "compressed-tensors"
    if "load_in_4bit" in packed or "load_in_8bit" in packed:
        return "bitsandbytes"
    return None


class _Section:
    """Reads the keys of one quantisation section."""

    def __init__(self, section: Mapping[str, Any], model_name: str, method: object) -> None:
        self._section = section
        self._model_name = model_name
        self._method = method

    def read(self) -> WeightFormat:
        readers: Mapping[str, Callable[[], WeightFormat]] = {
            "compressed-tensors": self._read_compressed_tensors,
            "gptq": self._read_gptq,
            "awq": self._read_awq,
            "bitsandbytes": self._read_bitsandbytes,
            "fp8": self._read_fp8,
            "fbgemm_fp8": self._read_fbgemm,
            "mxfp4": self._read_mxfp4,
        }
        reader = readers.get(self._method) if isinstance(self._method, str) else None
        if reader is None:
            method = reprlib.repr(self._method) if self._method else "an unnamed method"
            raise UnsupportedModelError(
                f"{self._model_name} is quantised by {method}, which Octavo cannot unpack yet.",
                hint=_REMEDY,
            )
        return reader()

    def _read_gptq(self) -> WeightFormat:
        self._refuse_unless("checkpoint_format", None, "gptq", "gptq_v2")
        self._refuse_unless("format", None, "gptq", "gptq_v2")
        self._refuse_unless("is_marlin_format", None, False)
        self._refuse_unless("pack_dtype", None, "int32")
        default = self._gptq_linear({})
        rules = []
        dynamic = self._section.get("dynamic") or {}
        if not isinstance(dynamic, dict) or len(dynamic) > _MAX_RULES:
            raise self._unsupported("dynamic", dynamic)
        for pattern, changes in dynamic.items():
            if not isinstance(changes, dict):
                raise self._unsupported(f"dynamic of {reprlib.repr(pattern)}", changes)
            self._check_pattern(pattern)
            is_left_out = pattern.startswith("-:")
            rules.append(
                ModuleRule(
                    pattern.removeprefix("-:").removeprefix("+:"),
                    is_regex=True,
                    format=None if is_left_out else self._gptq_linear(changes),
                )
            )
        return WeightFormat(f"GPTQ {_bits_and_group(default)}", default, tuple(rules))

    def _gptq_linear(self, changes: Mapping[str, Any]) -> LinearFormat:
        section = {**self._section, **changes}
        version = section.get("checkpoint_format") or section.get("format") or "gptq"
        bits = self._bits(section, "bits", 2, 3, 4, 8)
        is_symmetric = self._flag(section, "sym", default=True)
        is_first_version = version != "gptq_v2"
        meta = self._section.get("meta")
        quantizer = str(meta.get("quantizer", "")) if isinstance(meta, dict) else ""
        if bits == 3 and is_first_version and not is_symmetric and "gptqmodel" in quantizer:
            # Its conversion to version 1 subtracts from other bits than those of the zero points.
            raise self._unsupported("sym", value=False, where=" for 3-bit weights by GPTQModel")
        return LinearFormat(
            Layout.GPTQ,
            bits,
            self._group_size(section, "group_size"),
            has_zero_points=True,
            stores_zeros_less_one=is_first_version,
            is_symmetric=is_symmetric,
        )

    def _read_awq(self) -> WeightFormat:
        version = self._section.get("version", "gemm")
        if not isinstance(version, str) or version.lower() != "gemm":
            raise self._unsupported("version", version)
        if not self._flag(self._section, "zero_point", default=True):
            raise self._unsupported("zero_point", value=False)
        names = ("bits", "group_size") if "bits" in self._section else ("w_bit", "q_group_size")
        linear = LinearFormat(
            Layout.AWQ,
            self._bits(self._section, names[0], 4),
            self._group_size(self._section, names[1]),
            has_zero_points=True,
        )
        return WeightFormat(f"AWQ {_bits_and_group(linear)}", linear)

    def _read_bitsandbytes(self) -> WeightFormat:
        if self._flag(self._section, "load_in_8bit", default=False):
            return WeightFormat("INT8", LinearFormat(Layout.BITSANDBYTES_8BIT, 8))
        if not self._flag(self._section, "load_in_4bit", default=False):
            raise self._unsupported("load_in_4bit", value=False)
        kind = self._refuse_unless("bnb_4bit_quant_type", None, "fp4", "nf4") or "fp4"
        return WeightFormat(kind.upper(), LinearFormat(Layout.BITSANDBYTES_4BIT, 4))

    def _read_fp8(self) -> WeightFormat:
        self._refuse_unless("fmt", None, "e4m3", "float8_e4m3fn")
        block_shape = self._block_shape(self._section, "weight_block_size")
        linear = LinearFormat(Layout.FLOAT8, 8, block_shape=block_shape, has_float8_inputs=True)
        return WeightFormat("FP8", linear)

    def _read_fbgemm(self) -> WeightFormat:
        return WeightFormat("FP8", LinearFormat(Layout.FLOAT8, 8, has_float8_inputs=True))

    def _read_mxfp4(self) -> WeightFormat:
        return WeightFormat("MXFP4", LinearFormat(Layout.MXFP4, 4, 32))

    def _read_compressed_tensors(self) -> WeightFormat:
        self._refuse_unless("quantization_status", None, "compressed")
        sparsity = self._section.get("sparsity_config")
        if sparsity and (not isinstance(sparsity, dict) or sparsity.get("format") != "dense"):
            raise self._unsupported("sparsity_config", sparsity)
        transform = self._section.get("transform_config")
        if transform and (not isinstance(transform, dict) or transform.get("config_groups")):
            raise self._unsupported("transform_config", transform)
        groups = self._section.get("config_groups")
        if not isinstance(groups, dict) or not 1 <= len(groups) <= _MAX_RULES:
            raise self._unsupported("config_groups", groups)
        default = None
        names: list[ModuleRule] = []
        regexes: list[ModuleRule] = []
        for group_name, group in groups.items():
            if not isinstance(group, dict):
                raise self._unsupported(str(group_name), group)
            linear = self._compressed_linear(group)
            targets = group.get("targets")
            if not isinstance(targets, list) or not targets or len(targets) > _MAX_RULES:
                raise self._unsupported("targets", targets)
            for target in targets:
                if not isinstance(target, str):
                    raise self._unsupported("targets", targets)
                if target.startswith("re:"):
                    self._check_pattern(target.removeprefix("re:"))
                    regexes.append(ModuleRule(target.removeprefix("re:"), True, linear))
                elif target == "Embedding":
                    names.append(ModuleRule("model.embed_tokens", False, linear))
                elif target == "Linear":
                    default = default or linear
                else:
                    names.append(ModuleRule(target, False, linear))
        rules = (*names, *regexes)
        first = default or next(rule.format for rule in rules if rule.format is not None)
        kind = "FP8" if first.layout is Layout.FLOAT8 else f"INT{first.bits}"
        group_size = f" g{first.group_size}" if first.group_size > 0 else ""
        return WeightFormat(kind + group_size, default, rules)

    def _compressed_linear(self, group: Mapping[str, Any]) -> LinearFormat:
        weights = group.get("weights")
        if not isinstance(weights, dict):
            raise self._unsupported("weights", weights)
        stored_as = group.get("format") or self._section.get("format")
        kind = weights.get("type", "int")
        if kind not in ("int", "float"):
            raise self._unsupported("type", kind)
        layouts = {
            ("pack-quantized", "int"): Layout.PACKED_INTEGERS,
            ("int-quantized", "int"): Layout.INTEGERS,
            ("naive-quantized", "int"): Layout.INTEGERS,
            ("float-quantized", "float"): Layout.FLOAT8,
            ("naive-quantized", "float"): Layout.FLOAT8,
        }
        layout = layouts.get((stored_as, kind)) if isinstance(stored_as, str) else None
        if layout is None:
            raise self._unsupported("format", stored_as, where=f" for weights of type {kind}")
        packs = layout is Layout.PACKED_INTEGERS
        bits = self._bits(weights, "num_bits", *((4, 8) if packs else (8,)))
        strategy = weights.get("strategy")
        if strategy is None:
            strategy = "group" if weights.get("group_size") else "tensor"
        block_shape = None
        group_size = {"tensor": WHOLE, "channel": ROW}.get(str(strategy))
        if strategy == "group" and layout is not Layout.FLOAT8:
            group_size = self._group_size(weights, "group_size")
        elif strategy == "block" and layout is Layout.FLOAT8:
            block_shape = self._block_shape(weights, "block_structure")
            group_size = ROW
        if group_size is None:
            raise self._unsupported("strategy", strategy)
        is_symmetric = self._flag(weights, "symmetric", default=True)
        if layout is Layout.FLOAT8 and not is_symmetric:
            raise self._unsupported("symmetric", value=False, where=" for weights of type float")
        return LinearFormat(
            layout,
            bits,
            group_size,
            block_shape,
            has_zero_points=not is_symmetric,
            is_symmetric=is_symmetric,
            has_float8_inputs=layout is Layout.FLOAT8
            and _is_float8(group.get("input_activations")),
        )

    def _bits(self, section: Mapping[str, Any], key: str, *known: int) -> int:
        bits = section.get(key)
        if type(bits) is not int or bits not in known:
            raise self._unsupported(key, bits)
        return bits

    def _group_size(self, section: Mapping[str, Any], key: str) -> int:
        group_size = section.get(key)
        if type(group_size) is not int or not (
            group_size == ROW or 0 < group_size <= _MAX_GROUP_SIZE
        ):
            raise self._unsupported(key, group_size)
        return group_size

    def _block_shape(self, section: Mapping[str, Any], key: str) -> tuple[int, int] | None:
        shape = section.get(key)
        if shape is None:
            return None
        is_pair = isinstance(shape, list) and len(shape) == 2
        if not is_pair or not all(type(n) is int and 0 < n <= _MAX_GROUP_SIZE for n in shape):
            raise self._unsupported(key, shape)
        return shape[0], shape[1]

    def _flag(self, section: Mapping[str, Any], key: str, *, default: bool) -> bool:
        value = section.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._unsupported(key, value)
        return default if value is None else value

    def _refuse_unless(self, key: str, *known: object) -> str | None:
        value = self._section.get(key)
        if value not in known:
            raise self._unsupported(key, value)
        return value if isinstance(value, str) else None

    def _check_pattern(self, pattern: str) -> None:
        """Refuses patterns that could keep the machine busy: a config may hold any."""
        unbounded = len(re.findall(r"[*+{]", pattern))
        choices = len(re.findall(r"\?(?![:=!<P])|\|", pattern))
        is_costly = _USUAL_NAME_LENGTH**unbounded * 2**choices > _MAX_PATTERN_COST
        too_long = len(pattern) > _MAX_PATTERN_LENGTH
        if is_costly or too_long or _REPEATED_GROUP.search(pattern):
            raise self._unsupported("the pattern", pattern)
        try:
            re.compile(pattern.removeprefix("-:").removeprefix("+:"))
        except (re.error, RecursionError, OverflowError) as error:
            raise self._unsupported("the pattern", pattern) from error

    def _unsupported(self, key: str, value: object, *, where: str = "") -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self._model_name} is quantised by {self._method} with {key} "
            f"{reprlib.repr(value)}{where}, which Octavo cannot unpack yet.",
            hint=_REMEDY,
        )


def _bits_and_group(linear: LinearFormat) -> str:
    group_size = f" g{linear.group_size}" if linear.group_size > 0 else ""
    return f"{linear.bits}-bit{group_size}"


def _is_float8(activations: object) -> bool:
    """Whether the section of a group that describes its inputs says 8-bit floats."""
    if not isinstance(activations, dict):
        return False
    return activations.get("type") == "float" and activations.get("num_bits") == 8
