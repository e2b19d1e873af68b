"""Which stored weights stay packed on NVIDIA cards, because kernels multiply by them."""

import dataclasses
from typing import Any

import pytest

from octavo.checkpoint.gguf import GGMLType
from octavo.checkpoint.weight_format import ROW, Layout, LinearFormat, WeightFormat
from octavo.engine.config import EngineConfig
from octavo.engine.device import Device
from octavo.engine.gpu_formats import MULTIPLIED_TYPES, multiplies_packed
from octavo.engine.memory import plan_memory
from octavo.engine.model_config import ModelConfig, MoEConfig, StoredSizes
from tests.support.model_shapes import SMOLLM2_135M

GIB = 2**30


def model(**changes: Any) -> ModelConfig:
    """Sizes that tiles divide."""
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_heads": 8, "num_kv_heads": 4}
    return dataclasses.replace(SMOLLM2_135M, **(sizes | changes))


def in_folder(layout: Layout, **numbers: Any) -> ModelConfig:
    linear = LinearFormat(layout, **({"bits": 4} | numbers))
    return model(weight_format=WeightFormat("", linear))


@pytest.mark.parametrize("kind", sorted(MULTIPLIED_TYPES), ids=lambda kind: kind.name)
def test_blocks_that_kernels_know(kind: GGMLType) -> None:
    assert multiplies_packed(model(matrix_types=frozenset({kind, GGMLType.F32, GGMLType.Q6_K})))


def test_one_unknown_type_is_enough_to_unpack() -> None:
    types = frozenset({GGMLType.Q4_K, GGMLType.IQ4_XS})
    assert not multiplies_packed(model(matrix_types=types))


def test_plain_numbers_gain_nothing() -> None:
    assert not multiplies_packed(model(matrix_types=frozenset({GGMLType.F16, GGMLType.F32})))
    assert not multiplies_packed(model())


def test_sizes_that_tiles_do_not_divide_are_unpacked() -> None:
    types = frozenset({GGMLType.Q8_0})
    assert not multiplies_packed(model(matrix_types=types, hidden_size=576))


@pytest.mark.parametrize(
    ("experts", "expected"),
    [
        (MoEConfig(8, 2, 256), True),
        (MoEConfig(8, 2, 192), False),
        (MoEConfig(8, 2, 256, shared_intermediate_size=384), True),
        (MoEConfig(8, 2, 256, shared_intermediate_size=400), False),
        (MoEConfig(8, 2, 256, has_biases=True), False),
    ],
)
def test_experts_are_as_wide_as_tiles_and_without_biases(
    experts: MoEConfig, expected: bool
) -> None:
    """The size of a dense feed-forward part counts only where a layer has one."""
    types = frozenset({GGMLType.Q4_K})
    mixture = model(matrix_types=types, moe=experts, intermediate_size=1000)
    assert multiplies_packed(mixture) == expected
    dense = dataclasses.replace(experts, dense_layers=frozenset({0}))
    assert not multiplies_packed(dataclasses.replace(mixture, moe=dense))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (in_folder(Layout.GPTQ, group_size=128), True),
        (in_folder(Layout.GPTQ, bits=8, group_size=32), True),
        (in_folder(Layout.GPTQ, bits=3, group_size=128), False),
        (in_folder(Layout.AWQ, group_size=64), True),
        (in_folder(Layout.PACKED_INTEGERS, group_size=16), False),
        (in_folder(Layout.INTEGERS, bits=8, group_size=ROW), True),
        (in_folder(Layout.BITSANDBYTES_8BIT, bits=8), True),
        (in_folder(Layout.BITSANDBYTES_4BIT), False),
        (in_folder(Layout.FLOAT8, bits=8), True),
        (in_folder(Layout.FLOAT8, bits=8, block_shape=(128, 128)), True),
        (in_folder(Layout.FLOAT8, bits=8, block_shape=(32, 24)), False),
    ],
)
def test_folders(config: ModelConfig, expected: bool) -> None:
    assert multiplies_packed(config) == expected


@pytest.mark.parametrize(
    ("capability", "dtype", "expected"),
    [((8, 0), "auto", True), ((7, 5), "auto", False), ((9, 0), "float32", False)],
)
def test_auto_packs_where_kernels_run(
    capability: tuple[int, int], dtype: str, expected: bool
) -> None:
    card = Device(
        kind="cuda",
        index=0,
        name="card",
        total_bytes=24 * GIB,
        free_bytes=24 * GIB,
        compute_capability=capability,
    )
    stored = StoredSizes(quantized_elements=10**8, quantized_bytes=56 * 10**6)
    config = model(matrix_types=frozenset({GGMLType.Q4_K}), stored=stored)
    assert plan_memory(config, EngineConfig(dtype=dtype), card).keeps_packed == expected
