"""Paged attention against a softmax written out, over mixed batches of many shapes."""

from unittest.mock import patch

import pytest
import torch

from octavo.engine.attention import choose_attention_backend, torch_attention
from octavo.engine.attention.base import AttentionMetadata, AttentionRule, LayerCache

Work = list[tuple[int, int]]
"""(context before the step, tokens in the step) per sequence, single tokens first."""

MIXED: Work = [(0, 1), (6, 1), (40, 1), (5, 1), (0, 9), (11, 13), (32, 4)]


def reference(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rule: AttentionRule,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """One sequence, in float64: the queries are the last of the context."""
    num_queries, num_heads, _ = query.shape
    context_len, num_kv_heads, _ = keys.shape
    output = torch.empty(query.shape, dtype=torch.float64)
    for head in range(num_heads):
        kv_head = head // (num_heads // num_kv_heads)
        for index in range(num_queries):
            visible = context_len - num_queries + index + 1
            first = 0 if rule.window is None else max(0, visible - rule.window)
            scores = keys[first:visible, kv_head].double() @ query[index, head].double()
            scores *= rule.scale
            if rule.softcap is not None:
                scores = rule.softcap * (scores / rule.softcap).tanh()
            exponentials = scores.exp()
            total = exponentials.sum() + (0 if sinks is None else sinks[head].double().exp())
            output[index, head] = exponentials / total @ values[first:visible, kv_head].double()
    return output


def check(
    work: Work,
    *,
    num_heads: int = 6,
    num_kv_heads: int = 2,
    head_dim: int = 8,
    block_size: int = 4,
    dtype: torch.dtype = torch.float32,
    tolerance: float = 1e-5,
    window: int | None = None,
    softcap: float | None = None,
    has_sinks: bool = False,
) -> None:
    torch.manual_seed(0)
    num_blocks = 1 + sum(-(-(before + new) // block_size) for before, new in work)
    shape = (num_blocks, block_size, num_kv_heads, head_dim)
    key_cache = torch.full(shape, torch.nan, dtype=dtype)
    value_cache = torch.full(shape, torch.nan, dtype=dtype)
    key_cache[0] = value_cache[0] = 0
    blocks = torch.randperm(num_blocks - 1) + 1
    block_tables = torch.zeros(len(work), num_blocks, dtype=torch.int32)
    contexts, slots, used = [], [], 0
    for index, (before, new) in enumerate(work):
        num_needed = -(-(before + new) // block_size)
        block_tables[index, :num_needed] = blocks[used : used + num_needed]
        used += num_needed
        positions = torch.arange(before + new)
        sequence_slots = (
            block_tables[index][positions // block_size].long() * block_size
            + positions % block_size
        )
        keys = torch.randn(before + new, num_kv_heads, head_dim).to(dtype)
        values = torch.randn(before + new, num_kv_heads, head_dim).to(dtype)
        key_cache.view(-1, num_kv_heads, head_dim)[sequence_slots[:before]] = keys[:before]
        value_cache.view(-1, num_kv_heads, head_dim)[sequence_slots[:before]] = values[:before]
        contexts.append((keys, values))
        slots.append(sequence_slots[before:])
    lengths = [new for _, new in work]
    metadata = AttentionMetadata(
        slot_mapping=torch.cat(slots),
        block_tables=block_tables,
        context_lens=torch.tensor([sum(item) for item in work], dtype=torch.int32),
        cu_seqlens_q=torch.tensor([0, *lengths]).cumsum(0).int(),
        num_decode=lengths.count(1),
        block_size=block_size,
        query_lens=tuple(lengths),
        host_context_lens=tuple(sum(item) for item in work),
    )
    assert metadata.max_seqlen_q == max(lengths)
    query = torch.randn(sum(lengths), num_heads, head_dim).to(dtype)
    backend, reason = choose_attention_backend(
        num_heads=num_heads, num_kv_heads=num_kv_heads, dtype=dtype
    )
    assert backend.name == "torch"
    assert reason
    rule = AttentionRule(head_dim**-0.5, window, softcap)
    sinks = torch.randn(num_heads) if has_sinks else None
    output = backend.prepare(metadata).attend(
        query,
        torch.cat([keys[-new:] for (keys, _), new in zip(contexts, lengths, strict=True)]),
        torch.cat([values[-new:] for (_, values), new in zip(contexts, lengths, strict=True)]),
        LayerCache(key_cache, value_cache),
        rule,
        sinks,
    )
    assert output.dtype == dtype
    begin = 0
    for (keys, values), new in zip(contexts, lengths, strict=True):
        expected = reference(query[begin : begin + new], keys, values, rule, sinks)
        error = (output[begin : begin + new].double() - expected).abs().max()
        assert error <= tolerance
        begin += new
    assert not key_cache[0].any()
    assert not value_cache[0].any()


@pytest.mark.parametrize(
    "work",
    [[(0, 1)], [(17, 1)], [(9, 1), (9, 1)], [(3, 1), (30, 1)], [(0, 12)], [(8, 5)], MIXED],
)
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_work(work: Work, block_size: int) -> None:
    check(work, block_size=block_size)


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"), [(1, 1, 8), (9, 3, 64), (8, 8, 10), (7, 1, 6)]
)
def test_shapes(num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    check(MIXED, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)


def test_bfloat16() -> None:
    check(MIXED, dtype=torch.bfloat16, tolerance=3e-2)


def test_decodes_are_split_when_they_gather_too_much() -> None:
    with patch.object(torch_attention, "MAX_GATHERED_TOKENS", 45):
        check([(40, 1), (2, 1), (60, 1), (7, 1), (20, 1), (41, 1)])


def test_long_prefills_are_split_when_they_score_too_much() -> None:
    with patch.object(torch_attention, "MAX_ATTENTION_SCORES", 6 * 20 * 7):
        check([(3, 1), (0, 40), (13, 20)])


@pytest.mark.parametrize("window", [1, 3, 8, 16, 100])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_windows(window: int, block_size: int) -> None:
    check(MIXED, window=window, block_size=block_size)
    with patch.object(torch_attention, "MAX_GATHERED_TOKENS", 10):
        check([(40, 1), (2, 1), (60, 1), (7, 1), (20, 1), (41, 1)], window=window)
    with patch.object(torch_attention, "MAX_ATTENTION_SCORES", 6 * 20 * 7):
        check([(3, 1), (0, 40), (13, 20)], window=window)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(("softcap", "has_sinks"), [(0.5, False), (None, True), (2.0, True)])
def test_capped_scores_and_sinks(
    window: int | None, softcap: float | None, has_sinks: bool
) -> None:
    check(MIXED, window=window, softcap=softcap, has_sinks=has_sinks)
