"""Whatever the requests, the pool and the budget: the same tokens, and every block comes back.

`FakeEngine.check_done` compares every completion with the one computed alone and without a cache,
so one comparison stands for many: preempted or not, prefix cache on or off, any budget, any batch.
"""

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.request import FinishReason
from octavo.engine.sequence import Sequence, SequenceStatus
from octavo.errors import PromptTooLongError
from tests.engine.fake_model import FakeEngine

PROPERTY = settings(max_examples=250, deadline=None, derandomize=True)


@dataclass(frozen=True)
class Request:
    """What `FakeEngine.add` takes."""

    prompt: list[int]
    n: int
    max_tokens: int
    seed: int
    priority: int
    cache_salt: str
    use_prefix_cache: bool

    def add_to(self, engine: FakeEngine) -> list[Sequence]:
        return engine.add(
            self.prompt,
            n=self.n,
            max_tokens=self.max_tokens,
            seed=self.seed,
            priority=self.priority,
            cache_salt=self.cache_salt,
            use_prefix_cache=self.use_prefix_cache,
        )


@dataclass(frozen=True)
class Limits:
    """What `FakeEngine` is built with."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    enable_prefix_caching: bool
    seed: int
    windows: tuple[int | None, ...]
    num_window_blocks: int

    def build(self) -> FakeEngine:
        return FakeEngine(
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_model_len=self.max_model_len,
            enable_prefix_caching=self.enable_prefix_caching,
            seed=self.seed,
            windows=self.windows,
            num_window_blocks=self.num_window_blocks,
        )


# Prompts begin alike, so that they share prefixes, and often are the same.
prompts = st.builds(
    lambda length, tail: [length_of % 3 for length_of in range(length)] + tail,
    st.integers(1, 12),
    st.lists(st.integers(0, 1), max_size=3),
)
requests = st.builds(
    Request,
    prompt=prompts,
    n=st.sampled_from((1, 1, 2, 4)),
    max_tokens=st.integers(1, 14),
    seed=st.integers(0, 2),
    priority=st.sampled_from((0, 0, 1)),
    cache_salt=st.sampled_from(("", "", "salt")),
    use_prefix_cache=st.sampled_from((True, True, False)),
)
limits = st.builds(
    Limits,
    num_blocks=st.integers(2, 24),
    block_size=st.sampled_from((1, 2, 3, 4)),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(1, 20),
    max_model_len=st.sampled_from((10, 1000)),
    enable_prefix_caching=st.booleans(),
    seed=st.integers(0, 3),
    windows=st.sampled_from(((None,), (None, 3), (None, 1), (5,), (None, 7, 2), (6, 4))),
    num_window_blocks=st.integers(2, 16),
)
# Steps that run before each request comes.
arrivals = st.lists(st.tuples(st.integers(0, 3), requests), min_size=1, max_size=10)


def fits(engine: FakeEngine, request: Request) -> bool:
    return len(request.prompt) <= engine.longest


@PROPERTY
@given(limits=limits, arrivals=arrivals)
def test_every_request_gets_its_tokens_or_is_refused(
    limits: Limits, arrivals: list[tuple[int, Request]]
) -> None:
    engine = limits.build()
    for num_steps, request in arrivals:
        for _ in range(num_steps):
            engine.step()
        if fits(engine, request):
            request.add_to(engine)
            continue
        with pytest.raises(PromptTooLongError) as caught:
            request.add_to(engine)
        assert caught.value.prompt_tokens == len(request.prompt) > caught.value.limit_tokens
    engine.run()
    engine.check_done()


@PROPERTY
@given(
    limits=limits,
    arrivals=arrivals,
    aborts=st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=12),
)
def test_aborts_in_any_state_free_everything(
    limits: Limits, arrivals: list[tuple[int, Request]], aborts: list[tuple[int, bool]]
) -> None:
    engine = limits.build()
    for _, request in arrivals:
        if fits(engine, request):
            request.add_to(engine)
    for number, while_the_step_runs in aborts:
        batch = engine.scheduler.schedule()
        engine.check(batch)
        sampled = engine.model.execute(batch)
        if not while_the_step_runs:
            engine.complete(batch, sampled)
        for sequence in engine.scheduler.abort(f"request-{number}"):
            assert sequence.is_finished
            assert sequence.block_table == []
        engine.check_blocks()
        if while_the_step_runs:
            engine.complete(batch, sampled)
    engine.run()
    engine.check_done()


@PROPERTY
@given(
    limits=limits,
    arrivals=arrivals,
    finished_parents=st.lists(st.integers(0, 9), max_size=12),
)
def test_siblings_survive_their_parent(
    limits: Limits, arrivals: list[tuple[int, Request]], finished_parents: list[int]
) -> None:
    engine = limits.build()
    for _, request in arrivals:
        if fits(engine, request):
            request.add_to(engine)
    for number in finished_parents:
        engine.step()
        if sequences := engine.sequences.get(f"request-{number}"):
            engine.scheduler.finish(sequences[0], FinishReason.ABORT)
    engine.run()
    engine.check_done()


@PROPERTY
@given(limits=limits, arrivals=arrivals)
def test_every_step_serves_all_decodes_and_one_prompt(
    limits: Limits, arrivals: list[tuple[int, Request]]
) -> None:
    engine = limits.build()
    for _, request in arrivals:
        if fits(engine, request):
            request.add_to(engine)
    while engine.scheduler.has_work:
        everyone = [one for sequences in engine.sequences.values() for one in sequences]
        running = [one for one in everyone if one.status is SequenceStatus.RUNNING]
        prompts = [one for one in running if one.num_remaining_tokens > 1]
        batch = engine.step()
        dropped = {*batch.preempted, *batch.finished}
        served = {one.sequence for one in batch.sequences}
        left_out = set(running) - dropped - served
        assert left_out <= set(prompts)
        if left_out:
            assert batch.num_tokens == limits.max_num_batched_tokens
            assert served & set(prompts)


@PROPERTY
@given(requests=st.lists(requests, min_size=1, max_size=6), block_size=st.sampled_from((1, 2, 4)))
def test_a_large_enough_pool_never_preempts_and_the_cache_saves_work(
    requests: list[Request], block_size: int
) -> None:
    computed = {}
    for enable_prefix_caching in (True, False):
        engine = FakeEngine(
            num_blocks=1000,
            block_size=block_size,
            max_num_seqs=64,
            enable_prefix_caching=enable_prefix_caching,
        )
        for request in requests:
            request.add_to(engine)
        engine.run()
        engine.check_done()
        assert engine.num_preemptions == 0
        computed[enable_prefix_caching] = engine.model.num_computed_tokens
    assert computed[True] <= computed[False]


def test_two_hundred_requests_with_aborts_in_a_tiny_pool() -> None:
    chance = random.Random(1)
    engine = FakeEngine(num_blocks=12, block_size=4, max_num_seqs=6, max_num_batched_tokens=24)
    refused = 0
    for _ in range(200):
        shared = [1, 2, 3, 4, 5, 6, 7, 8, 9][: chance.randint(0, 9)]
        prompt = shared + [chance.randrange(40) for _ in range(chance.choice((1, 3, 9, 50)))]
        try:
            engine.add(
                prompt,
                n=chance.choice((1, 1, 1, 2, 5)),
                max_tokens=chance.randint(1, 60),
                seed=chance.randrange(100),
                priority=chance.choice((0, 0, 0, 1)),
            )
        except PromptTooLongError:
            refused += 1
        for _ in range(chance.randrange(6)):
            engine.step()
        if chance.random() < 0.3:
            engine.scheduler.abort(f"request-{chance.randrange(len(engine.sequences))}")
            engine.check_blocks()
    engine.run()
    engine.check_done()
    # The case is as hard as it is meant to be.
    assert refused > 20
    assert engine.num_preemptions > 20
    assert engine.model.num_copies > 20
    assert engine.blocks.num_hit_tokens > 100


def test_prompts_that_lose_what_they_shared_take_blocks_from_nobody_in_the_step() -> None:
    """With a window a prompt asks for blocks while it runs: what it gave up, others still hold."""
    num_preemptions = 0
    for seed in range(150):
        chance = random.Random(seed)
        window_blocks = chance.randint(14, 22)
        has_full = chance.random() < 0.5
        engine = FakeEngine(
            num_blocks=60 if has_full else window_blocks,
            num_window_blocks=window_blocks,
            windows=(None, 4) if has_full else (4,),
            block_size=1,
            max_num_batched_tokens=chance.choice((3, 4, 5)),
        )
        base = list(range(12))
        engine.add(base, max_tokens=30, priority=1)
        for _ in range(chance.randint(3, 8)):
            engine.step()
        for _ in range(4):
            tail = [chance.randrange(40) for _ in range(chance.choice((2, 20)))]
            engine.add(
                base[: chance.choice((4, 6, 8, 12))] + tail,
                n=chance.choice((1, 2)),
                max_tokens=20,
                priority=chance.choice((0, 1)),
            )
            for _ in range(chance.randint(0, 4)):
                engine.step()
        engine.run()
        engine.check_done()
        num_preemptions += engine.num_preemptions
    assert num_preemptions > 20
