"""The blocks of one KV group: which are free, which are shared, which hold prefixes to keep."""

from collections.abc import Iterable, Iterator
from itertools import takewhile

NULL_BLOCK = 0
"""Never handed out: unused entries of block tables and padded tokens point to it."""


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


class BlockPool:
    """Blocks with reference counts, the prefixes that some of them hold, and copies to be made."""

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks > 1
        self.num_blocks = num_blocks
        self._blocks = [Block(block_id) for block_id in range(num_blocks)]
        self._free = FreeBlocks(self._blocks[NULL_BLOCK + 1 :])
        self._cached: dict[bytes, Block] = {}
        # Copies the next step has to make before it writes: destination id -> source. Each holds a
        # reference to its source, so that no source is handed out again before it was read.
        self._copies: dict[int, Block] = {}

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

    def find(self, block_hash: bytes) -> int | None:
        """The block that holds this content, if there is one."""
        block = self._cached.get(block_hash)
        return None if block is None else block.block_id

    def find_all(self, hashes: Iterable[bytes]) -> list[int]:
        """As `find`, of contents that are all there."""
        return [self._cached[block_hash].block_id for block_hash in hashes]

    def count_leading(self, hashes: Iterable[bytes]) -> int:
        """How many contents, from the first on, there are blocks for."""
        return sum(1 for _ in takewhile(self._cached.__contains__, hashes))

    def is_shared(self, block_id: int) -> bool:
        return self._blocks[block_id].ref_count > 1

    def is_private(self, block_id: int) -> bool:
        """Whether its one owner may write it."""
        block = self._blocks[block_id]
        return block.ref_count == 1 and block.block_hash is None

    def share(self, block_id: int) -> None:
        """Takes one more reference to a block, which may be free."""
        self._share(self._blocks[block_id])

    def take(self) -> int:
        """Takes a free block, which must exist, for one owner."""
        block = self._free.pop()
        self._forget(block)
        block.ref_count = 1
        return block.block_id

    def release(self, block_id: int) -> None:
        """Gives up one reference."""
        self._release(self._blocks[block_id])

    def make_private(self, block_id: int) -> int:
        """Returns the id of a block with the same content that only the caller will see."""
        block = self._blocks[block_id]
        if block.ref_count == 1:
            self._forget(block)
            return block_id
        private = self.take()
        # What a copy of this step is to fill is empty still: copy what it will be filled from.
        source = self._copies.get(block_id, block)
        self._share(source)
        self._copies[private] = source
        self._release(block)
        return private

    def offer(self, block_id: int, block_hash: bytes) -> None:
        """Makes a full block known to the prefix cache."""
        block = self._blocks[block_id]
        # The same content may have been computed twice at the same time; one copy is enough.
        if block.block_hash is None and block_hash not in self._cached:
            block.block_hash = block_hash
            self._cached[block_hash] = block

    def take_copies(self) -> list[tuple[int, int]]:
        """Returns the (source, destination) copies to be made, once."""
        if not self._copies:
            return []
        copies = [(source.block_id, target) for target, source in self._copies.items()]
        sources = list(self._copies.values())
        self._copies.clear()
        for source in sources:
            self._release(source)
        return copies

    def forget_prefixes(self) -> None:
        """Empties the prefix cache; blocks stay with their owners."""
        for block in self._cached.values():
            block.block_hash = None
        self._cached.clear()
        self._free.num_cached = 0

    def _share(self, block: Block) -> None:
        if block.ref_count == 0:
            self._free.remove(block)
        block.ref_count += 1

    def _release(self, block: Block) -> None:
        assert block.block_id != NULL_BLOCK
        assert block.ref_count > 0
        block.ref_count -= 1
        if block.ref_count == 0:
            # A copy into a block that nobody wants any more must not reach its next owner.
            if (source := self._copies.pop(block.block_id, None)) is not None:
                self._release(source)
            self._free.add(block)

    def _forget(self, block: Block) -> None:
        """Takes the block out of the prefix cache."""
        if block.block_hash is not None:
            del self._cached[block.block_hash]
            block.block_hash = None
