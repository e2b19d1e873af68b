"""The order of a matrix's rows in each kind of file: halves of a head, or neighbours that turn."""

from torch import Tensor


def permute_rows(weight: Tensor, head_dim: int, rotary_dim: int) -> Tensor:
    """Reorders the rows of each head from halves, as in Hugging Face's layout, to neighbours.

    The engine's reader of GGUF files undoes it. Rows are moved whole, so those of packed weights
    may be given as well.

    Args:
        weight: [num_heads * head_dim, ...].
        head_dim: rows of a head.
        rotary_dim: rows of a head that turn; the others stay where they are.

    Returns:
        A new tensor, as `weight`.
    """
    return _reorder(weight, head_dim, (2, rotary_dim // 2))


def unpermute_rows(weight: Tensor, head_dim: int, rotary_dim: int) -> Tensor:
    """Undoes `permute_rows`."""
    return _reorder(weight, head_dim, (rotary_dim // 2, 2))


def _reorder(weight: Tensor, head_dim: int, turned: tuple[int, int]) -> Tensor:
    heads = weight.clone().view(-1, head_dim, *weight.shape[1:])
    rows = heads[:, : turned[0] * turned[1]]
    pairs = rows.reshape(len(heads), *turned, *weight.shape[1:])
    heads[:, : rows.shape[1]] = pairs.transpose(1, 2).reshape(rows.shape)
    return heads.view(weight.shape)
