"""What the CPU kernels can take, as numbers that a plan needs; loads neither Numba nor torch."""

from octavo.engine.kernels.cpu.tiles_forms import GROUP as GROUP

BLOCK_SIZE = 16
"""Tokens of a block of the KV cache."""
MAX_HEAD_DIM = 256
MAX_GROUP_SIZE = 32
"""Query heads that may share a key head: one decode is one tile of attention."""
SILU, GELU_TANH = 0, 1
ACTIVATIONS = {"silu": SILU, "gelu_tanh": GELU_TANH}
"""What gates know, and their numbers in an operation."""
