"""Model folders with quantised weights, packed from the formats' definitions, bit by bit."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from tests.support.model_folders import change_json, write_model_folder

Array = npt.NDArray[Any]
Packed = tuple[dict[str, Tensor], Tensor]
"""Tensors by the ends of their names, and the weight that they stand for in float32."""


def words_of(values: Array, bits: int) -> Tensor:
    """Packs the last dimension into int32, lowest bits first, padded with zeros at the end."""
    stream = (values[..., None].astype(np.uint64) >> np.arange(bits, dtype=np.uint64)) & 1
    stream = stream.reshape(*values.shape[:-1], -1)
    padding = -stream.shape[-1] % 32
    stream = np.concatenate([stream, np.zeros((*stream.shape[:-1], padding), np.uint64)], axis=-1)
    words = stream.reshape(*stream.shape[:-1], -1, 32) << np.arange(32, dtype=np.uint64)
    packed = words.sum(axis=-1, dtype=np.uint64).astype(np.uint32).view(np.int32)
    return torch.from_numpy(np.ascontiguousarray(packed))


@dataclass
class Quantizer:
    """Draws the numbers of one weight."""

    rows: int
    columns: int
    seed: int = 0
    random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def integers(self, low: int, high: int, *shape: int) -> Array:
        return self.random.integers(low, high, shape or (self.rows, self.columns))

    def scales(self, *shape: int, spread: float, dtype: torch.dtype = torch.float16) -> Tensor:
        """Around what makes the weight's values as large as those of a random model."""
        size = 1.5 * self.columns**-0.5 / spread
        drawn = size * (0.5 + self.random.random(shape))
        return torch.from_numpy(np.asarray(drawn)).to(dtype)


def groups_of(columns: int, group_size: int) -> Array:
    return np.arange(columns) // (group_size if group_size > 0 else columns)


def product(difference: Array, scales: Tensor) -> Tensor:
    """Integers times scales, rounded to float32 once."""
    return torch.from_numpy(difference.astype(np.float32)) * scales.float()


def pack_quantized(
    one: Quantizer,
    *,
    bits: int = 4,
    group_size: int = 32,
    symmetric: bool = True,
    strategy: str = "group",
    permuted: bool = False,
    scale_dtype: torch.dtype = torch.bfloat16,
) -> Packed:
    half = 1 << (bits - 1)
    values = one.integers(-half, half)
    groups = groups_of(one.columns, group_size if strategy == "group" else -1)
    if permuted:
        groups = one.random.permutation(groups)
    num_groups = int(groups.max()) + 1
    shape = (1,) if strategy == "tensor" else (one.rows, num_groups)
    scales = one.scales(*shape, spread=half / 2, dtype=scale_dtype)
    zeros = np.zeros((one.rows, num_groups), dtype=np.int64)
    tensors = {
        "weight_packed": words_of(values + half, bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor([one.rows, one.columns]),
    }
    if not symmetric and strategy == "tensor":
        zeros[:] = 3
        tensors["weight_zero_point"] = torch.tensor([3], dtype=torch.int8)
    elif not symmetric:
        zeros = one.integers(-half // 2, half // 2, one.rows, num_groups)
        tensors["weight_zero_point"] = words_of((zeros + half).T, bits).T.contiguous()
    if permuted:
        tensors["weight_g_idx"] = torch.from_numpy(groups).int()
    spread_scales = scales.reshape(1, 1) if strategy == "tensor" else scales[:, groups]
    return tensors, product(values - zeros[:, groups], spread_scales)


def int_quantized(
    one: Quantizer, *, strategy: str = "channel", group_size: int = 32, symmetric: bool = True
) -> Packed:
    values = one.integers(-128, 128)
    groups = groups_of(one.columns, group_size if strategy == "group" else -1)
    shape = (one.rows, int(groups.max()) + 1) if strategy != "tensor" else (1,)
    scales = one.scales(*shape, spread=64, dtype=torch.bfloat16)
    tensors = {"weight": torch.from_numpy(values).to(torch.int8), "weight_scale": scales}
    zeros = np.zeros((one.rows, int(groups.max()) + 1), dtype=np.int64)
    if not symmetric:
        zeros = one.integers(-20, 20, *zeros.shape)
        tensors["weight_zero_point"] = torch.from_numpy(zeros).to(torch.int8)
    spread_scales = scales.reshape(1, 1) if strategy == "tensor" else scales[:, groups]
    return tensors, product(values - zeros[:, groups], spread_scales)


def float8(
    one: Quantizer,
    *,
    scale_name: str = "weight_scale",
    scale_shape: str = "channel",
    block: tuple[int, int] = (32, 32),
    scale_dtype: torch.dtype = torch.float32,
) -> Packed:
    drawn = torch.from_numpy(one.random.standard_normal((one.rows, one.columns)))
    values = drawn.float().to(torch.float8_e4m3fn)
    blocks = (-(-one.rows // block[0]), -(-one.columns // block[1]))
    shapes = {"tensor": (), "one": (1,), "channel": (one.rows, 1), "block": blocks}
    scales = one.scales(*shapes[scale_shape], spread=1.0, dtype=torch.float32)
    scales = scales.to(scale_dtype)
    spread = scales.float().reshape(-1, 1) if scale_shape != "block" else scales.float()
    if scale_shape == "block":
        rows, columns = np.arange(one.rows) // block[0], np.arange(one.columns) // block[1]
        spread = spread[rows][:, columns]
    return {"weight": values, scale_name: scales}, values.float() * spread


def gptq(
    one: Quantizer,
    *,
    bits: int = 4,
    group_size: int = 32,
    version: int = 1,
    sym: bool = True,
    desc_act: bool = False,
    has_g_idx: bool = True,
) -> Packed:
    values = one.integers(0, 1 << bits)
    groups = groups_of(one.columns, group_size)
    if desc_act:
        groups = one.random.permutation(groups)
    num_groups = int(groups.max()) + 1
    scales = one.scales(num_groups, one.rows, spread=2 ** (bits - 2))
    middle = 1 << (bits - 1)
    zeros = np.full((num_groups, one.rows), middle)
    if not sym:
        zeros = one.integers(1, 1 << bits, num_groups, one.rows)
    tensors = {
        "qweight": words_of(values, bits).T.contiguous(),
        "qzeros": words_of(zeros - (version == 1), bits),
        "scales": scales,
    }
    if has_g_idx:
        tensors["g_idx"] = torch.from_numpy(groups).int()
    return tensors, product(values - zeros[groups].T, scales[groups].T)


def awq(one: Quantizer, *, group_size: int = 32) -> Packed:
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])

    def pack(values: Array) -> Tensor:
        """Eight neighbours to a word, the first of `order` in its lowest bits."""
        neighbours = values.reshape(len(values), -1, 8)[:, :, order]
        return words_of(neighbours.reshape(len(values), -1), 4)

    values = one.integers(0, 16).T
    groups = groups_of(one.columns, group_size)
    num_groups = int(groups.max()) + 1
    zeros = one.integers(0, 16, num_groups, one.rows)
    scales = one.scales(num_groups, one.rows, spread=4)
    tensors = {"qweight": pack(values), "qzeros": pack(zeros), "scales": scales}
    return tensors, product(values - zeros[groups], scales[groups]).T.contiguous()


NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = (0.0, 0.0052083333, 0.6666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)


def bitsandbytes_4bit(
    one: Quantizer, *, kind: str = "nf4", nested: bool = False, storage: torch.dtype = torch.uint8
) -> Packed:
    table = torch.tensor(NF4 if kind == "nf4" else (*FP4, *(-value for value in FP4)))
    values = one.integers(0, 16).reshape(-1)
    pairs = values.reshape(-1, 2)
    packed = torch.from_numpy((pairs[:, 0] << 4 | pairs[:, 1]).astype(np.uint8))
    num_blocks = -(-len(values) // 64)
    state: dict[str, Any] = {
        "quant_type": kind,
        "blocksize": 64,
        "dtype": "bfloat16",
        "shape": [one.rows, one.columns],
    }
    name = "weight.absmax"
    tensors = {"weight": packed.view(storage)[:, None], "weight.quant_map": table}
    if nested:
        codes = torch.from_numpy(one.integers(0, 256, num_blocks).astype(np.uint8))
        outer_table = torch.linspace(-0.9, 1.0, 256)
        outer = one.scales(-(-num_blocks // 256), spread=10.0, dtype=torch.float32)
        offset = 1.5 * one.columns**-0.5
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        absmax = outer_table[codes.long()] * outer[torch.arange(num_blocks) // 256] + offset
        tensors |= {
            name: codes,
            "weight.nested_absmax": outer,
            "weight.nested_quant_map": outer_table,
        }
    else:
        absmax = one.scales(num_blocks, spread=0.5, dtype=torch.float32)
        tensors[name] = absmax
    text = json.dumps(state).encode()
    tensors[f"weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(text)).to(torch.uint8)
    blocks = torch.arange(len(values)) // 64
    weight = table[torch.from_numpy(values)] * absmax[blocks]
    return tensors, weight.view(one.rows, one.columns)


def bitsandbytes_8bit(one: Quantizer) -> Packed:
    values = torch.from_numpy(one.integers(-127, 128)).to(torch.int8)
    scb = one.scales(one.rows, spread=0.5, dtype=torch.float32)
    tensors = {"weight": values, "SCB": scb, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return tensors, values.float() * scb[:, None] * 7.874015718698502e-3


def compressed_config(layout: str, **weights: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "config_groups": {
            "group_0": {"targets": ["Linear"], "input_activations": None, "weights": weights}
        },
    }


def _pack_config(**changes: Any) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
    return compressed_config("pack-quantized", **{**weights, "group_size": 32, **changes})


def _gptq_config(**changes: Any) -> dict[str, Any]:
    known = {"bits": 4, "group_size": 32, "desc_act": False, "sym": True}
    return {"quant_method": "gptq", **known, **changes}


@dataclass(frozen=True)
class QuantizedKind:
    """One way to store a weight."""

    name: str
    config: Mapping[str, Any]
    """`quantization_config`."""
    pack: Callable[..., Packed]
    options: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    """What the library says of such a model."""

    def packed(self, rows: int, columns: int, *, seed: int = 0) -> Packed:
        return self.pack(Quantizer(rows, columns, seed), **self.options)


_BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
_NF4 = {**_BNB, "bnb_4bit_quant_type": "nf4"}
_FP8_WEIGHTS = {"num_bits": 8, "type": "float", "symmetric": True}
_INT8_WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True}
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
_BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
_ASYM = {"symmetric": False}

KINDS = (
    QuantizedKind("ct int4 group", _pack_config(), pack_quantized, {}, "INT4 g32"),
    QuantizedKind(
        "ct int8 group", _pack_config(num_bits=8), pack_quantized, {"bits": 8}, "INT8 g32"
    ),
    QuantizedKind(
        "ct int4 fp16 scales", _pack_config(), pack_quantized, {"scale_dtype": torch.float16},
        "INT4 g32",
    ),
    QuantizedKind(
        "ct int4 zero points", _pack_config(**_ASYM), pack_quantized, _ASYM, "INT4 g32"
    ),
    QuantizedKind(
        "ct int8 zero points", _pack_config(num_bits=8, **_ASYM), pack_quantized,
        {"bits": 8, **_ASYM}, "INT8 g32",
    ),
    QuantizedKind(
        "ct int4 channel", _pack_config(strategy="channel", group_size=None), pack_quantized,
        {"strategy": "channel"}, "INT4",
    ),
    QuantizedKind(
        "ct int4 channel zero points",
        _pack_config(strategy="channel", group_size=None, **_ASYM), pack_quantized,
        {"strategy": "channel", **_ASYM}, "INT4",
    ),
    QuantizedKind(
        "ct int4 tensor zero point", _pack_config(strategy="tensor", group_size=None, **_ASYM),
        pack_quantized, {"strategy": "tensor", **_ASYM}, "INT4",
    ),
    QuantizedKind(
        "ct int4 g_idx", _pack_config(actorder="group", **_ASYM), pack_quantized,
        {"permuted": True, **_ASYM}, "INT4 g32",
    ),
    QuantizedKind(
        "ct int-quantized channel",
        compressed_config("int-quantized", **_INT8_WEIGHTS, strategy="channel"),
        int_quantized, {}, "INT8",
    ),
    QuantizedKind(
        "ct int-quantized tensor",
        compressed_config("int-quantized", **_INT8_WEIGHTS, strategy="tensor"),
        int_quantized, {"strategy": "tensor"}, "INT8",
    ),
    QuantizedKind(
        "ct naive int8 group zero points",
        compressed_config("naive-quantized", **{**_INT8_WEIGHTS, **_ASYM}, strategy="group",
                          group_size=32),
        int_quantized, {"strategy": "group", **_ASYM}, "INT8 g32",
    ),
    QuantizedKind(
        "ct float-quantized channel",
        compressed_config("float-quantized", **_FP8_WEIGHTS, strategy="channel"),
        float8, {"scale_dtype": torch.bfloat16}, "FP8",
    ),
    QuantizedKind(
        "ct float-quantized tensor",
        compressed_config("float-quantized", **_FP8_WEIGHTS, strategy="tensor"),
        float8, {"scale_shape": "one"}, "FP8",
    ),
    QuantizedKind(
        "ct naive float", compressed_config("naive-quantized", **_FP8_WEIGHTS, strategy="tensor"),
        float8, {"scale_shape": "tensor"}, "FP8",
    ),
    QuantizedKind(
        "ct float-quantized block",
        compressed_config("float-quantized", **_FP8_WEIGHTS, strategy="block",
                          block_structure=[32, 24]),
        float8, {"scale_shape": "block", "block": (32, 24)}, "FP8",
    ),
    *(
        QuantizedKind(
            f"gptq {bits} bit v{version}{' desc_act' if order else ''}{'' if sym else ' asym'}",
            _gptq_config(bits=bits, sym=sym, desc_act=order,
                         checkpoint_format="gptq" if version == 1 else "gptq_v2"),
            gptq, {"bits": bits, "version": version, "sym": sym, "desc_act": order},
            f"GPTQ {bits}-bit g32",
        )
        for bits, version, sym, order in (
            (2, 1, True, False), (3, 2, False, False), (3, 1, True, False), (3, 1, False, True),
            (4, 1, True, False), (4, 1, False, True), (4, 2, False, True), (8, 1, True, True),
            (8, 2, True, False), (2, 2, False, True),
        )
    ),
    QuantizedKind(
        "gptq whole rows without g_idx", _gptq_config(group_size=-1), gptq,
        {"group_size": -1, "has_g_idx": False}, "GPTQ 4-bit",
    ),
    QuantizedKind("awq", _AWQ, awq, {}, "AWQ 4-bit g32"),
    QuantizedKind("awq whole rows", {**_AWQ, "group_size": -1}, awq, {"group_size": -1},
                  "AWQ 4-bit"),
    QuantizedKind("bnb nf4", _NF4, bitsandbytes_4bit, {}, "NF4"),
    QuantizedKind("bnb nf4 nested", _NF4, bitsandbytes_4bit, {"nested": True}, "NF4"),
    QuantizedKind(
        "bnb nf4 stored as bf16", _NF4, bitsandbytes_4bit, {"storage": torch.bfloat16}, "NF4"
    ),
    QuantizedKind(
        "bnb fp4", {**_BNB, "bnb_4bit_quant_type": "fp4"}, bitsandbytes_4bit, {"kind": "fp4"},
        "FP4",
    ),
    QuantizedKind(
        "bnb int8", {"quant_method": "bitsandbytes", "load_in_8bit": True}, bitsandbytes_8bit, {},
        "INT8",
    ),
    QuantizedKind(
        "fp8 blocks", {**_BLOCKS, "weight_block_size": [32, 32]}, float8,
        {"scale_name": "weight_scale_inv", "scale_shape": "block"}, "FP8",
    ),
    QuantizedKind(
        "fp8 blocks with powers of two", {**_BLOCKS, "weight_block_size": [32, 32]}, float8,
        {"scale_name": "weight_scale_inv", "scale_shape": "block",
         "scale_dtype": torch.float8_e8m0fnu}, "FP8",
    ),
    QuantizedKind("fp8 tensor", _BLOCKS, float8, {"scale_shape": "tensor"}, "FP8"),
    QuantizedKind("fbgemm fp8", {"quant_method": "fbgemm_fp8"}, float8, {}, "FP8"),
)  # fmt: skip


def kind_named(name: str) -> QuantizedKind:
    return next(kind for kind in KINDS if kind.name == name)


def write_quantized_folder(
    folder: Path,
    kind: QuantizedKind,
    *,
    left_out: tuple[str, ...] = ("lm_head",),
    extra: Mapping[str, Tensor] | None = None,
) -> LlamaForCausalLM:
    """Writes a random model whose matrices are quantised; returns one with what they stand for.

    Args:
        left_out: modules that stay as they are, by the end of their names.
        extra: further tensors.
    """
    twin = write_model_folder(
        folder,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    path = folder / "model.safetensors"
    tensors = load_file(path)
    modules = {
        name: module
        for name, module in twin.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.endswith(left_out)
    }
    for seed, (name, module) in enumerate(modules.items()):
        del tensors[f"{name}.weight"]
        packed, weight = kind.packed(module.out_features, module.in_features, seed=seed)
        tensors |= {f"{name}.{role}": tensor for role, tensor in packed.items()}
        module.weight.copy_(weight)
    save_file(tensors | dict(extra or {}), path)
    change_json(folder / "config.json", quantization_config=dict(kind.config))
    return twin
