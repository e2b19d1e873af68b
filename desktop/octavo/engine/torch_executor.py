"""`TorchExecutor`: the modules of `models/` with a backend of `attention/`; runs everywhere."""

from collections.abc import Sequence

import torch

from octavo.engine.attention import choose_attention_backend
from octavo.engine.attention.base import AttentionMetadata, WindowTables
from octavo.engine.batch import IntArray, StepInputs
from octavo.engine.kv_cache import KVCache
from octavo.engine.kv_groups import kv_groups
from octavo.engine.memory import MemoryPlan
from octavo.engine.model_config import ModelConfig
from octavo.engine.models.decoder import DTYPES, Decoder


class TorchExecutor:
    """The readable forward pass, which every other executor is compared with."""

    name = "plain torch"

    def __init__(
        self, model: Decoder, config: ModelConfig, plan: MemoryPlan, *, reason: str = ""
    ) -> None:
        """Allocates the KV cache.

        Args:
            model: loaded, as `build_model` made it for the same plan.
            config: the model's numbers.
            plan: says device, data type and the size of the cache.
            reason: why this executor was chosen; empty: the attention backend's reason.

        Raises:
            InsufficientMemoryError: the cache could not be allocated.
        """
        self._model = model
        self._device = torch.device(plan.device.torch_name)
        groups = kv_groups(config, plan.max_model_len)
        self._windows = tuple(group.window for group in groups)
        self._kv_cache = KVCache(
            groups,
            num_blocks=plan.num_group_blocks,
            block_size=plan.block_size,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=plan.kv_dtype,
            device=self._device,
        )
        self._block_size = plan.block_size
        self._backend, backend_reason = choose_attention_backend(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            dtype=DTYPES[plan.dtype],
        )
        self.reason = reason or backend_reason

    @property
    def kv_cache_bytes(self) -> int:
        return self._kv_cache.num_bytes

    def copy_blocks(self, copies: Sequence[tuple[int, int, int]]) -> None:
        self._kv_cache.copy_blocks(copies)

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        hidden: torch.Tensor = self._model(
            self._to_device(inputs.token_ids),
            self._to_device(inputs.positions),
            self._kv_cache,
            self._backend.prepare(self._attention_metadata(inputs)),
        )
        return hidden

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._model.compute_logits(hidden)

    def _attention_metadata(self, inputs: StepInputs) -> AttentionMetadata:
        (slot_mapping, block_tables), *others = (
            (self._to_device(group.slot_mapping), self._to_device(group.block_tables))
            for group in inputs.groups
        )
        windows = (window for window in self._windows[1:] if window is not None)
        return AttentionMetadata(
            slot_mapping=slot_mapping,
            block_tables=block_tables,
            context_lens=self._to_device(inputs.context_lens),
            cu_seqlens_q=self._to_device(inputs.cu_seqlens_q),
            num_decode=inputs.num_decode,
            block_size=self._block_size,
            query_lens=tuple(item.num_tokens for item in inputs.sequences),
            host_context_lens=tuple(item.start + item.num_tokens for item in inputs.sequences),
            window_tables={
                window: WindowTables(*tables)
                for window, tables in zip(windows, others, strict=True)
            },
        )

    def _to_device(self, array: IntArray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)
