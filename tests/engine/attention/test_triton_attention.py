"""The Triton attention backend against plain torch, over shapes, types and rules."""

from dataclasses import dataclass

import pytest
import torch

from tests.support.triton_device import DEVICE, DTYPES, cases, tolerance

# Kernels are defined when they are imported, so what comes first decides where they run.
from octavo.engine.attention.base import AttentionMetadata, AttentionRule, LayerCache  # isort: skip
from octavo.engine.attention.torch_attention import TorchAttention  # isort: skip
from octavo.engine.attention.triton_attention import TritonAttention  # isort: skip
from octavo.engine.kernels.triton.attention_tiling import (  # isort: skip
    AttentionTiling,
    AttentionTilings,
    TunedTiling,
)
from octavo.engine.kernels.triton.decode_attention import DecodeShape, num_splits  # isort: skip
from octavo.engine.kernels.triton.prefill_attention import plan_tiles  # isort: skip


@dataclass(frozen=True)
class Case:
    """One shape and rule."""

    head_dim: int = 16
    num_heads: int = 6
    num_kv_heads: int = 2
    block_size: int = 4
    window: int | None = None
    softcap: float | None = None
    has_sinks: bool = False
    stored: torch.dtype | None = None
    sequences: tuple[tuple[int, int], ...] = ((1, 9), (1, 33), (5, 5), (7, 20))
    """Query tokens and context of each; decodes first."""


LONG = ((1, 1), (1, 700), (1, 33), (3, 3), (130, 130), (70, 600), (257, 257))
FRESH = ((300, 300), (17, 17))
ON_CARD = [
    *(Case(dim, 8, 2, 16, sequences=LONG) for dim in (64, 80, 96, 128, 192, 256)),
    *(Case(64, heads, kv, 16, sequences=LONG) for heads, kv in ((7, 1), (9, 3), (4, 4), (40, 1))),
    *(Case(128, 32, 8, size, sequences=LONG) for size in (1, 8, 32, 64)),
    Case(128, 8, 2, 16, window=50, sequences=LONG),
    Case(64, 8, 2, 16, window=1, sequences=LONG),
    Case(64, 8, 2, 16, window=100, sequences=FRESH),
    Case(256, 8, 4, 16, softcap=20.0, window=64, sequences=LONG),
    Case(64, 16, 2, 16, has_sinks=True, window=128, sequences=LONG),
    Case(128, 8, 2, 16, sequences=FRESH),
    Case(128, 8, 2, 16, sequences=((4200, 4200),)),
    # Of these, cuDNN computes some where it can.
    Case(128, 8, 2, 16, sequences=((4096, 4096),)),
    Case(64, 8, 2, 16, sequences=((1, 33), (4096, 4096), (300, 300), (4096, 4200))),
    Case(64, 8, 2, 16, window=300, sequences=((4096, 4096), (500, 1100))),
    Case(64, 8, 2, 16, softcap=20.0, sequences=((300, 300), (4096, 4096))),
    Case(128, 8, 2, 16, sequences=((1, 5000), (1, 20))),
    *(
        Case(128, 8, 2, 16, stored=kind, sequences=LONG)
        for kind in (torch.int8, torch.float8_e4m3fn)
    ),
    Case(64, 6, 3, 16, stored=torch.int8, window=40, sequences=LONG),
]
FEW = [
    Case(),
    Case(16, 4, 2, window=70, sequences=((1, 90), (40, 150), (12, 12))),
    Case(20, 3, 3, window=6, softcap=5.0, has_sinks=True),
    Case(16, 4, 1, stored=torch.int8),
    Case(16, 4, 1, stored=torch.float8_e4m3fn),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", cases(FEW, on_card=ON_CARD))
@torch.inference_mode()
def test_equals_plain_torch(case: Case, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    size = case.block_size
    num_blocks = 1 + sum(-(-context // size) for _, context in case.sequences)
    shape = (num_blocks, size, case.num_kv_heads)
    scales = None
    if case.stored is torch.int8:
        blocks = torch.randint(-127, 128, (*shape, case.head_dim), dtype=torch.int8)
        scales = torch.rand(shape).mul_(0.02).half().to(DEVICE)
    else:
        blocks = torch.randn(*shape, case.head_dim).to(case.stored or dtype)
    blocks = blocks.to(DEVICE)

    def cache() -> LayerCache:
        """Nobody may read the null block or what is written in this very step."""
        other = None if scales is None else scales.flip(0).contiguous()
        return LayerCache(
            blocks.clone(),
            blocks.view(torch.uint8).flip(0).contiguous().view(blocks.dtype),
            None if scales is None else scales.clone(),
            other,
        )

    free = (torch.randperm(num_blocks - 1) + 1).tolist()
    longest = max(-(-context // size) for _, context in case.sequences)
    tables = torch.zeros(len(case.sequences), longest, dtype=torch.int32)
    slots = []
    for row, (num_queries, context) in enumerate(case.sequences):
        for index in range(-(-context // size)):
            tables[row, index] = free.pop()
        slots += [
            int(tables[row, position // size]) * size + position % size
            for position in range(context - num_queries, context)
        ]
    lens = [num_queries for num_queries, _ in case.sequences]
    contexts = [context for _, context in case.sequences]
    metadata = AttentionMetadata(
        slot_mapping=torch.tensor(slots, device=DEVICE),
        block_tables=tables.to(DEVICE),
        context_lens=torch.tensor(contexts, dtype=torch.int32, device=DEVICE),
        cu_seqlens_q=torch.tensor([0, *lens], device=DEVICE).cumsum(0).int(),
        num_decode=sum(length == 1 for length in lens),
        block_size=size,
        query_lens=tuple(lens),
        host_context_lens=tuple(contexts),
    )
    query = torch.randn(sum(lens), case.num_heads, case.head_dim).to(DEVICE, dtype)
    key, value = torch.randn(2, sum(lens), case.num_kv_heads, case.head_dim).to(DEVICE, dtype)
    rule = AttentionRule(case.head_dim**-0.5, case.window, case.softcap)
    sinks = torch.randn(case.num_heads).to(DEVICE, dtype) if case.has_sinks else None
    expected = TorchAttention(case.num_heads, case.num_kv_heads, dtype).prepare(metadata)
    backend = TritonAttention(
        DecodeShape(case.num_heads, case.num_kv_heads, case.head_dim, size),
        dtype,
        DEVICE,
        max_model_len=8192,
    )
    torch.testing.assert_close(
        backend.prepare(metadata).attend(query, key, value, cache(), rule, sinks),
        expected.attend(query, key, value, cache(), rule, sinks),
        **tolerance(dtype),
    )


def test_tiles_cover_every_token_once() -> None:
    lens = [1, 37, 32, 5]
    seqs, starts = plan_tiles(lens, 16).tolist()
    covered = sorted(
        (seq, token)
        for seq, start in zip(seqs, starts, strict=True)
        for token in range(start, min(start + 16, lens[seq]))
    )
    assert covered == [(seq, token) for seq, length in enumerate(lens) for token in range(length)]


def test_contexts_are_split_to_fill_the_card() -> None:
    assert num_splits(1, 8, 16_384, 264) == 32
    assert num_splits(1, 8, 4096, 264) == 16
    assert num_splits(8, 8, 4096, 264) == 4
    assert num_splits(256, 8, 131_072, 264) == 1
    assert num_splits(0, 8, 4096, 264) == 16


def test_some_numbers_of_decodes_launch_all_their_kernels() -> None:
    """Of a table as cards have it: what is compiled for these is all there is."""
    few, many = AttentionTiling(64, 2, 4, 2), AttentionTiling(32, 2, 2, 1)
    tuned = [TunedTiling("", 16, 8, few), TunedTiling("", 16, 64, many)]
    backend = TritonAttention(
        DecodeShape(4, 2, 16, 16),
        torch.float32,
        torch.device("cpu"),
        max_model_len=256,
        tilings=AttentionTilings(tuned),
    )

    def launch(num_seqs: int) -> tuple[AttentionTiling, int]:
        scratch = backend.make_scratch(num_seqs)
        return scratch.tiling, scratch.splits

    numbers = backend.distinct_decodes(100)
    assert numbers == [1, 2, 3, 5, 9]
    launches = [launch(number) for number in numbers]
    assert launches == [(few, 8), (few, 4), (few, 2), (few, 1), (many, 1)]
    assert {launch(number) for number in range(1, 101)} == set(launches)
    assert backend.distinct_decodes(3) == [1, 2, 3]
    assert backend.distinct_decodes(0) == []
