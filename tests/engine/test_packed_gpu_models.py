"""Whole models with packed weights by the GPU's kernels: tokens are those of the CPU's modules.

These compute in float32 and the kernels in float16: of two tokens that the modules find as likely,
the kernels may choose the other.
"""

from typing import Any

import pytest
import torch

from tests.support.triton_device import HAS_CARD

# Kernels are defined when they are imported, so what comes first decides where they run.
from octavo.engine.config import EngineConfig  # isort: skip
from octavo.engine.cuda_executor import CudaExecutor  # isort: skip
from octavo.engine.dummy_weights import DUMMY_FORMATS  # isort: skip
from octavo.engine.executor import Executor  # isort: skip
from octavo.engine.memory import MemoryPlan  # isort: skip
from octavo.engine.model_config import ModelConfig, MoEConfig  # isort: skip
from octavo.engine.model_runner import ModelRunner  # isort: skip
from octavo.engine.models.fused_decoder import FusedDecoder  # isort: skip
from octavo.engine.sequence import ScheduledBatch, ScheduledSequence  # isort: skip
from octavo.engine.sequence import Sequence as TokenSequence  # isort: skip
from tests.support.packed_models import ON_CPU, card_plan, packed_model  # isort: skip
from tests.support.tiny_decoders import (  # isort: skip
    PagedForward,
    make_sequence,
    random_tokens,
    tiny_config,
)
from tests.support.tiled_weights import take_large_portions  # isort: skip

NEARLY_AS_LIKELY = 0.03
"""Difference of logits, which are up to 3 here."""
EXPERTS = {
    "plain": MoEConfig(6, 2, 256),
    "beside one for all": MoEConfig(
        4, 2, 256, renormalizes=False, shared_intermediate_size=256, dense_layers=frozenset({1})
    ),
}


def packed_config(**changes: Any) -> ModelConfig:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_heads": 4, "head_dim": 64}
    return tiny_config(**sizes, **changes)


def generate(
    executor: Executor, config: ModelConfig, plan: MemoryPlan, num_steps: int
) -> list[TokenSequence]:
    """Prompts of two sequences, then tokens of both, and tokens of the first alone."""
    runner = ModelRunner(executor, config, plan, EngineConfig(max_num_seqs=4))
    sequences = [
        make_sequence(index, random_tokens(length, index), seed=index, temperature=0)
        for index, length in enumerate((3, 6))
    ]
    next_block = 1
    for wanted in (*[sequences] * num_steps, *[sequences[:1]] * (num_steps - 1)):
        scheduled = []
        for sequence in wanted:
            start = sequence.num_computed_tokens
            if not sequence.block_tables:
                sequence.block_tables.append([])
            while len(sequence.block_table) * plan.block_size < sequence.num_tokens:
                sequence.block_tables[0].append(next_block)
                next_block += 1
            scheduled.append(ScheduledSequence(sequence, start, sequence.num_tokens - start))
        output = runner.execute(ScheduledBatch(tuple(scheduled)))
        for item in scheduled:
            item.sequence.num_computed_tokens += item.num_tokens
            item.sequence.append_token(output.tokens[item.sequence.sequence_id])
    return sequences


def compare(weights: str, config: ModelConfig, num_steps: int) -> None:
    plan = card_plan()
    by_modules = PagedForward(packed_model(config, weights, ON_CPU), config, ON_CPU)
    executor = CudaExecutor(packed_model(config, weights, plan), config, plan, max_num_seqs=4)
    for sequence in generate(executor, config, plan, num_steps):
        tokens, chosen = sequence.token_ids, torch.tensor(sequence.output_token_ids)
        whole = make_sequence(sequence.sequence_id, tokens)
        logits = by_modules.step([(whole, 0, len(tokens))])[sequence.sequence_id]
        logits = logits[-len(chosen) - 1 : -1]
        behind = logits.amax(-1) - logits.gather(-1, chosen[:, None])[:, 0]
        assert behind.max() < NEARLY_AS_LIKELY, behind
        assert int((behind > 0).sum()) <= 1, "ties are rare"


@pytest.mark.gpu
@pytest.mark.parametrize("weights", DUMMY_FORMATS)
def test_tokens_on_a_card_are_the_cpus(weights: str) -> None:
    compare(weights, packed_config(tie_word_embeddings=False), 8)


@pytest.mark.gpu
@pytest.mark.parametrize("weights", DUMMY_FORMATS)
@pytest.mark.parametrize("experts", EXPERTS)
def test_tokens_of_experts_on_a_card_are_the_cpus(weights: str, experts: str) -> None:
    config = packed_config(moe=EXPERTS[experts])
    plan = card_plan()
    assert FusedDecoder(packed_model(config, weights, plan), config).can_be_captured
    compare(weights, config, 8)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(HAS_CARD, reason="the same runs on the card")
@pytest.mark.parametrize("weights", ["q4_k_m", "int4"])
def test_tokens_of_experts_are_those_of_the_modules(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_large_portions(monkeypatch)
    experts = MoEConfig(3, 2, 256)
    config = packed_config(moe=experts, num_layers=1)
    compare(weights, config, 2)
