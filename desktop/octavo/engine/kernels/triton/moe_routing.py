"""Which experts compute which tokens: picked and sorted on the device, so that nobody waits for it.

The plain-torch twin is the first half of `layers.moe.MoE`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.launch import follow, launch_options

_CHUNKS = (256, 1024, 4096)
"""Picks that are looked through at a time: the first that has room for all, or the last."""


@dataclass(frozen=True, slots=True)
class Picks:
    """The experts of each token, best first. Pick p of token t is number t * num_picks + p."""

    experts: torch.Tensor
    """[num_tokens, num_picks], int32."""
    shares: torch.Tensor
    """[num_tokens, num_picks], float32: weights of the experts' outputs."""


@dataclass(frozen=True, slots=True)
class PickGroups:
    """The picks of a step sorted by expert, each expert's in blocks of one size."""

    numbers: torch.Tensor
    """[num_blocks * block_size], int32: of the picks; the number of picks where a block ends
    early."""
    block_experts: torch.Tensor
    """[num_blocks], int32: whose picks a block holds; -1: nobody's, as are all after it."""
    block_size: int


@triton.jit
def _pick_experts(
    logits,
    experts,
    shares,
    num_experts,
    NUM_PICKS: tl.constexpr,
    RENORMALIZES: tl.constexpr,
    BLOCK: tl.constexpr,
    PICKS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    follow(OVERLAP)
    ids = tl.arange(0, BLOCK)
    exists = ids < num_experts
    scores = tl.load(logits + token * num_experts + ids, mask=exists, other=-float("inf"))
    scores = scores.to(tl.float32)
    # NaN would be no expert's number. The output has it all the same: the token itself is NaN.
    scores = tl.where(scores == scores, scores, -float("inf"))
    weights = tl.exp(scores - tl.max(scores, 0))
    total = tl.sum(weights, 0)
    slots = tl.arange(0, PICKS)
    picked = tl.zeros([PICKS], tl.int32)
    picked_weights = tl.zeros([PICKS], tl.float32)
    for pick in tl.static_range(NUM_PICKS):
        _, best = tl.max(scores, 0, return_indices=True)
        weight = tl.sum(tl.where(ids == best, weights, 0.0), 0)
        picked = tl.where(slots == pick, best, picked)
        picked_weights = tl.where(slots == pick, weight, picked_weights)
        scores = tl.where(ids == best, -float("inf"), scores)
    if RENORMALIZES:
        total = tl.sum(picked_weights, 0)
    place = token * NUM_PICKS + slots
    tl.store(experts + place, picked, mask=slots < NUM_PICKS)
    tl.store(shares + place, picked_weights / total, mask=slots < NUM_PICKS)


@triton.jit(do_not_specialize=["num_picks", "num_blocks"])
def _group_picks(
    experts,
    numbers,
    block_experts,
    num_picks,
    num_experts,
    num_blocks,
    EXPERTS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    expert = tl.program_id(0)
    follow(OVERLAP)
    chunk = tl.arange(0, CHUNK)
    counts = tl.zeros([EXPERTS], tl.int32)
    for first in range(0, num_picks, CHUNK):
        exists = first + chunk < num_picks
        picked = tl.load(experts + first + chunk, mask=exists, other=0)
        counts += tl.histogram(picked, EXPERTS, mask=exists)
    # Every program counts all experts, so that none waits for another.
    blocks = (counts + BLOCK_SIZE - 1) // BLOCK_SIZE
    ids = tl.arange(0, EXPERTS)
    first_block = tl.sum(tl.where(ids < expert, blocks, 0), 0)
    last_block = first_block + tl.sum(tl.where(ids == expert, blocks, 0), 0)
    for block in range(first_block, last_block):
        tl.store(block_experts + block, expert)
    if expert == num_experts - 1:
        for block in range(last_block, num_blocks):
            tl.store(block_experts + block, -1)
    next_place = first_block * BLOCK_SIZE
    for first in range(0, num_picks, CHUNK):
        exists = first + chunk < num_picks
        picked = tl.load(experts + first + chunk, mask=exists, other=-1)
        is_mine = (picked == expert).to(tl.int32)
        places = next_place + tl.cumsum(is_mine, 0) - 1
        tl.store(numbers + places, first + chunk, mask=is_mine > 0)
        next_place += tl.sum(is_mine, 0)
    rest = next_place + tl.arange(0, BLOCK_SIZE)
    unused = tl.zeros([BLOCK_SIZE], tl.int32) + num_picks
    tl.store(numbers + rest, unused, mask=rest < last_block * BLOCK_SIZE)


def pick_experts(
    logits: torch.Tensor, num_picks: int, *, renormalizes: bool, overlap: bool = False
) -> Picks:
    """Picks the likeliest experts of each token; of equal ones, the first.

    Args:
        logits: [num_tokens, num_experts], the router's, contiguous.
        num_picks: experts of a token.
        renormalizes: whether the shares of a token's experts sum to one.
        overlap: whether the launch may overlap with the kernel before it.
    """
    num_tokens, num_experts = logits.shape
    experts = torch.empty(num_tokens, num_picks, dtype=torch.int32, device=logits.device)
    shares = torch.empty(num_tokens, num_picks, dtype=torch.float32, device=logits.device)
    _pick_experts[(num_tokens,)](
        logits,
        experts,
        shares,
        num_experts,
        NUM_PICKS=num_picks,
        RENORMALIZES=renormalizes,
        BLOCK=triton.next_power_of_2(num_experts),
        PICKS=triton.next_power_of_2(num_picks),
        OVERLAP=overlap,
        num_warps=1 if num_experts <= 256 else 4,
        **launch_options(overlap),
    )
    return Picks(experts, shares)


def group_picks(
    picks: Picks, num_experts: int, block_size: int, *, overlap: bool = False
) -> PickGroups:
    """Sorts picks by their experts; in a group, by their numbers.

    Args:
        picks: of a step.
        num_experts: of the layer.
        block_size: picks of a block, a power of two.
        overlap: whether the launch may overlap with the kernel before it.
    """
    num_picks = picks.experts.numel()
    # As if all that can be the last of an expert stood in a block by themselves.
    num_blocks = (num_picks + min(num_picks, num_experts) * (block_size - 1)) // block_size
    chunk = next((one for one in _CHUNKS if num_picks <= one), _CHUNKS[-1])
    device = picks.experts.device
    numbers = torch.empty(num_blocks * block_size, dtype=torch.int32, device=device)
    block_experts = torch.empty(num_blocks, dtype=torch.int32, device=device)
    _group_picks[(num_experts,)](
        picks.experts,
        numbers,
        block_experts,
        num_picks,
        num_experts,
        num_blocks,
        EXPERTS=triton.next_power_of_2(num_experts),
        BLOCK_SIZE=block_size,
        CHUNK=chunk,
        OVERLAP=overlap,
        num_warps=8 if chunk == _CHUNKS[-1] else 4,
        **launch_options(overlap),
    )
    return PickGroups(numbers, block_experts, block_size)
