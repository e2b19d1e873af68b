"""Attention on the CPU against its plain-torch twin, over a grid of shapes and rules."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from octavo.engine.attention.base import AttentionMetadata, AttentionRule, LayerCache
from octavo.engine.attention.torch_attention import TorchAttention
from octavo.engine.kernels.cpu import (
    attention,
    attention_prompt,
    attention_rows,
    rotary,
    step_words,
)
from octavo.engine.kernels.cpu.attention import attend_tiles, join_parts
from octavo.engine.kernels.cpu.quantize_activations import quantize, quantized_row_bytes
from octavo.engine.kernels.cpu.rotary import turn_prompts
from octavo.engine.kernels.cpu.step_arrays import StepArrays
from octavo.engine.kernels.cpu.step_loop import EXTENT, FACTOR, GRAIN, KERNEL, OPERATION_WORDS
from octavo.engine.kernels.cpu.worker_threads import WorkerThreads, aligned_bytes
from octavo.engine.layers.rotary_embedding import rotate

BLOCK_SIZE = 16


def write_float(operation: np.ndarray, word: int, value: float) -> None:
    operation[word : word + 1].view(np.float32)[0] = value


@dataclass
class Layer:
    """One layer's attention in both forms, each with a cache of its own."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rule: AttentionRule
    rotary_dim: int = 0
    sinks: torch.Tensor | None = None
    num_blocks: int = 64
    max_split_tiles: int = 1
    has_whole_values: bool = False
    may_round: bool = False
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(1))

    def __post_init__(self) -> None:
        shape = (self.num_blocks, BLOCK_SIZE, self.num_kv_heads, self.head_dim)
        self.cache = LayerCache(*torch.zeros(2, *shape, dtype=torch.float16))
        block_bytes = 2 * BLOCK_SIZE * self.num_kv_heads * self.head_dim
        self.pages = [aligned_bytes(self.num_blocks * block_bytes) for _ in range(2)]
        # What was never written may hold anything, as long as block 0 is zero.
        for page in self.pages:
            page[block_bytes:] = 0x7E
        self.block_bytes = block_bytes
        self.free_blocks = list(torch.randperm(self.num_blocks - 1, generator=self.generator) + 1)
        self.tables: dict[int, list[int]] = {}

    def table(self, sequence: int, context_len: int) -> list[int]:
        table = self.tables.setdefault(sequence, [])
        while len(table) * BLOCK_SIZE < context_len:
            table.append(int(self.free_blocks.pop()))
        return table

    def step(self, spans: list[tuple[int, int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Both outputs for (sequence, first position, tokens), those of one token first."""
        lens = [length for _, _, length in spans]
        contexts = [start + length for _, start, length in spans]
        tables = [
            self.table(sequence, end) for (sequence, _, _), end in zip(spans, contexts, strict=True)
        ]
        block_tables = np.zeros((len(spans), max(map(len, tables))), dtype=np.int32)
        for row, table in enumerate(tables):
            block_tables[row, : len(table)] = table
        positions = np.concatenate([np.arange(s, s + n, dtype=np.int64) for _, s, n in spans])
        slots = np.concatenate(
            [
                np.array(table)[np.arange(s, s + n) // BLOCK_SIZE] * BLOCK_SIZE
                + np.arange(s, s + n) % BLOCK_SIZE
                for (_, s, n), table in zip(spans, tables, strict=True)
            ]
        )
        cu_seqlens_q = np.concatenate([[0], np.cumsum(lens)]).astype(np.int32)
        num_decode = lens.count(1)
        num_tokens = sum(lens)
        num_all = self.num_heads + 2 * self.num_kv_heads
        heads = torch.randn(num_tokens, num_all, self.head_dim, generator=self.generator)
        if self.has_whole_values:
            heads = (heads * 9).round()
        half = self.rotary_dim // 2
        angles = torch.rand(num_tokens, 1, half, generator=self.generator) * 6
        turned, num_turned = heads, self.num_heads + self.num_kv_heads
        if half:
            turned = heads.clone()
            turned[:, :num_turned] = rotate(heads[:, :num_turned], angles.cos(), angles.sin())
        metadata = AttentionMetadata(
            slot_mapping=torch.from_numpy(slots),
            block_tables=torch.from_numpy(block_tables),
            context_lens=torch.tensor(contexts, dtype=torch.int32),
            cu_seqlens_q=torch.from_numpy(cu_seqlens_q),
            num_decode=num_decode,
            block_size=BLOCK_SIZE,
            query_lens=tuple(lens),
            host_context_lens=tuple(contexts),
        )
        twin = TorchAttention(self.num_heads, self.num_kv_heads, torch.float32)
        expected = twin.prepare(metadata).attend(
            turned[:, : self.num_heads],
            turned[:, self.num_heads : num_turned],
            turned[:, num_turned:],
            self.cache,
            self.rule,
            self.sinks,
        )
        step = StepArrays(
            1, self.num_heads // self.num_kv_heads, 1, max_split_tiles=self.max_split_tiles
        )
        tokens, nothing = np.zeros(num_tokens, dtype=np.int64), np.zeros(0, dtype=np.int64)
        step.fill(
            tokens,
            positions,
            cu_seqlens_q,
            num_decode,
            [(slots, block_tables)],
            taken=nothing,
            chosen_before=nothing,
        )
        output = torch.full((num_tokens, self.num_heads, self.head_dim), torch.nan)
        cosines, sines = angles.cos().contiguous(), angles.sin().contiguous()
        parts = torch.full(
            (self.max_split_tiles, self.num_heads, self.head_dim + attention_rows.PART_NUMBERS),
            torch.nan,
        )
        operations = np.zeros((3, OPERATION_WORDS), dtype=np.int64)
        for operation in operations:
            operation[FACTOR], operation[GRAIN] = self.num_kv_heads, 3
            operation[rotary.PROJECTED] = heads.data_ptr()
            operation[rotary.ROW_BYTES] = 4 * num_all * self.head_dim
            operation[rotary.NUM_KV_HEADS] = self.num_kv_heads
            operation[rotary.GROUP_SIZE] = self.num_heads // self.num_kv_heads
            operation[rotary.HEAD_DIM] = self.head_dim
            operation[rotary.KEYS], operation[rotary.VALUES] = (p.ctypes.data for p in self.pages)
            operation[rotary.BLOCK_BYTES] = self.block_bytes
            operation[rotary.KV_GROUP] = step_words.FIRST_GROUP
            operation[rotary.HALF] = half
            operation[rotary.COSINES], operation[rotary.SINES] = (
                cosines.data_ptr(),
                sines.data_ptr(),
            )
        operations[0, [KERNEL, EXTENT]] = turn_prompts.address, step_words.NUM_PREFILL_TOKENS
        operations[1, [KERNEL, EXTENT]] = attend_tiles.address, step_words.NUM_TILES
        operations[2, [KERNEL, EXTENT]] = join_parts.address, step_words.NUM_JOINED
        operations[2, FACTOR] = self.num_heads
        operations[1:, attention_rows.OUTPUT] = output.data_ptr()
        operations[1:, attention_rows.PARTS] = parts.data_ptr()
        quantized = torch.zeros(
            num_tokens, quantized_row_bytes(output[0].numel()), dtype=torch.uint8
        )
        if self.head_dim % 32 == 0:
            operations[1:, attention_rows.QUANTIZED] = quantized.data_ptr()
        operations[1, attention_rows.WINDOW] = self.rule.window or 0
        operations[1, attention_rows.MAY_ROUND] = self.may_round
        write_float(operations[1], attention_rows.SCALE, self.rule.scale)
        write_float(operations[1], attention_rows.SOFTCAP, self.rule.softcap or 0.0)
        if self.sinks is not None:
            operations[1, attention_rows.SINKS] = self.sinks.data_ptr()
        threads = WorkerThreads(2, attention.SCRATCH_BYTES)
        threads.run(operations.ctypes.data, len(operations), step.address)
        threads.close()
        if self.head_dim % 32 == 0:
            assert torch.equal(quantized, quantize(output.flatten(1)))
        return output, expected

    def check(self, spans: list[tuple[int, int, int]]) -> None:
        output, expected = self.step(spans)
        error = (output - expected).abs()
        lengths = torch.tensor([length for _, _, length in spans])
        rounds = self.may_round and attention_prompt.IS_USED
        is_rounded = ((lengths > 1) & rounds).repeat_interleave(lengths)
        if not is_rounded.all():
            # A rotation that rounds otherwise in its last bit may make another float16 of a key.
            assert error[~is_rounded].max() < 5e-4
            assert error[~is_rounded].median() < 1e-6
        if is_rounded.any():
            # Weights and values are rounded to bfloat16, each by 1/256 of itself at most; no value
            # is above 5. The errors cancel out the more of them are summed.
            assert error[is_rounded].max() < 5 / 256
            assert error[is_rounded].median() < 1 / 1024


HEADS = [
    (3, 3, 64),
    (9, 3, 64),
    (7, 1, 128),
    (8, 4, 80),
    (5, 1, 96),
    (16, 2, 256),
    (6, 1, 16),
    (32, 1, 32),
]
RULES = [
    {},
    {"window": 40},
    {"softcap": 2.0},
    {"window": 5, "softcap": 30.0},
]


@pytest.mark.parametrize("heads", HEADS, ids=lambda heads: "x".join(map(str, heads)))
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("may_round", [False, True], ids=["exact", "rounded"])
def test_prompts_and_decodes_attend_as_torch_does(
    heads: tuple[int, int, int], rule: dict[str, float], may_round: bool
) -> None:
    head_dim = heads[2]
    layer = Layer(
        *heads,
        AttentionRule(head_dim**-0.5, **rule),  # type: ignore[arg-type]
        rotary_dim=head_dim,
        may_round=may_round,
    )
    layer.check([(0, 0, 37)])
    layer.check([(1, 0, 1), (0, 37, 60), (2, 0, 17)])
    layer.check([(0, 97, 1), (1, 1, 1), (2, 17, 1)])
    layer.check([(1, 2, 1), (2, 18, 300), (0, 98, 2)])
    layer.check([(2, 318, 1), (0, 100, 1)])


@pytest.mark.parametrize("rotary_dim", [0, 20, 32, 64])
def test_part_of_a_head_or_none_of_it_is_turned(rotary_dim: int) -> None:
    layer = Layer(4, 2, 64, AttentionRule(0.1), rotary_dim=rotary_dim)
    layer.check([(0, 0, 1), (1, 0, 20)])
    layer.check([(0, 1, 1), (1, 20, 1)])


@pytest.mark.parametrize("heads", [(9, 3, 64), (8, 1, 80)], ids=str)
@pytest.mark.parametrize("rule", [{}, {"window": 300}, {"window": 40, "softcap": 20.0}], ids=str)
def test_threads_share_a_long_context(heads: tuple[int, int, int], rule: dict[str, float]) -> None:
    layer = Layer(
        *heads,
        AttentionRule(0.125, **rule),  # type: ignore[arg-type]
        rotary_dim=32,
        sinks=torch.linspace(-1, 4, heads[0]),
        num_blocks=80,
        max_split_tiles=5,
        may_round=True,
    )
    layer.check([(0, 0, 510), (1, 0, 255)])
    for length in range(510, 514):
        layer.check([(0, length, 1)])
    layer.check([(0, 514, 300)])
    layer.check([(0, 814, 1)])
    layer.check([(0, 815, 1), (1, 255, 1)])


@pytest.mark.parametrize("heads", [(9, 3, 64), (7, 1, 80)], ids=str)
@pytest.mark.parametrize("window", [None, 21])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_equal_scores_give_the_mean_of_what_is_seen(
    heads: tuple[int, int, int], window: int | None, has_sinks: bool
) -> None:
    """Weights are 1 then, and whole values exact in 16 bits: nothing is rounded."""
    scale = 1e-15  # Torch gives NaN for 0.
    sinks = torch.zeros(heads[0]) if has_sinks else None
    layer = Layer(
        *heads,
        AttentionRule(scale, window=window),
        sinks=sinks,
        has_whole_values=True,
        may_round=True,
    )
    for spans in ([(0, 0, 37)], [(1, 0, 300)], [(0, 37, 1), (1, 300, 19), (2, 0, 3)]):
        output, expected = layer.step(spans)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("may_round", [False, True], ids=["exact", "rounded"])
def test_sinks_take_their_share(may_round: bool) -> None:
    layer = Layer(
        *(6, 2, 64),
        AttentionRule(0.2, window=20),
        sinks=torch.tensor([0.0, 3.0, -2.0, 8.0, 1.0, 0.5]),
        may_round=may_round,
    )
    layer.check([(0, 0, 1), (1, 0, 70)])
    layer.check([(0, 1, 1), (1, 70, 1)])
