"""The memory plan: what a model will need, item by item, before anything is loaded. No torch."""

import dataclasses
import operator
from dataclasses import dataclass

from octavo.engine.config import EngineConfig
from octavo.engine.device import MIN_TRITON_CAPABILITY, Device
from octavo.engine.gpu_formats import multiplies_packed
from octavo.engine.kv_groups import KVGroup, kv_groups, most_window_blocks, num_blocks_for
from octavo.engine.model_config import ModelConfig, StoredSizes
from octavo.engine.step_memory import (
    BYTES_PER_ELEMENT,
    CPU_STEP_TOKENS,
    KV_BYTES,
    decode_graph_sizes,
    graph_bytes,
    step_tokens,
    unpacking_bytes,
    workspace_bytes,
)
from octavo.errors import InsufficientMemoryError
from octavo.units import format_bytes, format_count

_KV_SCALE_BYTES = {"int8": 2}
"""For each token and head, beside what is scaled."""
MIN_CONTEXT_TOKENS = 512
"""A cache that cannot hold this many tokens (or the model's whole context) is not worth a load."""
DEFAULT_CPU_SEQUENCES = 4
"""Full-length sequences the default cache holds on the CPU, memory permitting."""

_WEIGHTS, _UNPACKED_WEIGHTS = "Weights", "Unpacked weights"
KV_CACHE, WORKSPACE, RESERVE = "KV cache", "Workspace", "Reserve"
"""Names of items of a plan."""

_GIB = 2**30
_CONTEXT_BYTES = 5 * 2**27
"""What the CUDA driver takes for a process, with the code of kernels: as measured on an H200."""
_MOST_RESERVED_BYTES = 2 * _GIB


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
    """Of the first KV group; includes block 0, the null block, which holds no tokens."""
    block_size: int
    max_model_len: int
    max_num_batched_tokens: int = CPU_STEP_TOKENS
    """Token budget of one step."""
    remedies: tuple[str, ...] = ()
    """What would make it fit, as sentences; empty if it fits."""
    num_window_blocks: tuple[int, ...] = ()
    """As `num_kv_blocks`, of the other KV groups: layers with a window."""
    most_blocks: int | None = None
    """What a sequence of any length needs at most in the first group, if that has a window and
    room for so many; None: the longer the sequence, the more."""
    keeps_packed: bool = False
    """Whether matrices lie in memory as the checkpoint stores them."""
    chosen_kv_dtype: str = "auto"
    """Of cached keys and values; `auto`: as `dtype`."""
    uses_kernels: bool = False
    """Whether compiled CPU kernels run the model, and not torch."""
    why_not_kernels: str = ""
    """If not, why, as a sentence."""

    @property
    def total_bytes(self) -> int:
        return sum(item.num_bytes for item in self.items)

    @property
    def free_bytes(self) -> int:
        return self.device.free_bytes

    @property
    def kv_dtype(self) -> str:
        """The type of cached keys and values."""
        return self.dtype if self.chosen_kv_dtype == "auto" else self.chosen_kv_dtype

    @property
    def num_group_blocks(self) -> tuple[int, ...]:
        """Of each KV group, null blocks included."""
        return self.num_kv_blocks, *self.num_window_blocks

    @property
    def kv_tokens(self) -> int:
        """Tokens of conversation there is room for; not all of them are kept by every layer."""
        if self.most_blocks is not None:
            return (self.num_kv_blocks - 1) // self.most_blocks * self.max_model_len
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
    """Plans a load: data type, how the weights lie, size of the KV cache, and the sum of it all.

    The plan may not fit; `fits` says so, and `remedies` what would help.
    """
    plan = None
    for keeps_packed in _packings(model, config, device):
        for dtype in _dtypes(config, device):
            plan = _plan_in(dtype, model, config, device, keeps_packed=keeps_packed)
            if _has_room(plan, config):
                return plan
    assert plan is not None
    # The last is the smallest.
    return plan if plan.fits else dataclasses.replace(plan, remedies=_remedies(plan, model, config))


def _packings(model: ModelConfig, config: EngineConfig, device: Device) -> tuple[bool, ...]:
    """Whether to keep the weights packed, what is better first.

    Plain torch unpacks a packed matrix anew each time it multiplies, which takes several times as
    long as the product. So unpacked weights are better wherever there is room for them, but for
    those that a GPU's kernels multiply by as they are.
    """
    if config.weights == "auto":
        return (True, False) if _has_gpu_kernels(model, config, device) else (False, True)
    return (config.weights == "packed",)


def _has_gpu_kernels(model: ModelConfig, config: EngineConfig, device: Device) -> bool:
    if device.kind != "cuda" or config.dtype == "float32":
        return False
    capability = device.compute_capability
    if capability is not None and capability < MIN_TRITON_CAPABILITY:
        return False
    return multiplies_packed(model)


def _dtypes(config: EngineConfig, device: Device) -> tuple[str, ...]:
    """Data types to try, what is better first."""
    if config.dtype != "auto":
        return (config.dtype,)
    if device.kind == "cuda":
        capability = device.compute_capability
        return ("bfloat16" if capability is None or capability >= (8, 0) else "float16",)
    return ("float32", "bfloat16")


def _has_room(plan: MemoryPlan, config: EngineConfig) -> bool:
    """Whether a plan is good enough not to look at what comes after it."""
    if plan.device.kind == "cuda" and not plan.keeps_packed:
        # Weights must not starve the cache, which gets what they leave.
        wanted = min(DEFAULT_CPU_SEQUENCES, config.max_num_seqs) * plan.max_model_len
        return plan.fits and (plan.kv_tokens >= wanted or config.num_kv_blocks is not None)
    if config.dtype == "auto" and plan.dtype == "float32":
        # float32 is exact, and twice as large; a person's other programs want room, too.
        return plan.total_bytes <= plan.free_bytes * 3 // 4
    return plan.fits


def _plan_in(
    dtype: str,
    model: ModelConfig,
    config: EngineConfig,
    device: Device,
    *,
    keeps_packed: bool,
) -> MemoryPlan:
    element_bytes = BYTES_PER_ELEMENT[dtype]
    stored = model.stored if keeps_packed else None
    unpacked_bytes = model.num_parameters * element_bytes
    if stored is not None and stored.packed_bytes(element_bytes) >= unpacked_bytes:
        # Plain numbers of the same type are the same either way, and multiplied faster unpacked.
        stored = None
    max_model_len = model.max_position_embeddings
    if config.max_model_len is not None:
        max_model_len = min(max_model_len, config.max_model_len)
    num_tokens = step_tokens(model, config, device, dtype)
    weights = _weights(model, dtype, stored)
    workspace = MemoryItem(
        WORKSPACE,
        workspace_bytes(
            model,
            config,
            device,
            max_model_len=max_model_len,
            num_tokens=num_tokens,
            dtype=dtype,
        )
        + (unpacking_bytes(model, device) if stored else 0),
        f"one step of up to {num_tokens:,} tokens and {config.max_num_seqs} sequences"
        + (", and the part of a matrix that is unpacked" if stored else ""),
    )
    driver = _driver(model, config, dtype) if device.kind == "cuda" else ()
    reserve = _reserve(device)
    groups = kv_groups(model, max_model_len)
    kv_dtype = dtype if config.kv_dtype == "auto" else config.kv_dtype
    block_bytes = [_block_bytes(model, group, config.block_size, kv_dtype) for group in groups]
    fixed_bytes = sum(item.num_bytes for item in (*weights, workspace, *driver, reserve))
    rest_bytes = device.free_bytes - fixed_bytes
    num_blocks = _num_blocks(
        config, device, groups, max_model_len, num_tokens, rest_bytes, block_bytes
    )
    kv_cache = MemoryItem(
        KV_CACHE,
        sum(count * size for count, size in zip(num_blocks, block_bytes, strict=True)),
        _kv_detail(groups, num_blocks, config.block_size, kv_dtype),
    )
    most = _most_blocks(groups[0], config, max_model_len, num_tokens)
    return MemoryPlan(
        device=device,
        dtype=dtype,
        items=(*weights, kv_cache, workspace, *driver, reserve),
        num_kv_blocks=num_blocks[0],
        block_size=config.block_size,
        max_model_len=max_model_len,
        max_num_batched_tokens=num_tokens,
        num_window_blocks=num_blocks[1:],
        most_blocks=most if groups[0].window is not None and num_blocks[0] > most else None,
        keeps_packed=stored is not None,
        chosen_kv_dtype=config.kv_dtype,
    )


def _weights(model: ModelConfig, dtype: str, stored: StoredSizes | None) -> tuple[MemoryItem, ...]:
    """As they are stored, or unpacked (`stored` is None)."""
    element_bytes = BYTES_PER_ELEMENT[dtype]
    parameters = f"{model.num_parameters / 1e6:,.0f} million parameters"
    if stored is None:
        num_bytes = model.num_parameters * element_bytes
        return (MemoryItem(_WEIGHTS, num_bytes, f"{parameters} in {dtype}"),)
    dense_bytes = stored.dense_bytes(element_bytes)
    packed_bytes = stored.packed_bytes(element_bytes) - dense_bytes
    return (
        MemoryItem(_WEIGHTS, packed_bytes, f"{parameters}, packed as stored: {model.quantization}"),
        MemoryItem(_UNPACKED_WEIGHTS, dense_bytes, f"norms and the like in {dtype}"),
    )


def _block_bytes(model: ModelConfig, group: KVGroup, block_size: int, kv_dtype: str) -> int:
    """One block in all layers of a group."""
    bytes_per_head = model.head_dim * KV_BYTES[kv_dtype] + _KV_SCALE_BYTES.get(kv_dtype, 0)
    return block_size * len(group.layers) * 2 * model.num_kv_heads * bytes_per_head


def _most_blocks(group: KVGroup, config: EngineConfig, max_model_len: int, num_tokens: int) -> int:
    """What one sequence needs at most in a group, the null block left out."""
    whole = num_blocks_for(max_model_len, config.block_size)
    if group.window is None:
        return whole
    most = most_window_blocks(group.window, config.block_size, num_tokens)
    return min(whole, most)


def _num_blocks(
    config: EngineConfig,
    device: Device,
    groups: tuple[KVGroup, ...],
    max_model_len: int,
    num_tokens: int,
    rest_bytes: int,
    block_bytes: list[int],
) -> tuple[int, ...]:
    """Room for a few full-length sequences; less if memory is short; never too little to use.

    Groups beside the first get up to half of the room: short sequences need as much of a window's
    blocks as of the others. None gets more blocks than the first, or than it can ever need.
    """
    if device.kind == "cpu":
        num_sequences = min(DEFAULT_CPU_SEQUENCES, config.max_num_seqs)
        rest_bytes //= 4
    else:
        num_sequences = config.max_num_seqs
    most = [_most_blocks(group, config, max_model_len, num_tokens) for group in groups]
    # A step is shared: while one sequence computes much of its prompt, the others compute little.
    least = [_most_blocks(group, config, max_model_len, 1) for group in groups]
    wanted = [(num_sequences - 1) * few + many + 1 for few, many in zip(least, most, strict=True)]
    wanted_bytes = sum(map(operator.mul, wanted[1:], block_bytes[1:]))
    half_bytes = max(0, rest_bytes // 2)
    others = [
        max(many + 1, count * min(half_bytes, wanted_bytes) // wanted_bytes)
        for many, count in zip(most[1:], wanted[1:], strict=True)
    ]
    first = config.num_kv_blocks
    if first is None:
        rest_bytes -= sum(map(operator.mul, others, block_bytes[1:]))
        minimum = num_blocks_for(min(max_model_len, MIN_CONTEXT_TOKENS), config.block_size) + 1
        first = max(minimum, min(wanted[0], rest_bytes // block_bytes[0]))
    return first, *(min(first, count) for count in others)


def _kv_detail(
    groups: tuple[KVGroup, ...], num_blocks: tuple[int, ...], block_size: int, kv_dtype: str
) -> str:
    parts = []
    for group, count in zip(groups, num_blocks, strict=True):
        tokens = f"{(count - 1) * block_size:,} tokens"
        if group.window is not None:
            tokens += f" for {len(group.layers)} layers that see {group.window:,}"
        parts.append(tokens)
    return f"{' and '.join(parts)}, in blocks of {block_size} and {kv_dtype}"


def _driver(model: ModelConfig, config: EngineConfig, dtype: str) -> tuple[MemoryItem, MemoryItem]:
    sizes = decode_graph_sizes(config.max_num_seqs)
    return (
        MemoryItem(
            "CUDA graphs",
            graph_bytes(model, config.max_num_seqs, dtype),
            f"decode steps of {len(sizes)} sizes, up to {config.max_num_seqs} sequences",
        ),
        MemoryItem("CUDA context", _CONTEXT_BYTES, "the driver's own; stays until Octavo ends"),
    )


def _reserve(device: Device) -> MemoryItem:
    if device.kind == "cpu":
        num_bytes = max(_GIB, device.total_bytes // 10)
        return MemoryItem(RESERVE, num_bytes, "left to the system and other programs")
    num_bytes = min(_MOST_RESERVED_BYTES, max(_GIB // 4, device.total_bytes // 20))
    return MemoryItem(RESERVE, num_bytes, "left to the screen and other programs")


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
        if _plan_in(plan.dtype, model, shorter, device, keeps_packed=plan.keeps_packed).fits:
            remedies.append(f"Shorten the context to {length:,} tokens.")
            break
        length //= 2
    if not plan.keeps_packed:
        packed = _plan_in(plan.dtype, model, config, device, keeps_packed=True)
        if packed.keeps_packed and packed.fits:
            remedies.append("Keep the weights packed, which is slower.")
    if plan.dtype == "float32":
        in_half = _plan_in("bfloat16", model, config, device, keeps_packed=plan.keeps_packed)
        if in_half.fits:
            halved = "the KV cache" if plan.keeps_packed else "weights and KV cache"
            remedies.append(f"Choose bfloat16, which halves {halved}.")
    missing_bytes = plan.total_bytes - plan.free_bytes
    remedies.append(f"Close other programs to free {format_bytes(missing_bytes)} more.")
    weights_bytes = sum(
        item.num_bytes for item in plan.items if item.name in (_WEIGHTS, _UNPACKED_WEIGHTS)
    )
    room_bytes = plan.free_bytes - (plan.total_bytes - weights_bytes)
    parameters = room_bytes // BYTES_PER_ELEMENT["bfloat16"]
    if plan.keeps_packed:
        # Of a model that is quantised as this one is.
        parameters = room_bytes * model.num_parameters // weights_bytes
    if parameters >= 50e6:
        remedies.append(f"Or choose a model of at most {format_count(parameters)} parameters.")
    return tuple(remedies)


def _fitting_kv_blocks(plan: MemoryPlan, model: ModelConfig, config: EngineConfig) -> int | None:
    """The largest cache that fits, if the configuration asked for a larger one by number."""
    if config.num_kv_blocks is None:
        return None
    group, *_ = kv_groups(model, plan.max_model_len)
    block_bytes = _block_bytes(model, group, plan.block_size, plan.kv_dtype)
    fitting = config.num_kv_blocks - num_blocks_for(plan.total_bytes - plan.free_bytes, block_bytes)
    least = num_blocks_for(min(plan.max_model_len, MIN_CONTEXT_TOKENS), plan.block_size) + 1
    return fitting if fitting >= least else None
