"""What each method makes of a weight, in plain torch and anew: the truth for what is written."""

from collections.abc import Mapping

import gguf
import numpy as np
import torch
from torch import Tensor

from octavo.quantize.methods import ROW, QuantizeMethod

ROUTERS = ("mlp.gate.weight", "mlp.shared_expert_gate.weight")


def twin(
    name: str,
    weight: Tensor,
    method: QuantizeMethod,
    *,
    half: torch.dtype,
    norm_shift: float,
    names: Mapping[str, Tensor],
) -> Tensor:
    """A parameter as the engine should find it in the method's output.

    Args:
        name: the engine's.
        weight: float32, of the source.
        method: the method.
        half: the 16-bit type of a folder.
        norm_shift: what norms are larger by in the output than in the source.
        names: all parameters, by name.
    """
    if name.endswith("norm.weight"):
        weight = weight + norm_shift
    if method.container == "gguf":
        return _in_gguf(name, weight, method, is_tied="lm_head.weight" not in names)
    is_linear = "_proj" in name and name.startswith("model.layers.") and weight.ndim > 1
    group_size = group_size_of(weight.shape[-1], method) if is_linear else 0
    if group_size:
        rows = weight.reshape(-1, weight.shape[-1] if group_size == ROW else group_size)
        return round_rows(rows, method.bits, half).view(weight.shape)
    return weight.to(half).float()


def group_size_of(width: int, method: QuantizeMethod) -> int:
    """The method's, or the next smaller one on offer that divides; 0: none does."""
    if method.group_size == ROW:
        return ROW if width % 4 == 0 else 0
    smaller = [size for size in (128, 64, 32) if size <= method.group_size]
    return next((size for size in smaller if width % size == 0), 0)


def round_rows(rows: Tensor, bits: int, half: torch.dtype) -> Tensor:
    """Each row by one scale: of 8 bits the one that clips nothing, of 4 bits the best of ten."""
    most = 2 ** (bits - 1) - 1
    full = rows.abs().amax(dim=1, keepdim=True) / most
    shares = [1.0] if bits == 8 else [1 - 0.03 * step for step in range(10)]
    best, least = torch.zeros_like(rows), torch.full_like(full, torch.inf)
    for share in shares:
        scale = (full * share).to(half).float()
        inverse = torch.where(scale == 0, 0.0, 1 / scale)
        values = (rows * inverse).round().clamp(-most - 1, most) * scale
        error = (values - rows).square().sum(dim=1, keepdim=True)
        best = torch.where(error < least, values, best)
        least = torch.minimum(error, least)
    return best


def _in_gguf(name: str, weight: Tensor, method: QuantizeMethod, *, is_tied: bool) -> Tensor:
    if weight.ndim < 2 or name.endswith((*ROUTERS, "bias")):
        return weight
    if weight.shape[-1] % 32:
        return weight.half().float()
    gives_logits = name == ("model.embed_tokens.weight" if is_tied else "lm_head.weight")
    kind = gguf.GGMLQuantizationType.Q8_0
    if method.bits == 4 and not gives_logits:
        kind = gguf.GGMLQuantizationType.Q4_0
    blocks = gguf.quants.quantize(weight.reshape(-1, weight.shape[-1]).numpy(), kind)
    values: np.ndarray = gguf.quants.dequantize(blocks, kind)
    return torch.from_numpy(values.copy()).view(weight.shape)
