"""Which executor a model gets, and the sentence that says why not another."""

import importlib.util

import pytest
import torch

from octavo.engine.config import EngineConfig
from octavo.engine.device import Device
from octavo.engine.executors import choose_executor, triton_refusal
from octavo.engine.torch_executor import TorchExecutor
from tests.support.tiny_decoders import random_model, tiny_config, tiny_plan

GIB = 2**30


def card(capability: tuple[int, int]) -> Device:
    return Device("cuda", 0, "Some GPU", 24 * GIB, 20 * GIB, capability)


def works(_device: torch.device) -> str:
    return ""


@pytest.mark.parametrize(
    ("capability", "head_dim", "kv_dtype", "said"),
    [
        ((7, 5), 128, "float16", "compute capability 7.5; Triton's kernels need 8.0"),
        ((9, 0), 512, "bfloat16", "512 channels"),
        ((8, 6), 128, "float8_e4m3", "needs 8.9"),
    ],
)
def test_what_a_card_or_model_rules_out(
    capability: tuple[int, int], head_dim: int, kv_dtype: str, said: str
) -> None:
    refusal = triton_refusal(card(capability), head_dim, kv_dtype, probe=works)
    assert said in refusal
    assert refusal.endswith(".")


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "int8"])
def test_a_card_that_can(kv_dtype: str) -> None:
    assert triton_refusal(card((8, 0)), 128, kv_dtype, probe=works) == ""
    assert triton_refusal(card((8, 9)), 256, "float8_e4m3", probe=works) == ""


def test_no_compiler_is_one_sentence() -> None:
    def fails(_device: torch.device) -> str:
        return "RuntimeError: Failed to find C compiler"

    refusal = triton_refusal(card((9, 0)), 128, "bfloat16", probe=fails)
    assert refusal.count(". ") == 0
    assert "Failed to find C compiler" in refusal
    assert "C compiler and Python's headers." in refusal


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="Triton is here")
def test_no_triton_is_one_sentence() -> None:
    refusal = triton_refusal(card((9, 0)), 128, "bfloat16")
    assert refusal == "Triton, which builds the kernels, is not installed."


def test_the_cpu_gets_plain_torch() -> None:
    model_config, plan = tiny_config(), tiny_plan()
    executor = choose_executor(
        random_model(model_config, plan), model_config, plan, EngineConfig(device="cpu")
    )
    assert isinstance(executor, TorchExecutor)
