"""Blocks in all layers: shape, the null block, copies."""

import pytest
import torch

from octavo.engine.kv_cache import KVCache
from octavo.errors import InsufficientMemoryError


def make_cache(num_blocks: int = 6) -> KVCache:
    return KVCache(
        num_layers=3,
        num_blocks=num_blocks,
        block_size=4,
        num_kv_heads=2,
        head_dim=8,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def test_shape_and_null_block() -> None:
    cache = make_cache()
    assert len(cache.keys) == len(cache.values) == 3
    for tensor in (*cache.keys, *cache.values):
        assert tensor.shape == (6, 4, 2, 8)
        assert tensor.is_contiguous()
        assert not tensor[0].any()
    assert cache.num_bytes == 3 * 2 * 6 * 4 * 2 * 8 * 4


def test_copies_reach_every_layer_and_follow_each_other() -> None:
    cache = make_cache()
    for layer, (keys, values) in enumerate(zip(cache.keys, cache.values, strict=True)):
        for block in range(6):
            keys[block] = 10 * layer + block
            values[block] = -10 * layer - block
    cache.copy_blocks([(1, 4), (4, 5)])
    for layer, (keys, values) in enumerate(zip(cache.keys, cache.values, strict=True)):
        assert keys[:, 0, 0, 0].tolist() == [10 * layer + block for block in (0, 1, 2, 3, 1, 1)]
        assert values[:, 3, 1, 7].tolist() == [-10 * layer - block for block in (0, 1, 2, 3, 1, 1)]


def test_impossible_size_is_a_sentence() -> None:
    with pytest.raises(InsufficientMemoryError, match="could not be allocated") as caught:
        make_cache(num_blocks=1 << 44)
    assert caught.value.needed_bytes > 1 << 50
