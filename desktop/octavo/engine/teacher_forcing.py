"""`TeacherForcing`: a model's logits for every token of a given text; nothing is sampled."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from octavo.checkpoint.header import read_checkpoint
from octavo.engine.attention import choose_attention_backend
from octavo.engine.attention.base import AttentionMetadata
from octavo.engine.checkpoint_parts import read_model_config, read_tokenizer
from octavo.engine.config import EngineConfig
from octavo.engine.device import choose_device, detect_devices
from octavo.engine.kv_cache import KVCache
from octavo.engine.kv_groups import KVGroup
from octavo.engine.memory import plan_memory
from octavo.engine.models.decoder import DTYPES, build_model
from octavo.engine.tokenizer import Tokenizer
from octavo.engine.weights.load import load_weights
from octavo.jobs import JobControl

LOGITS_ROWS = 64
"""Positions projected onto the vocabulary at a time."""
_BLOCK_SIZE = 16


class TeacherForcing:
    """One loaded model on the CPU, which reads chunks of text, each from an empty context."""

    def __init__(self, path: Path, *, chunk_tokens: int, dtype: str, control: JobControl) -> None:
        """Loads the model.

        Args:
            path: a .gguf file or a folder.
            chunk_tokens: the longest chunk; less where the model's context is shorter.
            dtype: `auto` takes float32 where that fits, else bfloat16.
            control: hears of the progress.

        Raises:
            ModelError: the model is damaged or of a kind Octavo does not run.
            InsufficientMemoryError: it does not fit; nothing was allocated.
            JobCancelled: `control` was cancelled.
        """
        header = read_checkpoint(path)
        config = read_model_config(header)
        self.chunk_tokens = min(chunk_tokens, config.max_position_embeddings)
        num_blocks = -(-self.chunk_tokens // _BLOCK_SIZE) + 1
        engine_config = EngineConfig(
            device="cpu",
            dtype=dtype,
            block_size=_BLOCK_SIZE,
            num_kv_blocks=num_blocks,
            max_num_seqs=1,
            max_num_batched_tokens=self.chunk_tokens,
            max_model_len=self.chunk_tokens,
        )
        plan = plan_memory(config, engine_config, choose_device(engine_config, detect_devices()))
        plan.require_fit()
        self.dtype = plan.dtype
        self.vocab_size = config.vocab_size
        self.tokenizer: Tokenizer = read_tokenizer(header)
        self._model = build_model(config, plan)
        load_weights(self._model, header, config, control)
        self._kv_cache = KVCache(
            # One group of all layers: a chunk is short, and every one begins anew.
            (KVGroup(None, tuple(range(config.num_layers))),),
            num_blocks=(num_blocks,),
            block_size=_BLOCK_SIZE,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=plan.kv_dtype,
            device=torch.device("cpu"),
        )
        self._backend, _ = choose_attention_backend(
            num_heads=config.num_heads, num_kv_heads=config.num_kv_heads, dtype=DTYPES[plan.dtype]
        )

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> Iterator[torch.Tensor]:
        """Yields the logits after every token but the last, some rows at a time.

        Args:
            token_ids: a whole chunk, at most `chunk_tokens`.

        Yields:
            [num_rows, vocab_size], float32; together one row less than there are tokens.
        """
        num_tokens = len(token_ids)
        assert 1 < num_tokens <= self.chunk_tokens
        num_blocks = -(-num_tokens // _BLOCK_SIZE)
        positions = torch.arange(num_tokens)
        metadata = AttentionMetadata(
            slot_mapping=positions + _BLOCK_SIZE,
            block_tables=torch.arange(1, num_blocks + 1, dtype=torch.int32)[None],
            context_lens=torch.tensor([num_tokens], dtype=torch.int32),
            cu_seqlens_q=torch.tensor([0, num_tokens], dtype=torch.int32),
            num_decode=0,
            block_size=_BLOCK_SIZE,
            query_lens=(num_tokens,),
            host_context_lens=(num_tokens,),
        )
        hidden = self._model(
            torch.tensor(token_ids), positions, self._kv_cache, self._backend.prepare(metadata)
        )
        for rows in torch.split(hidden[:-1], LOGITS_ROWS):
            yield self._model.compute_logits(rows)
