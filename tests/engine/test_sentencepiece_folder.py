"""A `tokenizer.model` gives the ids of SentencePiece itself; damaged ones are errors at once."""

import base64
import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.checkpoint.folder import FolderHeader
from octavo.engine.sentencepiece_model import parse_sentencepiece
from octavo.engine.tokenizer import Tokenizer
from octavo.engine.tokenizer_json import tokenizer_from_folder
from octavo.errors import CheckpointError, UnsupportedModelError

DATA = Path(__file__).parents[1] / "data"
GOLDEN: dict[str, Any] = json.loads(
    (DATA / "sentencepiece_tokens.json").read_text(encoding="utf-8")
)


def model_of(name: str) -> bytes:
    return base64.b64decode(GOLDEN[name]["model"])


def write(folder: Path, content: bytes, **config: Any) -> FolderHeader:
    (folder / "tokenizer.model").write_bytes(content)
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return FolderHeader(folder, {"model_type": "llama"}, {}, {})


def tokenizer_of(folder: Path, name: str, **config: Any) -> Tokenizer:
    return tokenizer_from_folder(write(folder, model_of(name), **config))


@pytest.mark.parametrize("name", ["llama", "gemma", "squeezing"])
def test_ids_are_those_of_sentencepiece(tmp_path: Path, name: str) -> None:
    tokenizer = tokenizer_of(tmp_path, name)
    for case in GOLDEN[name]["cases"]:
        if "▁" in case["text"] and name != "llama":
            # To SentencePiece it is a space in all respects; here, as in llama.cpp, it is a space
            # to the merges, but not to what finds tokens in text and removes spaces.
            continue
        token_ids = tokenizer.encode(case["text"])
        assert token_ids == case["token_ids"], case["text"]
        assert tokenizer.decode(token_ids) == case["decoded"], case["text"]


def test_roles_are_in_the_model(tmp_path: Path) -> None:
    llama = tokenizer_of(tmp_path, "llama")
    assert (llama.bos_token, llama.eos_token, llama.adds_bos) == ("<s>", "</s>", True)
    assert llama.special_token_ids == {0, 1, 2}
    assert llama.stop_token_ids == {2}
    gemma = tokenizer_of(tmp_path, "gemma")
    assert (gemma.bos_token_id, gemma.eos_token_id) == (2, 1)
    assert gemma.user_defined_tokens.keys() >= {"  ", "   ", "<table>", "\n\n"}


def test_roles_of_the_configuration_count_first(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(
        tmp_path, "llama", add_bos_token=False, bos_token={"content": "</s>"}, eos_token=None
    )
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("</s>", "")
    assert not tokenizer.adds_bos


@pytest.mark.parametrize(
    ("legacy", "after"), [(True, " the"), (None, " the"), (False, "the")], ids=str
)
def test_legacy_puts_a_space_after_control_tokens(
    tmp_path: Path, legacy: bool | None, after: str
) -> None:
    """As transformers' slow tokenizers have it: silence means the old way."""
    tokenizer = tokenizer_of(tmp_path, "llama", legacy=legacy)
    encoded = tokenizer.encode("the</s>the", parse_special=True)
    shown = "".join(tokenizer.token_text(token_id) for token_id in encoded)
    assert shown == f" the</s>{after}"


def test_added_tokens(tmp_path: Path) -> None:
    size = len(parse_sentencepiece(model_of("llama"), tmp_path / "x").pieces)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<tool>": size, "<|end|>": size + 2}))
    tokenizer = tokenizer_of(
        tmp_path,
        "llama",
        added_tokens_decoder={
            "2": {"content": "</s>", "special": True, "rstrip": True},
            str(size + 1): {"content": "<|user|>", "special": True, "rstrip": True},
        },
    )
    assert tokenizer.vocab_size == size + 3
    assert tokenizer.stop_token_ids == {2, size + 2}
    marked = tokenizer.encode("<|user|>\n <tool></s>  \n", parse_special=True)
    assert marked == [size + 1, size, 2]
    plain = tokenizer.encode("<|user|><tool></s>")
    assert tokenizer.special_token_ids.isdisjoint(plain)
    assert size in plain


def test_it_counts_only_without_a_tokenizer_json(tmp_path: Path) -> None:
    header = write(tmp_path, model_of("llama"))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has no model"):
        tokenizer_from_folder(header)


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    encoded = b""
    while value >= 0x80:
        encoded += bytes([value & 0x7F | 0x80])
        value >>= 7
    return encoded + bytes([value])


PIECE = field(1, field(1, b"a") + b"\x15" + struct.pack("<f", -1.0))
BPE = field(2, varint(3 << 3) + varint(2))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no pieces"),
        (b"\xff" * 11, "number without end"),
        (b"\x80", "in the middle of a number"),
        (b"\x0a" + varint(1 << 30) + b"xx", "claims 1,073,741,824 bytes, of which 2"),
        (b"\x0a" + varint((1 << 64) - 1), "claims"),
        (b"\x0f", "unknown kind 7"),
        (varint(1 << 3) + varint(5), "its pieces is a number"),
        (field(1, field(1, b"\xff\xfe")), "piece 0 is no text"),
        (field(1, field(1, b"a" * 5000)), "5,000 bytes"),
        (field(1, field(2, b"ab")), "score of piece 0"),
        (field(1, b"\x15" + struct.pack("<f", float("nan"))), "score of piece 0"),
        (field(1, varint(3 << 3) + varint(9)), "unknown type"),
        (PIECE + field(2, field(3, b"x")), "model_type is no number"),
        (PIECE * 2 + BPE, "1 of its tokens appear twice"),
    ],
)
def test_damaged_models(tmp_path: Path, content: bytes, words: str) -> None:
    header = write(tmp_path, content)
    with pytest.raises(CheckpointError, match=words) as caught:
        tokenizer_from_folder(header)
    assert caught.value.path == tmp_path / "tokenizer.model"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (model_of("unigram"), "UNIGRAM"),
        (PIECE + BPE + field(3, field(2, b"charsmap")), "changes characters"),
        (PIECE + BPE + field(3, varint(5 << 3) + varint(0)), "writes spaces"),
    ],
)
def test_models_that_are_not_run(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        tokenizer_from_folder(write(tmp_path, content))


@pytest.mark.parametrize("added", [{"<a>": "5"}, {"<a>": -1}, {"": 5}], ids=str)
def test_added_tokens_of_wrong_types(tmp_path: Path, added: dict[str, Any]) -> None:
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(CheckpointError, match=r"added_tokens\.json"):
        tokenizer_of(tmp_path, "llama")


def test_a_claim_of_billions_of_tokens_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<a>": 10**10}))
    assert tokenizer_of(tmp_path, "llama").vocab_size < 1000


def test_time_is_bounded(tmp_path: Path) -> None:
    """Merges are sought in tokens no longer than any model's own."""
    pieces = b"".join(field(1, field(1, b"a" * length)) for length in range(1, 3000))
    start = time.monotonic()
    tokenizer = tokenizer_from_folder(write(tmp_path, pieces + BPE))
    assert tokenizer.decode(tokenizer.encode("aaaa")) == "aaaa"
    assert time.monotonic() - start < 20


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 9000), st.integers(0, 40))
def test_garbage_is_an_error_or_a_model(noise: bytes, at: int, cut: int) -> None:
    content = model_of("llama")
    for broken in (noise, content[:at] + noise + content[at + cut :], content[:at]):
        try:
            parse_sentencepiece(broken, Path("folder") / "tokenizer.model")
        except CheckpointError as error:
            assert "tokenizer.model in folder" in error.message  # noqa: PT017
