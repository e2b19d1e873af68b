"""Engines for models of known shapes with random weights: speed does not depend on their values."""

import time
from typing import TYPE_CHECKING

import torch

from octavo.engine.config import EngineConfig
from octavo.engine.device import choose_device, detect_devices
from octavo.engine.engine import Engine
from octavo.engine.executors import choose_executor
from octavo.engine.layers.linear import FusedLinear, Linear
from octavo.engine.load_report import LoadReport
from octavo.engine.loading import assemble_engine
from octavo.engine.memory import plan_memory
from octavo.engine.model_config import ModelConfig, RopeConfig
from octavo.engine.models.decoder import Decoder, build_model
from octavo.engine.tokenizer import byte_alphabet, tokenizer_from_metadata
from octavo.errors import InvalidInputError

if TYPE_CHECKING:
    from octavo.engine.models.fused_decoder import MakeMatrix

WEIGHTS = ("bf16", "int4")


def _shape(
    name: str,
    num_layers: int,
    hidden_size: int,
    intermediate_size: int,
    num_heads: int,
    head_dim: int,
    vocab_size: int,
    *,
    theta: float,
    tied: bool,
    qk_norm: str = "none",
) -> ModelConfig:
    num_kv_heads = 8
    qkv = (num_heads + 2 * num_kv_heads) * head_dim
    layer = hidden_size * (qkv + num_heads * head_dim + 3 * intermediate_size + 2)
    layer += 2 * head_dim if qk_norm == "head" else 0
    num_parameters = num_layers * layer + hidden_size
    num_parameters += vocab_size * hidden_size * (1 if tied else 2)
    return ModelConfig(
        architecture="qwen3" if qk_norm == "head" else "llama",
        name=name,
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        max_position_embeddings=40960,
        rms_norm_eps=1e-5,
        rope=RopeConfig(rotary_dim=head_dim, theta=theta),
        tie_word_embeddings=tied,
        num_parameters=num_parameters,
        checkpoint_bytes=2 * num_parameters,
        quantization="BF16",
        qk_norm=qk_norm,
    )


def dummy_shapes() -> dict[str, ModelConfig]:
    """By the names that `--dummy-weights` takes."""
    shapes = [
        _shape("Llama-3.2-1B", 16, 2048, 8192, 32, 64, 128256, theta=5e5, tied=True),
        _shape("Llama-3.2-3B", 28, 3072, 8192, 24, 128, 128256, theta=5e5, tied=True),
        _shape("Llama-3.1-8B", 32, 4096, 14336, 32, 128, 128256, theta=5e5, tied=False),
        _shape("Qwen3-0.6B", 28, 1024, 3072, 16, 128, 151936, theta=1e6, tied=True, qk_norm="head"),
        _shape("Qwen3-8B", 36, 4096, 12288, 32, 128, 151936, theta=1e6, tied=False, qk_norm="head"),
    ]
    return {shape.name: shape for shape in shapes}


def load_dummy_engine(
    shape_name: str, weights: str, config: EngineConfig
) -> tuple[Engine, LoadReport]:
    """Makes an engine with random weights on the device that the configuration names.

    Raises:
        InvalidInputError: there is no such shape or weight format, or the format needs a GPU.
        InsufficientMemoryError: it does not fit.
    """
    shapes = dummy_shapes()
    if shape_name not in shapes:
        raise InvalidInputError(
            f"There is no shape {shape_name!r}.", hint=f"Choose one of: {', '.join(shapes)}."
        )
    if weights not in WEIGHTS:
        raise InvalidInputError(
            f"Dummy weights cannot be {weights!r}.", hint=f"Choose one of: {', '.join(WEIGHTS)}."
        )
    started_at = time.perf_counter()
    model_config = shapes[shape_name]
    plan = plan_memory(model_config, config, choose_device(config, detect_devices()))
    plan.require_fit()
    tokenizer = tokenizer_from_metadata(dummy_vocabulary(model_config.vocab_size))
    if weights == "int4" and (plan.device.kind != "cuda" or plan.dtype != "bfloat16"):
        raise InvalidInputError(
            f"Dummy weights in int4 are for GPUs in bfloat16; this is {plan.device.name} in"
            f" {plan.dtype}.",
            hint="Choose bf16.",
        )
    model = build_model(model_config, plan)
    _randomise(model)
    make_matrix = _make_int4(model) if weights == "int4" else None
    executor = choose_executor(model, model_config, plan, config, make_matrix=make_matrix)
    engine = assemble_engine(executor, tokenizer, model_config, plan, config)
    report = LoadReport(
        plan=plan,
        load_s=time.perf_counter() - started_at,
        resident_growth_bytes=0,
        executor=executor.name,
        executor_reason=executor.reason,
        weights_note=f"Random weights in {weights}.",
    )
    return engine, report


@torch.inference_mode()
def _randomise(model: Decoder) -> None:
    """So that activations neither vanish nor grow, as in a trained model."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.normal_(1.0, 0.1)
        else:
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5)


def _make_int4(model: Decoder) -> "MakeMatrix":
    """Symmetric, in groups of 128; the output projection stays as it is, as quantisers leave it."""
    from octavo.engine.kernels.triton.int4 import TILE, pack_int4
    from octavo.engine.kernels.triton.launch import overlaps_launches
    from octavo.engine.kernels.triton.matrices import DenseMatrix, Int4Matrix, Matrix

    def make(linear: Linear | FusedLinear) -> Matrix:
        assert linear.weight is not None
        weight = linear.weight
        overlap = overlaps_launches(weight.device)
        if linear is model.lm_head:
            return DenseMatrix(weight, linear.bias, overlap=overlap)
        num_rows, num_columns = weight.shape
        codes = torch.randint(0, 16, weight.shape, dtype=torch.uint8, device=weight.device)
        scales = torch.rand(num_rows, num_columns // TILE, device=weight.device)
        scales = (scales + 0.5) * num_columns**-0.5 / 4.6
        # The dense weights would only take room from now on.
        for part in linear.parts if isinstance(linear, FusedLinear) else [linear]:
            part.weight = torch.nn.Parameter(part.weight.to("meta"), requires_grad=False)
        if isinstance(linear, FusedLinear):
            linear.forget_weight()
        return Int4Matrix(pack_int4(codes, scales, -8 * scales), linear.bias, overlap=overlap)

    return make


def dummy_vocabulary(vocab_size: int) -> dict[str, str | list[str]]:
    """A byte-level vocabulary of that size under GGUF's keys: all bytes, one pair of them, then
    strings of three."""
    alphabet = byte_alphabet()
    count = len(alphabet)
    tokens = [*alphabet, alphabet[0] + alphabet[1]]
    while len(tokens) < vocab_size:
        number = len(tokens)
        text = alphabet[number % count] + alphabet[number // count % count]
        tokens.append(text + alphabet[number // count**2 % count])
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [f"{alphabet[0]} {alphabet[1]}"],
    }
