"""Which numbers decode attention is launched with on a card."""

from pathlib import Path

import pytest
import tomli_w

from octavo.engine.kernels.triton.attention_tiling import (
    TABLE_NAME,
    AttentionTiling,
    TunedTiling,
    load_tilings,
    table_of,
)
from octavo.paths import resources_dir

CARD = "NVIDIA GeForce RTX 9999"
ROW = """[[decode_attention]]
card = "x"
head_dim = 64
sequences = 1
keys = {keys}
stages = {stages}
warps = 4
programs = 2
"""
FEW, MANY = AttentionTiling(64, 3, 4, 4), AttentionTiling(32, 2, 2, 2)


def write(path: Path, rows: list[TunedTiling]) -> Path:
    path.write_text(tomli_w.dumps(table_of(rows)))
    return path


def test_the_nearest_measured_number_of_sequences_counts(tmp_path: Path) -> None:
    rows = [TunedTiling(CARD, 128, 64, MANY), TunedTiling(CARD, 128, 8, FEW)]
    tilings = load_tilings(CARD, 128, write(tmp_path / "own.toml", rows))
    assert [tilings.find(n) for n in (0, 8, 9, 64, 500)] == [FEW, FEW, MANY, MANY, MANY]


def test_other_cards_and_heads_get_the_default(tmp_path: Path) -> None:
    own = write(tmp_path / "own.toml", [TunedTiling(CARD, 128, 8, FEW)])
    for tilings in (
        load_tilings(CARD, 64, own),
        load_tilings("NVIDIA other", 128, own),
        load_tilings(CARD, 128),
        load_tilings(CARD, 128, tmp_path / "is not there.toml"),
    ):
        assert tilings.find(4) == AttentionTiling()


@pytest.mark.parametrize(
    "text",
    [
        "not toml",
        "decode_attention = 3",
        "[[decode_attention]]\ncard = 'x'",
        ROW.format(keys=48, stages=2),
        ROW.format(keys=64, stages=0),
    ],
)
def test_a_broken_table_is_passed_over_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    assert load_tilings("x", 64, path).find(1) == AttentionTiling()
    assert "is passed over" in caplog.text


def test_the_table_that_ships_can_be_read(caplog: pytest.LogCaptureFixture) -> None:
    assert (resources_dir() / TABLE_NAME).exists()
    assert load_tilings("NVIDIA H200", 128).find(256) == AttentionTiling(32, 2, 2, 2)
    assert not caplog.records
