"""Who uses which block of the KV cache, in every KV group.

Only bookkeeping: the blocks themselves lie in `kv_cache`.
"""

import collections.abc
import struct
import sys
from hashlib import blake2b
from itertools import islice

from octavo.engine.block_pool import NULL_BLOCK, BlockPool
from octavo.engine.kv_groups import first_visible_block, most_window_blocks
from octavo.engine.sequence import ScheduledSequence, Sequence

_HASH_BYTES = 32


class _Group:
    """One KV group's pool and what its window asks of it."""

    __slots__ = ("block_size", "index", "pool", "window")

    def __init__(self, index: int, pool: BlockPool, window: int | None, block_size: int) -> None:
        self.index = index
        self.pool = pool
        self.window = window
        self.block_size = block_size

    def first_visible(self, position: int) -> int:
        return first_visible_block(position, self.window, self.block_size)

    def drop_unseen(self, table: list[int], num_computed_tokens: int) -> None:
        """Gives up the blocks that no coming query sees; the null block takes their place."""
        # One token more than the window is kept: a sibling that forks right after the prompt
        # computes the prompt's last token again.
        index = self.first_visible(num_computed_tokens - 1) - 1
        while index >= 0 and table[index] != NULL_BLOCK:
            self.pool.release(table[index])
            table[index] = NULL_BLOCK
            index -= 1


class BlockManager:
    """Hands out the blocks of the KV cache and remembers who uses them.

    In a group of layers that see the whole context a sequence has blocks for all its known tokens.
    In a group with a window it has them only for what coming queries see and for what the next
    step may compute; before that its block table holds the null block.

    Invariants, in every group: every block but the null block is either free or has a reference
    count above zero; only blocks whose tokens are all computed are in the prefix cache; a block
    that a step writes has one owner and is not in the prefix cache. Blocks are shared only up to
    the owner's `num_computed_tokens`, so of a sequence's blocks at most one in each group can be
    both shared and about to be written: the one that holds the next token to compute.
    """

    def __init__(
        self,
        num_blocks: collections.abc.Sequence[int],
        block_size: int,
        *,
        windows: collections.abc.Sequence[int | None] = (None,),
        max_step_tokens: int = 1,
        enable_prefix_caching: bool = True,
    ) -> None:
        """Makes all blocks free.

        Args:
            num_blocks: of each group, the null block included.
            block_size: tokens of a block, in all groups.
            windows: of each group, in the order of `kv_groups`: None, if at all, comes first.
            max_step_tokens: the most tokens one step computes; matters where there are windows.
            enable_prefix_caching: whether prompts that begin alike share blocks.
        """
        assert None not in windows[1:]
        self.block_size = block_size
        self._max_step_tokens = max_step_tokens
        self._enable_prefix_caching = enable_prefix_caching
        self._groups = tuple(
            _Group(index, BlockPool(count), window, block_size)
            for index, (count, window) in enumerate(zip(num_blocks, windows, strict=True))
        )
        self._windowed = tuple(group for group in self._groups if group.window is not None)
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0

    @property
    def pools(self) -> tuple[BlockPool, ...]:
        """Of each group."""
        return tuple(group.pool for group in self._groups)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Of each group."""
        return tuple(group.window for group in self._groups)

    @property
    def num_blocks(self) -> int:
        """Of the first group, like the three counts below: what sees the whole context."""
        return self._groups[0].pool.num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be handed out, those with cached content among them."""
        return self._groups[0].pool.num_free_blocks

    @property
    def num_used_blocks(self) -> int:
        return self._groups[0].pool.num_used_blocks

    @property
    def num_cached_blocks(self) -> int:
        """Free blocks whose content the prefix cache still offers."""
        return self._groups[0].pool.num_cached_blocks

    @property
    def capacity_tokens(self) -> int:
        """The longest sequence the cache can hold when nothing else runs."""
        return min(map(self._capacity, self._groups))

    def admit(self, sequence: Sequence, *, reserve: int = 0) -> bool:
        """Gives a sequence without blocks all it needs, sharing what is computed already.

        Sets `num_computed_tokens` to what it shares; at least one token stays to be computed.

        Args:
            sequence: holds no blocks.
            reserve: free blocks that must be left over in every group.

        Returns:
            Whether there were enough blocks; if not, nothing has changed.
        """
        assert not sequence.block_table
        # The token to compute needs a block, whatever is shared.
        if any(group.pool.num_free_blocks <= reserve for group in self._groups):
            return False
        looks_up = self._enable_prefix_caching and sequence.use_prefix_cache
        num_shared_tokens, tables = self._find_prefix(sequence, looks_up=looks_up)
        parent = sequence.parent
        if parent is not None and parent.can_fork:
            looks_up = False
            num_prompt_tokens = sequence.num_prompt_tokens - 1
            if num_shared_tokens < num_prompt_tokens and self._sees(parent, num_prompt_tokens):
                num_shared_tokens = num_prompt_tokens
                tables = self._share_table(parent, num_prompt_tokens)

        for group, table in zip(self._groups, tables, strict=True):
            for block_id in table:
                if block_id != NULL_BLOCK:
                    group.pool.share(block_id)
        sequence.block_tables = tables
        sequence.num_computed_tokens = num_shared_tokens
        if not self.allocate(sequence, reserve=reserve):
            self.free(sequence)
            return False
        if looks_up:
            self.num_queried_tokens += sequence.num_tokens
            self.num_hit_tokens += num_shared_tokens
        return True

    def allocate(
        self, sequence: Sequence, *, reserve: int = 0, num_computed: int | None = None
    ) -> bool:
        """Brings the block tables up to date with what the sequence computes next.

        They reach to all known tokens (with a window: to those the next step may compute), the
        next block to write is private, and blocks that left a window are given up: a device runs
        its steps in turn, so whoever gets them writes them after the last step that reads them.

        Args:
            sequence: holds blocks.
            reserve: free blocks that must be left over in every group.
            num_computed: tokens that are computed when the next step begins; None: as noted down.

        Returns:
            Whether there were enough blocks; if not, no block was taken in any group.
        """
        if num_computed is None:
            num_computed = sequence.num_computed_tokens
        next_written = num_computed // self.block_size
        tables = sequence.block_tables
        is_ready = True
        wanted: list[int] = []
        for group, table in zip(self._groups, tables, strict=True):
            num_tokens = len(sequence.token_ids)
            if group.window is not None:
                num_tokens = min(num_tokens, num_computed + self._max_step_tokens)
                group.drop_unseen(table, num_computed)
            num_new = max(0, -(-num_tokens // self.block_size) - len(table))
            wanted.append(num_new)
            if num_new == 0 and group.pool.is_private(table[next_written]):
                continue  # as in most steps of a decode
            is_ready = False
            if next_written < len(table) and group.pool.is_shared(table[next_written]):
                num_new += 1
            if num_new + reserve > group.pool.num_free_blocks:
                return False
        if is_ready:
            return True
        for group, table, num_new in zip(self._groups, tables, wanted, strict=True):
            if next_written < len(table):
                table[next_written] = group.pool.make_private(table[next_written])
            for _ in range(num_new):
                table.append(group.pool.take())
        return True

    def extend(self, sequence: Sequence, num_tokens: int) -> bool:
        """Takes the block of a decode's next token while the step before it still runs.

        Args:
            sequence: the step that runs computes its last known token.
            num_tokens: with the tokens that are not known yet.

        Returns:
            Whether there was a block in every group; if not, those taken stay with the sequence,
            which needs them all the same when the step is over.
        """
        for group, table in zip(self._groups, sequence.block_tables, strict=True):
            if group.window is not None:
                group.drop_unseen(table, num_tokens - 1)
            if len(table) * self.block_size >= num_tokens:
                if group.pool.is_shared(table[-1]):
                    return False
                continue
            if group.pool.num_free_blocks == 0:
                return False
            table.append(group.pool.take())
        return True

    def free(self, sequence: Sequence) -> None:
        """Gives up the sequence's blocks and forgets what it computed."""
        for group, table in zip(self._groups, sequence.block_tables, strict=False):
            # From the end: a prefix is of use without its continuation, but not the other way
            # round.
            for block_id in reversed(table):
                if block_id != NULL_BLOCK:
                    group.pool.release(block_id)
        sequence.block_tables = [[]]
        sequence.num_computed_tokens = 0

    def cache_computed_blocks(self, sequence: Sequence, start: int) -> None:
        """Offers the blocks that became full since `start` tokens were computed to others."""
        if not self._enable_prefix_caching:
            return
        first = start // self.block_size
        last = sequence.num_computed_tokens // self.block_size
        hashes = self._hashes(sequence, last)
        for index in range(first, last):
            for group, table in zip(self._groups, sequence.block_tables, strict=True):
                # The step after this one may be planned already, and have given it up.
                if table[index] != NULL_BLOCK:
                    group.pool.offer(table[index], hashes[index])

    def blocks_under_way(self, scheduled: ScheduledSequence) -> set[bytes]:
        """The hashes of the blocks of a prompt that a step makes full."""
        sequence = scheduled.sequence
        if not self._enable_prefix_caching or scheduled.num_tokens == 1:
            return set()
        first = scheduled.start // self.block_size
        last = (scheduled.start + scheduled.num_tokens) // self.block_size
        return set(self._hashes(sequence, last)[first:last])

    def next_shared(self, sequence: Sequence) -> bytes | None:
        """The hash of the first full block of a waiting sequence that the prefix cache lacks."""
        if not self._enable_prefix_caching or not sequence.use_prefix_cache:
            return None
        index = self._num_cached_blocks(sequence)
        if (index + 1) * self.block_size > sequence.num_tokens:
            return None
        return self._hashes(sequence, index + 1)[index]

    def take_copies(self) -> tuple[tuple[int, int, int], ...]:
        """Returns the (group, source, destination) copies of the step just scheduled, once.

        In a group no block is both a source and a destination, and none is a destination twice.
        """
        return tuple(
            (group.index, source, destination)
            for group in self._groups
            for source, destination in group.pool.take_copies()
        )

    def reset_prefix_cache(self) -> None:
        """Forgets all cached prefixes; sequences keep their blocks."""
        for group in self._groups:
            group.pool.forget_prefixes()

    def _capacity(self, group: _Group) -> int:
        num_blocks = group.pool.num_blocks - 1
        if group.window is not None:
            most = most_window_blocks(group.window, self.block_size, self._max_step_tokens)
            if num_blocks >= most:
                return sys.maxsize
        return num_blocks * self.block_size

    def _find_prefix(self, sequence: Sequence, *, looks_up: bool) -> tuple[int, list[list[int]]]:
        """The longest prefix every group holds what it needs of: its tokens and block tables."""
        count = self._num_cached_blocks(sequence) if looks_up else 0
        num_tokens = min(count * self.block_size, sequence.num_tokens - 1)
        hashes = self._hashes(sequence, count)
        tables = []
        for group in self._groups:
            first = group.first_visible(num_tokens)
            tables.append([NULL_BLOCK] * first + group.pool.find_all(hashes[first:count]))
        return num_tokens, tables

    def _num_cached_blocks(self, sequence: Sequence) -> int:
        count = sequence.num_tokens // self.block_size
        if self._groups[0].window is None:
            hashes = self._hashes(sequence, count)
            count = self._groups[0].pool.count_leading(islice(hashes, count))
        while True:
            before = count
            for group in self._windowed:
                count = self._num_seen_blocks(group, sequence, count)
            if count == before:  # what one window lacks may have shortened what another had
                return count

    def _num_seen_blocks(self, group: _Group, sequence: Sequence, count: int) -> int:
        """The longest prefix of up to `count` blocks whose last window a group has cached."""
        index = count
        while index > 0:
            num_tokens = min(count * self.block_size, sequence.num_tokens - 1)
            if index <= group.first_visible(num_tokens):
                break
            index -= 1
            if group.pool.find(self._hashes(sequence, index + 1)[index]) is None:
                count = index
        return count

    def _sees(self, parent: Sequence, num_tokens: int) -> bool:
        """Whether the parent still holds all that the query after so many tokens sees."""
        num_blocks = -(-num_tokens // self.block_size)
        for group in self._windowed:
            first = group.first_visible(num_tokens)
            if first < num_blocks and parent.block_tables[group.index][first] == NULL_BLOCK:
                return False
        return True

    def _share_table(self, parent: Sequence, num_tokens: int) -> list[list[int]]:
        num_blocks = -(-num_tokens // self.block_size)
        tables = []
        for group, table in zip(self._groups, parent.block_tables, strict=True):
            first = group.first_visible(num_tokens)
            tables.append([NULL_BLOCK] * first + table[first:num_blocks])
        return tables

    def _hashes(self, sequence: Sequence, count: int) -> list[bytes]:
        """At least the first `count` blocks' hashes of all tokens up to their ends, and the salt.

        Cryptographic, because a collision would show one prompt's content to another.
        """
        hashes = sequence.block_hashes
        if len(hashes) < count:
            # All that are missing are packed at once: a prompt has many blocks.
            first = len(hashes) * self.block_size
            token_ids = sequence.token_ids[first : count * self.block_size]
            packed = struct.pack(f"<{len(token_ids)}Q", *token_ids)
            parent = hashes[-1] if hashes else _hash(sequence.cache_salt.encode())
            block_bytes = 8 * self.block_size
            for start in range(0, len(packed), block_bytes):
                parent = _hash(parent + packed[start : start + block_bytes])
                hashes.append(parent)
        return hashes


def _hash(content: bytes) -> bytes:
    return blake2b(content, digest_size=_HASH_BYTES).digest()
