"""What one step takes beside weights and cache, and how many tokens it may have. No torch."""

from octavo.engine.config import EngineConfig
from octavo.engine.device import MIN_TRITON_CAPABILITY, Device
from octavo.engine.model_config import ModelConfig

BYTES_PER_ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}
KV_BYTES = {**BYTES_PER_ELEMENT, "float8_e4m3": 1, "int8": 1}
MAX_TRITON_HEAD_DIM = 256
"""Channels of a head that our kernels for NVIDIA cards take."""

CPU_STEP_TOKENS = 512
"""More make a product no faster there, and everybody else wait."""
_DEVICE_STEP_TOKENS = (16384, 8192, 4096, 2048, 1024)
_STEP_SHARE = 24
"""A step may take this part of a card's memory: 16,384 tokens of an 8B model on one of 80 GB, 4,096
on one of 24 GB."""

# What the plain-torch path holds at most at one time; the modules that hold it read it here.
MAX_GATHERED_TOKENS = 8192
"""Cached tokens gathered for one attention call, unless a single sequence is longer."""
MAX_ATTENTION_SCORES = 2**25
"""Query-key pairs times heads of one attention call of a prefill chunk."""
UNPACKED_SLAB_ELEMENTS = 2**19
"""Values of a packed matrix that are unpacked at a time, unless a single row is longer."""
UNPACKED_DEVICE_SLAB_ELEMENTS = 2**23
"""The same on an accelerator, where few large steps are faster."""
PROMPT_LOGPROB_ROWS = 64
"""Prompt positions projected onto the vocabulary at a time."""
SAMPLED_ROWS = 4
"""Sequences that draw a random token at a time."""
_UNPACKING_BYTES_PER_ELEMENT = 36
"""Integers, scales of each value and products, in the widest of the formats: 3-bit GPTQ."""
_SAMPLER_BYTES_PER_LOGIT = 40
_VOCABULARY_BYTES_PER_TOKEN = 700
"""Texts, ids and merges, in Python and in the tokenizer's library."""
_LIBRARY_BYTES = 48 * 2**20
"""What torch and its matrix libraries keep for themselves once they have run."""
_GRAPH_BYTES = 8 * 2**20
"""What the driver keeps for one captured step."""
_CAPTURE_LIBRARY_BYTES = 64 * 2**20
"""The matrix libraries' workspace on the stream that steps are captured on."""


def step_tokens(model: ModelConfig, config: EngineConfig, device: Device, dtype: str) -> int:
    """The token budget of a step: as it is asked for, or as a device's memory lets it be.

    A card computes a prompt the faster the more of it comes at once; `PromptPace` sees to it that
    streams which run already do not wait for that.
    """
    if config.max_num_batched_tokens is not None:
        return config.max_num_batched_tokens
    if device.kind == "cpu":
        return CPU_STEP_TOKENS
    for num_tokens in _DEVICE_STEP_TOKENS:
        needed = workspace_bytes(
            model, config, device, max_model_len=num_tokens, num_tokens=num_tokens, dtype=dtype
        )
        if needed <= device.total_bytes // _STEP_SHARE:
            return num_tokens
    return CPU_STEP_TOKENS


def kernel_workspace_bytes(model: ModelConfig, config: EngineConfig, num_tokens: int) -> int:
    """What the CPU's kernels work in, the vocabulary, and what sampling with torch takes.

    As `cpu_program` allocates it: activations as float32 and, in front of a matrix, as 8-bit
    integers with their scales, which take two bytes a channel.
    """
    both = 4 + 2
    hidden = model.hidden_size
    query_size = model.num_heads * model.head_dim
    projected = query_size + 2 * model.num_kv_heads * model.head_dim
    feed = (2 * 4 + both) * model.intermediate_size
    token_bytes = (3 * 4 + both) * hidden + 4 * projected + both * query_size + feed
    if (experts := model.moe) is not None:
        feed = (2 * 4 + both) * experts.intermediate_size
        token_bytes += experts.num_experts_per_token * ((4 + both) * hidden + feed)
        token_bytes += 4 * hidden + (2 * 4 + both) * experts.shared_intermediate_size
        token_bytes += 4 * experts.num_experts
    num_rows = max(PROMPT_LOGPROB_ROWS, min(config.max_num_seqs, num_tokens))
    logits = num_rows * 4 * model.vocab_size
    # Log-probabilities of a prompt, or what random tokens are drawn with.
    drawn = min(SAMPLED_ROWS, num_rows) * _SAMPLER_BYTES_PER_LOGIT
    sampling = max(drawn, PROMPT_LOGPROB_ROWS * 2 * 4) * model.vocab_size
    rows = num_rows * both * hidden
    vocabulary = model.vocab_size * _VOCABULARY_BYTES_PER_TOKEN
    return num_tokens * token_bytes + rows + logits + sampling + vocabulary


def workspace_bytes(
    model: ModelConfig,
    config: EngineConfig,
    device: Device,
    *,
    max_model_len: int,
    num_tokens: int,
    dtype: str,
) -> int:
    """What a step of so many tokens holds, where it holds most."""
    element_bytes = BYTES_PER_ELEMENT[dtype]
    query_size = model.num_heads * model.head_dim
    kv_size = model.num_kv_heads * model.head_dim
    mlp = num_tokens * model.intermediate_size * 4 * element_bytes
    mlp += num_tokens * _expert_elements(model) * element_bytes
    if _has_kernels(model, device):
        # The stream, its normalised copy, what is added next, and what the allocator has over.
        residual = num_tokens * model.hidden_size * 4 * element_bytes
        # Projections, the attended heads and their copies, and a float32 sum a head.
        attention = num_tokens * (3 * query_size + 4 * kv_size) * element_bytes
        attention += num_tokens * model.num_heads * 4
    else:
        # The residual stream and its normalised copy, each also once in float32.
        residual = num_tokens * model.hidden_size * 2 * (element_bytes + 4)
        # Projections and output; the rotation works on float32 copies.
        attention = num_tokens * (query_size + kv_size) * (2 * element_bytes + 3 * 4)
        gathered_tokens = max(MAX_GATHERED_TOKENS, max_model_len)
        attention += 2 * gathered_tokens * kv_size * element_bytes
        if config.kv_dtype not in ("auto", dtype):  # gathered as stored, then in the model's type
            attention += gathered_tokens * kv_size * KV_BYTES[config.kv_dtype]
        num_scores = min(MAX_ATTENTION_SCORES, model.num_heads * num_tokens * max_model_len)
        if device.kind == "cpu":
            # The fused kernel needs no scores, but a mask and where it comes from.
            attention += num_scores // model.num_heads * (element_bytes + 2)
        else:
            # Without a fused kernel for the mask, scores and probabilities are written out.
            attention += num_scores * 2 * 4
    num_rows = min(config.max_num_seqs, num_tokens)
    logits = num_rows * model.vocab_size * (element_bytes + 4)
    logits += min(SAMPLED_ROWS, num_rows) * model.vocab_size * _SAMPLER_BYTES_PER_LOGIT
    prompt_logits = PROMPT_LOGPROB_ROWS * model.vocab_size * (element_bytes + 16)
    return _LIBRARY_BYTES + residual + max(attention, mlp, logits, prompt_logits)


def unpacking_bytes(model: ModelConfig, device: Device) -> int:
    """What one slab of a packed matrix takes while it is unpacked."""
    slab_elements = (
        UNPACKED_SLAB_ELEMENTS if device.kind == "cpu" else UNPACKED_DEVICE_SLAB_ELEMENTS
    )
    longest_row = max(model.hidden_size, model.intermediate_size, model.num_heads * model.head_dim)
    num_bytes = max(slab_elements, longest_row) * _UNPACKING_BYTES_PER_ELEMENT
    if device.kind == "cpu" or model.moe is None:
        return num_bytes
    # Kernels unpack gates and ups of an expert together, for prompts and once in captured steps.
    expert_elements = 2 * model.moe.intermediate_size * model.hidden_size
    return max(num_bytes, 2 * expert_elements * BYTES_PER_ELEMENT["bfloat16"])


def decode_graph_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """Rows of the decode steps that are captured; a step takes the next larger size.

    Close together where a row costs time, further apart where the weights' reading hides it.
    """
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 32), *range(256, max_num_seqs, 64)]
    return *(size for size in sizes if size < max_num_seqs), max_num_seqs


def graph_bytes(model: ModelConfig, max_num_seqs: int, dtype: str) -> int:
    """What decode steps that are captured beforehand keep."""
    qkv_size = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    row_elements = 6 * model.hidden_size + 2 * qkv_size + 3 * model.intermediate_size
    row_elements += _expert_elements(model)
    # The smaller steps use the memory of the largest.
    buffers = max_num_seqs * (row_elements + model.vocab_size) * BYTES_PER_ELEMENT[dtype]
    num_graphs = len(decode_graph_sizes(max_num_seqs))
    return buffers + num_graphs * _GRAPH_BYTES + _CAPTURE_LIBRARY_BYTES


def _expert_elements(model: ModelConfig) -> int:
    """What the experts of one token put out, before it is added up."""
    if model.moe is None:
        return 0
    picks = model.moe.num_experts_per_token
    return picks * (model.hidden_size + model.moe.intermediate_size)


def _has_kernels(model: ModelConfig, device: Device) -> bool:
    """Whether our kernels for NVIDIA cards can run a model, if Triton can build them there."""
    capability = device.compute_capability
    return (
        device.kind == "cuda"
        and (capability is None or capability >= MIN_TRITON_CAPABILITY)
        and model.head_dim <= MAX_TRITON_HEAD_DIM
    )
