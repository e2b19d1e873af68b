"""The memory plan: what a model will need, item by item, before anything is loaded. No torch."""

import dataclasses
from dataclasses import dataclass

from octavo.engine.config import EngineConfig
from octavo.engine.device import Device
from octavo.engine.model_config import ModelConfig
from octavo.errors import InsufficientMemoryError
from octavo.units import format_bytes, format_count

BYTES_PER_ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}
MIN_CONTEXT_TOKENS = 512
"""A cache that cannot hold this many tokens (or the model's whole context) is not worth a load."""
DEFAULT_CPU_SEQUENCES = 4
"""Full-length sequences the default cache holds on the CPU, memory permitting."""

# What the plain-torch path holds at most at one time; the modules that hold it read it here.
MAX_GATHERED_TOKENS = 8192
"""Cached tokens gathered for one attention call, unless a single sequence is longer."""
MAX_ATTENTION_SCORES = 2**25
"""Query-key pairs times heads of one attention call of a prefill chunk."""
PROMPT_LOGPROB_ROWS = 64
"""Prompt positions projected onto the vocabulary at a time."""
SAMPLED_ROWS = 4
"""Sequences that draw a random token at a time."""
_SAMPLER_BYTES_PER_LOGIT = 40
_LIBRARY_BYTES = 48 * 2**20
"""What torch and its matrix libraries keep for themselves once they have run."""

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """One line of the plan."""

    name: str
    num_bytes: int
    detail: str


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What loading a model on a device takes, and what its KV cache will hold."""

    device: Device
    dtype: str
    items: tuple[MemoryItem, ...]
    num_kv_blocks: int
    """Includes block 0, the null block, which holds no tokens."""
    block_size: int
    max_model_len: int
    remedies: tuple[str, ...] = ()
    """What would make it fit, as sentences; empty if it fits."""

    @property
    def total_bytes(self) -> int:
        return sum(item.num_bytes for item in self.items)

    @property
    def free_bytes(self) -> int:
        return self.device.free_bytes

    @property
    def kv_tokens(self) -> int:
        """Tokens the KV cache can hold."""
        return (self.num_kv_blocks - 1) * self.block_size

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.free_bytes

    def require_fit(self) -> None:
        """Refuses a load that cannot end well.

        Raises:
            InsufficientMemoryError: more is needed than is free; the hint holds the remedies.
        """
        if self.fits:
            return
        raise InsufficientMemoryError(
            f"Needs {format_bytes(self.total_bytes)}, {format_bytes(self.free_bytes)} are free.",
            needed_bytes=self.total_bytes,
            free_bytes=self.free_bytes,
            hint=" ".join(self.remedies),
        )


def plan_memory(model: ModelConfig, config: EngineConfig, device: Device) -> MemoryPlan:
    """Plans a load: data type, size of the KV cache, and the sum of it all.

    The plan may not fit; `fits` says so, and `remedies` what would help.
    """
    plan = _plan_in(_choose_dtype(model, config, device), model, config, device)
    if plan.fits:
        return plan
    return dataclasses.replace(plan, remedies=_remedies(plan, model, config))


def _choose_dtype(model: ModelConfig, config: EngineConfig, device: Device) -> str:
    if config.dtype != "auto":
        return config.dtype
    if device.kind == "cuda":
        capability = device.compute_capability
        return "bfloat16" if capability is None or capability >= (8, 0) else "float16"
    # float32 is exact, and twice as large; a person's other programs want room, too.
    in_float32 = _plan_in("float32", model, config, device)
    return "float32" if in_float32.total_bytes <= device.free_bytes * 3 // 4 else "bfloat16"


def _plan_in(dtype: str, model: ModelConfig, config: EngineConfig, device: Device) -> MemoryPlan:
    element_bytes = BYTES_PER_ELEMENT[dtype]
    max_model_len = model.max_position_embeddings
    if config.max_model_len is not None:
        max_model_len = min(max_model_len, config.max_model_len)
    weights = MemoryItem(
        "Weights",
        model.num_parameters * element_bytes,
        f"{model.num_parameters / 1e6:,.0f} million parameters in {dtype}",
    )
    workspace = MemoryItem(
        "Workspace",
        _workspace_bytes(model, config, device, max_model_len, element_bytes),
        f"one step of up to {config.max_num_batched_tokens} tokens"
        f" and {config.max_num_seqs} sequences",
    )
    reserve = _reserve(device)
    block_bytes = config.block_size * model.kv_bytes_per_token(element_bytes)
    num_kv_blocks = config.num_kv_blocks
    if num_kv_blocks is None:
        rest_bytes = device.free_bytes - weights.num_bytes - workspace.num_bytes - reserve.num_bytes
        num_kv_blocks = _default_kv_blocks(config, device, max_model_len, rest_bytes, block_bytes)
    kv_cache = MemoryItem(
        "KV cache",
        num_kv_blocks * block_bytes,
        f"{(num_kv_blocks - 1) * config.block_size:,} tokens in blocks of {config.block_size}",
    )
    return MemoryPlan(
        device=device,
        dtype=dtype,
        items=(weights, kv_cache, workspace, reserve),
        num_kv_blocks=num_kv_blocks,
        block_size=config.block_size,
        max_model_len=max_model_len,
    )


def _default_kv_blocks(
    config: EngineConfig, device: Device, max_model_len: int, rest_bytes: int, block_bytes: int
) -> int:
    """Room for a few full-length sequences; less if memory is short; never too little to use."""
    minimum = _num_blocks(min(max_model_len, MIN_CONTEXT_TOKENS), config.block_size) + 1
    if device.kind == "cpu":
        num_sequences = min(DEFAULT_CPU_SEQUENCES, config.max_num_seqs)
        rest_bytes //= 4
    else:
        num_sequences = config.max_num_seqs
    wanted = num_sequences * _num_blocks(max_model_len, config.block_size) + 1
    return max(minimum, min(wanted, rest_bytes // block_bytes))


def _num_blocks(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)


def _reserve(device: Device) -> MemoryItem:
    if device.kind == "cpu":
        num_bytes = max(_GIB, device.total_bytes // 10)
        return MemoryItem("Reserve", num_bytes, "left to the system and other programs")
    num_bytes = max(_GIB // 2, device.total_bytes // 20)
    return MemoryItem("Reserve", num_bytes, "left to the CUDA context and the screen")


def _workspace_bytes(
    model: ModelConfig,
    config: EngineConfig,
    device: Device,
    max_model_len: int,
    element_bytes: int,
) -> int:
    """What one step holds besides weights and cache, where it holds most."""
    num_tokens = config.max_num_batched_tokens
    query_size = model.num_heads * model.head_dim
    kv_size = model.num_kv_heads * model.head_dim
    # The residual stream and its normalised copy, each also once in float32.
    residual = num_tokens * model.hidden_size * 2 * (element_bytes + 4)
    # Projections and output; the rotation works on float32 copies.
    attention = num_tokens * (query_size + kv_size) * (2 * element_bytes + 3 * 4)
    gathered_tokens = max(MAX_GATHERED_TOKENS, max_model_len)
    attention += 2 * gathered_tokens * kv_size * element_bytes
    num_scores = min(MAX_ATTENTION_SCORES, model.num_heads * num_tokens * max_model_len)
    if device.kind == "cpu":
        # The fused kernel needs no scores, but a mask and where it comes from.
        attention += num_scores // model.num_heads * (element_bytes + 2)
    else:
        # Without a fused kernel for the mask, scores and probabilities are written out.
        attention += num_scores * 2 * 4
    mlp = num_tokens * model.intermediate_size * 4 * element_bytes
    num_rows = min(config.max_num_seqs, num_tokens)
    logits = num_rows * model.vocab_size * (element_bytes + 4)
    logits += min(SAMPLED_ROWS, num_rows) * model.vocab_size * _SAMPLER_BYTES_PER_LOGIT
    prompt_logits = PROMPT_LOGPROB_ROWS * model.vocab_size * (element_bytes + 16)
    return _LIBRARY_BYTES + residual + max(attention, mlp, logits, prompt_logits)


def _remedies(plan: MemoryPlan, model: ModelConfig, config: EngineConfig) -> tuple[str, ...]:
    """Sentences that each name one thing to do, checked by planning again."""
    device = plan.device
    remedies = []
    if (blocks := _fitting_kv_blocks(plan, model, config)) is not None:
        tokens = (blocks - 1) * plan.block_size
        remedies.append(f"Lower num_kv_blocks to {blocks} ({tokens:,} tokens).")
    length = plan.max_model_len // 2
    while length >= MIN_CONTEXT_TOKENS:
        shorter = dataclasses.replace(config, max_model_len=length)
        if _plan_in(plan.dtype, model, shorter, device).fits:
            remedies.append(f"Shorten the context to {length:,} tokens.")
            break
        length //= 2
    if plan.dtype == "float32" and _plan_in("bfloat16", model, config, device).fits:
        remedies.append("Choose bfloat16, which halves weights and KV cache.")
    missing_bytes = plan.total_bytes - plan.free_bytes
    remedies.append(f"Close other programs to free {format_bytes(missing_bytes)} more.")
    # Quantised weights are unpacked, so what counts is the number of parameters, not the file.
    fixed_bytes = plan.total_bytes - plan.items[0].num_bytes
    parameters = (plan.free_bytes - fixed_bytes) // BYTES_PER_ELEMENT["bfloat16"]
    if parameters >= 50e6:
        remedies.append(f"Or choose a model of at most {format_count(parameters)} parameters.")
    return tuple(remedies)


def _fitting_kv_blocks(plan: MemoryPlan, model: ModelConfig, config: EngineConfig) -> int | None:
    """The largest cache that fits, if the configuration asked for a larger one by number."""
    if config.num_kv_blocks is None:
        return None
    block_bytes = plan.block_size * model.kv_bytes_per_token(BYTES_PER_ELEMENT[plan.dtype])
    fitting = config.num_kv_blocks - _num_blocks(plan.total_bytes - plan.free_bytes, block_bytes)
    least = _num_blocks(min(plan.max_model_len, MIN_CONTEXT_TOKENS), plan.block_size) + 1
    return fitting if fitting >= least else None
