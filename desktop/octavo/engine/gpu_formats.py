"""Which stored weights the kernels of NVIDIA cards multiply by as they are; no torch.

The layout they are brought into, and its limits, are in `kernels/triton/tiles.py`.
"""

from octavo.checkpoint.gguf import GGMLType
from octavo.checkpoint.weight_format import ROW, WHOLE, Layout, LinearFormat
from octavo.engine.model_config import ModelConfig

MULTIPLIED_TYPES = frozenset(
    {
        GGMLType.Q4_0,
        GGMLType.Q4_1,
        GGMLType.Q5_0,
        GGMLType.Q5_1,
        GGMLType.Q8_0,
        GGMLType.Q4_K,
        GGMLType.Q5_K,
        GGMLType.Q6_K,
    }
)
"""Types of GGUF's blocks."""
_PLAIN_TYPES = frozenset({GGMLType.F32, GGMLType.F16, GGMLType.BF16})
_INTEGER_LAYOUTS = frozenset(
    {
        Layout.PACKED_INTEGERS,
        Layout.INTEGERS,
        Layout.GPTQ,
        Layout.AWQ,
        Layout.BITSANDBYTES_8BIT,
    }
)
_GROUP_SIZES = frozenset({32, 64, 128, ROW, WHOLE})
_TILE_FEATURES = 128


def multiplies_packed(model: ModelConfig) -> bool:
    """Whether all of a model's matrices can stay packed and be multiplied by kernels."""
    if any(size % _TILE_FEATURES for size in _input_sizes(model)):
        return False
    if model.moe is not None and model.moe.has_biases:
        return False
    if model.matrix_types:
        quantized = model.matrix_types - _PLAIN_TYPES
        return bool(quantized) and quantized <= MULTIPLIED_TYPES
    linear = None if model.weight_format is None else model.weight_format.default
    return linear is not None and _fits(linear)


def _input_sizes(model: ModelConfig) -> tuple[int, ...]:
    """Input features of the matrices that are stored packed."""
    sizes = model.hidden_size, model.num_heads * model.head_dim
    if model.moe is None:
        return *sizes, model.intermediate_size
    experts = model.moe.intermediate_size, model.moe.shared_intermediate_size
    return *sizes, *experts, model.intermediate_size if model.moe.dense_layers else 0


def _fits(linear: LinearFormat) -> bool:
    if linear.layout is Layout.FLOAT8:
        return linear.block_shape is None or linear.block_shape[1] % _TILE_FEATURES == 0
    has_bits = linear.bits in (4, 8)
    return linear.layout in _INTEGER_LAYOUTS and has_bits and linear.group_size in _GROUP_SIZES
