"""Blocks in all layers: shape, the null block, copies, groups, data types."""

import pytest
import torch

from octavo.engine.kv_cache import STORAGE_DTYPES, KVCache
from octavo.engine.kv_groups import KVGroup
from octavo.errors import InsufficientMemoryError

ALL_LAYERS = (KVGroup(None, (0, 1, 2)),)


def make_cache(
    num_blocks: tuple[int, ...] = (6,),
    groups: tuple[KVGroup, ...] = ALL_LAYERS,
    dtype: str = "float32",
) -> KVCache:
    return KVCache(
        groups,
        num_blocks=num_blocks,
        block_size=4,
        num_kv_heads=2,
        head_dim=8,
        dtype=dtype,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("dtype", STORAGE_DTYPES)
def test_shape_and_null_block(dtype: str) -> None:
    cache = make_cache(dtype=dtype)
    assert len(cache.layers) == 3
    num_bytes = 0
    for layer in cache.layers:
        for tensor, scales in ((layer.keys, layer.key_scales), (layer.values, layer.value_scales)):
            assert tensor.shape == (6, 4, 2, 8)
            assert tensor.dtype is STORAGE_DTYPES[dtype]
            assert tensor.is_contiguous()
            assert not tensor[0].float().any()
            num_bytes += tensor.nbytes
            assert (scales is not None) == (dtype == "int8")
            if scales is not None:
                assert scales.shape == (6, 4, 2)
                assert scales.is_contiguous()
                assert not scales[0].any()
                num_bytes += scales.nbytes
    assert cache.num_bytes == num_bytes


def test_copies_reach_every_layer_and_follow_each_other() -> None:
    cache = make_cache()
    for number, layer in enumerate(cache.layers):
        for block in range(6):
            layer.keys[block] = 10 * number + block
            layer.values[block] = -10 * number - block
    cache.copy_blocks([(0, 1, 4), (0, 4, 5)])
    for number, layer in enumerate(cache.layers):
        expected = [10 * number + block for block in (0, 1, 2, 3, 1, 1)]
        assert layer.keys[:, 0, 0, 0].tolist() == expected
        assert layer.values[:, 3, 1, 7].tolist() == [-value for value in expected]


def test_groups_have_blocks_of_their_own() -> None:
    groups = (KVGroup(None, (1,)), KVGroup(8, (0, 2)))
    cache = make_cache((7, 3), groups, "int8")
    assert [len(layer.keys) for layer in cache.layers] == [3, 7, 3]
    for layer in cache.layers:
        assert layer.key_scales is not None
        for block in range(len(layer.keys)):
            layer.values[block] = block
            layer.key_scales[block] = block
    cache.copy_blocks([(1, 1, 2)])
    for layer, last in zip(cache.layers, (1, 2, 1), strict=True):
        assert layer.key_scales is not None
        assert bool((layer.values[2] == last).all())
        assert bool((layer.key_scales[2] == last).all())


def test_impossible_size_is_a_sentence() -> None:
    with pytest.raises(InsufficientMemoryError, match="could not be allocated") as caught:
        make_cache(num_blocks=(1 << 44,))
    assert caught.value.needed_bytes > 1 << 50
