"""Steps begun before the tokens of the one before are known: the same answers as without."""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from octavo.engine.batch import DecodeStep, GroupInputs, StepInputs
from octavo.engine.block_manager import BlockManager
from octavo.engine.config import EngineConfig
from octavo.engine.cpu_executor import CPUExecutor
from octavo.engine.engine import Engine
from octavo.engine.executor import Draws, Executor
from octavo.engine.kv_groups import kv_groups
from octavo.engine.memory import MemoryPlan
from octavo.engine.model_config import ModelConfig
from octavo.engine.model_runner import ModelRunner
from octavo.engine.models.decoder import Decoder
from octavo.engine.request import GenerationRequest
from octavo.engine.sampler import gumbel_noise
from octavo.engine.sampling_params import SamplingParams
from octavo.engine.scheduler import Scheduler
from octavo.engine.tokenizer import Tokenizer, byte_alphabet, tokenizer_from_metadata
from octavo.engine.torch_executor import TorchExecutor
from octavo.engine.truncation import likeliest
from octavo.settings import ChatDefaults
from tests.support.tiny_decoders import random_model, random_tokens, tiny_config, tiny_plan

MAX_NUM_SEQS = 5
MAX_MODEL_LEN = 96
VOCAB_SIZE = 257


class Later:
    """Tokens that nobody may know before they are asked for."""

    def __init__(self, token_ids: list[int]) -> None:
        self._token_ids = token_ids

    def token_ids(self) -> list[int]:
        return self._token_ids


class DelayedExecutor(TorchExecutor):
    """Does what a device does, in plain torch: it alone knows the tokens it chose last."""

    def __init__(self, model: Decoder, config: ModelConfig, plan: MemoryPlan) -> None:
        super().__init__(model, config, plan)
        num_groups = len(kv_groups(config, plan.max_model_len))
        self._size = plan.block_size
        shape = num_groups, MAX_NUM_SEQS, -(-plan.max_model_len // plan.block_size)
        self._tables = np.zeros(shape, dtype=np.int32)
        self._chosen: list[int] = []
        self._masks: dict[int, Any] = {}
        self.num_unknown = 0

    def forward_sampled(self, inputs: StepInputs) -> torch.Tensor:
        inputs.token_ids[:] = self._resolve(inputs.token_ids)
        return self.forward(inputs)[inputs.logits_indices]

    def decode(self, step: DecodeStep) -> torch.Tensor:
        rows, token_ids, positions, *blocks = step.packed
        self._tables[:, step.stale_rows, : step.stale_tables.shape[2]] = step.stale_tables
        groups = []
        for table, new in zip(self._tables, blocks, strict=True):
            table[rows, positions // self._size] = new
            slots = new.astype(np.int64) * self._size + positions % self._size
            most = int(positions.max()) // self._size + 1
            groups.append(GroupInputs(slots, table[rows, :most]))
        return self.forward(
            StepInputs(
                sequences=step.sequences,
                num_decode=len(rows),
                token_ids=self._resolve(token_ids),
                positions=positions.astype(np.int64),
                cu_seqlens_q=np.arange(len(rows) + 1, dtype=np.int32),
                context_lens=(positions + 1).astype(np.int32),
                logits_indices=np.arange(len(rows)),
                groups=tuple(groups),
            )
        )

    def choose(self, hidden: torch.Tensor, draws: Draws) -> Later:
        logits = self.compute_logits(hidden)
        self._masks.update(draws.new_masks)
        for row, number in zip(logits, draws.masks, strict=False):
            if number:
                bits = np.unpackbits(self._masks[number].view(np.uint8), bitorder="little")
                row[torch.from_numpy(bits[:VOCAB_SIZE]) == 0] = -math.inf
        noise = gumbel_noise(draws.keys, torch.arange(VOCAB_SIZE).unsqueeze(0))
        self._chosen = []
        for index, temperature in enumerate(draws.temperatures):
            row = logits[index]
            if temperature:
                row = (row - row.max()) / temperature
                if draws.top_ks:
                    row = self._truncate(row, draws, index)
                row = row + noise[index]
            self._chosen.append(int(row.argmax()))
        return Later(self._chosen)

    @staticmethod
    def _truncate(scores: torch.Tensor, draws: Draws, index: int) -> torch.Tensor:
        params = SamplingParams(
            top_k=draws.top_ks[index], top_p=draws.top_ps[index], min_p=draws.min_ps[index]
        )
        if not params.truncates:
            return scores
        kept, token_ids = likeliest(scores.unsqueeze(0), [params])
        return torch.full_like(scores, -math.inf).scatter(0, token_ids[0], kept[0])

    def _resolve(self, token_ids: Any) -> Any:
        self.num_unknown += int((token_ids < 0).sum())
        known = [self._chosen[-1 - one] if one < 0 else one for one in token_ids.tolist()]
        return np.array(known, dtype=np.int64)


def make_tokenizer() -> Tokenizer:
    alphabet = byte_alphabet()
    return tokenizer_from_metadata(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "llama-bpe",
            "tokenizer.ggml.tokens": [*alphabet, alphabet[0] + alphabet[1]],
            "tokenizer.ggml.merges": [f"{alphabet[0]} {alphabet[1]}"],
            "tokenizer.ggml.eos_token_id": 7,
        }
    )


MakeExecutor = Callable[[Decoder, ModelConfig, MemoryPlan], Executor]
CONFIG = EngineConfig(max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=40)


def make_cpu_executor(model: Decoder, config: ModelConfig, plan: MemoryPlan) -> CPUExecutor:
    """The kernels' own threads are the device."""
    return CPUExecutor(model, config, plan, CONFIG, num_threads=2)


class WaitingExecutor:
    """The kernels, one step after the other."""

    name = "waiting"
    reason = "It is compared with."

    def __init__(self, model: Decoder, config: ModelConfig, plan: MemoryPlan) -> None:
        inner = make_cpu_executor(model, config, plan)
        self.kv_cache_bytes = inner.kv_cache_bytes
        self.copy_blocks = inner.copy_blocks
        self.forward = inner.forward
        self.compute_logits = inner.compute_logits


def make_engine(
    kind: MakeExecutor,
    windows: tuple[int | None, ...],
    num_kv_blocks: int,
    block_size: int = 4,
) -> tuple[Engine, Any]:
    model_config = tiny_config(
        vocab_size=VOCAB_SIZE,
        windows=windows,
        **({"hidden_size": 64, "intermediate_size": 96, "head_dim": 16} if block_size > 4 else {}),
    )
    groups = kv_groups(model_config, MAX_MODEL_LEN)
    plan = tiny_plan(
        num_kv_blocks=num_kv_blocks,
        block_size=block_size,
        max_model_len=MAX_MODEL_LEN,
        num_window_blocks=(num_kv_blocks,) * (len(groups) - 1),
    )
    executor = kind(random_model(model_config, plan), model_config, plan)
    tokenizer = make_tokenizer()
    runner = ModelRunner(
        executor, model_config, plan, CONFIG, stop_token_ids=tokenizer.stop_token_ids
    )
    blocks = BlockManager(
        plan.num_group_blocks,
        plan.block_size,
        windows=[group.window for group in groups],
        max_step_tokens=40,
    )
    scheduler = Scheduler(
        blocks, max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=40, max_model_len=MAX_MODEL_LEN
    )
    return Engine(runner, tokenizer, scheduler, blocks, max_model_len=MAX_MODEL_LEN), executor


def run(
    kind: MakeExecutor,
    *,
    seed: int,
    windows: tuple[int | None, ...] = (),
    num_kv_blocks: int = 200,
    block_size: int = 4,
    with_host_sampling: bool = False,
) -> tuple[dict[tuple[str, int], list[int]], Any]:
    """Requests of all kinds that come while others run; every third shares a beginning."""
    engine, executor = make_engine(kind, windows, num_kv_blocks, block_size)
    choices = random.Random(seed)
    shared = random_tokens(24, seed)
    found: dict[tuple[str, int], list[int]] = {}
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0, "n": 2},
        {"temperature": 0.7, "min_tokens": 1},
        {"temperature": 0.0, "stop_token_ids": (5, 9, 30, 77)},
        {"temperature": 0.9, "top_p": 0.8, "top_k": 30},
        {"temperature": 1.3, "min_p": 0.05, "allowed_token_ids": tuple(range(3, 90))},
        {"temperature": 0.0, "min_tokens": 1, "stop_token_ids": tuple(range(200))},
        {"temperature": 1.0, "bad_words": ("a", "b")},
    ]
    if with_host_sampling:
        kinds += [
            {"temperature": 0.9, "repetition_penalty": 1.2},
            {"temperature": 0.0, "logprobs": 1},
        ]
    waiting = []
    for number in range(14):
        length = choices.choice([1, 3, 9, 30, 60])
        prompt = random_tokens(length, 100 * seed + number)
        if number % 3 == 0:
            prompt = shared + prompt[:10]
        params = SamplingParams(
            max_tokens=choices.choice([1, 2, 8, 25]), seed=number, **choices.choice(kinds)
        )
        waiting.append(GenerationRequest(str(number), tuple(prompt), params))
    while engine.has_work or waiting:
        for _ in range(choices.choice([0, 0, 1, 3])):
            if waiting:
                engine.add_request(waiting.pop())
        for delta in engine.step():
            assert delta.error is None
            found.setdefault((delta.request_id, delta.index), []).extend(delta.token_ids)
    assert engine.stats().num_used_blocks == 0
    return found, executor


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"with_host_sampling": True},
        {"num_kv_blocks": 30},
        {"windows": (16, None)},
        {"windows": (16, 16), "num_kv_blocks": 40, "with_host_sampling": True},
    ],
)
def test_answers_are_the_same(seed: int, options: dict[str, Any]) -> None:
    found, executor = run(DelayedExecutor, seed=seed, **options)
    expected, _ = run(TorchExecutor, seed=seed, **options)
    assert found == expected
    if "with_host_sampling" not in options:
        assert executor.num_unknown > 0


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "options",
    [
        {"with_host_sampling": True},
        {"num_kv_blocks": 10},
        {"windows": (16, None), "num_kv_blocks": 60},
    ],
)
def test_answers_of_the_kernels_are_the_same(seed: int, options: dict[str, Any]) -> None:
    found, _ = run(make_cpu_executor, seed=seed, block_size=16, **options)
    expected, _ = run(WaitingExecutor, seed=seed, block_size=16, **options)
    assert found == expected


CHAT = ChatDefaults()


@pytest.mark.parametrize(
    ("sampling", "is_ahead"),
    [
        ({"temperature": CHAT.temperature, "top_p": CHAT.top_p}, True),
        ({"temperature": 1.0, "top_k": 20, "min_p": 0.05}, True),
        ({"temperature": 0.0, "min_tokens": 3}, True),
        ({"temperature": 1.0, "allowed_token_ids": tuple(range(40))}, True),
        ({"temperature": 1.0, "repetition_penalty": 1.1}, False),
        ({"temperature": 1.0, "logprobs": 2}, False),
    ],
)
def test_the_kernels_choose_ahead_what_needs_no_tokens_before(
    sampling: dict[str, Any], is_ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, executor = make_engine(make_cpu_executor, (), 40, 16)
    unknown, waited = 0, 0
    forward_sampled, compute_logits = executor.forward_sampled, executor.compute_logits

    def count_unknown(inputs: StepInputs) -> torch.Tensor:
        nonlocal unknown
        unknown += int((inputs.token_ids < 0).sum())
        hidden: torch.Tensor = forward_sampled(inputs)
        return hidden

    def count_waited(hidden: torch.Tensor) -> torch.Tensor:
        nonlocal waited
        waited += 1
        logits: torch.Tensor = compute_logits(hidden)
        return logits

    monkeypatch.setattr(executor, "forward_sampled", count_unknown)
    monkeypatch.setattr(executor, "compute_logits", count_waited)
    params = SamplingParams(max_tokens=20, seed=3, ignore_eos=True, **sampling)
    engine.add_request(GenerationRequest("1", tuple(random_tokens(9, 2)), params))
    num_tokens = 0
    while engine.has_work:
        num_tokens += sum(len(delta.token_ids) for delta in engine.step())
    assert num_tokens == 20
    # All tokens but the first come from steps whose input was not known when they were begun.
    assert (unknown, waited) == ((19, 0) if is_ahead else (0, 20))


def test_an_aborted_request_leaves_the_others_alone() -> None:
    engine, _ = make_engine(DelayedExecutor, (), 200)
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    for name in ("kept", "aborted"):
        prompt = random_tokens(9, len(name))
        engine.add_request(GenerationRequest(name, tuple(prompt), params))
    tokens: list[int] = []
    for step in range(60):
        if step == 4:
            (last,) = engine.abort("aborted")
            assert last.request_id == "aborted"
        for delta in engine.step() if engine.has_work else ():
            assert step < 4 or delta.request_id == "kept"
            tokens += delta.token_ids if delta.request_id == "kept" else ()
    alone, _ = make_engine(TorchExecutor, (), 200)
    alone.add_request(GenerationRequest("kept", tuple(random_tokens(9, 4)), params))
    expected: list[int] = []
    while alone.has_work:
        for delta in alone.step():
            expected += delta.token_ids
    assert tokens == expected
    assert engine.stats().num_used_blocks == 0


def test_a_request_waits_for_a_prefix_that_is_being_computed() -> None:
    engine, _ = make_engine(DelayedExecutor, (), 200)
    prefix = random_tokens(24, 1)
    params = SamplingParams(temperature=0.0, max_tokens=2)
    for number in range(4):
        prompt = (*prefix, *random_tokens(4, 10 + number))
        engine.add_request(GenerationRequest(str(number), prompt, params))
    while engine.has_work:
        engine.step()
    assert engine.stats().prompt_tokens_computed == 28 + 3 * 4
