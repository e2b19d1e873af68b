"""Chooses what computes a model's forward pass on a device, and says why."""

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path

import torch

from octavo.engine.config import EngineConfig
from octavo.engine.device import MIN_TRITON_CAPABILITY, Device
from octavo.engine.executor import Executor
from octavo.engine.memory import MemoryPlan
from octavo.engine.model_config import ModelConfig
from octavo.engine.models.decoder import Decoder
from octavo.engine.step_memory import MAX_TRITON_HEAD_DIM
from octavo.engine.torch_executor import TorchExecutor

logger = logging.getLogger(__name__)

_MIN_FLOAT8_CAPABILITY = (8, 9)


def choose_executor(
    model: Decoder,
    model_config: ModelConfig,
    plan: MemoryPlan,
    config: EngineConfig,
    *,
    await_weights: Callable[[], object] = lambda: None,
) -> Executor:
    """Makes the fastest executor that can run a model on the plan's device.

    Args:
        model: loaded, or being loaded.
        model_config: its numbers.
        plan: for it.
        config: what was asked for.
        await_weights: returns when the model is loaded.

    Raises:
        InsufficientMemoryError: its KV cache could not be allocated.
    """
    if plan.device.kind != "cuda":
        await_weights()
        return TorchExecutor(model, model_config, plan)
    refusal = triton_refusal(plan.device, model_config.head_dim, plan.kv_dtype)
    if refusal:
        logger.warning("%s Plain torch is used.", refusal)
        await_weights()
        return TorchExecutor(model, model_config, plan, reason=f"{refusal} Plain torch is used.")
    from octavo.engine.cuda_executor import CudaExecutor

    return CudaExecutor(
        model,
        model_config,
        plan,
        max_num_seqs=config.max_num_seqs,
        reason=f"Triton builds kernels for {plan.device.name}.",
        await_weights=await_weights,
        tuning_table=None if config.gpu_tuning_table is None else Path(config.gpu_tuning_table),
    )


def triton_refusal(
    device: Device,
    head_dim: int,
    kv_dtype: str,
    *,
    probe: Callable[[torch.device], str] | None = None,
) -> str:
    """Why Triton's kernels cannot run a model on an NVIDIA card, as a sentence; empty if they can.

    Args:
        device: the card.
        head_dim: the model's.
        kv_dtype: of cached keys and values.
        probe: builds and runs a kernel and says what went wrong; None: the real one.
    """
    capability = device.compute_capability
    if capability is not None and capability < MIN_TRITON_CAPABILITY:
        return (
            f"{device.name} has compute capability {capability[0]}.{capability[1]}; Triton's"
            " kernels need 8.0."
        )
    if head_dim > MAX_TRITON_HEAD_DIM:
        return f"The heads have {head_dim} channels; our kernels take up to {MAX_TRITON_HEAD_DIM}."
    is_float8 = kv_dtype == "float8_e4m3"
    if is_float8 and capability is not None and capability < _MIN_FLOAT8_CAPABILITY:
        return (
            f"{device.name} has compute capability {capability[0]}.{capability[1]}; a KV cache in"
            " float8_e4m3 needs 8.9 in our kernels. int8 takes as little memory."
        )
    if probe is None:
        if importlib.util.find_spec("triton") is None:
            return "Triton, which builds the kernels, is not installed."
        from octavo.engine.kernels.triton.probe import probe_failure

        probe = probe_failure
    if failure := probe(torch.device(device.torch_name)):
        return (
            f"Triton cannot build kernels here ({failure}); it needs a C compiler and Python's"
            " headers."
        )
    return ""
