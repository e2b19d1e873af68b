"""The memory plan is arithmetic: it can be checked without a model or a machine."""

import dataclasses
import re
from typing import Any

import pytest

from octavo.engine.config import EngineConfig
from octavo.engine.device import Device
from octavo.engine.memory import MemoryPlan, plan_memory
from octavo.engine.model_config import ModelConfig, MoEConfig, StoredSizes
from octavo.engine.step_memory import UNPACKED_DEVICE_SLAB_ELEMENTS, UNPACKED_SLAB_ELEMENTS
from octavo.errors import InsufficientMemoryError
from octavo.units import format_bytes
from tests.support.model_shapes import LLAMA_8B, SMOLLM2_135M

GIB = 1 << 30


def cpu(free: float, total: float = 64.0) -> Device:
    return Device("cpu", 0, "CPU", int(total * GIB), int(free * GIB))


def gpu(free: float, capability: tuple[int, int] = (8, 9)) -> Device:
    return Device("cuda", 0, "GPU", 24 * GIB, int(free * GIB), capability)


def plan(model: ModelConfig, device: Device, **config: Any) -> MemoryPlan:
    return plan_memory(model, EngineConfig(**config), device)


def item(memory_plan: MemoryPlan, name: str) -> int:
    return next(entry.num_bytes for entry in memory_plan.items if entry.name == name)


def test_items_add_up() -> None:
    roomy = plan(SMOLLM2_135M, cpu(30))
    assert roomy.fits
    assert roomy.remedies == ()
    assert [entry.name for entry in roomy.items] == ["Weights", "KV cache", "Workspace", "Reserve"]
    assert roomy.total_bytes == sum(entry.num_bytes for entry in roomy.items)
    assert item(roomy, "Weights") == SMOLLM2_135M.num_parameters * 4
    assert item(roomy, "KV cache") == roomy.num_kv_blocks * 16 * SMOLLM2_135M.kv_bytes_per_token(4)
    roomy.require_fit()


def test_the_default_cache_holds_four_full_sequences() -> None:
    roomy = plan(SMOLLM2_135M, cpu(30))
    assert roomy.max_model_len == 8192
    assert roomy.kv_tokens == 4 * 8192
    assert plan(SMOLLM2_135M, cpu(30), max_num_seqs=1).kv_tokens == 8192
    assert plan(SMOLLM2_135M, cpu(30), max_model_len=100).kv_tokens == 4 * 112


def test_the_cache_takes_at_most_a_quarter_of_the_rest() -> None:
    tight = plan(SMOLLM2_135M, cpu(4, total=8))
    rest = 4 * GIB - tight.total_bytes + item(tight, "KV cache")
    assert 0 < rest / 4 - item(tight, "KV cache") < 16 * SMOLLM2_135M.kv_bytes_per_token(4)
    assert 512 <= tight.kv_tokens < 4 * 8192


def test_dtype_follows_device_and_room() -> None:
    assert plan(SMOLLM2_135M, cpu(30)).dtype == "float32"
    assert plan(LLAMA_8B, cpu(30)).dtype == "bfloat16"
    assert plan(LLAMA_8B, cpu(60)).dtype == "float32"
    assert plan(LLAMA_8B, gpu(22)).dtype == "bfloat16"
    assert plan(SMOLLM2_135M, gpu(22, (7, 5))).dtype == "float16"
    assert plan(SMOLLM2_135M, cpu(30), dtype="bfloat16").dtype == "bfloat16"


def test_a_gpu_gives_the_cache_what_is_left() -> None:
    full = plan(LLAMA_8B, gpu(22))
    assert full.fits
    assert full.free_bytes - full.total_bytes < 16 * LLAMA_8B.kv_bytes_per_token(2)


def test_context_is_capped_by_the_model() -> None:
    assert plan(SMOLLM2_135M, cpu(30), max_model_len=100_000).max_model_len == 8192


def test_given_blocks_win() -> None:
    assert plan(SMOLLM2_135M, cpu(30), num_kv_blocks=77).num_kv_blocks == 77
    assert plan(SMOLLM2_135M, cpu(1), num_kv_blocks=77).num_kv_blocks == 77


def test_refusal_has_numbers_and_remedies() -> None:
    refused = plan(LLAMA_8B, cpu(15.4, total=16), dtype="bfloat16")
    assert not refused.fits
    with pytest.raises(InsufficientMemoryError) as caught:
        refused.require_fit()
    error = caught.value
    assert error.message == f"Needs {format_bytes(refused.total_bytes)}, 15.4 GiB are free."
    assert error.needed_bytes == refused.total_bytes > 15.4 * GIB
    assert "Close other programs to free" in error.hint
    assert re.search(r"\d\.\dB parameters", error.hint)


def test_remedies_work_when_followed() -> None:
    forced = plan(LLAMA_8B, cpu(30), dtype="float32")
    assert any("bfloat16" in remedy for remedy in forced.remedies)
    assert plan(LLAMA_8B, cpu(30), dtype="bfloat16").fits

    device = cpu(8, total=16)
    greedy = plan(SMOLLM2_135M, device, num_kv_blocks=40_000)
    remedy = next(text for text in greedy.remedies if "num_kv_blocks" in text)
    blocks = int(remedy.split("to ")[1].split(" ")[0])
    assert plan(SMOLLM2_135M, device, num_kv_blocks=blocks).fits
    assert not plan(SMOLLM2_135M, device, num_kv_blocks=blocks + 1).fits


def test_a_shorter_context_is_named_if_it_helps() -> None:
    full = plan(LLAMA_8B, cpu(30), dtype="bfloat16", max_num_batched_tokens=64)
    least = full.total_bytes - item(full, "KV cache")
    device = Device("cpu", 0, "CPU", 64 * GIB, least)
    refused = plan(LLAMA_8B, device, dtype="bfloat16", max_num_batched_tokens=64)
    remedy = next(text for text in refused.remedies if text.startswith("Shorten"))
    length = int(remedy.split("to ")[1].split(" ")[0].replace(",", ""))
    shorter = plan(
        LLAMA_8B, device, dtype="bfloat16", max_num_batched_tokens=64, max_model_len=length
    )
    assert shorter.fits


@pytest.mark.parametrize("free", [0.0, 0.5, 1.0, 3.0, 10.0, 17.0, 40.0])
@pytest.mark.parametrize("model", [SMOLLM2_135M, LLAMA_8B])
def test_every_plan_can_hold_a_context_or_does_not_fit(model: ModelConfig, free: float) -> None:
    for device in (cpu(free), gpu(free)):
        planned = plan(model, device)
        assert planned.kv_tokens >= 512
        assert planned.fits == (planned.total_bytes <= device.free_bytes)
        assert planned.fits == (planned.remedies == ())
        assert planned.device is device


def test_sizes_read_well() -> None:
    assert format_bytes(int(17.24 * GIB)) == "17.2 GiB"
    assert format_bytes(300 << 20) == "300.0 MiB"


# Gemma 3 1B: every sixth layer sees all.
LIKE_GEMMA3 = dataclasses.replace(
    SMOLLM2_135M,
    num_layers=26,
    num_heads=4,
    num_kv_heads=1,
    head_dim=256,
    max_position_embeddings=32_768,
    windows=tuple(None if layer % 6 == 5 else 512 for layer in range(26)),
)
LIKE_MISTRAL = dataclasses.replace(
    LLAMA_8B, max_position_embeddings=32_768, windows=(4096,) * LLAMA_8B.num_layers
)


def test_layers_with_a_window_hold_no_more_than_it_and_a_chunk() -> None:
    windowed = plan(LIKE_GEMMA3, cpu(60), dtype="bfloat16")
    assert windowed.kv_tokens == 4 * 32_768
    # 512 tokens of window for each of 4 sequences, and a step of 512 for one; the null block.
    assert windowed.num_group_blocks == (4 * 2048 + 1, 3 * 33 + 65 + 1)
    full = plan(dataclasses.replace(LIKE_GEMMA3, windows=()), cpu(60), dtype="bfloat16")
    assert full.kv_tokens == windowed.kv_tokens
    assert item(windowed, "KV cache") < 0.2 * item(full, "KV cache")


def test_windows_as_wide_as_the_context_are_none() -> None:
    narrow = plan(LIKE_GEMMA3, cpu(60), max_model_len=512)
    assert narrow.num_window_blocks == ()


@pytest.mark.parametrize("free", [0.5, 2.0, 4.0, 9.0, 20.0, 60.0])
def test_every_group_has_room_for_a_sequence_and_none_more_than_it_can_use(free: float) -> None:
    for device in (cpu(free), gpu(free)):
        planned = plan(LIKE_GEMMA3, device, max_num_batched_tokens=512)
        first, window = planned.num_group_blocks
        assert min(65 + 1, first) <= window <= first
        assert planned.kv_tokens >= 512
    roomy = plan(LIKE_GEMMA3, gpu(60), max_num_batched_tokens=512)
    assert roomy.num_group_blocks == (64 * 2048 + 1, 63 * 33 + 65 + 1)


def test_a_model_of_windows_only_is_bounded_by_none() -> None:
    planned = plan(LIKE_MISTRAL, gpu(22), max_num_batched_tokens=512)
    # Each conversation of 32,768 tokens takes 289 blocks, not 2,048.
    assert planned.kv_tokens == (planned.num_kv_blocks - 1) // 289 * 32_768
    assert planned.kv_tokens > 3 * planned.num_kv_blocks * 16
    few = plan(LIKE_MISTRAL, gpu(22), num_kv_blocks=101, max_num_batched_tokens=512)
    assert few.kv_tokens == 1600


@pytest.mark.parametrize(
    ("kv_dtype", "head_bytes"),
    [("auto", 128), ("float16", 128), ("float8_e4m3", 64), ("int8", 66)],
)
def test_the_kv_type_counts(kv_dtype: str, head_bytes: int) -> None:
    planned = plan(SMOLLM2_135M, cpu(30), dtype="bfloat16", kv_dtype=kv_dtype)
    num_slots = planned.num_kv_blocks * 16 * 30 * 2 * 3
    assert item(planned, "KV cache") == num_slots * head_bytes
    name = "bfloat16" if kv_dtype == "auto" else kv_dtype
    assert planned.kv_dtype == name
    assert name in next(entry.detail for entry in planned.items if entry.name == "KV cache")


# Q4_K_M: most of it 4-bit, norms in float32.
LLAMA_8B_Q4 = dataclasses.replace(
    LLAMA_8B,
    stored=StoredSizes(
        quantized_elements=LLAMA_8B.num_parameters - 266_304,
        quantized_bytes=4_912_000_000,
        vector_elements=266_304,
    ),
)
LLAMA_8B_BF16 = dataclasses.replace(
    LLAMA_8B,
    stored=StoredSizes(half_elements=LLAMA_8B.num_parameters - 266_304, vector_elements=266_304),
)


def test_packed_weights_are_itemised() -> None:
    packed = plan(LLAMA_8B_Q4, cpu(30), weights="packed", dtype="bfloat16")
    assert packed.keeps_packed
    assert item(packed, "Weights") == 4_912_000_000
    assert item(packed, "Unpacked weights") == 266_304 * 2
    assert packed.total_bytes == sum(entry.num_bytes for entry in packed.items)
    unpacked = plan(LLAMA_8B_Q4, cpu(30), weights="unpacked", dtype="bfloat16")
    assert not unpacked.keeps_packed
    assert item(unpacked, "Weights") == LLAMA_8B.num_parameters * 2
    slab = item(packed, "Workspace") - item(unpacked, "Workspace")
    assert slab == UNPACKED_SLAB_ELEMENTS * 36


def test_the_largest_expert_is_unpacked_for_prompts_and_in_captured_steps() -> None:
    def workspace(experts: MoEConfig, weights: str) -> int:
        model = dataclasses.replace(LLAMA_8B_Q4, moe=experts)
        return item(plan(model, gpu(60), weights=weights, max_model_len=8192), "Workspace")

    small, large = MoEConfig(64, 2, 1024), MoEConfig(8, 2, 16384)
    for experts, num_bytes in (
        (small, UNPACKED_DEVICE_SLAB_ELEMENTS * 36),
        (large, 2 * 2 * 16384 * 4096 * 2),
    ):
        slab = workspace(experts, "packed") - workspace(experts, "unpacked")
        assert slab == num_bytes


def test_weights_are_unpacked_where_there_is_room() -> None:
    def chosen(model: ModelConfig, device: Device, **config: Any) -> tuple[str, bool]:
        planned = plan(model, device, **config)
        assert planned.fits
        return planned.dtype, planned.keeps_packed

    assert chosen(LLAMA_8B_Q4, cpu(60)) == ("float32", False)
    assert chosen(LLAMA_8B_Q4, cpu(30)) == ("bfloat16", False)
    assert chosen(LLAMA_8B_Q4, cpu(14, total=16)) == ("float32", True)
    assert chosen(LLAMA_8B_Q4, cpu(60), weights="packed") == ("float32", True)
    assert chosen(LLAMA_8B_Q4, cpu(14, total=16), dtype="bfloat16") == ("bfloat16", True)
    # Four conversations of 131,072 tokens are 64 GiB: no card has room for them.
    short = {"max_model_len": 8192}
    assert chosen(LLAMA_8B_Q4, gpu(23), **short) == ("bfloat16", False)
    assert chosen(LLAMA_8B_Q4, gpu(18), **short) == ("bfloat16", True)
    assert chosen(LLAMA_8B_Q4, gpu(18), num_kv_blocks=60, **short) == ("bfloat16", False)
    assert chosen(LLAMA_8B_Q4, gpu(8), **short) == ("bfloat16", True)


def test_what_saves_nothing_is_not_packed() -> None:
    assert not plan(LLAMA_8B_BF16, cpu(60), weights="packed", dtype="bfloat16").keeps_packed
    halved = plan(LLAMA_8B_BF16, cpu(60), weights="packed", dtype="float32")
    assert halved.keeps_packed
    assert item(halved, "Weights") == (LLAMA_8B.num_parameters - 266_304) * 2
    wide = dataclasses.replace(LLAMA_8B, stored=StoredSizes(wide_elements=LLAMA_8B.num_parameters))
    assert not plan(wide, cpu(60), weights="packed", dtype="bfloat16").keeps_packed
    assert not plan(LLAMA_8B, cpu(60), weights="packed").keeps_packed, "its sizes are not known"


def test_refusals_of_packed_models_name_what_helps() -> None:
    refused = plan(LLAMA_8B_Q4, cpu(6, total=8))
    assert not refused.fits
    assert refused.keeps_packed
    remedy = refused.remedies[-1]
    billions = float(re.search(r"([0-9.]+)B parameters", remedy)[1])  # type: ignore[index]
    share = billions * 1e9 / LLAMA_8B.num_parameters
    smaller = dataclasses.replace(
        LLAMA_8B_Q4,
        num_parameters=int(LLAMA_8B.num_parameters * share),
        stored=StoredSizes(quantized_bytes=int(4_912_000_000 * share)),
    )
    slack = 0.06e9 * 4.9 / 8  # of rounding to a tenth of a billion
    assert plan(smaller, cpu(6 + slack / GIB, total=8)).fits

    unpacked = plan(LLAMA_8B_Q4, cpu(14, total=16), weights="unpacked")
    assert "Keep the weights packed, which is slower." in unpacked.remedies
    assert plan(LLAMA_8B_Q4, cpu(14, total=16), weights="packed").fits


@pytest.mark.parametrize(
    ("total", "model", "expected"),
    [
        (80, LLAMA_8B, 16384),
        (24, LLAMA_8B, 4096),
        (8, LLAMA_8B, 2048),
        (4, LLAMA_8B, 512),
        (6, SMOLLM2_135M, 8192),
    ],
)
def test_the_token_budget_follows_the_cards_memory(
    total: float, model: ModelConfig, expected: int
) -> None:
    card = Device("cuda", 0, "GPU", int(total * GIB), int(total * GIB), (9, 0))
    by_default = plan(model, card)
    assert by_default.max_num_batched_tokens == expected
    assert item(by_default, "Workspace") < total * GIB / 16
    assert plan(model, card, max_num_batched_tokens=77).max_num_batched_tokens == 77


def test_the_token_budget_of_a_processor_is_small() -> None:
    assert plan(SMOLLM2_135M, cpu(30)).max_num_batched_tokens == 512


def test_a_card_is_planned_with_its_context_and_a_little_for_the_screen() -> None:
    names = [entry.name for entry in plan(LLAMA_8B, gpu(23.5)).items]
    assert names[-3:] == ["CUDA graphs", "CUDA context", "Reserve"]
    large = Device("cuda", 0, "GPU", 140 * GIB, 139 * GIB, (9, 0))
    assert item(plan(LLAMA_8B, large), "Reserve") == 2 * GIB
