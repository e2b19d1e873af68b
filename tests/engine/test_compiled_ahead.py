"""Once an engine is ready nothing is compiled any more, whatever is asked of it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.triton_device import DEVICE

# Kernels are defined when they are imported, so what comes first decides where they run.
from octavo.engine.batch import PersistentBatch  # isort: skip
from octavo.engine.cuda_executor import CudaExecutor  # isort: skip
from octavo.engine.executor import Draws  # isort: skip
from octavo.engine.model_config import MoEConfig  # isort: skip
from octavo.engine.models.decoder import Decoder  # isort: skip
from octavo.engine.sequence import ScheduledBatch, ScheduledSequence  # isort: skip
from tests.support.packed_models import card_plan, packed_model  # isort: skip
from tests.support.tiny_decoders import (  # isort: skip
    make_sequence,
    random_model,
    random_tokens,
    tiny_config,
)

BLOCK_SIZE, MAX_NUM_SEQS = 16, 20
STEPS = [
    [(30, 30)],
    [(16, 16)],
    [(512, 512)],
    [(500, 500), (1, 1)],
    [(5, 100)],
    [(1, 50), (300, 300)],
    [(1, 50), (1, 51), (300, 300), (16, 16)],
    [*[(1, 9)] * 16, (33, 33)],
    [(1, 9)] * 3,
]
"""Tokens to compute and all tokens of each sequence."""


def run(executor: CudaExecutor, items: Sequence[tuple[int, int]], vocab_size: int) -> None:
    """One step, not as a graph; its tokens are chosen in every way."""
    batch = PersistentBatch(MAX_NUM_SEQS, 1024, BLOCK_SIZE)
    scheduled, next_block = [], 1
    for index, (num_tokens, context) in enumerate(items):
        sequence = make_sequence(index, random_tokens(context, index), seed=index, temperature=0)
        num_blocks = -(-context // BLOCK_SIZE)
        sequence.block_tables = [list(range(next_block, next_block + num_blocks))]
        next_block += num_blocks
        scheduled.append(ScheduledSequence(sequence, context - num_tokens, num_tokens))
    hidden = executor.forward_sampled(batch.prepare(ScheduledBatch(tuple(scheduled))))
    for draws in all_draws(len(hidden), vocab_size):
        assert len(executor.choose(hidden, draws).token_ids()) == len(items)


def all_draws(num_rows: int, vocab_size: int) -> list[Draws]:
    """Greedy, drawn at a temperature, and with something left out of the draw."""
    greedy = Draws([0.0] * num_rows, [0] * num_rows)
    drawn = dataclasses.replace(greedy, temperatures=[0.8] * num_rows)
    truncated = dataclasses.replace(
        drawn, top_ks=[20] * num_rows, top_ps=[0.9] * num_rows, min_ps=[0.05] * num_rows
    )
    even_tokens = np.full(-(-vocab_size // 32), 0x55555555, dtype=np.int32)
    return [greedy, drawn, truncated] + [
        dataclasses.replace(one, masks=[1] * num_rows, new_masks={1: even_tokens})
        for one in (greedy, drawn, truncated)
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["plain", "q4_k_m", "int4"])
@pytest.mark.parametrize("experts", [None, MoEConfig(6, 2, 768)], ids=["dense", "experts"])
@torch.inference_mode()
def test_nothing_is_compiled_in_use(
    weights: str, experts: MoEConfig | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of sizes that no other test has: what that compiled would not count."""
    from triton import knobs

    sizes = {"hidden_size": 768, "intermediate_size": 1280, "num_heads": 12, "head_dim": 64}
    config = tiny_config(**sizes, moe=experts)
    plan = dataclasses.replace(
        card_plan(),
        block_size=BLOCK_SIZE,
        num_kv_blocks=100,
        max_model_len=1024,
        max_num_batched_tokens=512,
        keeps_packed=weights != "plain",
    )
    model: Decoder
    if weights == "plain":
        model = random_model(config, plan)
    else:
        model = packed_model(config, weights, plan)
    executor = CudaExecutor(model, config, plan, max_num_seqs=MAX_NUM_SEQS)
    compiled: list[str] = []

    def note(**names: Any) -> None:
        compiled.append(names["fn"].name)

    monkeypatch.setattr(knobs.runtime, "jit_post_compile_hook", note)
    for items in STEPS:
        run(executor, items, config.vocab_size)
    torch.cuda.synchronize(DEVICE)
    assert compiled == []
