"""What attention is given and what it promises; backends stand in files beside this one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from octavo.engine.layer_cache import AttentionRule as AttentionRule
from octavo.engine.layer_cache import LayerCache as LayerCache


@dataclass(frozen=True, slots=True)
class WindowTables:
    """Where one step's tokens lie in a KV group of layers with a window."""

    slot_mapping: torch.Tensor
    """As in `AttentionMetadata`."""
    block_tables: torch.Tensor
    """As in `AttentionMetadata`; blocks that no query sees are 0, too."""


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """How one step's tokens belong to sequences and to blocks of the KV cache.

    Sequences with a single token come first. The tensors lie on the model's device; the numbers
    beside them are the same facts on the host, so that no backend has to wait for the device.
    """

    slot_mapping: torch.Tensor
    """[num_tokens], int64: where each token's keys and values are written; never in block 0."""
    block_tables: torch.Tensor
    """[num_seqs, max_blocks], int32; unused entries are 0. Like `slot_mapping` of the first KV
    group, and of every layer whose window has no entry in `window_tables`."""
    context_lens: torch.Tensor
    """[num_seqs], int32; includes this step's tokens."""
    cu_seqlens_q: torch.Tensor
    """[num_seqs + 1], int32."""
    num_decode: int
    """Sequences at the front that have one token each."""
    block_size: int
    query_lens: tuple[int, ...]
    """Tokens of each sequence in this step."""
    host_context_lens: tuple[int, ...]
    """`context_lens` on the host."""
    window_tables: Mapping[int, WindowTables] = field(default_factory=dict)
    """Of the other KV groups, by their window."""

    @property
    def max_seqlen_q(self) -> int:
        return max(self.query_lens)


class AttentionStep(Protocol):
    """Attention for one step, prepared once and called by every layer."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: LayerCache,
        rule: AttentionRule,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Writes this step's keys and values into the cache, then attends causally to all of it.

        Args:
            query: [num_tokens, num_heads, head_dim], already rotated.
            key: [num_tokens, num_kv_heads, head_dim], already rotated.
            value: as key.
            cache: the layer's.
            rule: the layer's.
            sinks: [num_heads]; a score of no key that takes its share of the probabilities.

        Returns:
            [num_tokens, num_heads, head_dim], type of query.
        """


class AttentionBackend(Protocol):
    """A way to compute attention on some device."""

    @property
    def name(self) -> str:
        """Short name for reports and logs."""

    def prepare(self, metadata: AttentionMetadata) -> AttentionStep:
        """Does once per step what all layers share: indices, masks, launch parameters."""
