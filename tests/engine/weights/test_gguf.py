from datetime import timedelta
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.checkpoint.gguf import GGMLType, GGUFHeader, read_gguf_header
from octavo.checkpoint.gguf_names import FREQ_FACTORS
from octavo.engine.model_config import ModelConfig
from octavo.engine.model_config_gguf import model_config_from_gguf
from octavo.engine.weights import gguf as weights_gguf
from octavo.engine.weights.gguf import GGUFWeights
from octavo.engine.weights.pieces import PackedTarget
from octavo.errors import CheckpointError, OctavoError, StorageError, UnsupportedModelError
from tests.support.gguf_files import Array, RopeScaling, TinyLlama, permute, write_gguf


def opened(path: Path) -> tuple[GGUFHeader, ModelConfig]:
    header = read_gguf_header(path)
    return header, model_config_from_gguf(header)


def read_all(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Every weight, which says the same if it is kept packed."""
    loaded = read_weights(GGUFWeights(*opened(path)), dtype)
    for name, weight in loaded.items():
        if weight.ndim == 2:
            assert torch.equal(read_packed(path, name, dtype), weight), name
    return loaded


def read_weights(
    weights: GGUFWeights, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """All of them; divisors in float32, as the model holds them."""
    loaded = {}
    for name, tensor in weights.tensors.items():
        kind = torch.float32 if name == FREQ_FACTORS else dtype
        loaded[name] = torch.empty(tensor.shape, dtype=kind)
        weights.read_into(name, loaded[name])
    return loaded


def read_packed(
    path: Path, name: str, dtype: torch.dtype, shape: tuple[int, int] | None = None
) -> torch.Tensor:
    """One matrix, unpacked after it was read as it is stored."""
    weights = GGUFWeights(*opened(path))
    target = PackedTarget(shape or weights.tensors[name].shape, dtype, torch.device("cpu"))
    packed = weights.read_packed(name, target)
    return packed if isinstance(packed, torch.Tensor) else packed.unpack(dtype)


@pytest.mark.parametrize(
    "model",
    [
        TinyLlama(),
        TinyLlama(tie_embeddings=False),
        TinyLlama(attention_bias=True),
        TinyLlama(head_dim=32, num_kv_heads=1),
    ],
    ids=["tied", "untied", "biases", "wide heads"],
)
def test_weights_come_back_under_their_names(tmp_path: Path, model: TinyLlama) -> None:
    loaded = read_all(model.write(tmp_path / "tiny.gguf"))
    expected = model.weights()
    assert loaded.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(loaded[name], torch.from_numpy(weight)), name


def as_the_gguf_package_has_it(model: TinyLlama, ggml_name: str) -> Array:
    kind, stored = model.tensors()[ggml_name]
    values: Array = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType(int(kind)))
    return values


@pytest.mark.parametrize(
    "model",
    [
        TinyLlama(ggml_type=GGMLType.Q8_0),
        TinyLlama(ggml_type=GGMLType.Q4_0),
        TinyLlama(ggml_type=GGMLType.BF16),
        TinyLlama(ggml_type=GGMLType.Q6_K, hidden_size=256, head_dim=64, intermediate_size=256),
    ],
    ids=lambda model: model.ggml_type.name,
)
@pytest.mark.parametrize("piece_bytes", [1, 5000, 1 << 20])
def test_quantised_rows_of_q_and_k_are_put_back(
    tmp_path: Path, model: TinyLlama, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_gguf, "PIECE_BYTES", piece_bytes)
    loaded = read_all(model.write(tmp_path / "tiny.gguf"))
    for part, num_heads in (("q", model.num_heads), ("k", model.num_kv_heads)):
        restored = permute(
            loaded[f"model.layers.1.self_attn.{part}_proj.weight"].numpy(), num_heads
        )
        stored = as_the_gguf_package_has_it(model, f"blk.1.attn_{part}.weight")
        assert np.array_equal(restored, stored)
    down = as_the_gguf_package_has_it(model, "blk.0.ffn_down.weight")
    assert np.array_equal(loaded["model.layers.0.mlp.down_proj.weight"].numpy(), down)


def test_only_the_rotated_part_of_a_head_is_put_back(tmp_path: Path) -> None:
    model = TinyLlama()
    metadata = {**model.metadata(), "llama.rope.dimension_count": 8}
    path = write_gguf(tmp_path / "tiny.gguf", metadata, model.tensors())
    loaded = read_all(path)["model.layers.0.self_attn.q_proj.weight"].view(4, 16, 64)
    stored = torch.from_numpy(model.tensors()["blk.0.attn_q.weight"][1]).view(4, 16, 64)
    assert torch.equal(loaded[:, 8:], stored[:, 8:])
    assert torch.equal(loaded[:, :4], stored[:, 0:8:2])
    assert torch.equal(loaded[:, 4:8], stored[:, 1:8:2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_come_in_the_dtype_asked_for_but_not_the_factors(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    model = TinyLlama(rope_scaling=RopeScaling("llama3"))
    loaded = read_all(model.write(tmp_path / "tiny.gguf"), dtype)
    factors = loaded.pop(FREQ_FACTORS)
    assert factors.dtype == torch.float32
    assert factors.shape == (8,)
    assert factors.min() == 1.0
    assert factors.max() == 4.0
    for name, weight in model.weights().items():
        assert torch.equal(loaded[name], torch.from_numpy(weight).to(dtype)), name


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q_norm.weight", "blk.00.attn_q.weight", "blk.x.attn_q.weight", "strange"]
)
def test_unknown_tensors_are_named(tmp_path: Path, name: str) -> None:
    model = TinyLlama()
    tensors = {**model.tensors(), name: (GGMLType.F32, np.ones(16, dtype=np.float32))}
    path = write_gguf(tmp_path / "tiny.gguf", model.metadata(), tensors)
    with pytest.raises(UnsupportedModelError, match=f"'{name}'"):
        read_all(path)


def test_tables_of_early_converters_are_ignored(tmp_path: Path) -> None:
    model = TinyLlama()
    table = (GGMLType.F32, np.ones(8, dtype=np.float32))
    tensors = {**model.tensors(), "blk.0.attn_rot_embd.weight": table}
    path = write_gguf(tmp_path / "tiny.gguf", model.metadata(), tensors)
    assert read_all(path).keys() == model.weights().keys()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_found(tmp_path: Path, value: float) -> None:
    model = TinyLlama()
    tensors = model.tensors()
    tensors["blk.1.ffn_up.weight"][1][3, 5] = value
    path = write_gguf(tmp_path / "tiny.gguf", model.metadata(), tensors)
    with pytest.raises(CheckpointError, match=r"'blk\.1\.ffn_up\.weight'.*NaN") as caught:
        read_all(path)
    assert caught.value.tensor == "blk.1.ffn_up.weight"
    assert caught.value.path == path


def test_values_that_float16_cannot_hold_are_found(tmp_path: Path) -> None:
    model = TinyLlama()
    tensors = model.tensors()
    tensors["blk.1.ffn_up.weight"][1][3, 5] = 1e5
    path = write_gguf(tmp_path / "tiny.gguf", model.metadata(), tensors)
    assert read_all(path, torch.bfloat16)
    with pytest.raises(CheckpointError, match="float16"):
        read_all(path, torch.float16)


def with_block(
    path: Path, name: str, row: int, column: int, values: torch.Tensor, kind: GGMLType
) -> Path:
    """A file in which one matrix has these bytes at one place."""
    model = TinyLlama(ggml_type=kind)
    tensors = model.tensors()
    raw = values.view(torch.uint8).numpy()
    tensors[name][1][row, column : column + len(raw)] = raw
    return write_gguf(path, model.metadata(), tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [GGMLType.Q8_0, GGMLType.BF16], ids=lambda kind: kind.name)
def test_packed_values_that_are_not_finite_are_found(
    tmp_path: Path, value: float, kind: GGMLType
) -> None:
    dtype = torch.bfloat16 if kind is GGMLType.BF16 else torch.float16
    spoilt = torch.tensor([value], dtype=dtype)
    path = with_block(tmp_path / "tiny.gguf", "blk.1.ffn_up.weight", 3, 34, spoilt, kind)
    with pytest.raises(CheckpointError, match=r"'blk\.1\.ffn_up\.weight'.*NaN") as caught:
        read_packed(path, "model.layers.1.mlp.up_proj.weight", torch.float32)
    assert caught.value.tensor == "blk.1.ffn_up.weight"
    assert caught.value.path == path


def test_packed_values_that_float16_cannot_hold_are_found(tmp_path: Path) -> None:
    large = torch.tensor([60000.0], dtype=torch.float16)
    path = with_block(tmp_path / "t.gguf", "blk.1.ffn_up.weight", 3, 34, large, GGMLType.Q8_0)
    name = "model.layers.1.mlp.up_proj.weight"
    assert read_packed(path, name, torch.bfloat16).isfinite().all()
    with pytest.raises(CheckpointError, match="float16"):
        read_packed(path, name, torch.float16)


def test_packed_weights_of_another_shape_say_both(tmp_path: Path) -> None:
    path = TinyLlama(ggml_type=GGMLType.Q8_0).write(tmp_path / "tiny.gguf")
    with pytest.raises(CheckpointError, match=r"\[96, 64\] instead of \[64, 96\]"):
        read_packed(path, "model.layers.1.mlp.up_proj.weight", torch.float32, (64, 96))


def test_factors_of_zero_are_refused(tmp_path: Path) -> None:
    model = TinyLlama(rope_scaling=RopeScaling("llama3"))
    tensors = model.tensors()
    tensors["rope_freqs.weight"][1][2] = 0
    path = write_gguf(tmp_path / "tiny.gguf", model.metadata(), tensors)
    with pytest.raises(CheckpointError, match="zero or negative"):
        read_all(path)


def test_rows_that_are_no_whole_heads_are_refused(tmp_path: Path) -> None:
    model = TinyLlama()
    tensors = model.tensors()
    tensors["blk.0.attn_q.weight"] = (GGMLType.F32, np.ones((60, 64), dtype=np.float32))
    path = write_gguf(tmp_path / "tiny.gguf", model.metadata(), tensors)
    with pytest.raises(CheckpointError, match="60 rows"):
        read_all(path)


def test_file_that_became_shorter_or_vanished_is_an_error(tmp_path: Path) -> None:
    path = TinyLlama().write(tmp_path / "tiny.gguf")
    header, config = opened(path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match="became shorter"):
        read_weights(GGUFWeights(header, config))
    path.unlink()
    with pytest.raises(StorageError, match="cannot be read"):
        read_weights(GGUFWeights(header, config))


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = TinyLlama(
        num_layers=1, hidden_size=32, head_dim=8, intermediate_size=32, ggml_type=GGMLType.Q4_1
    )
    return model.write(tmp_path_factory.mktemp("fuzz") / "small.gguf")


@settings(
    max_examples=200,
    deadline=timedelta(seconds=2),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    changes=st.lists(
        st.tuples(st.one_of(st.integers(0, 1200), st.integers(0, 30_000)), st.integers(0, 255)),
        min_size=1,
        max_size=3,
    )
)
def test_garbled_files_raise_only_our_errors(
    small_file: Path, tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(small_file.read_bytes())
    for position, value in changes:
        content[position % len(content)] = value
    path = tmp_path / "garbled.gguf"
    path.write_bytes(content)
    try:
        loaded = read_all(path)
    except OctavoError:
        return
    assert all(weight.isfinite().all() for weight in loaded.values())
