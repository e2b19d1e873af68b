"""What memory allows: the bytes of a token, and the bytes of a second."""

import contextlib
from pathlib import Path

import pytest

from octavo.checkpoint.header import read_checkpoint
from octavo.cli.benchmark import bandwidth
from octavo.cli.benchmark.bandwidth import ReadBandwidth, weight_bytes_per_token
from tests.support.gguf_files import TinyLlama, write_tiny_llama


@pytest.mark.parametrize("is_tied", [True, False])
def test_an_embedding_counts_where_it_is_the_head(tmp_path: Path, is_tied: bool) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", tie_embeddings=is_tied)
    header = read_checkpoint(path)
    rows, width = TinyLlama().vocab_size, TinyLlama().hidden_size
    unread = 0 if is_tied else rows * width * 4
    assert weight_bytes_per_token(header) == header.tensor_bytes - unread


@pytest.mark.parametrize("reason", ["", "no such vectors"])
def test_memory_is_read_at_some_rate(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """By the kernels' vectors, or by numpy where they do not run."""
    monkeypatch.setattr(bandwidth, "why_not_on_this_machine", lambda: reason)
    with contextlib.closing(ReadBandwidth(2)) as reading:
        assert reading.bytes_per_second() > 1e8
