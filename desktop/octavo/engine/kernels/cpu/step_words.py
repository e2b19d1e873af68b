"""What the operations of a program read about the step at hand: an array of int64 words."""

ONE = 0
"""Always 1: for operations that do the same amount in every step."""
NUM_TOKENS = 1
NUM_DECODE = 2
"""Sequences at the front with one token each."""
NUM_PREFILL_TOKENS = 3
"""The other tokens."""
NUM_TILES = 4
"""Tiles of queries that attention is cut into."""
NUM_ROWS = 5
"""Rows that logits are wanted of."""
TOKEN_IDS = 8
"""Address of [num_tokens], int64."""
POSITIONS = 9
"""Address of [num_tokens], int64."""
FIRST_TOKENS = 10
"""Address of [num_seqs + 1], int32: `cu_seqlens_q`."""
TILE_SEQUENCES = 11
"""Address of [num_tiles], int32: whose queries are in the tile."""
TILE_STARTS = 12
"""Address of [num_tiles], int32: the tile's first row among its sequence's, which are its tokens
times the query heads that share a key head."""
FIRST_GROUP = 16
GROUP_WORDS = 3
# Words of a KV group, from FIRST_GROUP + GROUP_WORDS * group on.
SLOTS = 0
"""Address of [num_tokens], int64."""
TABLES = 1
"""Address of [num_seqs, max_blocks], int32."""
TABLE_BYTES = 2
"""From a sequence's table to the next one's."""


def num_step_words(num_groups: int) -> int:
    """How long the array is for a model of so many KV groups."""
    return FIRST_GROUP + GROUP_WORDS * num_groups
