"""The whole engine on models with windows: the same tokens, in fewer blocks."""

from dataclasses import dataclass
from typing import Any

import pytest

from octavo.checkpoint.header import read_checkpoint
from octavo.engine.block_manager import BlockManager
from octavo.engine.checkpoint_parts import read_tokenizer
from octavo.engine.config import EngineConfig
from octavo.engine.device import Device
from octavo.engine.engine import Engine
from octavo.engine.kv_groups import kv_groups, most_window_blocks
from octavo.engine.memory import plan_memory
from octavo.engine.model_config import ModelConfig
from octavo.engine.model_runner import ModelRunner
from octavo.engine.request import FinishReason
from octavo.engine.scheduler import Scheduler
from octavo.engine.tokenizer import Tokenizer
from octavo.engine.torch_executor import TorchExecutor
from tests.support.engines import drain, request, run_all
from tests.support.gguf_files import write_tiny_llama
from tests.support.tiny_decoders import random_model, random_tokens, tiny_config

WINDOW = 8
LIKE_GEMMA3 = tiny_config(
    num_layers=4, windows=(WINDOW, WINDOW, None, WINDOW), max_position_embeddings=1024
)
LIKE_MISTRAL = tiny_config(windows=(WINDOW, WINDOW), max_position_embeddings=1024)
TWO_WINDOWS = tiny_config(num_layers=3, windows=(5, None, 19), max_position_embeddings=1024)
FULL = tiny_config(num_layers=4, max_position_embeddings=1024)
MODELS = pytest.mark.parametrize(
    "model", [LIKE_GEMMA3, LIKE_MISTRAL, TWO_WINDOWS], ids=["gemma3", "mistral", "two"]
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Any will do: only token ids are looked at."""
    path = write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")
    return read_tokenizer(read_checkpoint(path))


@dataclass
class Assembled:
    """An engine and the parts the tests look into."""

    engine: Engine
    runner: ModelRunner
    blocks: BlockManager

    def run(self, prompt: list[int], **sampling: Any) -> list[int]:
        sampling = {"max_tokens": 24, "ignore_eos": True, **sampling}
        return run_all(self.engine, [request("r", prompt, **sampling)])["r", 0].token_ids

    def used(self) -> list[int]:
        return [pool.num_used_blocks for pool in self.blocks.pools]


def assemble(model: ModelConfig, tokenizer: Tokenizer, **options: Any) -> Assembled:
    options = {"block_size": 4, "num_kv_blocks": 128, "max_num_batched_tokens": 16, **options}
    config = EngineConfig(device="cpu", dtype="float32", **options)
    plan = plan_memory(model, config, Device("cpu", 0, "test CPU", 8 << 30, 8 << 30))
    plan.require_fit()
    runner = ModelRunner(TorchExecutor(random_model(model, plan), model, plan), model, plan, config)
    blocks = BlockManager(
        plan.num_group_blocks,
        plan.block_size,
        windows=[group.window for group in kv_groups(model, plan.max_model_len)],
        max_step_tokens=plan.max_num_batched_tokens,
        enable_prefix_caching=config.enable_prefix_caching,
    )
    scheduler = Scheduler(
        blocks,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=plan.max_num_batched_tokens,
        max_model_len=plan.max_model_len,
    )
    engine = Engine(runner, tokenizer, scheduler, blocks, max_model_len=plan.max_model_len)
    return Assembled(engine, runner, blocks)


@MODELS
def test_any_chunk_size_gives_the_same(model: ModelConfig, tokenizer: Tokenizer) -> None:
    prompt = random_tokens(90, 1)
    expected = assemble(model, tokenizer, max_num_batched_tokens=128).run(prompt)
    for budget in (1, 7, 32):
        assembled = assemble(model, tokenizer, max_num_batched_tokens=budget)
        assert assembled.run(prompt) == expected
        assert not any(assembled.used())


@MODELS
def test_the_prefix_cache_changes_nothing_but_the_work(
    model: ModelConfig, tokenizer: Tokenizer
) -> None:
    prompt = random_tokens(60, 2)
    turns = [prompt, prompt, prompt[:41] + random_tokens(9, 3), prompt + random_tokens(20, 4)]
    without = assemble(model, tokenizer, enable_prefix_caching=False)
    expected = [without.run(turn) for turn in turns]
    cached = assemble(model, tokenizer)
    assert [cached.run(turn) for turn in turns] == expected
    # The second turn again finds all but the last token, the fourth the 15 blocks of the first.
    assert cached.blocks.num_hit_tokens >= 59 + 60
    assert not any(cached.used())


@MODELS
def test_a_follow_up_finds_the_whole_conversation(model: ModelConfig, tokenizer: Tokenizer) -> None:
    assembled = assemble(model, tokenizer)
    prompt = random_tokens(50, 5)
    answer = assembled.run(prompt)
    follow_up = [*prompt, *answer, *random_tokens(6, 6)]
    result = run_all(assembled.engine, [request("next", follow_up, max_tokens=2)])["next", 0]
    assert result.metrics is not None
    # All full blocks of what was computed: the answer's last token never was.
    assert result.metrics.cached_tokens == (50 + 24 - 1) // 4 * 4


@MODELS
@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_together_and_preempted_equals_alone(
    model: ModelConfig, tokenizer: Tokenizer, enable_prefix_caching: bool
) -> None:
    prompts = [random_tokens(5 + 7 * index, index) for index in range(8)]
    alone = assemble(model, tokenizer)
    expected = [alone.run(prompt) for prompt in prompts]
    together = assemble(
        model,
        tokenizer,
        num_kv_blocks=24,
        max_num_batched_tokens=9,
        enable_prefix_caching=enable_prefix_caching,
    )
    requests = [
        request(str(index), prompt, max_tokens=24, ignore_eos=True)
        for index, prompt in enumerate(prompts)
    ]
    results = run_all(together.engine, requests)
    assert [results[str(index), 0].token_ids for index in range(8)] == expected
    assert not any(together.used())


@MODELS
def test_siblings_go_their_own_ways(model: ModelConfig, tokenizer: Tokenizer) -> None:
    prompt = random_tokens(45, 7)
    sampling = {"temperature": 1.0, "seed": 3, "max_tokens": 30, "ignore_eos": True}
    results = []
    for max_num_seqs in (64, 2, 1):  # with few rows siblings come late: their fork point is gone
        assembled = assemble(model, tokenizer, max_num_seqs=max_num_seqs)
        found = run_all(assembled.engine, [request("r", prompt, n=4, **sampling)])
        results.append([found["r", index].token_ids for index in range(4)])
        assert not any(assembled.used())
    assert results[0] == results[1] == results[2]
    assert len({tuple(token_ids) for token_ids in results[0]}) > 1


def most_used(assembled: Assembled, prompt: list[int], max_tokens: int) -> list[int]:
    assembled.engine.add_request(request("r", prompt, max_tokens=max_tokens, ignore_eos=True))
    most = assembled.used()
    while assembled.engine.has_work:
        assembled.engine.step()
        most = [max(pair) for pair in zip(most, assembled.used(), strict=True)]
    return most


def test_a_long_prompt_holds_a_window_of_blocks(tokenizer: Tokenizer) -> None:
    prompt = random_tokens(400, 8)
    whole = most_used(assemble(FULL, tokenizer), prompt, 40)
    assert whole == [110]  # 439 tokens in blocks of 4, in each of 4 layers
    full, windowed = most_used(assemble(LIKE_GEMMA3, tokenizer), prompt, 40)
    assert full == 110  # in 1 layer
    assert windowed <= most_window_blocks(WINDOW, 4, 16) == 7  # in 3 layers


def test_where_all_layers_have_a_window_a_sequence_needs_few_blocks(tokenizer: Tokenizer) -> None:
    assembled = assemble(LIKE_MISTRAL, tokenizer, num_kv_blocks=8)
    prompt = random_tokens(600, 9)
    result = run_all(assembled.engine, [request("r", prompt, ignore_eos=True)])["r", 0]
    assert result.finish_reason is FinishReason.LENGTH
    assert len(prompt) + len(result.token_ids) == 1024
    roomy = assemble(LIKE_MISTRAL, tokenizer, num_kv_blocks=400)
    assert roomy.run(prompt, max_tokens=None) == result.token_ids


def test_the_full_group_ends_a_sequence_that_outgrows_it(tokenizer: Tokenizer) -> None:
    assembled = assemble(LIKE_GEMMA3, tokenizer, num_kv_blocks=21)
    result = run_all(
        assembled.engine, [request("r", random_tokens(30, 10), max_tokens=None, ignore_eos=True)]
    )["r", 0]
    assert result.finish_reason is FinishReason.LENGTH
    assert 30 + len(result.token_ids) == 20 * 4 + 1


@MODELS
@pytest.mark.parametrize("kv_dtype", ["auto", "bfloat16", "float8_e4m3", "int8"])
def test_what_is_allocated_is_what_was_planned(
    model: ModelConfig, tokenizer: Tokenizer, kv_dtype: str
) -> None:
    config = EngineConfig(device="cpu", dtype="float32", block_size=4, kv_dtype=kv_dtype)
    plan = plan_memory(model, config, Device("cpu", 0, "test CPU", 8 << 30, 8 << 30))
    planned = next(item.num_bytes for item in plan.items if item.name == "KV cache")
    executor = TorchExecutor(random_model(model, plan), model, plan)
    assert executor.kv_cache_bytes == planned


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float8_e4m3", "int8"])
def test_other_kv_types_do_not_depend_on_chunks_or_the_prefix_cache(
    tokenizer: Tokenizer, kv_dtype: str
) -> None:
    prompt = random_tokens(70, 11)
    expected = None
    for budget in (128, 9):
        assembled = assemble(
            LIKE_GEMMA3, tokenizer, kv_dtype=kv_dtype, max_num_batched_tokens=budget
        )
        cold, warm = assembled.run(prompt), assembled.run(prompt)
        expected = expected or cold
        assert cold == warm == expected


def test_abort_in_mid_prompt_frees_every_group(tokenizer: Tokenizer) -> None:
    assembled = assemble(LIKE_GEMMA3, tokenizer)
    assembled.engine.add_request(request("r", random_tokens(200, 12), n=3, max_tokens=5))
    for _ in range(5):
        assembled.engine.step()
    assert all(assembled.used())
    assembled.engine.abort("r")
    assert not any(assembled.used())
    assert drain(assembled.engine) == {}
