"""Tiles kept on disk: whole or not at all, only of files as they are, never where room is short."""

import os
import shutil
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.checkpoint.gguf import GGMLType
from octavo.engine import tile_store
from octavo.engine.config import EngineConfig
from octavo.engine.engine import Engine
from octavo.engine.loading import load_engine
from octavo.engine.tile_store import StoredMatrix, TileStore
from octavo.jobs import JobCancelled, JobControl, Progress
from tests.support.engines import Result, run_all
from tests.support.engines import request as make_request
from tests.support.family_folders import write_family_folder
from tests.support.gguf_files import write_tiny_llama
from tests.support.model_folders import vocab_size, write_tokenizer

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def roomy_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 44, 0, 1 << 44))


def matrices(seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        name: (
            StoredMatrix("q4_0", 16 * num_tiles, 32, 32, num_tiles, 320),
            random.integers(0, 255, (num_tiles, 320), dtype=np.uint8),
        )
        for name, num_tiles in (("a", 3), ("b", 1))
    }


def test_what_was_written_is_mapped(tmp_path: Path) -> None:
    store = TileStore(tmp_path / "tiles")
    assert store.open("k") is None
    written = matrices()
    assert store.write("k", tmp_path / "m.gguf", written, JobControl())
    file = store.open("k")
    assert file is not None
    for name, (stored, tiles) in written.items():
        assert file.matrices[name] == stored
        assert file.offsets[name] % 64 == 0
        found = file.memory[file.offsets[name] :][: stored.num_bytes]
        assert (found == tiles.reshape(-1)).all()
    file.memory[file.offsets["a"]] ^= 1
    again = store.open("k")
    assert again is not None
    assert again.memory[again.offsets["a"]] == written["a"][1][0, 0], "the mapping is private"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: b"OTHER" + content[5:],
        lambda content: content[:16] + b"[" + content[17:],
        lambda content: content[:8] + bytes([255] * 8) + content[16:],
        lambda content: content.replace(b'"a"', b'"c"')[:-64],
        lambda _: b"",
    ],
)
def test_a_file_that_is_not_whole_is_not_used(tmp_path: Path, damage: Any) -> None:
    store = TileStore(tmp_path)
    store.write("k", tmp_path / "m.gguf", matrices(), JobControl())
    (path,) = tmp_path.glob("*.tiles")
    path.write_bytes(damage(path.read_bytes()))
    assert store.open("k") is None


def test_a_cancelled_write_leaves_nothing(tmp_path: Path) -> None:
    control = JobControl()
    control.cancel()
    with pytest.raises(JobCancelled):
        TileStore(tmp_path).write("k", tmp_path / "m.gguf", matrices(), control)
    assert list(tmp_path.iterdir()) == []


def test_without_room_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 0, 1 << 30))
    store = TileStore(tmp_path)
    assert not store.write("k", tmp_path / "m.gguf", matrices(), JobControl())
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "file"
    file.touch()
    assert not TileStore(file / "below").write("k", file, matrices(), JobControl())


def test_what_was_used_longest_ago_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TileStore(tmp_path)
    for age, key in enumerate("abc"):
        store.write(key, tmp_path / key, matrices(), JobControl())
        os.utime(tmp_path / f"{key}.tiles", (1_000_000 - age, 1_000_000 - age))
    assert store.num_models() == 3
    assert store.open("c") is not None  # used just now
    monkeypatch.setattr(tile_store, "_MAX_BYTES", store.num_bytes())
    store.write("d", tmp_path / "d", matrices(), JobControl())
    assert sorted(path.stem for path in tmp_path.glob("*.tiles")) == ["a", "c", "d"]
    assert store.clear() > 0
    assert store.num_bytes() == 0


def test_tiles_go_with_their_model_and_when_it_changes(tmp_path: Path) -> None:
    store = TileStore(tmp_path)
    for key, name in (("k1", "one"), ("k2", "two"), ("k3", "one")):
        store.write(key, tmp_path / name, matrices(), JobControl())
    assert store.open("k1") is None, "k3 is of the same model"
    size = store.num_bytes()
    assert store.remove(tmp_path / "two") == size // 2
    assert store.remove(tmp_path / "two") == 0
    assert store.open("k3") is not None


# Through a load.


def load(path: Path, folder: Path) -> tuple[Engine, int]:
    """The engine, once what it keeps is written, and how many bytes of weights were read."""
    stages: dict[str, Progress] = {}
    config = EngineConfig(device="cpu", num_kv_blocks=60, cpu_threads=2, tile_cache_dir=str(folder))
    control = JobControl(lambda progress: stages.update({progress.stage: progress}))
    engine, report = load_engine(path, config, control)
    assert report.executor == "CPU kernels"
    for thread in threading.enumerate():
        if thread.name == "octavo-tiles":
            thread.join()
    read_bytes = stages["Loading weights"].total
    assert read_bytes is not None
    return engine, read_bytes


def answer(engine: Engine) -> Result:
    prompt = make_request("r", list(b"hello the quick"), max_tokens=12, logprobs=2, ignore_eos=True)
    return run_all(engine, [prompt])["r", 0]


@pytest.fixture(params=["Q4_0", "F32", "mixtral"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "mixtral":
        sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        folder, vocab = tmp_path / "mixtral", -(-vocab_size() // 64) * 64
        options = {**sizes, **heads, "vocab_size": vocab, "tie_word_embeddings": True}
        write_family_folder(folder, "mixtral", **options)
        write_tokenizer(folder)
        return tmp_path / "mixtral"
    return write_tiny_llama(tmp_path / "tiny.gguf", ggml_type=GGMLType[request.param])


def test_the_second_load_says_the_same_and_reads_no_matrix(model: Path, tmp_path: Path) -> None:
    first, read_bytes = load(model, tmp_path / "tiles")
    second, read_again_bytes = load(model, tmp_path / "tiles")
    assert read_again_bytes < read_bytes / 5
    expected, actual = answer(first), answer(second)
    assert actual.token_ids == expected.token_ids
    assert [one.logprob for one in actual.logprobs] == [one.logprob for one in expected.logprobs]
    assert TileStore(tmp_path / "tiles").num_models() == 1


def test_a_changed_model_is_read_anew(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", ggml_type=GGMLType.Q4_0)
    first, read_bytes = load(path, tmp_path / "tiles")
    write_tiny_llama(path, ggml_type=GGMLType.Q4_0, seed=9)
    os.utime(path, (1_000_000, 1_000_000))
    second, read_again_bytes = load(path, tmp_path / "tiles")
    assert read_again_bytes == read_bytes
    assert answer(second).token_ids != answer(first).token_ids
    assert TileStore(tmp_path / "tiles").num_models() == 1
