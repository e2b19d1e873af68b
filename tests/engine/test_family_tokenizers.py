"""Each family's tokenizer gives the ids and texts that transformers' AutoTokenizer gives.

In one thing it differs on purpose: transformers makes control tokens of text that reads like
them, wherever it comes from. Here only `parse_special` does; those texts have tests of their own.
"""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from octavo.checkpoint.folder import FolderHeader
from octavo.engine.detokenizer import IncrementalDetokenizer
from octavo.engine.tokenizer import Tokenizer
from octavo.engine.tokenizer_json import tokenizer_from_folder
from octavo.errors import CheckpointError
from tests.support.model_folders import CORPUS, change_json
from tests.support.tokenizer_kinds import (
    BYTE_LEVEL,
    FAMILIES,
    FLAGGED,
    SPECIAL,
    write_family_tokenizer,
)

TEXTS = (
    *CORPUS,
    *("", " ", "  ", "\n", "\n\n\n", "▁", " ▁▁ x", "a", " a", "a ", "\t", "\u3000 \u00a0\u2028x"),
    "😀👩‍👩‍👧‍👦🏳️‍🌈👍🏽 🇩🇪🇯🇵 1️⃣ ❤️ 🧑🏿‍🚀🫠",
    "def f(x: int) -> str:\n\tif x != 0x1F:\r\n        return f'{x!r:>10.3f}'  # ok?!//\n\n\n",
    "日本語の文章。中文，测试一下！한국어 문장입니다. ｶﾀｶﾅ ＡＢＣ　１２３「」",
    "مرحبا بالعالم، كيف حالُكَ؟ שָׁלוֹם עולם नमस्ते দুনিয়া ไทยไม่มีช่องว่าง",
    "e\u0301 a\u0308 n\u0303 Z\u0336a\u0335lgo A\u030angstro\u0308m \u1e9b\u0323 \u0301 ﬁ ǅ ẞ İi",
    "e\u0301e\u0301 o\u0308\u0304 \u1100\u1161\u11a8 \u212b",
    "\x00\x01\x07\x1b[0m\x7f\x85 \u00ad\u200b\u200d\ufeff\u202e \ue000\U000f0000\ufffd",
    "12345678901234567890 3.14159 1,000,000 007 ½ Ⅷ ٣٤٥ ৪২ x1y22z333",
    "a\r\nb\n\rc\r\rd\n \n  e \r\n\r\n f",
    "I'm you'RE he'S WE'LL y'all'd've camelCaseHTMLParser SCREAMING_CASE éCole ǅungla",
    "<tool_call> x<tool_call>y <think>a</think> \n <squeeze> \t b<squeeze>",
    "lone wolf, lone; alone lonely lone1 lone_ (lone) lonélone lone\u0301 lone½",
    "<|not_a_token|> <s > < s> <|im_ [INS [/INST <0x41> <0xE2>",
    "a" * 500 + "=" * 90 + "ab" * 60,
)
MARKED = (
    "<s>[INST] Hi [/INST] Hello</s>[INST]x[/INST]",
    "<|im_start|>user\n  Hi 😀 <tool_call>{}<|im_end|>\n<|im_start|>assistant\n",
    "a  <|left|>  b  <|right|> \n c \t<|both|>\u3000 d<|left|><|right|><|both|> ",
    "WORD word WORDs SWORD WORD, 1WORD _WORD WORD-WORD éWORD WORD\u0301 WORD½ (WORD)",
    "</s></s> e\u0301<s> e\u0301 <unk> x",
    "<|im_start|im_start|> <|im_end|",
    " <s> a",
)


def header_of(folder: Path, **generation_config: Any) -> FolderHeader:
    return FolderHeader(folder, {"model_type": "llama"}, generation_config, {})


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("family") / str(request.param)
    write_family_tokenizer(path, request.param)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return tokenizer_from_folder(header_of(folder))


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Any:
    auto = AutoTokenizer.from_pretrained(folder)
    # The sections that training left in the file; both must not change what a model is given.
    auto.backend_tokenizer.no_truncation()
    auto.backend_tokenizer.no_padding()
    return auto


def test_ids(tokenizer: Tokenizer, oracle: Any) -> None:
    for text in TEXTS:
        expected = oracle.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text) == expected, text
        assert tokenizer.encode(text, add_bos=tokenizer.adds_bos) == oracle.encode(text), text


def test_ids_of_marked_text(tokenizer: Tokenizer, oracle: Any) -> None:
    for text in MARKED:
        expected = oracle.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text, parse_special=True) == expected, text


def test_decoded(folder: Path, tokenizer: Tokenizer, oracle: Any) -> None:
    for text in (*TEXTS, *MARKED):
        token_ids = oracle.encode(text)
        expected = oracle.decode(token_ids, skip_special_tokens=True)
        assert tokenizer.decode(token_ids) == expected, text
        whole = oracle.decode(token_ids, skip_special_tokens=False)
        assert tokenizer.decode(token_ids, skip_special_tokens=False) == whole, text


def test_streaming_gives_the_same_text_at_any_cut(tokenizer: Tokenizer) -> None:
    token_ids = [token_id for text in (*TEXTS, *MARKED) for token_id in tokenizer.encode(text)]
    for skips in (True, False):
        whole = tokenizer.decode(token_ids, skip_special_tokens=skips)
        for cut in (0, 1, 2, 3, 5, 40, len(token_ids) // 2, len(token_ids) - 1):
            stream = IncrementalDetokenizer(tokenizer, token_ids[:cut], skip_special_tokens=skips)
            text = "".join(map(stream.push, token_ids[cut:])) + stream.finish()
            before = tokenizer.decode(token_ids[:cut], skip_special_tokens=skips)
            assert whole.endswith(text)
            assert before.rstrip("\ufffd") + text == whole or (before + text) == whole


def test_look_alikes_stay_text(tokenizer: Tokenizer) -> None:
    """The rule by which Octavo differs from transformers."""
    for text in (*MARKED, *SPECIAL, *(str(token.content) for token in FLAGGED)):
        token_ids = tokenizer.encode(text)
        assert not tokenizer.special_token_ids.intersection(token_ids), text


KNOWN: dict[str, Tokenizer] = {}


def known(kind: str, folder: Path) -> Tokenizer:
    if kind not in KNOWN:
        write_family_tokenizer(folder / kind, kind)
        KNOWN[kind] = tokenizer_from_folder(header_of(folder / kind))
    return KNOWN[kind]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(FAMILIES)), st.text(max_size=30))
def test_any_text_comes_back(
    tmp_path_factory: pytest.TempPathFactory, kind: str, text: str
) -> None:
    tokenizer = known(kind, tmp_path_factory.getbasetemp())
    decoded = tokenizer.decode(tokenizer.encode(text))
    if kind == "qwen":
        text = unicodedata.normalize("NFC", text)
    elif kind not in BYTE_LEVEL:
        text = text.replace("▁", " ")
    assert decoded == text


class TestRoles:
    def test_the_files_beside_it(self, tmp_path: Path) -> None:
        write_family_tokenizer(tmp_path, "qwen", bos_token=None)
        tokenizer = tokenizer_from_folder(header_of(tmp_path, eos_token_id=[2, 4]))
        assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.adds_bos) == ("", "</s>", False)
        assert tokenizer.stop_token_ids == {2, 4}
        assert tokenizer.vocabulary.role_tokens["pad_token"] == "</s>"

    def test_without_them_the_configuration_counts(self, tmp_path: Path) -> None:
        write_family_tokenizer(tmp_path, "qwen")
        (tmp_path / "tokenizer_config.json").unlink()
        config = {"model_type": "qwen2", "bos_token_id": 1, "eos_token_id": 2}
        tokenizer = tokenizer_from_folder(FolderHeader(tmp_path, config, {}, {}))
        assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
        assert not tokenizer.adds_bos

    @pytest.mark.parametrize("given_flag", [True, False, None])
    def test_bos(self, tmp_path: Path, given_flag: bool | None) -> None:
        write_family_tokenizer(tmp_path, "llama2")
        change_json(tmp_path / "tokenizer_config.json", add_bos_token=given_flag)
        tokenizer = tokenizer_from_folder(header_of(tmp_path))
        assert tokenizer.adds_bos is (given_flag is not False)
        encoded = tokenizer.encode("Hi", add_bos=tokenizer.adds_bos)
        assert (encoded[0] == tokenizer.bos_token_id) is tokenizer.adds_bos

    def test_tokens_added_in_the_configuration(self, tmp_path: Path) -> None:
        write_family_tokenizer(tmp_path, "llama3")
        plain = tokenizer_from_folder(header_of(tmp_path))
        new = {
            str(plain.vocab_size): {"content": "<|late|>", "special": True, "rstrip": True},
            str(plain.vocab_size + 1): {"content": "<late>", "special": False},
        }
        for token in new.values():
            token |= {"lstrip": False, "normalized": False, "single_word": False}
            token.setdefault("rstrip", False)
        change_json(tmp_path / "tokenizer_config.json", added_tokens_decoder=new)
        tokenizer = tokenizer_from_folder(header_of(tmp_path))
        oracle = AutoTokenizer.from_pretrained(tmp_path)
        oracle.backend_tokenizer.no_truncation()
        oracle.backend_tokenizer.no_padding()
        text = "a<|late|>  b <late> c"
        expected = oracle.encode(text, add_special_tokens=False)
        assert plain.vocab_size in expected
        assert tokenizer.encode(text, parse_special=True) == expected
        assert plain.vocab_size not in tokenizer.encode(text)


class TestHostileFiles:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"added_tokens_decoder": []}, "added_tokens_decoder"),
            ({"added_tokens_decoder": {"x": {"content": "a"}}}, "'x'"),
            ({"added_tokens_decoder": {"9" * 4000: {"content": "a"}}}, "is no token"),
            ({"added_tokens_decoder": {"5": {"content": 7}}}, "'5'"),
        ],
    )
    def test_configuration(self, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
        write_family_tokenizer(tmp_path, "llama3", **changes)
        with pytest.raises(CheckpointError, match=words) as caught:
            tokenizer_from_folder(header_of(tmp_path))
        assert caught.value.path == tmp_path / "tokenizer_config.json"

    @pytest.mark.parametrize(
        ("section", "value"),
        [
            ("normalizer", {"type": 7}),
            ("normalizer", {"type": "Sequence", "normalizers": [{"type": "Martian"}]}),
            ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}),
            ("pre_tokenizer", [[]]),
            ("added_tokens", {"a": 1}),
            ("added_tokens", [{"id": 0, "content": "zzz"}]),
            ("added_tokens", [{"id": 10**9, "content": ""}]),
        ],
    )
    def test_tokenizer(self, tmp_path: Path, section: str, value: Any) -> None:
        write_family_tokenizer(tmp_path, "llama3")
        path = tmp_path / "tokenizer.json"
        content = {**json.loads(path.read_text()), section: value}
        path.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=r"tokenizer\.json") as caught:
            tokenizer_from_folder(header_of(tmp_path))
        assert caught.value.path == path

    def test_a_pattern_that_tries_millions_of_ways(self, tmp_path: Path) -> None:
        write_family_tokenizer(tmp_path, "llama3")
        path = tmp_path / "tokenizer.json"
        pattern = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
        content = json.loads(path.read_text())
        content["pre_tokenizer"] = {**pattern, "invert": False}
        path.write_text(json.dumps(content))
        tokenizer = tokenizer_from_folder(header_of(tmp_path))
        with pytest.raises(CheckpointError, match="retry-limit"):
            tokenizer.encode("a" * 40 + "b")

    def test_nesting_without_end(self, tmp_path: Path) -> None:
        write_family_tokenizer(tmp_path, "llama3")
        path = tmp_path / "tokenizer.json"
        nested = '{"normalizers": [' * 50_000 + "]}" * 50_000
        path.write_text(path.read_text().replace('"normalizer": null', f'"normalizer": {nested}'))
        with pytest.raises(CheckpointError, match="JSON"):
            tokenizer_from_folder(header_of(tmp_path))
