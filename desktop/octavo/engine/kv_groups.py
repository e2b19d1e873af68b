"""KV groups: the layers of a model that keep the same tokens, and how many blocks that takes.

Layers that see the whole context form one group; layers with the same window form another. Each
group has its own blocks and block tables, so that a window's blocks can be given up as it moves.
"""

from dataclasses import dataclass

from octavo.engine.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers whose keys and values are kept for the same tokens."""

    window: int | None
    """How many keys a query sees; None: all."""
    layers: tuple[int, ...]


def kv_groups(model: ModelConfig, max_model_len: int) -> tuple[KVGroup, ...]:
    """Returns a model's groups: the full one first if there is one, then the widest first.

    A window that no sequence can outgrow is none.
    """
    layers: dict[int | None, list[int]] = {}
    for layer in range(model.num_layers):
        window = model.window(layer)
        if window is not None and window >= max_model_len:
            window = None
        layers.setdefault(window, []).append(layer)
    windows = sorted(layers, key=lambda window: (window is not None, -(window or 0)))
    return tuple(KVGroup(window, tuple(layers[window])) for window in windows)


def first_visible_block(position: int, window: int | None, block_size: int) -> int:
    """The index of the first block that queries from `position` on can see."""
    return 0 if window is None else max(0, position - window + 1) // block_size


def num_blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks of a whole sequence."""
    return -(-num_tokens // block_size)


def most_window_blocks(window: int, block_size: int, max_step_tokens: int) -> int:
    """The most blocks a sequence of any length needs at a time in a group with a window.

    Args:
        window: the group's.
        block_size: tokens of a block.
        max_step_tokens: the most tokens one step computes.
    """
    # The window and one token more (see `BlockManager.allocate`), wherever in a block they begin.
    return num_blocks_for(window + max_step_tokens - 1, block_size) + 1
