"""Plans a load for the executor that will run it: compiled CPU kernels, or torch. No torch here."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from octavo.checkpoint.folder import FolderHeader
from octavo.checkpoint.gguf import GGMLType
from octavo.checkpoint.header import CheckpointHeader
from octavo.engine.config import EngineConfig
from octavo.engine.device import Device
from octavo.engine.kernels.cpu.limits import ACTIVATIONS, BLOCK_SIZE, GROUP, MAX_HEAD_DIM
from octavo.engine.kernels.cpu.limits import MAX_GROUP_SIZE as MAX_SHARING_HEADS
from octavo.engine.memory import KV_CACHE, RESERVE, WORKSPACE, MemoryItem, MemoryPlan, plan_memory
from octavo.engine.model_config import ModelConfig
from octavo.engine.step_memory import kernel_workspace_bytes

_FORMS: Mapping[GGMLType, str] = MappingProxyType(
    {
        GGMLType.F32: "float32",
        GGMLType.F16: "float16",
        GGMLType.BF16: "bfloat16",
        GGMLType.Q4_0: "q4_0",
        GGMLType.Q4_1: "q4_1",
        GGMLType.Q5_0: "q5_0",
        GGMLType.Q5_1: "q5_1",
        GGMLType.Q8_0: "q8_0",
        GGMLType.Q4_K: "q4_k",
        GGMLType.Q5_K: "q5_k",
        GGMLType.Q6_K: "q6_k",
    }
)
"""Types of GGUF that kernels multiply by, and the forms of their tiles."""


_PLAIN_FORMS: Mapping[str, str] = MappingProxyType(
    {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
)
"""Types of safetensors, and the forms of their tiles."""
_INTEGER_FORMS = frozenset({"int4", "int8", "q4_0", "q4_1", "q8_0", "float16"})
"""What `cpu_weights.pack` may choose for quantised matrices of a folder."""

_HANDLED = frozenset(
    {
        "architecture",
        "name",
        "num_layers",
        "hidden_size",
        "intermediate_size",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope",
        "tie_word_embeddings",
        "num_parameters",
        "checkpoint_bytes",
        "quantization",
        "attention_bias",
        "attention_output_bias",
        "attention_scale",
        "attention_softcap",
        "final_softcap",
        "qk_norm",
        "norm_placement",
        "norm_offset",
        "norm_in_float32",
        "activation",
        "mlp_bias",
        "embedding_scale",
        "residual_scale",
        "logits_scale",
        "windows",
        "local_rope",
        "unrotated_layers",
        "has_sinks",
        "moe",
        "weight_format",
        "stored",
        "matrix_types",
    }
)
"""Fields of `ModelConfig` that the kernels' programs know; any other must have its default."""


def plan_load(
    header: CheckpointHeader, model: ModelConfig, config: EngineConfig, device: Device
) -> MemoryPlan:
    """Plans as `plan_memory`, for the kernels where they can run the model as it is asked for."""
    reason = why_not_kernels(header, model, config, device)
    if reason:
        return dataclasses.replace(plan_memory(model, config, device), why_not_kernels=reason)
    # Activations are 8-bit integers where they meet a matrix and float32 everywhere else.
    config = dataclasses.replace(config, dtype="float32", weights="packed", kv_dtype="float16")
    plan = plan_memory(model, config, device)
    num_tokens = plan.max_num_batched_tokens
    workspace = MemoryItem(
        WORKSPACE,
        kernel_workspace_bytes(model, config, num_tokens),
        f"one step of up to {num_tokens:,} tokens and {config.max_num_seqs} sequences, and the"
        " vocabulary",
    )
    return dataclasses.replace(
        plan,
        items=tuple(workspace if item.name == WORKSPACE else item for item in plan.items),
        # Layers get their matrices one by one, also plain numbers, and give them up when packed.
        keeps_packed=True,
        uses_kernels=True,
    )


def plan_meanwhile(plan: MemoryPlan, model: ModelConfig, config: EngineConfig) -> MemoryPlan | None:
    """Plans torch for the time until the kernels that `plan` is for are compiled.

    Its KV cache is cut as theirs, so that sequences can go from one to the other.

    Returns:
        None if there is no room for both at the same time.
    """
    kernels = [item for item in plan.items if item.name not in (KV_CACHE, RESERVE)]
    kernels_bytes = sum(item.num_bytes for item in kernels)
    rest = dataclasses.replace(plan.device, free_bytes=plan.free_bytes - kernels_bytes)
    config = dataclasses.replace(
        config,
        kv_dtype=plan.kv_dtype,
        num_kv_blocks=plan.num_kv_blocks,
        max_model_len=plan.max_model_len,
    )
    meanwhile = plan_memory(model, config, rest)
    kv_cache = [item for item in plan.items if item.name == KV_CACHE]
    others = [item for item in meanwhile.items if item.name != KV_CACHE]
    later = MemoryItem(
        "CPU kernels", kernels_bytes, "weights and workspace, once they are compiled"
    )
    meanwhile = dataclasses.replace(
        meanwhile,
        device=plan.device,
        items=(*others, *kv_cache, later),
        num_window_blocks=plan.num_window_blocks,
        why_not_kernels="PyTorch computes until the processor's kernels are compiled.",
    )
    return meanwhile if meanwhile.fits else None


def why_not_kernels(
    header: CheckpointHeader, model: ModelConfig, config: EngineConfig, device: Device
) -> str:
    """Why the CPU kernels do not run a model, as a sentence; empty: they do."""
    return (
        _why_not_asked_for(config, device)
        or why_not_on_this_machine()
        or _why_not_this_model(model)
        or _why_not_these_weights(header)
    )


def kernel_forms(header: CheckpointHeader) -> frozenset[str]:
    """The forms of tiles that a file's matrices come in, or may come in."""
    if isinstance(header, FolderHeader):
        return _folder_forms(header)
    matrices = (tensor for tensor in header.tensors.values() if len(tensor.shape) > 1)
    return frozenset(_FORMS[tensor.ggml_type] for tensor in matrices)


def _folder_forms(header: FolderHeader) -> frozenset[str]:
    """Of plain weights exactly; integers in groups may fit several, which their values decide."""
    forms = {
        _PLAIN_FORMS[tensor.dtype]
        for tensor in header.tensors.values()
        if len(tensor.shape) > 1 and tensor.dtype in _PLAIN_FORMS
    }
    if header.weight_format() is not None:
        forms |= _INTEGER_FORMS
    return frozenset(forms)


def _why_not_asked_for(config: EngineConfig, device: Device) -> str:
    if device.kind != "cpu":
        return f"The model runs on {device.name}."
    if config.cpu_kernels == "off":
        return "The CPU kernels are switched off."
    if config.dtype != "auto":
        return f"The data type {config.dtype} is asked for, and the CPU kernels choose their own."
    if config.weights == "unpacked":
        return "Unpacked weights are asked for, and the CPU kernels keep them packed."
    if config.kv_dtype not in ("auto", "float16"):
        return f"The CPU kernels cache keys and values in float16, not {config.kv_dtype}."
    if config.block_size != BLOCK_SIZE:
        return f"The CPU kernels know blocks of {BLOCK_SIZE} tokens, not of {config.block_size}."
    return ""


def why_not_on_this_machine() -> str:
    """Why the CPU kernels run no model here, as a sentence; empty: they do."""
    # Reads the processor's features with llvmlite, which is loaded only when a plan is made.
    from octavo.engine.kernels.cpu.simd_tier import Tier, host_features, tier_of

    if tier_of(host_features()) is Tier.NONE:
        return "The CPU kernels need AVX2, or ARM with dot products; this processor has neither."
    return ""


def _why_not_this_model(model: ModelConfig) -> str:
    for field in dataclasses.fields(model):
        if field.name in _HANDLED:
            continue
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if getattr(model, field.name) != default:
            return f"The CPU kernels do not know models with {field.name} yet."
    if model.activation not in ACTIVATIONS:
        return f"The CPU kernels do not know the activation {model.activation} yet."
    if model.head_dim % BLOCK_SIZE or model.head_dim > MAX_HEAD_DIM:
        return (
            f"The CPU kernels take heads of 16 to {MAX_HEAD_DIM} channels in steps of 16,"
            f" not of {model.head_dim}."
        )
    if model.num_heads // model.num_kv_heads > MAX_SHARING_HEADS:
        return f"The CPU kernels let at most {MAX_SHARING_HEADS} query heads share a key head."
    for name in ("hidden_size", "intermediate_size"):
        if getattr(model, name) % GROUP:
            size = getattr(model, name)
            return f"The CPU kernels take a {name} in steps of {GROUP}, not of {size}."
    if (experts := model.moe) is not None:
        if experts.has_biases:
            return "The CPU kernels do not know experts with biases yet."
        for size in (experts.intermediate_size, experts.shared_intermediate_size):
            if size % GROUP:
                return f"The CPU kernels take experts in steps of {GROUP} channels, not of {size}."
    if model.qk_norm == "all" and model.attention_bias:
        return "The CPU kernels do not know biases before norms over all heads."
    return ""


def _why_not_these_weights(header: CheckpointHeader) -> str:
    if isinstance(header, FolderHeader):
        return ""
    for tensor in header.tensors.values():
        if tensor.ggml_type not in _FORMS:
            return f"The CPU kernels do not know {tensor.ggml_type.name} weights yet."
    return ""
