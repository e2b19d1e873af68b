"""Blocks are handed out, shared, copied, cached and given back, and none gets lost."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from octavo.engine.block_manager import BlockManager
from octavo.engine.block_pool import NULL_BLOCK, Block, FreeBlocks
from octavo.engine.sampling_params import SamplingParams
from octavo.engine.sequence import Sequence, SequenceStatus

BLOCK_SIZE = 4


def make_sequence(
    num_tokens: int, *, first: int = 0, salt: str = "", use_prefix_cache: bool = True
) -> Sequence:
    """A running sequence of the tokens `first`, `first` + 1, ..."""
    sequence = Sequence(
        0,
        "request",
        0,
        range(first, first + num_tokens),
        SamplingParams(),
        seed=0,
        cache_salt=salt,
        use_prefix_cache=use_prefix_cache,
    )
    sequence.status = SequenceStatus.RUNNING
    return sequence


def compute(blocks: BlockManager, sequence: Sequence) -> None:
    """Pretends that a step computed all known tokens."""
    start = sequence.num_computed_tokens
    sequence.num_computed_tokens = sequence.num_tokens
    blocks.cache_computed_blocks(sequence, start)


def run_to_end(blocks: BlockManager, sequence: Sequence) -> list[int]:
    """Admits, computes and frees; returns the block table it had."""
    assert blocks.admit(sequence)
    compute(blocks, sequence)
    table = list(sequence.block_table)
    blocks.free(sequence)
    return table


def test_free_blocks_leave_from_the_middle_and_cached_ones_come_last() -> None:
    blocks = [Block(block_id) for block_id in range(4)]
    free = FreeBlocks(blocks)
    free.remove(blocks[1])
    free.remove(blocks[2])
    assert [block.block_id for block in free] == [0, 3]
    blocks[1].block_hash = b"kept"
    free.add(blocks[1])
    free.add(blocks[2])
    assert [block.block_id for block in free] == [2, 0, 3, 1]
    assert (len(free), free.num_cached) == (4, 1)
    assert [free.pop().block_id for _ in range(4)] == [2, 0, 3, 1]
    assert (len(free), free.num_cached) == (0, 0)
    assert list(free) == []


def test_the_null_block_is_never_handed_out() -> None:
    blocks = BlockManager([4], BLOCK_SIZE)
    assert blocks.capacity_tokens == 12
    sequence = make_sequence(12)
    assert blocks.admit(sequence)
    assert sorted(sequence.block_table) == [1, 2, 3]
    assert NULL_BLOCK not in sequence.block_table
    assert (blocks.num_free_blocks, blocks.num_used_blocks) == (0, 3)


def test_too_few_blocks_change_nothing() -> None:
    blocks = BlockManager([6], BLOCK_SIZE)
    run_to_end(blocks, make_sequence(8))
    holder = make_sequence(12, first=100)
    assert blocks.admit(holder)
    late = make_sequence(13)
    assert not blocks.admit(late)
    assert late.block_table == []
    assert late.num_computed_tokens == 0
    assert (blocks.num_free_blocks, blocks.num_used_blocks) == (2, 3)
    assert (blocks.num_queried_tokens, blocks.num_cached_blocks) == (8 + 12, 2)

    holder.append_token(1)
    assert blocks.allocate(holder)
    assert len(holder.block_table) == 4


def test_a_reserve_stays_untouched() -> None:
    blocks = BlockManager([6], BLOCK_SIZE)
    assert not blocks.admit(make_sequence(16), reserve=2)
    assert not blocks.admit(make_sequence(1), reserve=5)
    assert blocks.admit(make_sequence(16), reserve=1)


def test_tokens_beyond_the_last_block_get_a_new_one() -> None:
    blocks = BlockManager([6], BLOCK_SIZE)
    sequence = make_sequence(4)
    assert blocks.admit(sequence)
    compute(blocks, sequence)
    for num_blocks in (2, 2, 2, 2, 3):
        sequence.append_token(7)
        assert blocks.allocate(sequence)
        assert len(sequence.block_table) == num_blocks
        compute(blocks, sequence)


def test_a_cached_prefix_is_shared_and_counted() -> None:
    blocks = BlockManager([10], BLOCK_SIZE)
    table = run_to_end(blocks, make_sequence(10))
    assert blocks.num_cached_blocks == 2
    again = make_sequence(10)
    assert blocks.admit(again)
    assert again.block_table[:2] == table[:2]
    assert again.num_computed_tokens == 8
    assert (blocks.num_queried_tokens, blocks.num_hit_tokens) == (20, 8)
    assert blocks.num_cached_blocks == 0


def test_blocks_are_cached_only_once_they_are_computed() -> None:
    blocks = BlockManager([10], BLOCK_SIZE)
    first, second = make_sequence(9), make_sequence(9)
    assert blocks.admit(first)
    first.num_computed_tokens = 7
    blocks.cache_computed_blocks(first, 0)
    assert blocks.admit(second)
    assert second.num_computed_tokens == 4


def test_output_tokens_are_cached_as_well() -> None:
    blocks = BlockManager([10], BLOCK_SIZE)
    sequence = make_sequence(3)
    assert blocks.admit(sequence)
    for token_id in (3, 4, 5, 6, 7, 8):
        compute(blocks, sequence)
        sequence.append_token(token_id)
        assert blocks.allocate(sequence)
    blocks.free(sequence)
    follow_up = make_sequence(12)
    assert blocks.admit(follow_up)
    assert follow_up.num_computed_tokens == 8


def test_a_full_hit_leaves_one_token_and_does_not_touch_the_cached_block() -> None:
    blocks = BlockManager([10], BLOCK_SIZE)
    first, second = make_sequence(8), make_sequence(8)
    assert blocks.admit(first)
    compute(blocks, first)
    assert blocks.admit(second)
    assert second.num_computed_tokens == 7
    assert second.block_table[0] == first.block_table[0]
    assert second.block_table[1] != first.block_table[1]
    assert blocks.take_copies() == ((0, first.block_table[1], second.block_table[1]),)
    assert blocks.take_copies() == ()
    assert blocks.num_used_blocks == 3


def test_a_full_hit_on_blocks_of_nobody_needs_no_copy() -> None:
    blocks = BlockManager([3], BLOCK_SIZE)
    table = run_to_end(blocks, make_sequence(8))
    again = make_sequence(8)
    assert blocks.admit(again)
    assert again.block_table == table
    assert again.num_computed_tokens == 7
    assert blocks.take_copies() == ()

    # The block about to be written is offered to nobody until it is full again.
    blocks.free(again)
    assert blocks.num_cached_blocks == 1
    assert run_to_end(blocks, make_sequence(8)) == table
    assert blocks.num_cached_blocks == 2


def test_salt_history_and_choice_keep_prefixes_apart() -> None:
    blocks = BlockManager([32], BLOCK_SIZE)
    run_to_end(blocks, make_sequence(9, salt="ann"))
    for stranger in (
        make_sequence(9),
        make_sequence(9, salt="bob"),
        make_sequence(5, first=4, salt="ann"),
        make_sequence(9, salt="ann", use_prefix_cache=False),
    ):
        assert blocks.admit(stranger)
        assert stranger.num_computed_tokens == 0
    friend = make_sequence(9, salt="ann")
    assert blocks.admit(friend)
    assert friend.num_computed_tokens == 8


def test_a_sequence_that_looks_nothing_up_is_found_by_others() -> None:
    blocks = BlockManager([10], BLOCK_SIZE)
    run_to_end(blocks, make_sequence(9, use_prefix_cache=False))
    assert blocks.num_queried_tokens == 0
    other = make_sequence(9)
    assert blocks.admit(other)
    assert other.num_computed_tokens == 8


def test_without_prefix_caching_nothing_is_kept() -> None:
    blocks = BlockManager([10], BLOCK_SIZE, enable_prefix_caching=False)
    run_to_end(blocks, make_sequence(9))
    again = make_sequence(9)
    assert blocks.admit(again)
    assert again.num_computed_tokens == 0
    assert (blocks.num_cached_blocks, blocks.num_queried_tokens) == (0, 0)


def test_the_prefix_unused_longest_is_evicted_first_and_from_its_end() -> None:
    blocks = BlockManager([7], BLOCK_SIZE)
    old = run_to_end(blocks, make_sequence(8))
    new = run_to_end(blocks, make_sequence(8, first=50))
    assert blocks.num_cached_blocks == 4
    evictor = make_sequence(12, first=100)
    assert blocks.admit(evictor)
    assert old[1] in evictor.block_table
    assert not set(evictor.block_table) & {old[0], *new}

    blocks.free(evictor)
    kept = make_sequence(9)
    assert blocks.admit(kept)
    assert kept.num_computed_tokens == 4


def test_using_a_prefix_keeps_it_from_being_evicted() -> None:
    blocks = BlockManager([5], BLOCK_SIZE)
    first = run_to_end(blocks, make_sequence(8))
    second = run_to_end(blocks, make_sequence(8, first=50))
    run_to_end(blocks, make_sequence(8))
    evictor = make_sequence(8, first=100)
    assert blocks.admit(evictor)
    assert set(evictor.block_table) == set(second)
    assert not set(evictor.block_table) & set(first)


def test_the_same_content_computed_twice_is_cached_once() -> None:
    blocks = BlockManager([10], BLOCK_SIZE)
    first, second = make_sequence(5), make_sequence(5)
    assert blocks.admit(first)
    assert blocks.admit(second)
    compute(blocks, first)
    compute(blocks, second)
    blocks.free(first)
    blocks.free(second)
    assert blocks.num_cached_blocks == 1


def test_reset_forgets_prefixes_and_leaves_blocks_with_their_owners() -> None:
    blocks = BlockManager([10], BLOCK_SIZE)
    run_to_end(blocks, make_sequence(9))
    holder = make_sequence(9, first=50)
    assert blocks.admit(holder)
    compute(blocks, holder)
    table = list(holder.block_table)
    blocks.reset_prefix_cache()
    assert blocks.num_cached_blocks == 0
    assert holder.block_table == table
    for first in (0, 50):
        late = make_sequence(9, first=first)
        assert blocks.admit(late)
        assert late.num_computed_tokens == 0


def test_a_sibling_shares_the_prompt_and_copies_the_block_it_writes() -> None:
    blocks = BlockManager([10], BLOCK_SIZE, enable_prefix_caching=False)
    parent, sibling = make_sequence(7), make_sequence(7)
    sibling.parent = parent
    assert blocks.admit(parent)
    compute(blocks, parent)
    parent.append_token(1)
    assert blocks.admit(sibling)
    assert sibling.num_computed_tokens == 6
    assert sibling.block_table[0] == parent.block_table[0]
    assert blocks.take_copies() == ((0, parent.block_table[1], sibling.block_table[1]),)
    assert blocks.num_used_blocks == 3

    blocks.free(parent)
    assert blocks.num_used_blocks == 2
    blocks.free(sibling)
    assert blocks.num_used_blocks == 0


def test_a_sibling_that_comes_back_needs_blocks_for_the_copy_and_its_completion() -> None:
    blocks = BlockManager([5], BLOCK_SIZE, enable_prefix_caching=False)
    parent, sibling = make_sequence(7), make_sequence(7)
    sibling.parent = parent
    for token_id in (1, 2):
        sibling.append_token(token_id)
    assert blocks.admit(parent)
    compute(blocks, parent)
    filler = make_sequence(1, first=100)
    assert blocks.admit(filler)
    assert not blocks.admit(sibling)
    blocks.free(filler)
    assert blocks.admit(sibling)
    assert sibling.num_computed_tokens == 6
    assert len(sibling.block_table) == 3
    assert blocks.num_free_blocks == 0


def test_a_sibling_shares_with_parent_or_cache_whichever_has_more() -> None:
    blocks = BlockManager([10], BLOCK_SIZE)
    parent, sibling = make_sequence(7), make_sequence(12)
    sibling.parent = parent
    sibling.num_prompt_tokens = 7
    assert blocks.admit(parent)
    compute(blocks, parent)
    assert blocks.admit(sibling)
    assert sibling.num_computed_tokens == 6
    compute(blocks, sibling)
    blocks.free(sibling)
    assert blocks.admit(sibling)
    assert sibling.num_computed_tokens == 11


def test_a_sibling_whose_last_prompt_token_opens_a_block_copies_nothing() -> None:
    blocks = BlockManager([10], BLOCK_SIZE, enable_prefix_caching=False)
    parent, sibling = make_sequence(5), make_sequence(5)
    sibling.parent = parent
    assert blocks.admit(parent)
    compute(blocks, parent)
    assert blocks.admit(sibling)
    assert sibling.num_computed_tokens == 4
    assert blocks.take_copies() == ()


def test_a_block_still_to_be_filled_by_a_copy_is_copied_from_the_source() -> None:
    blocks = BlockManager([10], BLOCK_SIZE)
    first, parent = make_sequence(8), make_sequence(8)
    sibling = make_sequence(8, use_prefix_cache=False)
    sibling.parent = parent
    assert blocks.admit(first)
    compute(blocks, first)
    assert blocks.admit(parent)
    assert blocks.admit(sibling)
    source = first.block_table[1]
    assert blocks.take_copies() == (
        (0, source, parent.block_table[1]),
        (0, source, sibling.block_table[1]),
    )


def test_a_copy_for_a_sequence_that_lost_its_blocks_is_dropped() -> None:
    blocks = BlockManager([6], BLOCK_SIZE)
    first, second = make_sequence(8), make_sequence(8)
    assert blocks.admit(first)
    compute(blocks, first)
    assert blocks.admit(second)
    blocks.free(second)
    assert blocks.take_copies() == ()
    assert blocks.num_used_blocks == 2


def test_the_source_of_a_copy_is_handed_out_only_after_the_step_was_scheduled() -> None:
    blocks = BlockManager([4], BLOCK_SIZE)
    first, second = make_sequence(8), make_sequence(8)
    assert blocks.admit(first)
    compute(blocks, first)
    assert blocks.admit(second)
    source = first.block_table[1]
    blocks.free(first)
    third = make_sequence(4, first=100)
    assert not blocks.admit(third)
    assert blocks.take_copies() == ((0, source, second.block_table[1]),)
    assert blocks.admit(third)
    assert third.block_table == [source]


class BlockManagerMachine(RuleBasedStateMachine):
    """Any order of calls: no block is lost, and owners are counted rightly."""

    sequences: Bundle[Sequence] = Bundle("sequences")

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager([9], 2)
        self.live: list[Sequence] = []

    @rule(
        target=sequences,
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=8),
        parent=st.none() | sequences,
        reserve=st.integers(0, 2),
    )
    def admit(self, prompt: list[int], parent: Sequence | None, reserve: int) -> Sequence:
        forks = parent is not None and not parent.is_finished
        token_ids = parent.prompt_token_ids if forks and parent is not None else prompt
        sequence = Sequence(0, "request", 0, token_ids, SamplingParams(), seed=0)
        sequence.parent = parent if forks else None
        num_free = self.blocks.num_free_blocks
        if self.blocks.admit(sequence, reserve=reserve):
            sequence.status = SequenceStatus.RUNNING
            self.live.append(sequence)
            assert self.blocks.num_free_blocks >= reserve
            assert sequence.num_computed_tokens < sequence.num_tokens
        else:
            sequence.status = SequenceStatus.FINISHED
            assert self.blocks.num_free_blocks == num_free
        return sequence

    @rule(sequence=sequences, token_id=st.integers(0, 1))
    def decode(self, sequence: Sequence, token_id: int) -> None:
        if sequence.is_finished:
            return
        compute(self.blocks, sequence)
        sequence.append_token(token_id)
        if not self.blocks.allocate(sequence):
            self.free(sequence)

    @rule(sequence=consumes(sequences))
    def free(self, sequence: Sequence) -> None:
        if not sequence.is_finished:
            self.blocks.free(sequence)
            sequence.status = SequenceStatus.FINISHED
            self.live.remove(sequence)

    @rule()
    def take_copies(self) -> None:
        copies = self.blocks.take_copies()
        destinations = [destination for _, _, destination in copies]
        owners = Counter(i for sequence in self.live for i in sequence.block_table)
        assert all(owners[destination] == 1 for destination in destinations)
        assert not {source for _, source, _ in copies} & set(destinations)

    @rule()
    def reset_prefix_cache(self) -> None:
        self.blocks.reset_prefix_cache()

    @invariant()
    def free_and_used_make_all(self) -> None:
        in_use = {block_id for sequence in self.live for block_id in sequence.block_table}
        assert NULL_BLOCK not in in_use
        assert self.blocks.num_free_blocks + self.blocks.num_used_blocks == 8
        # Sources of copies not taken yet are in use, too.
        assert self.blocks.num_used_blocks >= len(in_use)
        assert 0 <= self.blocks.num_cached_blocks <= self.blocks.num_free_blocks

    @invariant()
    def what_is_written_next_has_one_owner(self) -> None:
        owners = Counter(i for sequence in self.live for i in sequence.block_table)
        for sequence in self.live:
            next_written = sequence.num_computed_tokens // self.blocks.block_size
            assert owners[sequence.block_table[next_written]] == 1

    def teardown(self) -> None:
        for sequence in list(self.live):
            self.free(sequence)
        self.blocks.take_copies()
        assert self.blocks.num_used_blocks == 0


TestBlockManagerMachine = BlockManagerMachine.TestCase
TestBlockManagerMachine.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True
)
