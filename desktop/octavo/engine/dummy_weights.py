"""Random weights as checkpoints store them: for shapes to measure, where values do not matter."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from octavo.checkpoint.gguf import BLOCK_LAYOUT, GGMLType
from octavo.checkpoint.weight_format import ROW
from octavo.engine.model_config import ModelConfig, StoredSizes
from octavo.engine.quantization.compressed_tensors import IntegersLinear, PackedIntegersLinear
from octavo.engine.quantization.float8 import Float8Linear
from octavo.engine.quantization.gguf import SCALE_OFFSETS
from octavo.engine.quantization.packed import PackedBlocks, PackedLinear, PackedWeight

DENSE = "bf16"
_GROUP_SIZE = 128
_GROUP_BITS = 4 + 16 / _GROUP_SIZE
_EMBEDDING, _HEAD, _ROUTER = "embed_tokens", "lm_head", "gate"
# What a format's integers come to on average, scales of blocks within blocks included.
_SIZES: Mapping[GGMLType, tuple[float, ...]] = MappingProxyType(
    {
        GGMLType.Q4_0: (4.6,),
        GGMLType.Q8_0: (74.0,),
        GGMLType.Q4_K: (290.0, 39.0),
        GGMLType.Q6_K: (1370.0,),
    }
)


class DummyFormat:
    """How the matrices of a dummy model are stored."""

    def __init__(self, describe: Callable[[str, int, int], GGMLType | str | None]) -> None:
        """Args:
        describe: a matrix's name, its layer and the number of layers to how it is stored: a type
            of GGUF, or one of `int4`, `int8` and `fp8`; None: in the type of the model.
        """
        self._describe = describe

    def stored(self, config: ModelConfig) -> StoredSizes:
        """What the weights take."""
        return StoredSizes.of(
            (2, rows * columns, round(rows * columns * _bits(kind) / 8), kind is not None)
            for kind, rows, columns in (
                (self._kind(name, config), *shape) for name, shape in _matrices(config)
            )
        )

    def make(
        self, name: str, shape: tuple[int, int], config: ModelConfig, device: torch.device
    ) -> torch.Tensor | PackedWeight:
        """Random weights of one matrix, as large as those of a trained model.

        Args:
            name: of its module.
            shape: (out_features, in_features).
            config: of the model.
            device: where they are to lie.
        """
        kind = self._kind(name, config)
        if kind is None:
            dense = torch.empty(shape, dtype=torch.bfloat16, device=device)
            return dense.normal_(0.0, shape[1] ** -0.5)
        return (
            _random_blocks(kind, shape, device)
            if isinstance(kind, GGMLType)
            else _random_linear(kind, shape, device)
        )

    def _kind(self, name: str, config: ModelConfig) -> GGMLType | str | None:
        parts = name.split(".")
        layer = int(parts[2]) if parts[1:2] == ["layers"] else 0
        return self._describe(parts[-1], layer, config.num_layers)


def _q4_k_m(name: str, layer: int, num_layers: int) -> GGMLType | None:
    """As llama.cpp mixes types: more bits for the head, and in half of the layers for two."""
    if name == _ROUTER:
        return None
    eighth = num_layers // 8
    is_outer = layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2
    has_more = name == _HEAD or (name in ("v_proj", "down_proj") and is_outer)
    return GGMLType.Q6_K if has_more else GGMLType.Q4_K


def _layers_only(kind: str) -> Callable[[str, int, int], str | None]:
    """Embedding, head and routers stay as they are, as quantisers of folders leave them."""
    kept = _EMBEDDING, _HEAD, _ROUTER
    return lambda name, _layer, _num_layers: None if name in kept else kind


DUMMY_FORMATS: Mapping[str, DummyFormat] = MappingProxyType(
    {
        "int4": DummyFormat(_layers_only("int4")),
        "int8": DummyFormat(_layers_only("int8")),
        "fp8": DummyFormat(_layers_only("fp8")),
        "q4_k_m": DummyFormat(_q4_k_m),
        "q8_0": DummyFormat(
            lambda name, _layer, _num_layers: None if name == _ROUTER else GGMLType.Q8_0
        ),
    }
)
"""By the names that `--weight-format` takes, besides `DENSE`."""


def _matrices(config: ModelConfig) -> list[tuple[str, tuple[int, int]]]:
    """All of a model's matrices, by name, with their shapes."""
    hidden = config.hidden_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    matrices = [(f"model.{_EMBEDDING}", (config.vocab_size, hidden))]
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        matrices += [
            (f"{prefix}self_attn.q_proj", (queries, hidden)),
            (f"{prefix}self_attn.k_proj", (keys, hidden)),
            (f"{prefix}self_attn.v_proj", (keys, hidden)),
            (f"{prefix}self_attn.o_proj", (hidden, queries)),
        ]
        matrices += _feed_forward(f"{prefix}mlp", config)
    if not config.tie_word_embeddings:
        matrices.append((_HEAD, (config.vocab_size, hidden)))
    return matrices


def _feed_forward(prefix: str, config: ModelConfig) -> list[tuple[str, tuple[int, int]]]:
    """Of one layer."""
    hidden, inner, count = config.hidden_size, config.intermediate_size, 1
    router = []
    if config.moe is not None:
        router = [(f"{prefix}.{_ROUTER}", (config.moe.num_experts, hidden))]
        inner, count = config.moe.intermediate_size, config.moe.num_experts
        prefix = f"{prefix}.experts"
    matrices = [
        (f"{prefix}.gate_proj", (inner, hidden)),
        (f"{prefix}.up_proj", (inner, hidden)),
        (f"{prefix}.down_proj", (hidden, inner)),
    ]
    return router + matrices * count


def _bits(kind: GGMLType | str | None) -> float:
    """Of a weight, scales included where they count."""
    if isinstance(kind, GGMLType):
        elements, num_bytes = BLOCK_LAYOUT[kind]
        return 8 * num_bytes / elements
    return {None: 16.0, "int4": _GROUP_BITS, "int8": 8.0, "fp8": 8.0}[kind]


def _random_blocks(
    ggml_type: GGMLType, shape: tuple[int, int], device: torch.device
) -> PackedBlocks:
    elements, num_bytes = BLOCK_LAYOUT[ggml_type]
    num_rows, num_columns = shape
    size = num_rows, num_columns // elements * num_bytes
    raw = torch.randint(0, 256, size, dtype=torch.uint8, device=device)
    blocks = raw.view(-1, num_bytes)
    for offset, average in zip(SCALE_OFFSETS[ggml_type], _SIZES[ggml_type], strict=True):
        scales = torch.rand(len(blocks), 1, device=device) + 0.5
        scales *= num_columns**-0.5 / average
        blocks[:, offset : offset + 2] = scales.half().view(torch.uint8)
    return PackedBlocks(raw, ggml_type)


def _random_linear(kind: str, shape: tuple[int, int], device: torch.device) -> PackedLinear:
    num_rows, num_columns = shape
    scales = torch.rand(num_rows, 1, device=device) + 0.5
    if kind == "int4":
        scales = torch.rand(num_rows, num_columns // _GROUP_SIZE, device=device) + 0.5
        scales = (scales * num_columns**-0.5 / 4.6).half()
        words = torch.randint(
            -(2**31), 2**31, (num_rows, num_columns // 8), dtype=torch.int32, device=device
        )
        packed = PackedIntegersLinear(words, scales, None, None, num_columns, 4, _GROUP_SIZE)
        return PackedLinear.whole(packed, kind, shape)
    if kind == "int8":
        values = torch.randint(-128, 128, shape, dtype=torch.int8, device=device)
        scales = scales * num_columns**-0.5 / 74
        return PackedLinear.whole(IntegersLinear(values, scales, None, None, ROW), kind, shape)
    assert kind == "fp8"
    floats = (torch.randn(shape, device=device) * 20).to(torch.float8_e4m3fn)
    scales = scales * num_columns**-0.5 / 20
    stored = Float8Linear(floats, scales, None, num_columns, has_float8_inputs=True)
    return PackedLinear.whole(stored, kind, shape)
