"""Headers of safetensors files and model folders: what is read, and what is refused and how."""

import contextlib
import json
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from octavo.checkpoint.folder import FolderHeader
from octavo.checkpoint.gguf import GGUFHeader
from octavo.checkpoint.header import read_checkpoint
from octavo.checkpoint.safetensors import MAX_HEADER_BYTES, read_safetensors_header
from octavo.errors import CheckpointError, ModelError, StorageError, UnsupportedModelError
from tests.support.gguf_files import write_tiny_llama


def write(path: Path, entries: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(begin: int, end: int, *, dtype: str = "F32", shape: Any = None) -> dict[str, Any]:
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_what_the_reference_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b": torch.ones(5, dtype=torch.bfloat16),
        "c": torch.tensor(7, dtype=torch.int64),
        "nothing": torch.zeros(0, 4),
    }
    save_file(tensors, path, {"format": "pt"})
    found = read_safetensors_header(path)
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    assert {tensor.dtype for tensor in found.values()} == {"F32", "BF16", "I64"}
    content = path.read_bytes()
    a = found["a"]
    assert content[a.offset : a.offset + a.num_bytes] == tensors["a"].numpy().tobytes()
    assert (a.path, a.num_elements) == (path, 6)


@pytest.mark.parametrize(
    ("entries", "data", "words"),
    [
        ({"a": entry(0, 8)}, bytes(4), "is incomplete.*'a' the last"),
        ({"a": entry(0, 8)}, bytes(12), "4 bytes after its last tensor belong to none"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), "'a' and 'b' overlap"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12), "4 bytes before the tensor 'b'"),
        (
            {"a": entry(0, 8, shape=[3])},
            bytes(8),
            "'a' takes 8 bytes, but .3. values of F32 are 12",
        ),
        ({"a": entry(8, 0, shape=[0])}, bytes(8), "'a' lies at the impossible place"),
        ({"a": entry(-4, 0)}, b"", "'a' lies at the impossible place"),
        ({"a": entry(0, 4, shape=[-1])}, bytes(4), "'a' has the impossible shape"),
        ({"a": entry(0, 4, shape=[True])}, bytes(4), "'a' has the impossible shape"),
        ({"a": entry(0, 4, shape=[1 << 60, 1 << 60])}, bytes(4), "'a' has the impossible shape"),
        ({"a": entry(0, 4, shape="x" * 999)}, bytes(4), "'a' has the impossible shape"),
        ({"a": {**entry(0, 4), "dtype": 7}}, bytes(4), "'a' has no data type"),
        ({"a": 7}, b"", "'a' has no description"),
        (b'{"a": 1, "a": 2}', b"", "has 'a' twice"),
        (b"[]", b"", "no JSON object"),
        (b"{" * 9, b"", "no valid JSON"),
        (b"[" * 100_000, b"", "no valid JSON"),
        (b'{"\xff": 1}', b"", "no valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", b"", "no valid JSON"),
    ],
)
def test_lying_headers_are_sentences(tmp_path: Path, entries: Any, data: bytes, words: str) -> None:
    path = write(tmp_path / "lies.safetensors", entries, data)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_safetensors_header(path)
    assert "lies.safetensors" in caught.value.message
    assert caught.value.path == path
    assert caught.value.hint
    assert len(str(caught.value)) < 400


def test_data_types_that_are_not_known(tmp_path: Path) -> None:
    path = write(tmp_path / "new.safetensors", {"a": entry(0, 4, dtype="F2")}, bytes(4))
    with pytest.raises(UnsupportedModelError, match="'a' in the data type 'F2'"):
        read_safetensors_header(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "only 0 bytes long"),
        (b"1234", "only 4 bytes long"),
        (struct.pack("<Q", 900), "its header alone reaches to"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1), "no header is longer"),
        (b"version https://git-lfs.github.com/spec/v1\n", "begins with 'version '"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        read_safetensors_header(path)


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_break_the_reader(content: bytes, is_header: bool) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(struct.pack("<Q", len(content)) + content if is_header else content)
        with contextlib.suppress(ModelError):
            read_safetensors_header(path)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        read_safetensors_header(tmp_path / "missing.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(StorageError, match="is not a file"):
        read_safetensors_header(tmp_path / "pipe.safetensors")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "big"
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"model_type": "llama", "max_position_embeddings": 64, "vocab_size": 2}'
    )
    write(folder / "one.safetensors", {"a": entry(0, 8), "b": entry(8, 12)}, bytes(12))
    write(folder / "two.safetensors", {"c": entry(0, 4, dtype="F16", shape=[2])}, bytes(4))
    put_index(folder, {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"})
    return folder


def put_index(folder: Path, weight_map: object) -> None:
    content = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(content)


def test_a_folder_of_shards(sharded: Path) -> None:
    header = read_checkpoint(sharded)
    assert isinstance(header, FolderHeader)
    assert [(name, tensor.path.name) for name, tensor in header.tensors.items()] == [
        ("a", "one.safetensors"),
        ("b", "one.safetensors"),
        ("c", "two.safetensors"),
    ]
    assert (header.architecture, header.title, header.quantization) == ("llama", "big", "F32")
    assert (header.num_parameters, header.tensor_bytes, header.context_length) == (5, 16, 64)


def test_one_file_comes_before_shards(sharded: Path) -> None:
    write(sharded / "model.safetensors", {"z": entry(0, 4)}, bytes(4))
    assert list(read_checkpoint(sharded).tensors) == ["z"]


def test_a_file_is_a_gguf(tmp_path: Path) -> None:
    header = read_checkpoint(write_tiny_llama(tmp_path / "tiny.gguf", name="Tiny"))
    assert isinstance(header, GGUFHeader)
    assert (header.title, header.license, header.context_length) == ("Tiny", "apache-2.0", 256)


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        (
            {"a": "three.safetensors"},
            "the file three.safetensors with 1 of its 1 tensors is missing",
        ),
        ({"c": "one.safetensors"}, "one.safetensors in big does not hold the tensor 'c'"),
        ({"a": "../one.safetensors"}, "names the file '../one.safetensors'"),
        ({"a": "/etc/passwd"}, "names the file '/etc/passwd'"),
        ({"a": "config.json"}, "names the file 'config.json'"),
        ({"a": ["one.safetensors"]}, "names the file"),
        ({}, "lists no weights"),
        (7, "lists no weights"),
    ],
)
def test_an_index_that_lies(sharded: Path, weight_map: object, words: str) -> None:
    put_index(sharded, weight_map)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_checkpoint(sharded)
    assert caught.value.hint


def test_a_tensor_in_two_files(sharded: Path) -> None:
    write(sharded / "two.safetensors", {"c": entry(0, 4), "a": entry(4, 8)}, bytes(8))
    with pytest.raises(
        CheckpointError, match=r"'a' is in one\.safetensors and in two\.safetensors"
    ):
        read_checkpoint(sharded)


def test_a_shard_without_its_index(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"has one\.safetensors, but neither"):
        read_checkpoint(sharded)


@pytest.mark.parametrize("bomb", [b"[" * (9 << 20), b"[{}" + b",{}" * (9 << 20), b"[" * 5000])
def test_small_texts_that_would_fill_the_memory(tmp_path: Path, bomb: bytes) -> None:
    path = write(tmp_path / "model.safetensors", b'{"a":' + bomb)
    (tmp_path / "config.json").write_bytes(b'{"model_type":"llama","x":' + bomb)
    for read in (lambda: read_safetensors_header(path), lambda: read_checkpoint(tmp_path)):
        tracemalloc.start()
        try:
            with pytest.raises(CheckpointError, match=r"valid JSON|values"):
                read()
            assert tracemalloc.get_traced_memory()[1] < 4 * len(bomb) + (4 << 20)
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / name).write_bytes(b"\x80\x02")
    with pytest.raises(UnsupportedModelError, match="run any program") as caught:
        read_checkpoint(tmp_path)
    assert name in caught.value.message
    assert "safetensors or GGUF" in caught.value.hint


def test_folders_that_are_incomplete(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="of which architecture"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="but no weights"):
        read_checkpoint(tmp_path)
