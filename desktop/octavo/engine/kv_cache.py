"""`KVCache`: the keys and values of all cached tokens, in blocks."""

from collections.abc import Sequence

import torch

from octavo.engine.attention.base import LayerCache
from octavo.engine.device_errors import is_lost
from octavo.engine.kv_groups import KVGroup
from octavo.errors import InsufficientMemoryError

STORAGE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8_e4m3": torch.float8_e4m3fn,
    "int8": torch.int8,
}
"""By the names that `MemoryPlan.kv_dtype` knows."""


class KVCache:
    """Keys and values of every layer, in blocks that belong to sequences.

    ```
    block table of a sequence of 6 tokens, block_size 4:   [3, 1]

    block    0 (null)   1          2          3
             · · · ·    4 5 · ·    · · · ·    0 1 2 3
    ```

    Each KV group counts its own blocks. Block 0 is the null block: it is never written and holds
    zeros, so that what stands for "no token" can be read without harm. All other blocks hold
    garbage until they are written.
    """

    def __init__(
        self,
        groups: Sequence[KVGroup],
        *,
        num_blocks: Sequence[int],
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: str,
        device: torch.device,
    ) -> None:
        """Allocates all blocks.

        Args:
            groups: which layers belong together.
            num_blocks: of each group, the null block included.
            block_size: tokens of a block.
            num_kv_heads: of every layer.
            head_dim: of every layer.
            dtype: one of `STORAGE_DTYPES`; `int8` has a scale for each token and head.
            device: where the blocks lie.

        Raises:
            InsufficientMemoryError: the device has not that much.
        """
        storage_dtype = STORAGE_DTYPES[dtype]
        self._storages: list[torch.Tensor] = []
        self._scales: list[torch.Tensor] = []
        try:
            for group, count in zip(groups, num_blocks, strict=True):
                shape = (len(group.layers), 2, count, block_size, num_kv_heads)
                storage = torch.empty((*shape, head_dim), dtype=storage_dtype, device=device)
                # Zeros of every type are zero bytes, and not every type can be filled.
                storage.view(torch.uint8)[:, :, 0] = 0
                self._storages.append(storage)
                if storage_dtype is torch.int8:
                    scales = torch.empty(shape, dtype=torch.float16, device=device)
                    scales[:, :, 0] = 0
                    self._scales.append(scales)
        except RuntimeError as error:  # torch has one class for this on the GPU, none on the CPU.
            if is_lost(error):
                raise
            num_slots = block_size * sum(
                len(group.layers) * count for group, count in zip(groups, num_blocks, strict=True)
            )
            needed_bytes = 2 * num_slots * num_kv_heads * head_dim * storage_dtype.itemsize
            raise InsufficientMemoryError(
                f"The KV cache of {sum(num_blocks)} blocks ({needed_bytes / 2**30:.1f} GiB) could"
                f" not be allocated on {device}.",
                hint="Close other programs, or set a smaller num_kv_blocks.",
                needed_bytes=needed_bytes,
                free_bytes=0,
            ) from error
        layers: dict[int, LayerCache] = {}
        for number, group in enumerate(groups):
            for index, layer in enumerate(group.layers):
                keys, values = self._storages[number][index]
                key_scales, value_scales = None, None
                if self._scales:
                    key_scales, value_scales = self._scales[number][index]
                layers[layer] = LayerCache(keys, values, key_scales, value_scales)
        self.layers: tuple[LayerCache, ...] = tuple(layers[layer] for layer in sorted(layers))
        """Of each layer of the model."""

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self._storages, *self._scales))

    def copy_blocks(self, copies: Sequence[tuple[int, int, int]]) -> None:
        """Copies whole blocks in all layers of a group: (group, source, destination) in turn."""
        for group, source, destination in copies:
            assert destination != 0
            for tensors in (self._storages, self._scales):
                if tensors:
                    tensors[group][:, :, destination] = tensors[group][:, :, source]
