"""`KVCache`: the keys and values of all cached tokens, in blocks."""

from collections.abc import Sequence

import torch

from octavo.errors import InsufficientMemoryError


class KVCache:
    """Keys and values of every layer, in blocks that belong to sequences.

    ```
    block table of a sequence of 6 tokens, block_size 4:   [3, 1]

    block    0 (null)   1          2          3
             · · · ·    4 5 · ·    · · · ·    0 1 2 3
    ```

    Block 0 is the null block: it is never written and holds zeros, so that what stands for "no
    token" can be read without harm. All other blocks hold garbage until they are written.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim)
        try:
            self._storage = torch.empty(shape, dtype=dtype, device=device)
        except RuntimeError as error:  # torch has one class for this on the GPU, none on the CPU.
            needed_bytes = 2 * num_layers * num_blocks * block_size * num_kv_heads * head_dim
            needed_bytes *= dtype.itemsize
            raise InsufficientMemoryError(
                f"The KV cache of {num_blocks} blocks ({needed_bytes / 2**30:.1f} GiB) could not"
                f" be allocated on {device}.",
                hint="Close other programs, or set a smaller num_kv_blocks.",
                needed_bytes=needed_bytes,
                free_bytes=0,
            ) from error
        self._storage[:, :, 0] = 0
        self.keys: tuple[torch.Tensor, ...] = tuple(layer[0] for layer in self._storage)
        """Per layer: [num_blocks, block_size, num_kv_heads, head_dim]."""
        self.values: tuple[torch.Tensor, ...] = tuple(layer[1] for layer in self._storage)
        """As `keys`."""

    @property
    def num_bytes(self) -> int:
        return self._storage.nbytes

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks in all layers, one (source, destination) after the other."""
        for source, destination in pairs:
            assert destination != 0
            self._storage[:, :, destination] = self._storage[:, :, source]
