"""A model whose weights stay packed says what the same model says unpacked, whatever stores it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from octavo.checkpoint.gguf import BLOCK_LAYOUT, GGMLType
from octavo.checkpoint.header import read_checkpoint
from octavo.engine.checkpoint_parts import read_model_config
from octavo.engine.layers import linear
from octavo.engine.layers.linear import Linear
from octavo.engine.layers.moe import Experts
from octavo.engine.model_config import SUPPORTED_TYPES
from octavo.engine.models.decoder import Decoder, build_model
from octavo.engine.quantization.packed import PackedBlocks, PackedLinear, PackedWeight
from octavo.engine.weights.load import load_weights
from octavo.jobs import JobControl
from tests.engine.weights.test_merged_experts import write_packed_folder
from tests.support.engines import Result, make_engine, request, run_all
from tests.support.family_folders import (
    EXPERTS,
    GPT_OSS,
    VARIANTS,
    variant_ids,
    write_family_folder,
)
from tests.support.family_gguf import write_family_gguf
from tests.support.gguf_files import TinyLlama, random_blocks, write_gguf
from tests.support.model_folders import change_json
from tests.support.quantized_folders import (
    KINDS,
    QuantizedKind,
    kind_named,
    write_quantized_folder,
)
from tests.support.tiny_decoders import PagedForward, make_sequence, tiny_plan

TOKENS = [1, *range(40, 110, 3)]
LAYERS_OF_EVERY_KIND = tuple(
    (model_type, options)
    for model_type, options in VARIANTS
    if model_type in ("qwen2", "phi3", "gemma2", "granite", "olmo2", "mixtral", "qwen2_moe")
    or "mlp_bias" in options
    or (model_type == "gpt_oss" and "sliding_window" in options)
)
BLOCK_TYPES = sorted(SUPPORTED_TYPES - {GGMLType.F32})


def logits(path: Path, *, keeps_packed: bool, dtype: str = "float32") -> tuple[Decoder, Tensor]:
    """The model, and its logits of a prompt and of one token after it."""
    header = read_checkpoint(path)
    config = read_model_config(header)
    plan = tiny_plan(max_model_len=128, keeps_packed=keeps_packed, dtype=dtype)
    model = build_model(config, plan)
    load_weights(model, header, config, JobControl())
    forward = PagedForward(model, config, plan)
    sequence = make_sequence(0, TOKENS)
    cuts = ((0, len(TOKENS) - 1), (len(TOKENS) - 1, 1))
    return model, torch.cat([forward.step([(sequence, *cut)])[0] for cut in cuts])


def assert_same(path: Path, dtype: str = "float32") -> Decoder:
    """Returns the packed model; the products differ at most in how many rows they take at once."""
    _, expected = logits(path, keeps_packed=False, dtype=dtype)
    model, actual = logits(path, keeps_packed=True, dtype=dtype)
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()
    return model


def packed_weights(model: Decoder) -> dict[str, PackedWeight]:
    found = {}
    for name, module in model.named_modules():
        packed = getattr(module, "packed", None)
        if isinstance(packed, PackedWeight):
            found[name] = packed
    return found


def held_bytes(model: Decoder) -> int:
    dense = [weight.nbytes for weight in model.parameters() if not weight.is_meta]
    return sum(dense) + sum(weight.num_bytes for weight in packed_weights(model).values())


def planned_bytes(path: Path) -> int:
    stored = read_model_config(read_checkpoint(path)).stored
    assert stored is not None
    return stored.packed_bytes(4)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_folders(tmp_path: Path, kind: QuantizedKind) -> None:
    write_quantized_folder(tmp_path, kind)
    model = assert_same(tmp_path)
    packed = packed_weights(model)
    assert len(packed) == 2 * 7
    assert held_bytes(model) == pytest.approx(planned_bytes(tmp_path), rel=0.03)
    assert all(isinstance(weight, PackedLinear) for weight in packed.values())
    assert model.lm_head is not None
    assert model.lm_head.packed is None, "float32 in the file"


def test_lm_head_may_be_packed(tmp_path: Path) -> None:
    kind = kind_named("gptq 4 bit v1")
    write_quantized_folder(tmp_path, kind, left_out=())
    change_json(tmp_path / "config.json", quantization_config={**kind.config, "lm_head": True})
    assert "lm_head" in packed_weights(assert_same(tmp_path))


@pytest.mark.parametrize(
    ("ggml_type", "tied"),
    [(GGMLType.Q4_K, True), *((ggml_type, False) for ggml_type in BLOCK_TYPES)],
    ids=lambda value: getattr(value, "name", "tied" if value else "untied"),
)
def test_gguf(tmp_path: Path, ggml_type: GGMLType, tied: bool) -> None:
    model = TinyLlama(
        num_layers=1,
        hidden_size=256,
        head_dim=64,
        intermediate_size=256,
        tie_embeddings=tied,
        attention_bias=tied,
    )
    tensors = model.tensors()
    elements, _ = BLOCK_LAYOUT[ggml_type]
    for seed, (name, (_, weight)) in enumerate(tensors.items()):
        if weight.ndim == 2 and elements > 1:
            blocks = random_blocks(ggml_type, weight.size // elements, seed=seed)
            tensors[name] = (ggml_type, blocks.reshape(len(weight), -1))
        elif weight.ndim == 2:
            plain = torch.from_numpy(weight).to(
                torch.float16 if ggml_type is GGMLType.F16 else torch.bfloat16
            )
            tensors[name] = (ggml_type, plain.view(torch.uint8).numpy())
    path = write_gguf(tmp_path / "tiny.gguf", model.metadata(), tensors)
    packed_model = assert_same(path)
    packed = packed_weights(packed_model)
    assert len(packed) == 7 + (1 if tied else 2)
    assert held_bytes(packed_model) == planned_bytes(path)
    for kept in packed.values():
        assert isinstance(kept, PackedBlocks)
        assert kept.ggml_type is ggml_type


def test_plain_numbers_of_the_models_type_are_dense(tmp_path: Path) -> None:
    path = TinyLlama(ggml_type=GGMLType.BF16).write(tmp_path / "tiny.gguf")
    assert packed_weights(assert_same(path, "bfloat16")) == {}
    assert len(packed_weights(assert_same(path))) == 2 * 7 + 1


@pytest.mark.parametrize(
    ("model_type", "options"),
    LAYERS_OF_EVERY_KIND,
    ids=variant_ids(LAYERS_OF_EVERY_KIND),
)
def test_families_in_bfloat16(tmp_path: Path, model_type: str, options: dict[str, Any]) -> None:
    write_family_folder(tmp_path, model_type, **options)
    file = tmp_path / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    assert packed_weights(assert_same(tmp_path))


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_stacked_experts_of_gguf(tmp_path: Path, model_type: str) -> None:
    known: dict[str, dict[str, Any]] = {
        "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2},
        "qwen2_moe": {
            **EXPERTS,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
        "gpt_oss": GPT_OSS,
    }
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}
    twin = write_family_folder(tmp_path, model_type, **{**sizes, **known[model_type]})
    path = tmp_path / "tiny.gguf"
    write_family_gguf(path, twin, quantizes=True)
    experts = [layer for layer in assert_same(path).modules() if isinstance(layer, Experts)]
    assert experts
    for layer in experts:
        for name in ("gate_proj", "up_proj", "down_proj"):
            assert len(layer.packed[name]) == 5
            assert all(isinstance(weight, PackedBlocks) for weight in layer.packed[name])


def test_experts_of_gpt_oss_are_kept_in_blocks(tmp_path: Path) -> None:
    write_packed_folder(tmp_path)
    model = assert_same(tmp_path)
    for layer in model.modules():
        if isinstance(layer, Experts):
            for weight in (one for matrices in layer.packed.values() for one in matrices):
                assert isinstance(weight, PackedBlocks)
                assert weight.ggml_type is GGMLType.MXFP4


@pytest.mark.parametrize("name", ["gptq 4 bit v1", "bnb nf4 nested"])
def test_slabs_change_nothing(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_quantized_folder(tmp_path, kind_named(name))
    monkeypatch.setattr(linear, "UNPACKED_SLAB_ELEMENTS", 700)
    assert_same(tmp_path)


@pytest.mark.parametrize("source", ["folder", "gguf"])
def test_whole_engine(tmp_path: Path, source: str) -> None:
    path = tmp_path
    if source == "folder":
        write_quantized_folder(path, kind_named("awq"))
    else:
        path = TinyLlama(ggml_type=GGMLType.Q4_1).write(tmp_path / "tiny.gguf")

    def run(weights: str) -> Result:
        engine = make_engine(path, weights=weights)
        sampling = {"prompt_logprobs": 1, "max_tokens": 8, "ignore_eos": True}
        return run_all(engine, [request("one", TOKENS, **sampling)])[("one", 0)]

    packed, unpacked = run("packed"), run("unpacked")
    assert packed.token_ids == unpacked.token_ids
    for ours, theirs in zip(packed.prompt_logprobs[1:], unpacked.prompt_logprobs[1:], strict=True):
        assert ours is not None
        assert theirs is not None
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)


def test_packed_layers_hold_no_other_memory(tmp_path: Path) -> None:
    write_quantized_folder(tmp_path, kind_named("awq"))
    model, _ = logits(tmp_path, keeps_packed=True)
    layers = [layer for layer in model.modules() if isinstance(layer, Linear)]
    assert all((layer.packed is None) != layer.weight.is_meta for layer in layers)
