"""Quantised weights that are wrong end in an error that names them, in bounded memory."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from octavo.checkpoint.quantization_config import read_weight_format
from octavo.checkpoint.safetensors import read_safetensors_header
from octavo.checkpoint.stored_weights import stored_weights
from octavo.engine.weights.pieces import PackedTarget
from octavo.engine.weights.quantized import read_packed_linear, read_quantized_into
from octavo.errors import CheckpointError, UnsupportedModelError
from tests.support.quantized_folders import Quantizer, gptq, kind_named

SHAPE = (64, 96)
STATE = "weight.quant_state.bitsandbytes__nf4"
Change = Callable[[dict[str, Tensor]], object]


@pytest.fixture(params=["unpacked", "packed"])
def way(request: pytest.FixtureRequest) -> str:
    """How the weight is to lie in memory."""
    name: str = request.param
    return name


def read(
    folder: Path,
    kind: str,
    change: Change,
    shape: tuple[int, ...] = SHAPE,
    dtype: torch.dtype = torch.float32,
    way: str = "unpacked",
) -> Tensor:
    """What comes of one layer's tensors after a change to them."""
    tensors, _ = kind_named(kind).packed(*SHAPE)
    change(tensors)
    path = folder / "model.safetensors"
    save_file({f"layer.{role}": tensor.contiguous() for role, tensor in tensors.items()}, path)
    config = {"quantization_config": dict(kind_named(kind).config)}
    weights = stored_weights(read_safetensors_header(path), read_weight_format(config, "tiny"))
    linear = weights["layer.weight"].format
    assert linear is not None
    if way == "packed":
        target = PackedTarget(shape, dtype, torch.device("cpu"))
        return read_packed_linear(weights["layer.weight"], linear, target).unpack(dtype)
    out = torch.empty(shape, dtype=dtype)
    read_quantized_into(weights["layer.weight"], linear, out)
    return out


def put(role: str, change: Callable[[Tensor], Tensor]) -> Change:
    """Replaces one tensor."""
    return lambda tensors: tensors.update({role: change(tensors[role])})


def without(role: str) -> Change:
    return lambda tensors: tensors.pop(role)


def with_value(role: str, value: float) -> Change:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[role].view(-1)[1] = value

    return change


def with_state(**changes: object) -> Change:
    def change(tensors: dict[str, Tensor]) -> None:
        state = json.loads(bytes(tensors[STATE].tolist())) | changes
        tensors[STATE] = torch.tensor(list(json.dumps(state).encode())).to(torch.uint8)

    return change


@pytest.mark.parametrize(
    ("kind", "change", "tensor", "words"),
    [
        ("ct int4 group", without("weight_scale"), "weight_packed", r"not 'layer\.weight_scale'"),
        ("ct int4 group", without("weight_packed"), "weight_shape",
         r"but not 'layer\.weight_packed'"),
        ("ct int4 zero points", without("weight_zero_point"), "weight_packed", "weight_zero_point"),
        ("ct int4 group", put("weight_scale", lambda one: one[:, 1:]), "weight_scale",
         r"has the shape \[64, 2\] instead of \[64, 3\]"),
        ("ct int4 group", put("weight_packed", lambda one: one[:, :-1]), "weight_packed", "shape"),
        ("ct int4 group", put("weight_scale", lambda one: one.double()), "weight_scale",
         "data type F64 instead of BF16 or F16 or F32"),
        ("ct int4 group", with_value("weight_scale", float("nan")), "weight_packed", "NaN"),
        ("ct int4 group", with_value("weight_shape", 95), "weight_shape", r"says \[64, 95\]"),
        ("ct int4 g_idx", with_value("weight_g_idx", 3), "weight_g_idx",
         "the group 3, but there are 3"),
        ("ct int4 g_idx", with_value("weight_g_idx", -7), "weight_g_idx", "the group -7"),
        ("ct int-quantized channel", without("weight_scale"), "weight", "weight_scale"),
        ("gptq 4 bit v1", without("qzeros"), "qweight", "qzeros"),
        ("gptq 4 bit v1", with_value("g_idx", 3), "g_idx", "the group 3"),
        ("gptq 4 bit v1", with_value("g_idx", -1), "g_idx", "the group -1"),
        ("gptq 4 bit v1", put("g_idx", lambda one: one.long()), "g_idx", "data type I64"),
        ("gptq 4 bit v1", put("qweight", lambda one: one.T), "qweight", "shape"),
        ("gptq 4 bit v1", with_value("scales", float("inf")), "qweight", "infinite"),
        ("awq", put("qzeros", lambda one: one[:1]), "qzeros", "shape"),
        ("fp8 blocks", without("weight_scale_inv"), "weight", "0 scales instead of one"),
        ("fp8 blocks", put("weight_scale_inv", lambda one: one[:1]), "weight_scale_inv", "shape"),
        ("fp8 blocks", with_value("weight_scale_inv", float("nan")), "weight", "NaN"),
        ("bnb nf4", without("weight.absmax"), "weight", "absmax"),
        ("bnb nf4", without(STATE), "weight", "0 descriptions"),
        ("bnb nf4", put("weight.absmax", lambda one: one[1:]), "weight.absmax",
         "95 scales instead of 96"),
        ("bnb nf4", with_value("weight.quant_map", float("nan")), "weight", "NaN"),
        ("bnb nf4", put(STATE, lambda one: one[:-3]), STATE, "no valid JSON"),
        ("bnb nf4", with_state(shape=[96, 64]), STATE, r"says the shape \[96, 64\]"),
        ("bnb nf4", with_state(blocksize=1 << 40), STATE, "blocksize"),
        ("bnb nf4", with_state(blocksize=0), STATE, "blocksize 0"),
        ("bnb nf4", with_state(quant_type="fp4"), STATE, "quant_type 'fp4'"),
        ("bnb nf4 nested", with_state(nested_blocksize=0), STATE, "nested_blocksize 0"),
        ("bnb nf4 nested", with_state(nested_offset=None), STATE, "nested_offset None"),
        ("bnb nf4 nested", without("weight.nested_absmax"), "weight", "nested_absmax"),
        ("bnb nf4 nested", put("weight.nested_quant_map", lambda one: one[:9]),
         "weight.nested_quant_map", "9 values, not 256"),
        ("bnb int8", without("SCB"), "weight", "SCB"),
        ("bnb int8", put("weight_format", lambda one: one + 1), "weight_format",
         r"the order \[1\]"),
    ],
)  # fmt: skip
def test_wrong_tensors_are_named(
    tmp_path: Path, kind: str, change: Change, tensor: str, words: str, way: str
) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        read(tmp_path, kind, change, way=way)
    assert caught.value.tensor == f"layer.{tensor}"
    assert caught.value.path == tmp_path / "model.safetensors"
    assert caught.value.hint


def test_weight_of_another_shape_says_both(tmp_path: Path, way: str) -> None:
    with pytest.raises(CheckpointError, match=r"\[12, 64\] instead of \[8, 96\]"):
        read(tmp_path, "gptq 4 bit v1", lambda tensors: None, (96, 64), way=way)


def test_values_too_large_for_float16_are_noticed(tmp_path: Path, way: str) -> None:
    change = put("weight_scale", lambda one: one.float() * 1e8)
    assert read(tmp_path, "ct int4 group", change, way=way).isfinite().all()
    with pytest.raises(CheckpointError, match="infinite in float16"):
        read(tmp_path, "ct int4 group", change, dtype=torch.float16, way=way)


def test_tensor_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'layer\.weight'.* GPTQ 4-bit g32"):
        read(tmp_path, "gptq 4 bit v1", lambda tensors: tensors.update(weight=torch.ones(2)))


def test_zero_points_borrow_from_their_neighbours_in_version_one(tmp_path: Path) -> None:
    one = Quantizer(*SHAPE)
    tensors, _ = gptq(one, version=2, sym=False)
    zeros = tensors["qzeros"]
    zeros[:, 0] = 0x76543210

    def change(packed: dict[str, Tensor]) -> None:
        packed |= tensors | {"qzeros": zeros - 0x11111111}

    second = read(tmp_path, "gptq 4 bit v2 desc_act asym", lambda packed: packed.update(tensors))
    assert torch.equal(read(tmp_path, "gptq 4 bit v1", change), second)


def test_memory_beside_the_weight_is_small(tmp_path: Path) -> None:
    """Of Python's own allocations; torch's parts are bounded by `PART_ELEMENTS`."""
    tracemalloc.start()
    try:
        read(tmp_path, "bnb nf4 nested", lambda tensors: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize(
    ("kind", "group"), [("fp8 blocks", "weight_block_size"), ("awq", "group_size")]
)
def test_absurd_groups_take_no_memory(tmp_path: Path, kind: str, group: str) -> None:
    """One group that claims a million features is as large as the weight."""
    config = dict(kind_named(kind).config)
    config[group] = [1 << 20, 1 << 20] if kind == "fp8 blocks" else 1 << 20
    tensors, _ = kind_named(kind).packed(*SHAPE)
    first = {
        role: one if role in ("weight", "qweight") else one[:1] for role, one in tensors.items()
    }
    if kind == "fp8 blocks":
        first["weight_scale_inv"] = first["weight_scale_inv"][:, :1]
    path = tmp_path / "model.safetensors"
    save_file({f"layer.{role}": one.contiguous() for role, one in first.items()}, path)
    weight_format = read_weight_format({"quantization_config": config}, "tiny")
    [weight] = stored_weights(read_safetensors_header(path), weight_format).values()
    assert weight.format is not None
    out = torch.full(SHAPE, torch.nan)
    read_quantized_into(weight, weight.format, out)
    assert out.isfinite().all()
    target = PackedTarget(SHAPE, torch.float32, torch.device("cpu"))
    packed = read_packed_linear(weight, weight.format, target)
    assert torch.equal(packed.unpack(torch.float32), out)
    assert packed.num_bytes < 2 * weight.num_bytes
