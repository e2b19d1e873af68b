"""Keys and values in another type than the model's: how far off, and never worse than that."""

import pytest
import torch

from octavo.engine.attention.kv_types import store_heads
from octavo.engine.kv_cache import STORAGE_DTYPES
from octavo.engine.memory import MemoryPlan
from tests.support.tiny_decoders import (
    PagedForward,
    make_sequence,
    random_model,
    random_tokens,
    tiny_config,
    tiny_plan,
)

SLOTS = torch.tensor([7, 2, 11, 4])
RELATIVE_ERRORS = {"float16": 2**-11, "bfloat16": 2**-8, "float8_e4m3": 2**-4}
"""Half a step of the last binary digit."""


def round_trip(heads: torch.Tensor, dtype: str) -> torch.Tensor:
    stored = torch.zeros(3, 4, *heads.shape[1:], dtype=STORAGE_DTYPES[dtype])
    scales = torch.zeros(3, 4, heads.shape[1], dtype=torch.float16) if dtype == "int8" else None
    found = store_heads(stored, scales, SLOTS, heads)
    back = found.read(SLOTS)
    assert back.dtype is heads.dtype
    assert torch.equal(found.read_new(slice(1, 3)), back[1:3])
    assert not found.read(torch.tensor([0])).any()
    return back


@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", STORAGE_DTYPES)
def test_error_is_bounded(dtype: str, model_dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    heads = (torch.randn(4, 3, 16) * torch.tensor([0.1, 1.0, 20.0])[:, None]).to(model_dtype)
    error = (round_trip(heads, dtype).float() - heads.float()).abs()
    if dtype == "int8":
        # Half a step of a head's own scale, and the rounding of the scale and the result.
        bound = heads.float().abs().amax(-1, keepdim=True) / 127 * 0.51
        bound = bound + heads.float().abs() * torch.finfo(model_dtype).eps
    else:
        # Below the least normal number of float8 the steps stop shrinking.
        bound = heads.float().abs() * RELATIVE_ERRORS.get(dtype, 0) + 2**-10
    assert (error <= bound).all()


@pytest.mark.parametrize("dtype", ["float8_e4m3", "int8"])
def test_nothing_becomes_nan(dtype: str) -> None:
    heads = torch.tensor([0.0, 1e-7, 448.0, 6e4])[:, None, None].expand(4, 2, 8).contiguous()
    back = round_trip(heads, dtype)
    assert back.isfinite().all()
    assert not back[0].any()
    assert torch.allclose(back[2], heads[2], rtol=0.01)


def logits(plan: MemoryPlan, *, windows: tuple[int | None, ...], cuts: list[int]) -> torch.Tensor:
    config = tiny_config(num_layers=3, windows=windows)
    forward = PagedForward(random_model(config, plan), config, plan)
    sequence = make_sequence(0, random_tokens(100, 3))
    ends = [*cuts, 100]
    return torch.cat(
        [
            forward.step([(sequence, start, end - start)])[0]
            for start, end in zip([0, *cuts], ends, strict=True)
        ]
    )


@pytest.mark.parametrize("windows", [(), (8, None, 8)])
@pytest.mark.parametrize(
    ("dtype", "most"),
    [("float16", 0.002), ("bfloat16", 0.015), ("float8_e4m3", 0.15), ("int8", 0.03)],
)
def test_a_models_logits_move_little(
    dtype: str, most: float, windows: tuple[int | None, ...]
) -> None:
    """As root mean square, in parts of the logits' own; NaN stands wherever nobody may read."""
    exact = logits(tiny_plan(), windows=windows, cuts=[])
    plan = tiny_plan(chosen_kv_dtype=dtype)
    whole = logits(plan, windows=windows, cuts=[])
    error = ((whole - exact).square().mean() / exact.square().mean()).sqrt()
    assert 0 < error < most
    cut = logits(plan, windows=windows, cuts=[37, 38, 90, 91])
    assert (cut - whole).abs().max() <= 0.25 * (whole - exact).abs().max()
