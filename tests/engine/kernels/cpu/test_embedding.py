"""Rows looked up in tiles are those of the matrix, bit for bit."""

import numpy as np
import pytest
import torch

from octavo.engine.kernels.cpu import embedding, step_words
from tests.engine.kernels.cpu.matrices import KINDS
from tests.engine.kernels.cpu.operations import run_operations


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_matrix(kind: str) -> None:
    packed, _ = KINDS[kind][1](70, 544, torch.Generator().manual_seed(6))
    token_ids = np.array([0, 69, 15, 16, 33, 33, -1, -2], dtype=np.int64)
    chosen = np.array([41, 7], dtype=np.int64)
    rows = torch.full((len(token_ids), packed.num_columns), torch.nan)
    run_operations(
        [(embedding.embed_tokens, step_words.NUM_TOKENS, 1)],
        {
            embedding.TILES: packed.tiles,
            embedding.TILE_BYTES: packed.tiles.shape[1],
            embedding.SIZE: packed.num_columns,
            embedding.ROWS: rows,
            embedding.ROW_SCALE: 2.0,
            **embedding.form_words(packed.form, packed.group_size),
        },
        {
            step_words.NUM_TOKENS: len(token_ids),
            step_words.TOKEN_IDS: token_ids.ctypes.data,
            step_words.CHOSEN_BEFORE: chosen.ctypes.data,
        },
    )
    expected = packed.unpack()[[0, 69, 15, 16, 33, 33, 41, 7]]
    assert torch.equal(rows, 2.0 * expected)
