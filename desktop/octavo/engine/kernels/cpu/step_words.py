"""What the operations of a program read about the step at hand: an array of int64 words."""

ONE = 0
"""Always 1: for operations that do the same amount in every step."""
NUM_TOKENS = 1
NUM_DECODE = 2
"""Sequences at the front with one token each."""
NUM_PREFILL_TOKENS = 3
"""The other tokens."""
NUM_TILES = 4
"""Tiles of queries that attention is cut into, times NUM_SPLITS."""
NUM_ROWS = 5
"""Rows that logits are wanted of."""
NUM_TAKEN = 6
"""Rows of hidden states that are put together for that."""
NUM_CHOICES = 7
"""Rows that tokens are chosen from."""
TOKEN_IDS = 8
"""Address of [num_tokens], int64; -1 - i is the token that the step before chose for its row i."""
POSITIONS = 9
"""Address of [num_tokens], int64."""
FIRST_TOKENS = 10
"""Address of [num_seqs + 1], int32: `cu_seqlens_q`."""
TILE_SEQUENCES = 11
"""Address of [num_tiles], int32: whose queries are in the tile."""
TILE_STARTS = 12
"""Address of [num_tiles], int32: the tile's first row among its sequence's, which are its tokens
times the query heads that share a key head."""
TAKEN = 13
"""Address of [NUM_TAKEN], int64: which rows."""
CHOSEN_BEFORE = 14
"""Address of the tokens that the step before chose, int64."""
CHOSEN = 15
"""Address of [NUM_CHOICES], int64: the chosen tokens."""
NUM_DRAWS = 16
"""NUM_CHOICES if any of them has a temperature, else 0."""
TEMPERATURES = 17
"""Address of [NUM_CHOICES], float32; 0: the likeliest is chosen."""
NOISE_KEYS = 18
"""Address of [NUM_CHOICES], int64."""
NUM_SPLITS = 19
"""Into how many parts the context of each tile is split; above 1 NUM_DECODE is 0."""
NUM_JOINED = 20
"""Tiles whose parts are joined afterwards: all of them, or none if there is but one part."""
NUM_CUTS = 21
"""NUM_CHOICES if any of them leaves tokens out by top-k, top-p or min-p, else 0."""
TOP_KS = 22
"""Address of [NUM_CUTS], int64; 0: all tokens."""
TOP_PS = 23
"""Address of [NUM_CUTS], float32; 1: all tokens."""
MIN_PS = 24
"""Address of [NUM_CUTS], float32, as logarithms; -inf: all tokens."""
MASKS = 25
"""Address of [NUM_CHOICES], addresses of a bit for each token, 1 for those that may come; 0: all
may."""
FIRST_GROUP = 26
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
