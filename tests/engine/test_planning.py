"""Who runs a model: the CPU kernels where they can, and a sentence where not."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from octavo.checkpoint.header import read_checkpoint
from octavo.engine.checkpoint_parts import read_model_config
from octavo.engine.config import EngineConfig
from octavo.engine.device import Device
from octavo.engine.kernels.cpu.simd_tier import Tier, host_features, tier_of
from octavo.engine.model_config import ModelConfig, MoEConfig, RopeConfig
from octavo.engine.planning import kernel_forms, plan_load, why_not_kernels
from tests.support.family_folders import write_family_folder
from tests.support.gguf_files import write_tiny_llama
from tests.support.quantized_folders import kind_named, write_quantized_folder

CPU = Device("cpu", 0, "test CPU", 8 << 30, 8 << 30)
GPU = Device("cuda", 0, "test GPU", 8 << 30, 8 << 30, (9, 0))

pytestmark = pytest.mark.skipif(
    tier_of(host_features()) is Tier.NONE, reason="this processor has no kernels"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny.gguf")


def reason(path: Path, *, device: Device = CPU, **config: Any) -> str:
    header = read_checkpoint(path)
    return why_not_kernels(header, read_model_config(header), EngineConfig(**config), device)


def test_the_kernels_run_what_they_can(path: Path) -> None:
    header = read_checkpoint(path)
    config = read_model_config(header)
    plan = plan_load(header, config, EngineConfig(), CPU)
    assert plan.uses_kernels
    assert plan.why_not_kernels == ""
    assert (plan.dtype, plan.kv_dtype) == ("float32", "float16")
    assert kernel_forms(header)


def test_forms_of_a_folder(tmp_path: Path) -> None:
    write_family_folder(tmp_path / "plain", "llama")
    assert kernel_forms(read_checkpoint(tmp_path / "plain")) == {"float32"}
    write_quantized_folder(tmp_path / "gptq", kind_named("gptq 4 bit v1"))
    assert {"int4", "q4_1"} <= kernel_forms(read_checkpoint(tmp_path / "gptq"))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"cpu_kernels": "off"}, "switched off"),
        ({"dtype": "float32"}, "float32 is asked for"),
        ({"weights": "unpacked"}, "Unpacked weights"),
        ({"kv_dtype": "int8"}, "float16, not int8"),
        ({"block_size": 8}, "blocks of 16 tokens, not of 8"),
        ({"device": CPU}, ""),
        ({"device": GPU}, "runs on test GPU"),
    ],
    ids=str,
)
def test_what_is_asked_for_counts(path: Path, config: dict[str, Any], words: str) -> None:
    found = reason(path, **config)
    assert words in found
    assert bool(words) == bool(found)


def test_torch_s_plan_says_why(path: Path) -> None:
    header = read_checkpoint(path)
    config = EngineConfig(dtype="bfloat16")
    plan = plan_load(header, read_model_config(header), config, CPU)
    assert not plan.uses_kernels
    assert plan.dtype == "bfloat16"
    assert "bfloat16 is asked for" in plan.why_not_kernels


def experts(**changes: Any) -> MoEConfig:
    values = {"num_experts": 4, "num_experts_per_token": 2, "intermediate_size": 64, **changes}
    return MoEConfig(**values)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head_dim": 24, "rope": RopeConfig(rotary_dim=24)}, "steps of 16, not of 24"),
        ({"head_dim": 512}, "not of 512"),
        ({"num_heads": 66, "num_kv_heads": 2}, "at most 32 query heads"),
        ({"hidden_size": 72}, "hidden_size in steps of 32, not of 72"),
        ({"activation": "clamped_swiglu"}, "activation clamped_swiglu"),
        ({"qk_norm": "all", "attention_bias": True}, "biases before norms"),
        ({"moe": experts(has_biases=True)}, "experts with biases"),
        ({"moe": experts(intermediate_size=24)}, "32 channels, not of 24"),
        ({"moe": experts()}, ""),
    ],
    ids=str,
)
def test_what_the_kernels_do_not_know_is_named(
    path: Path, changes: dict[str, Any], words: str
) -> None:
    header = read_checkpoint(path)
    model = dataclasses.replace(read_model_config(header), **changes)
    found = why_not_kernels(header, model, EngineConfig(), CPU)
    assert words in found
    assert bool(words) == bool(found)


def test_a_field_that_nobody_has_thought_of_keeps_a_model_from_the_kernels(path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Newer(ModelConfig):
        has_something_new: bool = False

    header = read_checkpoint(path)
    model = read_model_config(header)
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    assert why_not_kernels(header, Newer(**fields), EngineConfig(), CPU) == ""
    newer = Newer(**fields, has_something_new=True)
    assert "has_something_new" in why_not_kernels(header, newer, EngineConfig(), CPU)
