"""A model runner driven by hand: tokens, logprobs, block copies, releases."""

from typing import Any

import pytest
import torch

from octavo.engine.config import EngineConfig
from octavo.engine.model_runner import ModelRunner
from octavo.engine.models.decoder import Decoder
from octavo.engine.request import TokenLogprob
from octavo.engine.sequence import ScheduledBatch, ScheduledSequence, StepOutput
from octavo.engine.sequence import Sequence as TokenSequence
from octavo.engine.step_memory import PROMPT_LOGPROB_ROWS
from octavo.engine.torch_executor import TorchExecutor
from octavo.errors import EngineError
from tests.support.tiny_decoders import (
    make_sequence,
    random_model,
    random_tokens,
    tiny_config,
    tiny_plan,
    transformers_logits,
    transformers_twin,
)

BLOCK_SIZE = 4
CONFIG = tiny_config()


@pytest.fixture(scope="module")
def model() -> Decoder:
    return random_model(CONFIG, tiny_plan())


@pytest.fixture(scope="module")
def twin(model: Decoder) -> Any:
    return transformers_twin(model, CONFIG)


class HandDriven:
    """A runner and the bookkeeping a scheduler would do."""

    def __init__(self, model: Decoder, **options: Any) -> None:
        plan = tiny_plan(block_size=BLOCK_SIZE, num_kv_blocks=128)
        executor = TorchExecutor(model, CONFIG, plan)
        self.runner = ModelRunner(executor, CONFIG, plan, EngineConfig(max_num_seqs=8), **options)
        self.free_blocks = list(range(127, 0, -1))

    def step(
        self,
        *work: tuple[TokenSequence, int],
        block_copies: tuple[tuple[int, int, int], ...] = (),
        preempted: tuple[TokenSequence, ...] = (),
    ) -> StepOutput:
        """Computes so many further tokens of each sequence and appends what was sampled."""
        scheduled = []
        for sequence, num_tokens in work:
            start = sequence.num_computed_tokens
            while len(sequence.block_table) * BLOCK_SIZE < start + num_tokens:
                sequence.block_table.append(self.free_blocks.pop())
            scheduled.append(ScheduledSequence(sequence, start, num_tokens))
        output = self.runner.execute(
            ScheduledBatch(tuple(scheduled), block_copies, preempted=preempted)
        )
        for sequence, num_tokens in work:
            sequence.num_computed_tokens += num_tokens
            if sequence.sequence_id in output.tokens:
                sequence.append_token(output.tokens[sequence.sequence_id])
        return output

    def generate(self, sequence: TokenSequence, count: int) -> list[int]:
        """Prefills what is missing, then decodes: `count` tokens in all."""
        for _ in range(count):
            self.step((sequence, sequence.num_tokens - sequence.num_computed_tokens))
        return sequence.output_token_ids[-count:]


def transformers_greedy(twin: Any, prompt: list[int], count: int) -> list[int]:
    token_ids = list(prompt)
    for _ in range(count):
        token_ids.append(int(transformers_logits(twin, token_ids)[-1].argmax()))
    return token_ids[len(prompt) :]


def test_greedy_equals_transformers(model: Decoder, twin: Any) -> None:
    prompts = [random_tokens(length, length) for length in (1, 5, 23)]
    driven = HandDriven(model)
    sequences = [make_sequence(i, prompt, temperature=0) for i, prompt in enumerate(prompts)]
    driven.step((sequences[0], 1), (sequences[2], 10))
    driven.step((sequences[0], 1), (sequences[2], 13), (sequences[1], 5))
    for _ in range(6):
        driven.step(*((sequence, 1) for sequence in sequences))
    for sequence, prompt in zip(sequences, prompts, strict=True):
        expected = transformers_greedy(twin, prompt, sequence.num_output_tokens)
        assert sequence.output_token_ids == expected


def test_unfinished_prefill_samples_nothing(model: Decoder) -> None:
    driven = HandDriven(model)
    sequence = make_sequence(0, random_tokens(9, 1), temperature=0)
    assert driven.step((sequence, 8)).tokens == {}
    assert driven.step((sequence, 1)).tokens.keys() == {0}


def test_preempted_equals_undisturbed(model: Decoder) -> None:
    prompt = random_tokens(11, 2)
    undisturbed = HandDriven(model).generate(make_sequence(0, prompt, seed=5), 12)
    driven = HandDriven(model)
    sequence = make_sequence(7, prompt, seed=5)
    driven.generate(sequence, 6)
    row = sequence.row
    sequence.num_computed_tokens = 0
    sequence.block_table = []
    other = make_sequence(8, random_tokens(4, 3))
    driven.step((other, 4), preempted=(sequence,))
    assert sequence.row is None
    assert other.row == row
    driven.generate(sequence, 6)
    assert sequence.output_token_ids == undisturbed


def test_batch_mates_change_nothing(model: Decoder) -> None:
    prompts = [random_tokens(5 + 3 * i, i) for i in range(5)]
    alone = [
        HandDriven(model).generate(make_sequence(i, prompt, seed=i, top_p=0.9), 8)
        for i, prompt in enumerate(prompts)
    ]
    driven = HandDriven(model)
    together = [make_sequence(i, prompt, seed=i, top_p=0.9) for i, prompt in enumerate(prompts)]
    driven.step(*((sequence, sequence.num_tokens) for sequence in together))
    for _ in range(7):
        driven.step(*((sequence, 1) for sequence in together))
    assert [sequence.output_token_ids for sequence in together] == alone


def test_block_copies_come_first(model: Decoder) -> None:
    driven = HandDriven(model)
    prompt = random_tokens(6, 4)
    first = make_sequence(0, prompt, temperature=0)
    driven.step((first, 5))
    # A sibling shares the full block and gets a copy of the half-filled one.
    sibling = make_sequence(1, prompt, temperature=0)
    sibling.num_computed_tokens = 5
    copy = driven.free_blocks.pop()
    sibling.block_table = [first.block_table[0], copy]
    driven.step((first, 1), (sibling, 1), block_copies=((0, first.block_table[1], copy),))
    for _ in range(5):
        driven.step((first, 1), (sibling, 1))
    assert first.output_token_ids == sibling.output_token_ids
    assert first.block_table[1] != sibling.block_table[1]


def test_prompt_logprobs(model: Decoder, twin: Any) -> None:
    prompt = random_tokens(PROMPT_LOGPROB_ROWS + 30, 6)
    expected = transformers_logits(twin, prompt).log_softmax(-1)
    driven = HandDriven(model)
    sequence = make_sequence(3, prompt, prompt_logprobs=2, temperature=0)
    entries: list[TokenLogprob] = []
    for num_tokens in (1, PROMPT_LOGPROB_ROWS + 9, 20):
        entries += driven.step((sequence, num_tokens)).prompt_logprobs[3]
    assert [entry.token_id for entry in entries] == prompt[1:]
    for position, entry in enumerate(entries):
        assert entry.logprob == pytest.approx(
            expected[position, prompt[position + 1]].item(), abs=1e-3
        )
        assert [value for _, value in entry.top] == pytest.approx(
            expected[position].topk(2).values.tolist(), abs=1e-3
        )
    assert driven.step((sequence, 1)).prompt_logprobs == {}


def test_logprobs_of_sampled_tokens(model: Decoder, twin: Any) -> None:
    prompt = random_tokens(12, 7)
    driven = HandDriven(model)
    asking = make_sequence(0, prompt, logprobs=4, temperature=0)
    silent = make_sequence(1, prompt, temperature=0)
    output = driven.step((asking, 12), (silent, 12))
    assert output.logprobs.keys() == {0}
    expected = transformers_logits(twin, prompt)[-1].log_softmax(-1)
    logprob = output.logprobs[0]
    assert logprob.token_id == output.tokens[0]
    assert logprob.logprob == pytest.approx(expected.max().item(), abs=1e-3)
    assert [token_id for token_id, _ in logprob.top] == expected.topk(4).indices.tolist()


def test_min_tokens_holds_the_models_stop_ids_back(model: Decoder) -> None:
    prompt = random_tokens(8, 8)
    free = HandDriven(model).generate(make_sequence(0, prompt, temperature=0), 1)[0]
    driven = HandDriven(model, stop_token_ids=frozenset({free}))
    held = make_sequence(0, prompt, temperature=0, min_tokens=3)
    assert free not in driven.generate(held, 3)


def test_release_is_harmless_twice(model: Decoder) -> None:
    driven = HandDriven(model)
    for index in range(20):
        sequence = make_sequence(index, random_tokens(3, index))
        driven.step((sequence, 3))
        driven.runner.release(sequence)
        driven.runner.release(sequence)


def test_a_broken_model_is_an_error() -> None:
    broken = random_model(CONFIG, tiny_plan())
    broken.model.norm.weight.fill_(torch.nan)
    driven = HandDriven(broken)
    with pytest.raises(EngineError, match="not finite"):
        driven.step((make_sequence(0, [1, 2]), 2))


def test_bfloat16_runs_close_to_float32(model: Decoder) -> None:
    plan = tiny_plan(dtype="bfloat16", num_kv_blocks=32)
    rounded = random_model(CONFIG, plan)
    runner = ModelRunner(TorchExecutor(rounded, CONFIG, plan), CONFIG, plan, EngineConfig())
    prompt = random_tokens(16, 9)
    sequences = [make_sequence(0, prompt, prompt_logprobs=0, temperature=0) for _ in range(2)]
    for sequence in sequences:
        sequence.block_table = [4, 2, 7, 1]
    batch = ScheduledBatch((ScheduledSequence(sequences[0], 0, 16),))
    coarse = runner.execute(batch).prompt_logprobs[0]
    driven = HandDriven(model)
    exact = driven.step((make_sequence(0, prompt, prompt_logprobs=0, temperature=0), 16))
    errors = [
        abs(a.logprob - b.logprob) for a, b in zip(coarse, exact.prompt_logprobs[0], strict=True)
    ]
    assert sum(errors) / len(errors) < 0.1
