"""Engines for models of known shapes with random weights: speed does not depend on their values."""

import dataclasses
import time

import torch

from octavo.engine.config import EngineConfig
from octavo.engine.device import choose_device, detect_devices
from octavo.engine.dummy_weights import DENSE, DUMMY_FORMATS, DummyFormat
from octavo.engine.engine import Engine
from octavo.engine.executors import choose_executor
from octavo.engine.layers.embedding import Embedding
from octavo.engine.layers.linear import Linear
from octavo.engine.layers.moe import Experts
from octavo.engine.load_report import LoadReport
from octavo.engine.loading import assemble_engine
from octavo.engine.memory import plan_memory
from octavo.engine.model_config import ModelConfig, MoEConfig, RopeConfig
from octavo.engine.models.decoder import Decoder, build_model
from octavo.engine.tokenizer import byte_alphabet, tokenizer_from_metadata
from octavo.errors import InvalidInputError


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
    num_kv_heads: int = 8,
    moe: MoEConfig | None = None,
) -> ModelConfig:
    """`intermediate_size` is that of the dense feed-forward part, or of each expert."""
    qkv = (num_heads + 2 * num_kv_heads) * head_dim
    num_experts = 1 if moe is None else moe.num_experts
    layer = hidden_size * (qkv + num_heads * head_dim + 2)
    layer += num_experts * 3 * hidden_size * intermediate_size
    layer += 0 if moe is None else num_experts * hidden_size
    layer += 2 * head_dim if qk_norm == "head" else 0
    num_parameters = num_layers * layer + hidden_size
    num_parameters += vocab_size * hidden_size * (1 if tied else 2)
    family = "qwen3" if qk_norm == "head" else "llama"
    return ModelConfig(
        architecture=family if moe is None else f"{family}_moe",
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
        moe=moe,
    )


def dummy_shapes() -> dict[str, ModelConfig]:
    """By the names that `--dummy-weights` takes."""
    shapes = [
        _shape("Llama-3.2-1B", 16, 2048, 8192, 32, 64, 128256, theta=5e5, tied=True),
        _shape("Llama-3.2-3B", 28, 3072, 8192, 24, 128, 128256, theta=5e5, tied=True),
        _shape("Llama-3.1-8B", 32, 4096, 14336, 32, 128, 128256, theta=5e5, tied=False),
        _shape("Qwen3-0.6B", 28, 1024, 3072, 16, 128, 151936, theta=1e6, tied=True, qk_norm="head"),
        _shape("Qwen3-8B", 36, 4096, 12288, 32, 128, 151936, theta=1e6, tied=False, qk_norm="head"),
        _shape(
            "Qwen3-30B-A3B",
            48,
            2048,
            768,
            32,
            128,
            151936,
            theta=1e6,
            tied=False,
            qk_norm="head",
            num_kv_heads=4,
            moe=MoEConfig(num_experts=128, num_experts_per_token=8, intermediate_size=768),
        ),
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
    if weights != DENSE and weights not in DUMMY_FORMATS:
        formats = ", ".join([DENSE, *DUMMY_FORMATS])
        raise InvalidInputError(
            f"Dummy weights cannot be {weights!r}.", hint=f"Choose one of: {formats}."
        )
    started_at = time.perf_counter()
    model_config = shapes[shape_name]
    dummy_format = DUMMY_FORMATS.get(weights)
    if dummy_format is not None:
        stored = dummy_format.stored(model_config)
        model_config = dataclasses.replace(model_config, stored=stored, quantization=weights)
        config = dataclasses.replace(config, weights="packed")
    plan = plan_memory(model_config, config, choose_device(config, detect_devices()))
    plan.require_fit()
    tokenizer = tokenizer_from_metadata(dummy_vocabulary(model_config.vocab_size))
    if dummy_format is not None and plan.device.kind != "cuda":
        raise InvalidInputError(
            f"Dummy weights in {weights} are for GPUs; this is {plan.device.name}.",
            hint=f"Choose {DENSE}.",
        )
    model = build_model(model_config, plan)
    _randomise(model)
    if dummy_format is not None:
        _pack(model, model_config, dummy_format)
    executor = choose_executor(model, model_config, plan, config)
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
        if parameter.is_meta:
            continue
        if parameter.ndim == 1:
            parameter.normal_(1.0, 0.1)
        else:
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5)


@torch.inference_mode()
def _pack(model: Decoder, config: ModelConfig, dummy_format: DummyFormat) -> None:
    """Gives every layer that keeps its matrix packed a random one."""
    for name, module in model.named_modules():
        if isinstance(module, Linear | Embedding):
            matrix = dummy_format.make(name, _shape_of(module.weight), config, module.device)
            module.put("weight", 0, matrix)
        elif isinstance(module, Experts):
            for part in ("gate_proj", "up_proj", "down_proj"):
                for expert, stacked in enumerate(getattr(module, part)):
                    matrix = dummy_format.make(
                        f"{name}.{part}", _shape_of(stacked), config, module.device
                    )
                    module.put(part, expert, matrix)


def _shape_of(matrix: torch.Tensor) -> tuple[int, int]:
    num_rows, num_columns = matrix.shape
    return num_rows, num_columns


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
