"""Who uses which block of the KV cache, and which blocks hold prefixes worth keeping.

Only bookkeeping: the blocks themselves lie in `kv_cache`.
"""

import struct
from collections.abc import Iterable, Iterator
from hashlib import blake2b

from octavo.engine.sequence import Sequence

NULL_BLOCK = 0
"""Never handed out: unused entries of block tables and padded tokens point to it."""

_HASH_BYTES = 32


class Block:
    """One block's state; `previous` and `next` link it into the free list while it is free."""

    __slots__ = ("block_hash", "block_id", "next", "previous", "ref_count")

    def __init__(self, block_id: int) -> None:
        self.block_id = block_id
        self.ref_count = 0
        # Set while the prefix cache offers the block's content.
        self.block_hash: bytes | None = None
        self.previous = self
        self.next = self


class FreeBlocks:
    """The free blocks in the order they will be used again; every operation is O(1).

    A doubly linked ring through the blocks themselves, so that a block found in the prefix cache
    leaves from the middle:

        end -> no content of use -> ... -> cached, unused longest -> ... -> cached last -> end
    """

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._end = Block(-1)
        self._num_blocks = 0
        self.num_cached = 0
        for block in blocks:
            self._insert_after(self._end.previous, block)

    def __len__(self) -> int:
        return self._num_blocks

    def __iter__(self) -> Iterator[Block]:
        block = self._end.next
        while block is not self._end:
            yield block
            block = block.next

    def add(self, block: Block) -> None:
        """Puts a cached block last and any other first."""
        if block.block_hash is None:
            self._insert_after(self._end, block)
        else:
            self._insert_after(self._end.previous, block)
            self.num_cached += 1

    def remove(self, block: Block) -> None:
        block.previous.next = block.next
        block.next.previous = block.previous
        block.previous = block.next = block
        self._num_blocks -= 1
        self.num_cached -= block.block_hash is not None

    def pop(self) -> Block:
        """Removes the block that is missed least."""
        block = self._end.next
        assert block is not self._end
        self.remove(block)
        return block

    def _insert_after(self, previous: Block, block: Block) -> None:
        block.previous, block.next = previous, previous.next
        previous.next.previous = block
        previous.next = block
        self._num_blocks += 1


class BlockManager:
    """Hands out the blocks of the KV cache and remembers who uses them.

    Invariants: every block but the null block is either free or has a reference count above zero;
    only blocks whose tokens are all computed are in the prefix cache; a block that a step writes
    has one owner and is not in the prefix cache. Blocks are shared only up to the owner's
    `num_computed_tokens`, so of a sequence's blocks at most one can be both shared and about to be
    written: the one that holds the next token to compute.
    """

    def __init__(
        self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool = True
    ) -> None:
        assert num_blocks > 1
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._enable_prefix_caching = enable_prefix_caching
        self._blocks = [Block(block_id) for block_id in range(num_blocks)]
        self._free = FreeBlocks(self._blocks[NULL_BLOCK + 1 :])
        self._cached: dict[bytes, Block] = {}
        # Copies the next step has to make before it writes: destination id -> source. Each holds a
        # reference to its source, so that no source is handed out again before it was read.
        self._copies: dict[int, Block] = {}
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be handed out, those with cached content among them."""
        return len(self._free)

    @property
    def num_used_blocks(self) -> int:
        return self.num_blocks - 1 - len(self._free)

    @property
    def num_cached_blocks(self) -> int:
        """Free blocks whose content the prefix cache still offers."""
        return self._free.num_cached

    @property
    def capacity_tokens(self) -> int:
        """The longest sequence the cache can hold when nothing else runs."""
        return (self.num_blocks - 1) * self.block_size

    def admit(self, sequence: Sequence, *, reserve: int = 0) -> bool:
        """Gives a sequence without blocks all it needs, sharing what is computed already.

        Sets `num_computed_tokens` to what it shares; at least one token stays to be computed.

        Args:
            sequence: holds no blocks.
            reserve: free blocks that must be left over.

        Returns:
            Whether there were enough blocks; if not, nothing has changed.
        """
        assert not sequence.block_table
        if len(self._free) <= reserve:  # the token to compute needs a block, whatever is shared
            return False
        looks_up = self._enable_prefix_caching and sequence.use_prefix_cache
        shared = self._find_prefix(sequence) if looks_up else []
        num_shared_tokens = min(len(shared) * self.block_size, sequence.num_tokens - 1)
        parent = sequence.parent
        if parent is not None and parent.can_fork:
            looks_up = False
            if num_shared_tokens < sequence.num_prompt_tokens - 1:
                num_shared_tokens = sequence.num_prompt_tokens - 1
                num_shared_blocks = self._num_blocks_for(num_shared_tokens)
                shared = [self._blocks[i] for i in parent.block_table[:num_shared_blocks]]

        for block in shared:
            self._share(block)
        sequence.block_table = [block.block_id for block in shared]
        sequence.num_computed_tokens = num_shared_tokens
        if not self.allocate(sequence, reserve=reserve):
            self.free(sequence)
            return False
        if looks_up:
            self.num_queried_tokens += sequence.num_tokens
            self.num_hit_tokens += num_shared_tokens
        return True

    def allocate(self, sequence: Sequence, *, reserve: int = 0) -> bool:
        """Extends the block table to all known tokens and makes the next block to write private.

        Returns:
            Whether there were enough blocks; if not, nothing has changed.
        """
        table = sequence.block_table
        num_new = self._num_blocks_for(sequence.num_tokens) - len(table)
        next_written = sequence.num_computed_tokens // self.block_size
        writes_into_table = next_written < len(table)
        needs_copy = writes_into_table and self._blocks[table[next_written]].ref_count > 1
        if num_new + needs_copy + reserve > len(self._free):
            return False
        if writes_into_table:
            table[next_written] = self._make_private(self._blocks[table[next_written]])
        table.extend(self._take().block_id for _ in range(num_new))
        return True

    def free(self, sequence: Sequence) -> None:
        """Gives up the sequence's blocks and forgets what it computed."""
        # From the end: a prefix is of use without its continuation, but not the other way round.
        for block_id in reversed(sequence.block_table):
            self._release(self._blocks[block_id])
        sequence.block_table = []
        sequence.num_computed_tokens = 0

    def cache_computed_blocks(self, sequence: Sequence, start: int) -> None:
        """Offers the blocks that became full since `start` tokens were computed to others."""
        if not self._enable_prefix_caching:
            return
        first = start // self.block_size
        last = sequence.num_computed_tokens // self.block_size
        for index in range(first, last):
            block = self._blocks[sequence.block_table[index]]
            block_hash = self._block_hash(sequence, index)
            # The same content may have been computed twice at the same time; one copy is enough.
            if block.block_hash is None and block_hash not in self._cached:
                block.block_hash = block_hash
                self._cached[block_hash] = block

    def take_copies(self) -> tuple[tuple[int, int], ...]:
        """Returns the (source, destination) copies of the step just scheduled, once.

        No block is both a source and a destination, and none is a destination twice.
        """
        copies = tuple((source.block_id, target) for target, source in self._copies.items())
        sources = list(self._copies.values())
        self._copies.clear()
        for source in sources:
            self._release(source)
        return copies

    def reset_prefix_cache(self) -> None:
        """Forgets all cached prefixes; sequences keep their blocks."""
        for block in self._cached.values():
            block.block_hash = None
        self._cached.clear()
        self._free.num_cached = 0

    def _num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _find_prefix(self, sequence: Sequence) -> list[Block]:
        blocks: list[Block] = []
        for index in range(sequence.num_tokens // self.block_size):
            block = self._cached.get(self._block_hash(sequence, index))
            if block is None:
                break
            blocks.append(block)
        return blocks

    def _block_hash(self, sequence: Sequence, index: int) -> bytes:
        """The hash of all tokens up to the end of a full block, and of the salt.

        Cryptographic, because a collision would show one prompt's content to another.
        """
        hashes = sequence.block_hashes
        while len(hashes) <= index:
            start = len(hashes) * self.block_size
            token_ids = sequence.token_ids[start : start + self.block_size]
            parent = hashes[-1] if hashes else _hash(sequence.cache_salt.encode())
            hashes.append(_hash(parent + struct.pack(f"<{len(token_ids)}Q", *token_ids)))
        return hashes[index]

    def _share(self, block: Block) -> None:
        if block.ref_count == 0:
            self._free.remove(block)
        block.ref_count += 1

    def _take(self) -> Block:
        block = self._free.pop()
        self._forget(block)
        block.ref_count = 1
        return block

    def _release(self, block: Block) -> None:
        assert block.block_id != NULL_BLOCK
        assert block.ref_count > 0
        block.ref_count -= 1
        if block.ref_count == 0:
            # A copy into a block that nobody wants any more must not reach its next owner.
            if (source := self._copies.pop(block.block_id, None)) is not None:
                self._release(source)
            self._free.add(block)

    def _make_private(self, block: Block) -> int:
        """Returns the id of a block with the same content that only the caller will see."""
        if block.ref_count == 1:
            self._forget(block)
            return block.block_id
        private = self._take()
        # What a copy of this step is to fill is empty still: copy what it will be filled from.
        source = self._copies.get(block.block_id, block)
        self._share(source)
        self._copies[private.block_id] = source
        self._release(block)
        return private.block_id

    def _forget(self, block: Block) -> None:
        """Takes the block out of the prefix cache."""
        if block.block_hash is not None:
            del self._cached[block.block_hash]
            block.block_hash = None


def _hash(content: bytes) -> bytes:
    return blake2b(content, digest_size=_HASH_BYTES).digest()
