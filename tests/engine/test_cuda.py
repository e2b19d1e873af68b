"""On a GPU, by plain torch and by our kernels: what the CPU says, the GPU says."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.checkpoint.gguf import GGMLType
from octavo.engine.config import EngineConfig
from octavo.engine.device import choose_device, detect_devices
from octavo.engine.device_errors import free_device_memory
from octavo.engine.executor import Executor
from octavo.engine.executors import choose_executor
from octavo.engine.kv_groups import kv_groups
from octavo.engine.memory import MemoryPlan, plan_memory
from octavo.engine.model_config import ModelConfig, MoEConfig, RopeConfig
from octavo.engine.model_runner import ModelRunner
from octavo.engine.models.decoder import build_model
from octavo.engine.sampler import gumbel_noise
from octavo.engine.sequence import ScheduledBatch, ScheduledSequence
from octavo.engine.torch_executor import TorchExecutor
from tests.support.engines import make_engine, request, run_all
from tests.support.gguf_files import write_tiny_llama
from tests.support.model_shapes import SMOLLM2_135M
from tests.support.tiny_decoders import (
    make_sequence,
    random_model,
    random_tokens,
    tiny_config,
    tiny_plan,
)

pytestmark = pytest.mark.gpu


KERNELS, TORCH, CPU = "kernels", "torch", "cpu"
"""Who computes: our kernels on the GPU, plain torch there, plain torch on the CPU."""


def make_executor(kind: str, model_config: ModelConfig, plan: MemoryPlan) -> Executor:
    model = random_model(model_config, plan)
    if kind != KERNELS:
        return TorchExecutor(model, model_config, plan)
    from octavo.engine.cuda_executor import CudaExecutor

    return CudaExecutor(model, model_config, plan, max_num_seqs=8)


def generate(
    kind: str,
    dtype: str = "float32",
    model_config: ModelConfig | None = None,
    lengths: tuple[int, ...] = (3, 40, 17, 90),
    **sampling: Any,
) -> list[list[int]]:
    """Sequences of unequal length, prefilled in chunks and decoded together."""
    config = EngineConfig(device="cpu" if kind == CPU else "cuda", max_num_seqs=8)
    model_config = model_config or tiny_config(head_dim=16)
    plan = tiny_plan(device=choose_device(config, detect_devices()), dtype=dtype, num_kv_blocks=256)
    num_groups = len(kv_groups(model_config, plan.max_model_len))
    plan = dataclasses.replace(plan, num_window_blocks=(256,) * (num_groups - 1))
    runner = ModelRunner(make_executor(kind, model_config, plan), model_config, plan, config)
    sequences = [
        make_sequence(i, random_tokens(length, i), seed=i, **sampling)
        for i, length in enumerate(lengths)
    ]
    next_block = 1
    for step in range(14):
        scheduled = []
        for sequence in sequences:
            start = sequence.num_computed_tokens
            num_tokens = min(sequence.num_tokens - start, 31 + step)
            while len(sequence.block_tables) < num_groups:
                sequence.block_tables.append([])
            while len(sequence.block_table) * plan.block_size < start + num_tokens:
                for table in sequence.block_tables:
                    table.append(next_block)
                next_block += 1
            scheduled.append(ScheduledSequence(sequence, start, num_tokens))
        output = runner.execute(ScheduledBatch(tuple(scheduled)))
        for item in scheduled:
            item.sequence.num_computed_tokens += item.num_tokens
            if item.sequence.sequence_id in output.tokens:
                item.sequence.append_token(output.tokens[item.sequence.sequence_id])
    return [sequence.output_token_ids for sequence in sequences]


@pytest.mark.whole_card
@pytest.mark.parametrize("kind", [KERNELS, TORCH])
def test_detected_and_planned(kind: str) -> None:
    gpu = detect_devices()[0]
    assert gpu.kind == "cuda"
    assert gpu.supported, gpu.reason
    assert gpu.name == torch.cuda.get_device_name(0)
    config = EngineConfig(device="cuda")
    plan = plan_memory(SMOLLM2_135M, config, gpu)
    assert plan.fits
    free_device_memory()
    before = torch.cuda.mem_get_info(0)[0]
    model = build_model(SMOLLM2_135M, plan)
    for parameter in model.parameters():
        parameter.fill_(0.01)
    executor: Executor
    if kind == TORCH:
        executor = TorchExecutor(model, SMOLLM2_135M, plan)
    else:
        executor = choose_executor(model, SMOLLM2_135M, plan, config)
        assert executor.name == "Triton kernels", executor.reason
    runner = ModelRunner(executor, SMOLLM2_135M, plan, config)
    sequence = make_sequence(0, [5] * 512, temperature=0)
    sequence.block_table = list(range(1, 33))
    runner.execute(ScheduledBatch((ScheduledSequence(sequence, 0, 512),)))
    used = before - torch.cuda.mem_get_info(0)[0]
    assert used <= plan.total_bytes


@pytest.mark.parametrize("kind", [KERNELS, TORCH])
@pytest.mark.parametrize("sampling", [{"temperature": 0}, {}, {"top_p": 0.8, "top_k": 30}])
def test_tokens_equal_the_cpus(kind: str, sampling: dict[str, Any]) -> None:
    assert generate(kind, **sampling) == generate(CPU, **sampling)


VARIANTS: dict[str, dict[str, Any]] = {
    "head norms, windows, sinks, caps": {
        "qk_norm": "head",
        "windows": (16, None),
        "has_sinks": True,
        "attention_softcap": 20.0,
        "final_softcap": 30.0,
        "attention_bias": True,
        "attention_output_bias": True,
    },
    "gemma": {
        "norm_placement": "around",
        "norm_offset": 1.0,
        "norm_in_float32": True,
        "activation": "gelu_tanh",
        "embedding_scale": 7.0,
        "tie_word_embeddings": False,
    },
    "norms after, joint head norms": {"norm_placement": "after", "qk_norm": "all"},
    "granite, partial rotation, mlp biases": {
        "residual_scale": 0.5,
        "logits_scale": 0.25,
        "attention_scale": 0.2,
        "mlp_bias": True,
        "unrotated_layers": frozenset({1}),
        "rope": RopeConfig(rotary_dim=8),
    },
    "qwen 2 experts": {
        "moe": MoEConfig(5, 2, 24, renormalizes=False, shared_intermediate_size=16),
        "attention_bias": True,
    },
    "qwen 3 experts, some layers without": {
        "moe": MoEConfig(12, 3, 24, dense_layers=frozenset({1})),
        "qk_norm": "head",
    },
    "mixtral": {"moe": MoEConfig(8, 2, 40), "windows": (16, 16)},
    "gpt-oss": {
        "moe": MoEConfig(6, 4, 24, has_biases=True),
        "activation": "clamped_swiglu",
        "windows": (16, None),
        "has_sinks": True,
        "attention_bias": True,
        "attention_output_bias": True,
        "norm_in_float32": True,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_variants_equal_the_cpus(variant: str, temperature: float) -> None:
    model_config = tiny_config(head_dim=16, **VARIANTS[variant])
    found = generate(KERNELS, model_config=model_config, temperature=temperature)
    assert found == generate(CPU, model_config=model_config, temperature=temperature)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "moe" in VARIANTS[name]])
def test_experts_run_in_graphs_and_alone(variant: str) -> None:
    """A single token takes other kernels than many do."""
    from octavo.engine.models.fused_decoder import FusedDecoder

    model_config = tiny_config(head_dim=16, **VARIANTS[variant])
    device = choose_device(EngineConfig(device="cuda"), detect_devices())
    model = random_model(model_config, tiny_plan(device=device))
    assert FusedDecoder(model, model_config).can_be_captured
    options: dict[str, Any] = {"model_config": model_config, "lengths": (21,), "temperature": 0.0}
    assert generate(KERNELS, **options) == generate(CPU, **options)


@pytest.mark.parametrize("kind", [KERNELS, TORCH])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs(kind: str, dtype: str) -> None:
    tokens = generate(kind, dtype, temperature=0)
    exact = generate(TORCH, "float32", temperature=0)
    assert [len(one) for one in tokens] == [len(one) for one in exact]
    assert sum(a[0] == b[0] for a, b in zip(tokens, exact, strict=True)) >= 3


def test_noise_is_the_same_on_every_device() -> None:
    token_ids = torch.arange(10_000)
    on_gpu = gumbel_noise([3, 2**64 - 1], token_ids.cuda()).cpu()
    torch.testing.assert_close(on_gpu, gumbel_noise([3, 2**64 - 1], token_ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [GGMLType.F32, GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q8_0])
@pytest.mark.parametrize("weights", ["packed", "unpacked"])
def test_loaded_checkpoints_answer_as_on_the_cpu(
    tmp_path: Path, kind: GGMLType, weights: str
) -> None:
    """The whole engine: unpacking on the device, batching, preemption, prefix cache."""
    path = write_tiny_llama(tmp_path / "tiny.gguf", ggml_type=kind)
    sampling: list[dict[str, Any]] = [
        {"max_tokens": 12},
        {"max_tokens": 12, "temperature": 1.0, "seed": 3, "n": 2},
    ]
    requests = [
        request(str(index), list(b"hello the quick brown fox"[: 5 + index]), **sampling[index % 2])
        for index in range(8)
    ]
    tokens = {}
    for device in ("cpu", "cuda"):
        engine = make_engine(
            path,
            device=device,
            weights=weights,
            num_kv_blocks=20,
            block_size=4,
            max_num_batched_tokens=16,
        )
        results = run_all(engine, requests)
        tokens[device] = {key: result.token_ids for key, result in results.items()}
        assert engine.stats().num_used_blocks == 0
    assert tokens["cuda"] == tokens["cpu"]


def used_bytes() -> int:
    """What the whole card has in use, also what torch does not count."""
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    return total_bytes - free_bytes


@pytest.mark.whole_card
@pytest.mark.parametrize("weights", ["packed", "unpacked"])
def test_unloading_returns_the_cards_memory(tmp_path: Path, weights: str) -> None:
    """But for the driver's context and the code of kernels, which come with the first load."""
    path = write_tiny_llama(
        tmp_path / "tiny.gguf", ggml_type=GGMLType.Q8_0, hidden_size=512, intermediate_size=1024
    )
    levels = []
    for _ in range(3):
        engine = make_engine(path, device="cuda", weights=weights, num_kv_blocks=20_000)
        loaded = used_bytes()
        run_all(engine, [request("a", list(b"hello the quick"), max_tokens=5)])
        engine.close()
        del engine
        levels.append(used_bytes())
        assert loaded - levels[-1] > 2 * 10**7, "the KV cache alone is larger"
    assert levels[2] <= levels[1] + 2**21
    assert levels[1] <= levels[0] + 2**23
