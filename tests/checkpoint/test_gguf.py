import struct
import tracemalloc
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.checkpoint.gguf import BLOCK_LAYOUT, GGMLType, GGUFHeader, read_gguf_header
from octavo.errors import CheckpointError, OctavoError, StorageError, UnsupportedModelError
from tests.support.gguf_files import TinyLlama, write_gguf, write_tiny_llama

UINT8, UINT32, BOOL, STRING, ARRAY, UINT64 = 0, 4, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, value_type: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", value_type) + value


def tensor(
    name: str, sizes: Iterable[int] = (32,), kind: int = GGMLType.F32, offset: int = 0
) -> bytes:
    """One entry of the tensor list; the sizes are innermost first, as in the file."""
    sizes = list(sizes)
    head = text(name) + struct.pack("<I", len(sizes))
    return head + struct.pack(f"<{len(sizes)}QIQ", *sizes, kind, offset)


ARCHITECTURE = pair("general.architecture", STRING, text("llama"))


def file_bytes(
    *,
    pairs: Iterable[bytes] = (ARCHITECTURE,),
    tensors: Iterable[bytes] = (),
    data: bytes = bytes(256),
    version: int = 3,
    num_keys: int | None = None,
    num_tensors: int | None = None,
) -> bytes:
    pairs, tensors = list(pairs), list(tensors)
    counts = (
        len(tensors) if num_tensors is None else num_tensors,
        len(pairs) if num_keys is None else num_keys,
    )
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + data


def read(tmp_path: Path, content: bytes) -> GGUFHeader:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return read_gguf_header(path)


def test_layouts_are_those_of_the_format() -> None:
    known = {int(kind): layout for kind, layout in gguf.GGML_QUANT_SIZES.items()}
    assert {int(kind): layout for kind, layout in BLOCK_LAYOUT.items()} == known
    assert {kind.name: int(kind) for kind in GGMLType} == {
        kind.name: int(kind) for kind in gguf.GGMLQuantizationType
    }


@pytest.mark.parametrize("ggml_type", [GGMLType.F32, GGMLType.Q4_1], ids=lambda kind: kind.name)
def test_header_says_what_the_gguf_package_reads(tmp_path: Path, ggml_type: GGMLType) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", ggml_type=ggml_type)
    header = read_gguf_header(path)
    reader = gguf.GGUFReader(path)
    fields = {name: field for name, field in reader.fields.items() if name[:5] != "GGUF."}
    assert header.metadata == {name: field.contents() for name, field in fields.items()}
    assert [(t.name, t.shape, t.offset, t.num_bytes) for t in header.tensors.values()] == [
        (t.name, tuple(t.shape.tolist()[::-1]), t.data_offset, t.n_bytes) for t in reader.tensors
    ]
    assert header.version == 3
    assert header.architecture == "llama"
    assert header.data_offset == reader.data_offset
    assert header.file_bytes == path.stat().st_size
    assert header.num_parameters == sum(int(t.n_elements) for t in reader.tensors)
    assert header.tensor_bytes == sum(int(t.n_bytes) for t in reader.tensors)


def test_metadata_longer_than_one_read_is_whole(tmp_path: Path) -> None:
    words = [f"word {i} " + "x" * (i % 97) for i in range(40_000)]
    numbers = list(range(300_000))
    metadata = {"long.words": words, "long.numbers": numbers, "long.text": "y" * 3_000_000}
    header = read_gguf_header(write_gguf(tmp_path / "long.gguf", metadata, {}))
    assert header.metadata == {"general.architecture": "llama", **metadata}


def test_version_2_is_read(tmp_path: Path) -> None:
    content = file_bytes(version=2, tensors=[tensor("a")])
    assert read(tmp_path, content).tensors["a"].num_bytes == 128


def test_alignment_of_the_file_is_kept(tmp_path: Path) -> None:
    pairs = [ARCHITECTURE, pair("general.alignment", UINT32, struct.pack("<I", 256))]
    content = file_bytes(pairs=pairs, tensors=[tensor("a")], data=bytes(1024))
    assert read(tmp_path, content).tensors["a"].offset == 256


def test_string_values_that_are_not_utf8_are_readable(tmp_path: Path) -> None:
    token = pair("a", ARRAY, struct.pack("<IQ", STRING, 1) + text(b"\xffx"))
    assert read(tmp_path, file_bytes(pairs=[ARCHITECTURE, token])).metadata["a"] == ["�x"]


@pytest.mark.parametrize(
    ("file_type", "name"), [(15, "Q4_K_M"), (15 | 1024, "Q4_K_M"), (0, "F32"), (999, "Q8_0")]
)
def test_quantization_is_named_by_the_file_type_or_most_bytes(
    tmp_path: Path, file_type: int, name: str
) -> None:
    pairs = [ARCHITECTURE, pair("general.file_type", UINT32, struct.pack("<I", file_type))]
    tensors = [tensor("a"), tensor("b", (32, 4), GGMLType.Q8_0, 128)]
    content = file_bytes(pairs=pairs, tensors=tensors, data=bytes(512))
    assert read(tmp_path, content).quantization == name


def test_file_without_tensors_is_readable(tmp_path: Path) -> None:
    header = read(tmp_path, file_bytes(data=b""))
    assert header.quantization == "none"
    assert header.num_parameters == 0


@pytest.mark.parametrize("missing", [1, 100, 2000])
def test_incomplete_file_says_how_long_it_is(tmp_path: Path, missing: int) -> None:
    content = file_bytes(tensors=[tensor("a", (32, 10_000))], data=bytes(1_280_000))
    with pytest.raises(CheckpointError, match=r"1\.2 MiB long but its tensors reach to 1\.2 MiB"):
        read(tmp_path, content[:-missing])


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    model = TinyLlama(num_layers=1, hidden_size=32, head_dim=8, intermediate_size=32)
    content = model.write(tmp_path / "tiny.gguf").read_bytes()
    header = read_gguf_header(tmp_path / "tiny.gguf")
    end = max(t.offset + t.num_bytes for t in header.tensors.values())
    for length in [*range(0, 2000, 7), *range(2000, end, 977), end - 1]:
        with pytest.raises(CheckpointError, match=r"model\.gguf") as caught:
            read(tmp_path, content[:length])
        assert caught.value.hint


HUGE_STRING = struct.pack("<Q", 1 << 30) + b"short"
NESTED = struct.pack("<IQ", ARRAY, 1) * 5000
DAMAGED = {
    "string of a gigabyte": (file_bytes(pairs=[pair("a", STRING, HUGE_STRING)]), "reaches to"),
    "string of 2^64 bytes": (file_bytes(pairs=[pair("a", STRING, b"\xff" * 8)]), "reaches to"),
    "name of a gigabyte": (file_bytes(pairs=[HUGE_STRING]), "name of"),
    "name of a tensor cut off": (
        file_bytes(tensors=[struct.pack("<Q", 5000)], data=b""),
        "reaches to byte",
    ),
    "2^60 tensors": (file_bytes(num_tensors=1 << 60), "1,152,921,504,606,846,976 tensors"),
    "2^60 keys": (file_bytes(num_keys=1 << 60), "metadata keys"),
    "too many keys": (file_bytes(num_keys=70_000, data=bytes(1 << 20)), "65,536"),
    "too many tensors": (file_bytes(num_tensors=300_000, data=bytes(8 << 20)), "262,144"),
    "array of 2^60 strings": (
        file_bytes(pairs=[pair("a", ARRAY, struct.pack("<IQ", STRING, 1 << 60))]),
        "elements in the metadata value 'a'",
    ),
    "array of 2^61 numbers": (
        file_bytes(pairs=[pair("a", ARRAY, struct.pack("<IQ", UINT64, 1 << 61))]),
        "elements in the metadata value 'a'",
    ),
    "array longer than any vocabulary": (
        file_bytes(
            pairs=[pair("a", ARRAY, struct.pack("<IQ", UINT8, 9_000_000))], data=bytes(9_000_000)
        ),
        "8,000,000",
    ),
    "arrays in arrays": (file_bytes(pairs=[pair("a", ARRAY, NESTED)]), "array of arrays"),
    "unknown value type": (file_bytes(pairs=[pair("a", 13, b"1234")]), "unknown type 13"),
    "unknown element type": (
        file_bytes(pairs=[pair("a", ARRAY, struct.pack("<IQ", 77, 1))]),
        "unknown type 77",
    ),
    "same key twice": (file_bytes(pairs=[ARCHITECTURE, ARCHITECTURE]), "twice"),
    "name that is not UTF-8": (file_bytes(pairs=[pair(b"\xff", BOOL, b"\1")]), "not UTF-8"),
    "no architecture": (file_bytes(pairs=[]), "architecture"),
    "architecture is a number": (
        file_bytes(pairs=[pair("general.architecture", BOOL, b"\1")]),
        "architecture",
    ),
    "alignment of 0": (
        file_bytes(pairs=[ARCHITECTURE, pair("general.alignment", UINT32, bytes(4))]),
        "alignment is 0",
    ),
    "alignment of 48": (
        file_bytes(pairs=[ARCHITECTURE, pair("general.alignment", UINT32, b"\x30\0\0\0")]),
        "alignment is 48",
    ),
    "same tensor twice": (
        file_bytes(tensors=[tensor("a"), tensor("a", offset=128)]),
        "'a' twice",
    ),
    "five dimensions": (file_bytes(tensors=[tensor("a", [1] * 5)]), "5 dimensions"),
    "size 0": (file_bytes(tensors=[tensor("a", (32, 0))]), "impossible shape"),
    "sizes that overflow": (
        file_bytes(tensors=[tensor("a", (1 << 62, 1 << 62))]),
        "impossible shape",
    ),
    "rows of half a block": (
        file_bytes(tensors=[tensor("a", (48,), GGMLType.Q4_0)]),
        "blocks of 32",
    ),
    "offset not aligned": (file_bytes(tensors=[tensor("a", offset=4)]), "no multiple of 32"),
    "offset past the end": (file_bytes(tensors=[tensor("a", offset=1 << 60)]), "tensors reach to"),
    "overlap": (
        file_bytes(tensors=[tensor("a", (64,)), tensor("b", offset=128)]),
        "'a' and 'b' overlap",
    ),
    "empty": (b"", "it is empty"),
    "web page": (b"<!DOCTYPE html>", "web page"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
    "zeros": (bytes(100), "zeros"),
    "other format": (b"PK\3\4....", "not a GGUF file"),
    "only the magic": (b"GGUF", "reaches to byte 8"),
}


@pytest.mark.parametrize(("content", "problem"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_files_are_refused_in_little_memory(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=problem) as caught:
            read_gguf_header(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert "model.gguf" in caught.value.message
    assert caught.value.path == path
    assert caught.value.hint.startswith("Download")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (file_bytes(version=1), "version 1"),
        (file_bytes(version=4), "version 4"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (file_bytes(tensors=[tensor("a", kind=99)]), "type number 99"),
        (file_bytes(tensors=[tensor("a", kind=4)]), "type number 4"),
    ],
)
def test_what_octavo_cannot_read_is_said(tmp_path: Path, content: bytes, problem: str) -> None:
    with pytest.raises(UnsupportedModelError, match=problem) as caught:
        read(tmp_path, content)
    assert caught.value.hint


def test_missing_files_and_folders_are_storage_errors(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gone\.gguf cannot be read"):
        read_gguf_header(tmp_path / "gone.gguf")
    with pytest.raises(StorageError, match="not a file"):
        read_gguf_header(tmp_path)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = TinyLlama(num_layers=1, hidden_size=32, head_dim=8, intermediate_size=32)
    return model.write(tmp_path_factory.mktemp("fuzz") / "small.gguf")


@settings(
    max_examples=300,
    deadline=timedelta(seconds=2),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_garbled_headers_raise_only_our_errors(
    small_file: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(small_file.read_bytes())
    # Most of a header is vocabulary; the places where lengths and types lie are the first bytes.
    place = st.one_of(st.integers(0, 1200), st.integers(0, 12_000))
    piece = st.one_of(st.binary(min_size=1, max_size=1), st.binary(min_size=8, max_size=8))
    for start, bytes_ in data.draw(st.lists(st.tuples(place, piece), min_size=1, max_size=4)):
        content[start : start + len(bytes_)] = bytes_
    length = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    try:
        header = read(tmp_path, bytes(content[:length]))
    except OctavoError:
        return
    ends = [t.offset + t.num_bytes for t in header.tensors.values()]
    assert all(end <= header.file_bytes for end in ends)
