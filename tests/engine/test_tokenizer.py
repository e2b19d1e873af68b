"""The tokenizer: ids as llama.cpp gives them, and text that never becomes a control token."""

import itertools
import json
import logging
import threading
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.checkpoint.gguf import read_gguf_header
from octavo.engine.tokenizer import Tokenizer, tokenizer_from_gguf, tokenizer_from_metadata
from octavo.errors import CheckpointError, UnsupportedModelError
from tests.support.gguf_files import TinyLlama, write_tiny_llama

DATA = Path(__file__).parents[1] / "data"
GOLDEN: dict[str, Any] = json.loads((DATA / "llama_cpp_tokens.json").read_text(encoding="utf-8"))
Metadata = dict[str, Any]


def byte_level(**changes: Any) -> Metadata:
    return {**TinyLlama().metadata(), **{f"tokenizer.ggml.{k}": v for k, v in changes.items()}}


def sentence_piece(
    scores: Mapping[str, float],
    *,
    byte_tokens: bool = True,
    user_defined: Sequence[str] = (),
    **changes: Any,
) -> Metadata:
    """A vocabulary of <unk>, <s>, </s>, the 256 bytes, and these pieces."""
    num_bytes = 256 if byte_tokens else 0
    fallback = [f"<0x{byte:02X}>" for byte in range(num_bytes)]
    tokens = ["<unk>", "<s>", "</s>", *fallback, *scores, *user_defined]
    types = [2, 3, 3] + [6] * num_bytes + [1] * len(scores) + [4] * len(user_defined)
    values = [0.0] * (3 + num_bytes) + list(scores.values()) + [-1000.0] * len(user_defined)
    metadata = {
        "model": "llama",
        "tokens": tokens,
        "token_type": types,
        "scores": values,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}


def golden_vocabulary(part: Mapping[str, Any], **changes: Any) -> Metadata:
    keys = ("model", "tokens", "token_type", "merges", "scores")
    given_keys = {key: part[key] for key in keys if key in part}
    metadata = {"model": "gpt2", "bos_token_id": 1, "eos_token_id": 1, **given_keys, **changes}
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}


@pytest.fixture(scope="module")
def tiny() -> Tokenizer:
    return tokenizer_from_metadata(byte_level())


@pytest.fixture(scope="module")
def starter(starter_model: Path) -> Tokenizer:
    return tokenizer_from_gguf(read_gguf_header(starter_model))


@pytest.mark.starter
class TestStarterModel:
    @pytest.mark.parametrize("case", GOLDEN["texts"], ids=lambda case: case["name"])
    def test_ids_are_those_of_llama_cpp(self, starter: Tokenizer, case: Metadata) -> None:
        text = case.get("text")
        if text is None:
            text = (DATA / "english.txt").read_text(encoding="utf-8")
        token_ids = starter.encode(text, parse_special=case["parse_special"])
        assert token_ids == case["token_ids"]

    def test_decode_gives_the_text_back(self, starter: Tokenizer) -> None:
        for case in GOLDEN["texts"]:
            # The vocabulary lacks some bytes of rare planes and controls; llama.cpp drops them too.
            if case["name"] not in ("english", "private", "controls", "odd_spaces"):
                decoded = starter.decode(case["token_ids"], skip_special_tokens=False)
                assert decoded == case["text"]

    @pytest.mark.parametrize("chat", GOLDEN["chats"], ids=lambda chat: str(len(chat["messages"])))
    def test_prompts(self, starter: Tokenizer, chat: Metadata) -> None:
        assert starter.encode(chat["prompt"], parse_special=True) == chat["token_ids"]

    def test_special_ids(self, starter: Tokenizer) -> None:
        assert starter.vocab_size == 49152
        assert starter.stop_token_ids == {0, 2}
        assert (starter.bos_token, starter.eos_token) == ("<|im_start|>", "<|im_end|>")
        assert not starter.adds_bos
        assert starter.special_token_ids == set(range(17))


class TestPreTokenizers:
    @pytest.mark.parametrize(
        "group", GOLDEN["pre_tokenizers"]["groups"], ids=lambda group: group["names"][0]
    )
    def test_cuts_are_those_of_llama_cpp(self, group: Metadata) -> None:
        part = GOLDEN["pre_tokenizers"]
        for name in group["names"]:
            tokenizer = tokenizer_from_metadata(golden_vocabulary(part, pre=name))
            for text, token_ids in zip(part["texts"], group["token_ids"], strict=True):
                if not self.is_cut_otherwise(name, text):
                    assert tokenizer.encode(text) == token_ids, (name, text)

    def is_cut_otherwise(self, name: str, text: str) -> bool:
        """llama.cpp writes two patterns in other words than the models' own tokenizers.

        And it leaves letters and their marks apart, which Qwen's tokenizer composes.
        """
        if name == "qwen2":
            return not unicodedata.is_normalized("NFC", text)
        if name in ("tekken", "gpt-4o", "llama4", "kanana2"):
            return any(
                unicodedata.category(c).startswith("M") or (c.isalpha() and not c.isascii())
                for c in text
            )
        if name == "deepseek-coder":
            return any(c.isspace() and not c.isascii() for c in text)
        return False

    def test_cased_letters_of_deepseek(self) -> None:
        tokenizer = tokenizer_from_metadata(byte_level(pre="deepseek-llm"))
        cuts = tokenizer.backend.pre_tokenizer.pre_tokenize_str("aБΩ漢字ქართ 12ab, x!\n\n  ")
        assert [end - start for _, (start, end) in cuts] == [1, 2, 6, 1, 2, 2, 1, 2, 1, 1, 1, 2]

    def test_qwen_composes_letters_and_marks(self) -> None:
        composed = tokenizer_from_metadata(byte_level(pre="qwen2"))
        assert composed.encode("e\u0301") == composed.encode("é")
        apart = tokenizer_from_metadata(byte_level(pre="deepseek-r1-qwen"))
        assert apart.encode("e\u0301") != apart.encode("é")

    def test_unknown_name_is_refused(self) -> None:
        with pytest.raises(UnsupportedModelError, match="'martian'") as caught:
            tokenizer_from_metadata(byte_level(pre="martian"))
        assert "llama-bpe" in caught.value.hint

    def test_missing_name_is_default_with_a_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        metadata = byte_level()
        del metadata["tokenizer.ggml.pre"]
        with caplog.at_level(logging.WARNING):
            tokenizer = tokenizer_from_metadata(metadata)
        assert "default" in caplog.text
        named = tokenizer_from_metadata(byte_level(pre="default"))
        assert tokenizer.encode("a12345, b!?") == named.encode("a12345, b!?")

    @pytest.mark.parametrize(("pre", "adds"), [("llama-bpe", True), ("smollm", False)])
    def test_bos_where_the_file_does_not_say(self, pre: str, adds: bool) -> None:
        metadata = byte_level(pre=pre)
        del metadata["tokenizer.ggml.add_bos_token"]
        assert tokenizer_from_metadata(metadata).adds_bos is adds


class TestByteLevel:
    @given(st.text(max_size=40))
    def test_round_trip(self, text: str) -> None:
        tokenizer = tokenizer_from_metadata(byte_level())
        assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_bos_is_put_once(self, tiny: Tokenizer) -> None:
        assert tiny.encode("hello", add_bos=True)[0] == 1
        doubled = tiny.encode("<|im_start|>hello", add_bos=True, parse_special=True)
        assert doubled.count(1) == 1

    def test_without_a_bos_none_is_put(self) -> None:
        metadata = byte_level(add_bos_token=True)
        del metadata["tokenizer.ggml.bos_token_id"]
        tokenizer = tokenizer_from_metadata(metadata)
        assert not tokenizer.adds_bos
        assert tokenizer.bos_token == ""
        assert tokenizer.encode("hello", add_bos=True) == tokenizer.encode("hello")

    @given(st.lists(st.sampled_from(["<|im_end|>", "<|im_start|>", "<|", "a ", "|>", "im_end"])))
    def test_text_never_becomes_a_control_token(self, parts: list[str]) -> None:
        tokenizer = tokenizer_from_metadata(byte_level())
        assert tokenizer.special_token_ids.isdisjoint(tokenizer.encode("".join(parts)))

    def test_control_token_is_out_of_reach_of_merges_and_whole_words(self) -> None:
        metadata = byte_level(pre="llama-bpe")
        tokens = metadata["tokenizer.ggml.tokens"]
        types = list(metadata["tokenizer.ggml.token_type"])
        types[tokens.index("hello")] = 3
        metadata["tokenizer.ggml.token_type"] = types
        tokenizer = tokenizer_from_metadata(metadata)
        assert tokenizer.encode("hello") == [tokens.index("hell"), tokens.index("o")]
        assert tokenizer.encode("hello", parse_special=True) == [tokens.index("hello")]

    def test_user_defined_tokens_are_always_matched(self) -> None:
        metadata = byte_level()
        metadata["tokenizer.ggml.tokens"] = [
            *metadata["tokenizer.ggml.tokens"],
            "<tool>",
            "<tool>>",
        ]
        metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 4, 4]
        tokenizer = tokenizer_from_metadata(metadata)
        tool = tokenizer.vocab_size - 2
        assert tokenizer.encode("<tool><tool>>") == [tool, tool + 1]
        assert tokenizer.decode([tool]) == "<tool>"
        assert tool not in tokenizer.special_token_ids

    def test_lone_surrogates(self, tiny: Tokenizer) -> None:
        assert tiny.decode(tiny.encode("a\ud83d!")) == "a\ufffd!"
        assert tiny.decode(tiny.encode("\ud83d\ude42")) == "🙂"

    def test_pieces(self, tiny: Tokenizer) -> None:
        euro = tiny.encode("€")
        assert b"".join(map(tiny.token_bytes, euro)) == "€".encode()
        assert tiny.token_text(euro[0]) == "\ufffd"
        assert tiny.token_text(2) == "<|im_end|>"
        assert tiny.decode([2, *euro]) == "€"
        assert tiny.decode([2, *euro], skip_special_tokens=False) == "<|im_end|>€"

    def test_threads_may_use_different_flags(self, tiny: Tokenizer) -> None:
        text = "hello <|im_end|> " * 50
        expected = {flag: tiny.encode(text, parse_special=flag) for flag in (True, False)}
        right: list[bool] = []

        def encode(flag: bool) -> None:
            encoded = (tiny.encode(text, parse_special=flag) for _ in range(50))
            right.append(all(token_ids == expected[flag] for token_ids in encoded))

        threads = [threading.Thread(target=encode, args=(index % 2 == 0,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert right == [True] * 4


class TestStopTokens:
    def test_from_the_metadata_and_from_the_vocabulary(self) -> None:
        metadata = byte_level(eot_token_id=10, eom_token_id=11)
        assert tokenizer_from_metadata(metadata).stop_token_ids == {0, 2, 10, 11}

    def test_end_of_turn_called_user_defined_still_ends_the_turn(self) -> None:
        metadata = byte_level(eos_token_id=0)
        types = list(metadata["tokenizer.ggml.token_type"])
        types[2] = 4
        metadata["tokenizer.ggml.token_type"] = types
        tokenizer = tokenizer_from_metadata(metadata)
        assert tokenizer.stop_token_ids == {0, 2}
        assert 2 not in tokenizer.encode("<|im_end|>")

    def test_ordinary_text_of_that_name_does_not(self) -> None:
        metadata = byte_level(eos_token_id=0)
        types = list(metadata["tokenizer.ggml.token_type"])
        types[2] = 1
        metadata["tokenizer.ggml.token_type"] = types
        assert tokenizer_from_metadata(metadata).stop_token_ids == {0}

    @pytest.mark.parametrize("token_id", [-1, 10**6, "2"])
    def test_id_outside_the_vocabulary_is_ignored_with_a_warning(
        self, token_id: object, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            tokenizer = tokenizer_from_metadata(byte_level(eos_token_id=token_id))
        assert tokenizer.eos_token_id is None
        assert tokenizer.eos_token == ""
        assert "eos_token_id" in caplog.text


def merge_by_score(pieces: Mapping[str, float], text: str) -> list[str]:
    """SentencePiece's BPE as its paper states it: join the best neighbours, leftmost first."""
    symbols = list(text.replace(" ", "▁"))
    while True:
        unions = [left + right for left, right in itertools.pairwise(symbols)]
        known = [(-pieces[union], at) for at, union in enumerate(unions) if union in pieces]
        if not known:
            break
        _, at = min(known)
        symbols[at : at + 2] = [unions[at]]
    joined = []
    for symbol in symbols:
        fallback = [f"<0x{byte:02X}>" for byte in symbol.encode()]
        joined += [symbol] if symbol in pieces else fallback
    return joined


@st.composite
def scored_pieces(draw: st.DrawFn) -> dict[str, float]:
    """Every letter and some unions, in a random order of merit; some unions are out of reach."""
    pieces = draw(st.lists(st.text("ab▁c", min_size=2, max_size=5), unique=True, max_size=25))
    ranked = draw(st.permutations([*pieces, *"abc▁"]))
    return {piece: -float(rank) for rank, piece in enumerate(ranked)}


class TestSentencePiece:
    @settings(max_examples=200, deadline=None)
    @given(scored_pieces(), st.text("ab cdé\n", max_size=30))
    def test_ids_are_those_of_merging_by_score(self, pieces: dict[str, float], text: str) -> None:
        tokenizer = tokenizer_from_metadata(sentence_piece(pieces, add_space_prefix=False))
        encoded = [tokenizer.vocabulary.tokens[token_id] for token_id in tokenizer.encode(text)]
        assert encoded == merge_by_score(pieces, text)
        assert tokenizer.decode(tokenizer.encode(text)) == text

    @pytest.mark.parametrize(
        "case",
        GOLDEN["sentence_piece"]["cases"],
        ids=lambda case: f"{case['add_space_prefix']}-{case['parse_special']}",
    )
    def test_ids_are_those_of_llama_cpp(self, case: Metadata) -> None:
        part = GOLDEN["sentence_piece"]
        tokenizer = tokenizer_from_metadata(
            golden_vocabulary(part, add_space_prefix=case["add_space_prefix"])
        )
        for text, token_ids in zip(part["texts"], case["token_ids"], strict=True):
            encoded = tokenizer.encode(text, parse_special=case["parse_special"])
            assert encoded == token_ids, text

    @given(st.text(max_size=40))
    def test_round_trip(self, text: str) -> None:
        tokenizer = tokenizer_from_metadata(sentence_piece({"▁": -1.0, "▁▁": -0.5, "a": -2.0}))
        # The only character that SentencePiece cannot tell from a space.
        assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")

    def test_space_prefix(self) -> None:
        pieces = {"▁hi": 0.0, "hi": -1.0, "h": -2.0, "i": -3.0, "▁": -4.0}
        with_prefix = tokenizer_from_metadata(sentence_piece(pieces))
        assert [with_prefix.token_text(i) for i in with_prefix.encode("hi")] == [" hi"]
        assert with_prefix.decode(with_prefix.encode("hi")) == "hi"
        assert with_prefix.encode("") == []
        without = tokenizer_from_metadata(sentence_piece(pieces, add_space_prefix=False))
        assert [without.token_text(i) for i in without.encode("hi")] == ["hi"]
        assert without.decode(without.encode(" hi")) == " hi"

    def test_space_prefix_follows_control_tokens(self) -> None:
        pieces = {"▁h": 0.0, "h": -2.0, "▁": -4.0}
        tokenizer = tokenizer_from_metadata(sentence_piece(pieces))
        encoded = tokenizer.encode("h<s>h", parse_special=True)
        assert [tokenizer.token_text(token_id) for token_id in encoded] == [" h", "<s>", " h"]

    def test_extra_whitespace_is_removed_where_the_file_says_so(self) -> None:
        pieces = {"▁": 0.0, "a": -1.0}
        tokenizer = tokenizer_from_metadata(sentence_piece(pieces, remove_extra_whitespaces=True))
        assert tokenizer.decode(tokenizer.encode("  a   a ")) == "a a"

    def test_unknown_characters_without_byte_tokens(self) -> None:
        tokenizer = tokenizer_from_metadata(
            sentence_piece({"a": 0.0, "▁": -1.0}, byte_tokens=False, add_space_prefix=False)
        )
        assert tokenizer.encode("aéña") == [3, 0, 3]
        assert tokenizer.decode([3, 0, 3]) == "aa"

    def test_bos_is_the_default(self) -> None:
        assert tokenizer_from_metadata(sentence_piece({"a": 0.0})).adds_bos
        assert not tokenizer_from_metadata(sentence_piece({"a": 0.0}, add_bos_token=False)).adds_bos

    def test_byte_token_in_text_is_text(self) -> None:
        pieces = {piece: -float(rank) for rank, piece in enumerate(["<0", "<0x", *"<0x4A1>"])}
        tokenizer = tokenizer_from_metadata(sentence_piece(pieces, add_space_prefix=False))
        encoded = tokenizer.encode("<0x41>")
        assert tokenizer.decode(encoded) == "<0x41>"


class TestDamagedFiles:
    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"tokens": []}, "tokens is missing"),
            ({"tokens": "abc"}, "tokens is missing"),
            ({"tokens": [1, 2]}, "wrong type"),
            ({"merges": None}, "merges is missing"),
            ({"merges": ["t h", "qq zz"]}, "merge 2"),
            ({"merges": ["th"]}, "merge 1"),
            ({"token_type": [1, 2]}, "2 token types"),
            ({"token_type": None}, "token_type is missing"),
        ],
    )
    def test_is_an_error_that_names_it(self, changes: Metadata, match: str) -> None:
        with pytest.raises(CheckpointError, match=match):
            tokenizer_from_metadata(byte_level(**changes))

    def test_table_of_characters_is_refused(self) -> None:
        metadata = sentence_piece({"a": 0.0}, precompiled_charsmap=[1, 2, 3])
        with pytest.raises(UnsupportedModelError, match="precompiled_charsmap"):
            tokenizer_from_metadata(metadata)
        assert tokenizer_from_metadata(sentence_piece({"a": 0.0}, precompiled_charsmap=[]))

    def test_roles_for_templates(self) -> None:
        metadata = sentence_piece({"a": 0.0}, unknown_token_id=0, padding_token_id=2)
        roles = tokenizer_from_metadata(metadata).vocabulary.role_tokens
        assert roles == {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "</s>",
        }

    def test_merges_of_endless_tokens_are_not_sought(self) -> None:
        pieces = {"a" * length: -float(length) for length in range(1, 2000)}
        tokenizer = tokenizer_from_metadata(sentence_piece(pieces, add_space_prefix=False))
        assert tokenizer.decode(tokenizer.encode("a" * 50)) == "a" * 50

    def test_token_that_appears_twice(self) -> None:
        tokens = [*TinyLlama().tokens[:-1], "hello"]
        with pytest.raises(CheckpointError, match="1 of its"):
            tokenizer_from_metadata(byte_level(tokens=tokens))

    def test_empty_tokens_get_names(self) -> None:
        metadata = byte_level()
        metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "", ""]
        metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 5, 5]
        assert tokenizer_from_metadata(metadata).decode(tokenizer_ids("hello")) == "hello"

    def test_scores_of_another_length(self) -> None:
        metadata = sentence_piece({"a": 0.0})
        metadata["tokenizer.ggml.scores"] = [0.0]
        with pytest.raises(CheckpointError, match="1 scores"):
            tokenizer_from_metadata(metadata)

    def test_no_tokenizer(self) -> None:
        with pytest.raises(CheckpointError, match="no tokenizer"):
            tokenizer_from_metadata({})

    def test_unknown_kind(self) -> None:
        with pytest.raises(UnsupportedModelError, match="'bert'"):
            tokenizer_from_metadata(byte_level(model="bert"))

    def test_the_file_is_named(self, tmp_path: Path) -> None:
        path = write_tiny_llama(tmp_path / "tiny.gguf")
        header = read_gguf_header(path)
        assert tokenizer_from_gguf(header).vocab_size == TinyLlama().vocab_size


def tokenizer_ids(text: str) -> list[int]:
    return tokenizer_from_metadata(byte_level()).encode(text)
