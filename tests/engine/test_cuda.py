"""The same plain-torch path on a GPU: what the CPU says, the GPU says."""

from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.checkpoint.gguf import GGMLType
from octavo.engine.config import EngineConfig
from octavo.engine.device import choose_device, detect_devices
from octavo.engine.memory import plan_memory
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


def generate(device: str, dtype: str = "float32", **sampling: Any) -> list[list[int]]:
    """Four sequences of unequal length, prefilled in chunks and decoded together."""
    config = EngineConfig(device=device)
    plan = tiny_plan(device=choose_device(config, detect_devices()), dtype=dtype, num_kv_blocks=256)
    model_config = tiny_config(head_dim=16)
    runner = ModelRunner(
        TorchExecutor(random_model(model_config, plan), model_config, plan),
        model_config,
        plan,
        config,
    )
    sequences = [
        make_sequence(i, random_tokens(length, i), seed=i, **sampling)
        for i, length in enumerate((3, 40, 17, 90))
    ]
    next_block = 1
    for step in range(14):
        scheduled = []
        for sequence in sequences:
            start = sequence.num_computed_tokens
            num_tokens = min(sequence.num_tokens - start, 31 + step)
            while len(sequence.block_table) * plan.block_size < start + num_tokens:
                sequence.block_table.append(next_block)
                next_block += 1
            scheduled.append(ScheduledSequence(sequence, start, num_tokens))
        output = runner.execute(ScheduledBatch(tuple(scheduled)))
        for item in scheduled:
            item.sequence.num_computed_tokens += item.num_tokens
            if item.sequence.sequence_id in output.tokens:
                item.sequence.append_token(output.tokens[item.sequence.sequence_id])
    return [sequence.output_token_ids for sequence in sequences]


def test_detected_and_planned() -> None:
    gpu = detect_devices()[0]
    assert gpu.kind == "cuda"
    assert gpu.supported, gpu.reason
    assert gpu.name == torch.cuda.get_device_name(0)
    config = EngineConfig(device="cuda")
    plan = plan_memory(SMOLLM2_135M, config, gpu)
    assert plan.fits
    before = torch.cuda.mem_get_info(0)[0]
    model = build_model(SMOLLM2_135M, plan)
    for parameter in model.parameters():
        parameter.fill_(0.01)
    runner = ModelRunner(TorchExecutor(model, SMOLLM2_135M, plan), SMOLLM2_135M, plan, config)
    sequence = make_sequence(0, [5] * 512, temperature=0)
    sequence.block_table = list(range(1, 33))
    runner.execute(ScheduledBatch((ScheduledSequence(sequence, 0, 512),)))
    used = before - torch.cuda.mem_get_info(0)[0]
    assert used <= plan.total_bytes


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {}, {"top_p": 0.8, "top_k": 30}])
def test_tokens_equal_the_cpus(sampling: dict[str, Any]) -> None:
    assert generate("cuda", **sampling) == generate("cpu", **sampling)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs(dtype: str) -> None:
    tokens = generate("cuda", dtype, temperature=0)
    exact = generate("cuda", "float32", temperature=0)
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
