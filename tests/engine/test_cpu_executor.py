"""The CPU kernels' programs against the torch modules: every feature of the decoder, any cut."""

from typing import Any

import pytest
import torch

from octavo.engine.batch import PersistentBatch, StepInputs
from octavo.engine.config import EngineConfig
from octavo.engine.cpu_executor import CPUExecutor
from octavo.engine.kv_groups import first_visible_block, kv_groups
from octavo.engine.model_config import ModelConfig, MoEConfig, RopeConfig
from octavo.engine.sequence import ScheduledBatch, ScheduledSequence
from octavo.engine.sequence import Sequence as TokenSequence
from octavo.engine.torch_executor import TorchExecutor
from tests.support.tiny_decoders import (
    make_sequence,
    random_model,
    random_tokens,
    tiny_config,
    tiny_plan,
)

BLOCK_SIZE = 16
PLAN = tiny_plan(block_size=BLOCK_SIZE, num_kv_blocks=64, chosen_kv_dtype="float16")
SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
FEATURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "untied head": {"tie_word_embeddings": False},
    "three query heads for a key head": {"num_heads": 9, "num_kv_heads": 3},
    "biases": {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True},
    "norms of each head": {"qk_norm": "head"},
    "norms of each head, with biases": {"qk_norm": "head", "attention_bias": True},
    "norms of all heads": {"qk_norm": "all"},
    "norms around": {"norm_placement": "around", "norm_offset": 1.0, "norm_in_float32": True},
    "norms after": {"norm_placement": "after", "qk_norm": "all", "mlp_bias": True},
    "gelu": {"activation": "gelu_tanh"},
    "caps": {"attention_softcap": 4.0, "final_softcap": 3.0},
    "scales": {
        "attention_scale": 0.4,
        "embedding_scale": 5.0,
        "residual_scale": 0.3,
        "logits_scale": 0.25,
    },
    "windows": {"num_layers": 3, "windows": (20, None, 20)},
    "windows of two widths": {"num_layers": 3, "windows": (20, 40, 33)},
    "local rope": {
        "windows": (24, None),
        "local_rope": RopeConfig(rotary_dim=16, theta=100.0),
    },
    "layers that turn nothing": {"num_layers": 3, "unrotated_layers": frozenset({1})},
    "part of a head": {"rope": RopeConfig(rotary_dim=12)},
    "yarn": {
        "rope": RopeConfig(
            rotary_dim=16, scaling="yarn", factor=4.0, original_max_position=64, attn_factor=1.2
        )
    },
    "experts": {
        "moe": MoEConfig(
            num_experts=6,
            num_experts_per_token=2,
            intermediate_size=64,
            dense_layers=frozenset({0}),
        )
    },
    "experts with a shared one": {
        "moe": MoEConfig(
            num_experts=5,
            num_experts_per_token=3,
            intermediate_size=32,
            renormalizes=False,
            shared_intermediate_size=96,
        )
    },
    "sinks": {"has_sinks": True, "windows": (24, None)},
    "gemma": {
        "qk_norm": "head",
        "norm_placement": "around",
        "norm_offset": 1.0,
        "norm_in_float32": True,
        "activation": "gelu_tanh",
        "embedding_scale": 8.0,
        "windows": (20, None),
        "attention_softcap": 50.0,
        "final_softcap": 30.0,
    },
}


class BothExecutors:
    """One model, run by torch and by the kernels, on the same blocks."""

    def __init__(self, config: ModelConfig) -> None:
        self._groups = kv_groups(config, PLAN.max_model_len)
        plan = tiny_plan(
            block_size=BLOCK_SIZE,
            num_kv_blocks=PLAN.num_kv_blocks,
            chosen_kv_dtype="float16",
            num_window_blocks=(PLAN.num_kv_blocks,) * (len(self._groups) - 1),
        )
        self.torch = TorchExecutor(random_model(config, plan), config, plan)
        self.kernels = CPUExecutor(
            random_model(config, plan), config, plan, EngineConfig(), num_threads=2
        )
        windows = [group.window for group in self._groups]
        self._batch = PersistentBatch(8, plan.max_model_len, BLOCK_SIZE, windows=windows)
        self._free = [list(range(1, plan.num_kv_blocks)) for _ in self._groups]

    def inputs(self, *work: tuple[TokenSequence, int, int]) -> StepInputs:
        for sequence, start, num_tokens in work:
            while len(sequence.block_tables) < len(self._groups):
                sequence.block_tables.append([])
            for group, free, table in zip(
                self._groups, self._free, sequence.block_tables, strict=True
            ):
                for index in range(first_visible_block(start - 1, group.window, BLOCK_SIZE)):
                    if table[index]:
                        free.append(table[index])
                        table[index] = 0
                while len(table) * BLOCK_SIZE < start + num_tokens:
                    table.append(free.pop(len(free) // 2))
        return self._batch.prepare(
            ScheduledBatch(tuple(ScheduledSequence(*item) for item in work), ())
        )

    def check(self, *work: tuple[TokenSequence, int, int]) -> None:
        inputs = self.inputs(*work)
        with torch.inference_mode():
            expected = self.torch.compute_logits(self.torch.forward(inputs))
            hidden = self.kernels.forward(inputs)
            for first in range(0, len(hidden), 60):
                actual = self.kernels.compute_logits(hidden[first : first + 60])
                wanted = expected[first : first + 60]
                error = (actual - wanted).abs().max() / expected.abs().max()
                # Keys may round to another float16 (2 ** -11) in one of the two.
                assert error < 2e-3, [item[1:] for item in work]
                assert (actual - wanted).pow(2).mean() < 2e-7 * expected.pow(2).mean()


@pytest.mark.parametrize("feature", FEATURES)
def test_programs_compute_what_the_modules_do(feature: str) -> None:
    both = BothExecutors(tiny_config(**(SHAPE | FEATURES[feature])))
    first, second = (make_sequence(n, random_tokens(200, n)) for n in range(2))
    # What they compute one by one are decodes, but for one token that is the last of a prompt.
    first.num_prompt_tokens, second.num_prompt_tokens = 37, 51
    both.check((first, 0, 37))
    both.check((first, 37, 1), (second, 0, 50))
    both.check((first, 38, 1), (second, 50, 1))
    both.check((first, 39, 100), (second, 51, 1))
    both.check((first, 139, 1), (second, 52, 90))


def test_blocks_are_copied_in_all_layers_of_a_group() -> None:
    both = BothExecutors(tiny_config(**SHAPE, num_layers=3, windows=(20, None, 20)))
    sequence = make_sequence(0, random_tokens(40, 0))
    both.check((sequence, 0, 20))
    for group, table in enumerate(sequence.block_tables):
        for executor in (both.torch, both.kernels):
            executor.copy_blocks([(group, table[1], 60)])
        table[1] = 60
    both.check((sequence, 20, 1))


def test_prompts_of_a_model_that_is_not_quantised_attend_in_float32() -> None:
    assert "16 bits" not in BothExecutors(tiny_config(**SHAPE)).kernels.reason


def test_its_cache_takes_what_the_plan_says() -> None:
    config = tiny_config(**SHAPE)
    executor = BothExecutors(config).kernels
    per_token = config.kv_bytes_per_token(2)
    assert executor.kv_cache_bytes == PLAN.num_kv_blocks * BLOCK_SIZE * per_token
