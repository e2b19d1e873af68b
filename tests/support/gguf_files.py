"""Writes tiny but complete GGUF checkpoints, as llama.cpp's converter writes large ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from octavo.checkpoint.gguf import BLOCK_LAYOUT, GGMLType

Array = npt.NDArray[Any]

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MERGES = (
    "t h|th e|Ġ the|i n|e r|o n|a n|an d|Ġ and|r e|Ġ a|i s|Ġ is|l l|h e|he ll|hell o|H e|He ll"
    "|Hell o|Ġ w|o r|l d|Ġw or|Ġwor ld|o u|y ou|Ġ you|in g|o f|Ġ of|t o|Ġ to|e n|a t|e s|s t"
    "|a l|i t|u s|us er|a s|as s|ass is|assis t|assist an|assistan t|Ġ Ġ|ĠĠ ĠĠ|Ċ Ċ"
)
MERGES = tuple(_MERGES.split("|"))
_FILE_TYPES = {
    GGMLType.F32: 0,
    GGMLType.F16: 1,
    GGMLType.Q4_0: 2,
    GGMLType.Q4_1: 3,
    GGMLType.Q8_0: 7,
    GGMLType.Q5_0: 8,
    GGMLType.Q5_1: 9,
    GGMLType.Q6_K: 18,
    GGMLType.BF16: 32,
}


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Writes the `rope.scaling` keys; `llama3` becomes a `rope_freqs.weight` tensor instead."""

    type: str
    factor: float = 4.0
    original_context_length: int | None = 64
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attn_factor: float | None = None

    def freq_factors(self, theta: float, rotary_dim: int) -> Array:
        """The divisors of the inverse frequencies that llama.cpp's converter bakes for Llama 3."""
        assert self.original_context_length is not None
        low = self.original_context_length / self.low_freq_factor
        high = self.original_context_length / self.high_freq_factor
        factors = []
        for inverse in theta ** -(np.arange(0, rotary_dim, 2) / rotary_dim):
            wavelength = 2 * np.pi / inverse
            if wavelength < high:
                factors.append(1.0)
            elif wavelength > low:
                factors.append(self.factor)
            else:
                smooth = (self.original_context_length / wavelength - self.low_freq_factor) / (
                    self.high_freq_factor - self.low_freq_factor
                )
                factors.append(1 / ((1 - smooth) / self.factor + smooth))
        return np.array(factors, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class TinyLlama:
    """A random llama whose logits are spread widely enough that the greedy choice is clear."""

    seed: int = 0
    num_layers: int = 2
    hidden_size: int = 64
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    intermediate_size: int = 96
    context_length: int = 256
    tie_embeddings: bool = True
    attention_bias: bool = False
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-5
    ggml_type: GGMLType = GGMLType.F32
    """Of every matrix; norms, biases and rope factors are always F32."""
    name: str = "Tiny Llama"
    tokenizer_pre: str = "smollm"
    chat_template: str | None = CHATML_TEMPLATE
    extra_vocab: int = 0
    """Unused tokens at the end, to reach a vocabulary size of one's choice."""

    @property
    def tokens(self) -> list[str]:
        """Specials, the 256 bytes in GPT-2's alphabet, the merged tokens, the unused ones."""
        alphabet = [byte_symbol(byte) for byte in range(256)]
        merged = [merge.replace(" ", "") for merge in MERGES]
        unused = [f"<unused_{i}>" for i in range(self.extra_vocab)]
        return [*SPECIAL_TOKENS, *alphabet, *merged, *unused]

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def weights(self) -> dict[str, Array]:
        """Float32 weights under their Hugging Face names, before any quantisation."""
        random = np.random.default_rng(self.seed)

        def matrix(rows: int, columns: int, gain: float = 1.0) -> Array:
            return _float32(random.standard_normal((rows, columns)) * gain * columns**-0.5)

        def norm() -> Array:
            return _float32(1 + 0.1 * random.standard_normal(self.hidden_size))

        hidden, kv_size = self.hidden_size, self.num_kv_heads * self.head_dim
        query_size = self.num_heads * self.head_dim
        weights = {"model.embed_tokens.weight": matrix(self.vocab_size, hidden)}
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}."
            sizes = {"q": query_size, "k": kv_size, "v": kv_size, "o": hidden}
            weights[prefix + "input_layernorm.weight"] = norm()
            for part, rows in sizes.items():
                columns = query_size if part == "o" else hidden
                gain = 1.5 if part in "qk" else 2.0
                weights[f"{prefix}self_attn.{part}_proj.weight"] = matrix(rows, columns, gain)
                if self.attention_bias:
                    weights[f"{prefix}self_attn.{part}_proj.bias"] = _float32(
                        0.3 * random.standard_normal(rows)
                    )
            weights[prefix + "post_attention_layernorm.weight"] = norm()
            weights[prefix + "mlp.gate_proj.weight"] = matrix(self.intermediate_size, hidden, 1.5)
            weights[prefix + "mlp.up_proj.weight"] = matrix(self.intermediate_size, hidden, 1.5)
            weights[prefix + "mlp.down_proj.weight"] = matrix(hidden, self.intermediate_size, 2.0)
        weights["model.norm.weight"] = norm()
        if not self.tie_embeddings:
            weights["lm_head.weight"] = matrix(self.vocab_size, hidden)
        return weights

    def metadata(self) -> dict[str, Any]:
        """The key-value section of the file."""
        llama: dict[str, Any] = {
            "block_count": self.num_layers,
            "context_length": self.context_length,
            "embedding_length": self.hidden_size,
            "feed_forward_length": self.intermediate_size,
            "attention.head_count": self.num_heads,
            "attention.head_count_kv": self.num_kv_heads,
            "attention.layer_norm_rms_epsilon": self.rms_norm_eps,
            "rope.freq_base": float(self.rope_theta),
            "rope.dimension_count": self.head_dim,
            "vocab_size": self.vocab_size,
        }
        if self.head_dim * self.num_heads != self.hidden_size:
            llama["attention.key_length"] = self.head_dim
            llama["attention.value_length"] = self.head_dim
        scaling = self.rope_scaling
        if scaling is not None and scaling.type != "llama3":
            llama["rope.scaling.type"] = scaling.type
            llama["rope.scaling.factor"] = float(scaling.factor)
            if scaling.original_context_length is not None:
                llama["rope.scaling.original_context_length"] = scaling.original_context_length
            if scaling.attn_factor is not None:
                llama["rope.scaling.attn_factor"] = float(scaling.attn_factor)
        num_unused = self.extra_vocab
        num_normal = self.vocab_size - len(SPECIAL_TOKENS) - num_unused
        metadata: dict[str, Any] = {
            "general.name": self.name,
            "general.license": "apache-2.0",
            **{f"llama.{key}": value for key, value in llama.items()},
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": self.tokenizer_pre,
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": [3] * len(SPECIAL_TOKENS)
            + [1] * num_normal
            + [5] * num_unused,
            "tokenizer.ggml.merges": list(MERGES),
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.padding_token_id": 2,
            "tokenizer.ggml.add_bos_token": False,
            "tokenizer.ggml.add_space_prefix": False,
        }
        if self.ggml_type in _FILE_TYPES:
            metadata["general.file_type"] = _FILE_TYPES[self.ggml_type]
        if self.chat_template is not None:
            metadata["tokenizer.chat_template"] = self.chat_template
        return metadata

    def tensors(self) -> dict[str, tuple[GGMLType, Array]]:
        """Tensors under their GGUF names, q and k permuted, matrices quantised."""
        tensors: dict[str, tuple[GGMLType, Array]] = {}
        for name, weight in self.weights().items():
            kind = self.ggml_type if weight.ndim == 2 else GGMLType.F32
            if ".q_proj." in name:
                weight = permute(weight, self.num_heads)
            elif ".k_proj." in name:
                weight = permute(weight, self.num_kv_heads)
            tensors[gguf_name(name)] = (kind, quantize(weight, kind))
        if self.rope_scaling is not None and self.rope_scaling.type == "llama3":
            factors = self.rope_scaling.freq_factors(self.rope_theta, self.head_dim)
            tensors["rope_freqs.weight"] = (GGMLType.F32, factors)
        return tensors

    def write(self, path: Path) -> Path:
        return write_gguf(path, self.metadata(), self.tensors())


def write_tiny_llama(path: Path, **options: Any) -> Path:
    """Writes a random llama and returns the path; the options are the fields of `TinyLlama`."""
    return TinyLlama(**options).write(path)


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[GGMLType, Array]],
    *,
    architecture: str = "llama",
) -> Path:
    """Writes any metadata and tensors (float32, or raw bytes of blocks row by row)."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, Sequence):
            writer.add_array(key, value)
        else:
            raise TypeError(f"{key}: {type(value)}")
    for name, (kind, array) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=gguf.GGMLQuantizationType(int(kind)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_split_llama(folder: Path, model: TinyLlama, num_parts: int = 3) -> list[Path]:
    """Writes a model in parts, as llama.cpp's splitter does, and returns their paths."""
    tensors = list(model.tensors().items())
    step = -(-len(tensors) // num_parts)
    paths = []
    for index in range(num_parts):
        split = {
            "split.no": index,
            "split.count": num_parts,
            "split.tensors.count": len(tensors),
        }
        path = folder / f"tiny-{index + 1:05d}-of-{num_parts:05d}.gguf"
        part = dict(tensors[index * step : (index + 1) * step])
        paths.append(write_gguf(path, split | (model.metadata() if index == 0 else {}), part))
    return paths


def gguf_name(name: str) -> str:
    """The GGUF name of a tensor of a Hugging Face llama."""
    fixed = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in fixed:
        return fixed[name]
    _, _, layer, module, *rest = name.split(".")
    parts = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "q_proj": "attn_q",
        "k_proj": "attn_k",
        "v_proj": "attn_v",
        "o_proj": "attn_output",
        "gate_proj": "ffn_gate",
        "up_proj": "ffn_up",
        "down_proj": "ffn_down",
    }
    part = module if module in parts else rest[0]
    return f"blk.{layer}.{parts[part]}.{rest[-1]}"


def permute(weight: Array, num_heads: int) -> Array:
    """Reorders rows from split halves (Hugging Face) to interleaved pairs (GGUF's llama)."""
    rows = weight.shape[0]
    halves = weight.reshape(num_heads, 2, rows // num_heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def quantize(weight: Array, kind: GGMLType) -> Array:
    """Rows as the file stores them; types that gguf cannot write get random blocks instead."""
    if kind is GGMLType.F32:
        return weight
    try:
        quantised: Array = gguf.quants.quantize(weight, gguf.GGMLQuantizationType(int(kind)))
    except NotImplementedError:
        elements, num_bytes = BLOCK_LAYOUT[kind]
        blocks_per_row = weight.shape[1] // elements
        blocks = random_blocks(kind, weight.shape[0] * blocks_per_row, seed=weight.size)
        return blocks.reshape(weight.shape[0], blocks_per_row * num_bytes)
    return quantised


_SCALE_OFFSETS = {
    GGMLType.Q4_0: (0,),
    GGMLType.Q4_1: (0, 2),
    GGMLType.Q5_0: (0,),
    GGMLType.Q5_1: (0, 2),
    GGMLType.Q8_0: (0,),
    GGMLType.IQ4_NL: (0,),
    GGMLType.Q2_K: (80, 82),
    GGMLType.Q3_K: (108,),
    GGMLType.Q4_K: (0, 2),
    GGMLType.Q5_K: (0, 2),
    GGMLType.Q6_K: (208,),
    GGMLType.IQ4_XS: (0,),
    GGMLType.IQ1_S: (0,),
    GGMLType.IQ2_XXS: (0,),
    GGMLType.IQ2_XS: (0,),
    GGMLType.IQ2_S: (0,),
    GGMLType.IQ3_XXS: (0,),
    GGMLType.IQ3_S: (0,),
    GGMLType.TQ1_0: (52,),
    GGMLType.TQ2_0: (64,),
    GGMLType.Q1_0: (0,),
}
"""Where the float16 scales of a block begin, in bytes."""


def random_blocks(kind: GGMLType, num_blocks: int, *, seed: int = 0) -> Array:
    """[num_blocks, bytes per block], uint8: random bytes, with scales that are finite and small."""
    random = np.random.default_rng(seed)
    _, num_bytes = BLOCK_LAYOUT[kind]
    blocks = random.integers(0, 256, (num_blocks, num_bytes), dtype=np.uint8)
    for offset in _SCALE_OFFSETS.get(kind, ()):
        scales = (random.standard_normal((num_blocks, 1)) * 1e-3).astype(np.float16)
        blocks[:, offset : offset + 2] = scales.view(np.uint8)
    if kind is GGMLType.IQ1_M:  # Its scale lies in the top bits of four words.
        bits = (random.standard_normal(num_blocks) * 1e-3).astype(np.float16).view(np.uint16)
        for i in range(4):
            byte = blocks[:, 49 + 2 * i]
            blocks[:, 49 + 2 * i] = (byte & 0x0F) | ((bits >> (4 * i) & 15) << 4).astype(np.uint8)
    if kind is GGMLType.MXFP4:
        blocks[:, 0] = random.integers(110, 125, num_blocks)
    return blocks


def _float32(values: Array) -> Array:
    return np.asarray(values, dtype=np.float32)


def byte_symbol(byte: int) -> str:
    """The printable character that stands for a byte in GPT-2's byte-level alphabet."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printable:
        return chr(byte)
    return chr(256 + byte - sum(1 for other in printable if other < byte))
