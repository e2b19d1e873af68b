"""Metadata made from a folder or a GGUF file is what readers of GGUF expect, or an error."""

import base64
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers
from tokenizers.trainers import BpeTrainer

from octavo.checkpoint.folder import FolderHeader, read_folder_header
from octavo.checkpoint.gguf import GGUFHeader, read_gguf_header
from octavo.engine.checkpoint_parts import read_tokenizer
from octavo.engine.embedded_tokenizer import NOTE_KEY
from octavo.engine.tokenizer import Tokenizer, tokenizer_from_metadata
from octavo.engine.tokenizer_json import tokenizer_from_folder
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.quantize.conversion.folder_files import write_folder_files
from octavo.quantize.conversion.gguf_metadata import gguf_metadata
from octavo.quantize.conversion.gguf_tokenizer import tokenizer_remark, tokenizer_values
from octavo.quantize.conversion.gguf_values import GGUFValue, GGUFValueType, plain_values
from tests.quantize.conversion.sources import (
    TEXTS,
    gguf_with,
    vocabulary,
    write_converted_gguf,
)
from tests.support.engines import make_engine, request, run_all
from tests.support.gguf_files import TinyLlama
from tests.support.model_folders import change_json, write_model_folder, write_tokenizer
from tests.support.tokenizer_kinds import write_family_tokenizer

SENTENCEPIECE: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "data" / "sentencepiece_tokens.json").read_text(encoding="utf-8")
)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}


def change_tokenizer(folder: Path, change: Callable[[dict[str, Any]], object]) -> FolderHeader:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return FolderHeader(folder, {"model_type": "llama"}, {}, {})


def keep_blanks(content: dict[str, Any]) -> None:
    """Takes the one property from the tests' tokenizers for which GGUF has no place."""
    for token in content["added_tokens"]:
        token["rstrip"] = False


def tokenizer_folder(folder: Path, kind: str) -> FolderHeader:
    write_tokenizer(folder, kind)
    return change_tokenizer(folder, keep_blanks)


def model_folder(folder: Path, **options: Any) -> tuple[FolderHeader, Mapping[str, torch.Tensor]]:
    model = write_model_folder(folder, **options)
    change_tokenizer(folder, keep_blanks)
    return read_folder_header(folder), model.state_dict()


def as_gguf(path: Path, values: Mapping[str, GGUFValue]) -> Tokenizer:
    """The tokenizer of a file with these keys."""
    return read_tokenizer(gguf_with(path, {key: value.plain for key, value in values.items()}))


@pytest.mark.parametrize("kind", ["byte-level", "llama3", "prepend"])
def test_ids_of_a_folders_tokenizer(tmp_path: Path, kind: str) -> None:
    header = tokenizer_folder(tmp_path, kind)
    values = tokenizer_values(header)
    source, target = tokenizer_from_folder(header), as_gguf(tmp_path / "a.gguf", values)
    for text in TEXTS:
        for parses in (True, False):
            expected = source.encode(text, parse_special=parses)
            assert target.encode(text, parse_special=parses) == expected, text
        assert target.decode(source.encode(text)) == source.decode(source.encode(text))
    assert values["tokenizer.ggml.add_bos_token"].value is True
    expected_pre = {"byte-level": "smollm", "llama3": "llama-bpe", "prepend": "default"}
    assert values["tokenizer.ggml.pre"].value == expected_pre[kind]


def test_types_of_a_sentence_piece_vocabulary(tmp_path: Path) -> None:
    values = tokenizer_values(tokenizer_folder(tmp_path, "prepend"))
    tokens, types = (values[f"tokenizer.ggml.{key}"].value for key in ("tokens", "token_type"))
    assert isinstance(tokens, tuple)
    assert isinstance(types, tuple)
    by_text = dict(zip(tokens, types, strict=True))
    assert [by_text[text] for text in ("<unk>", "<s>", "<0x41>", "<tool>", "t")] == [
        2,
        3,
        6,
        4,
        1,
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text("ab c", min_size=1, max_size=12), min_size=1, max_size=8),
    st.lists(st.text("ab cdé", max_size=30), min_size=1, max_size=8),
)
def test_scores_merge_as_trained_merges_do(corpus: list[str], texts: list[str]) -> None:
    """Training lists one way to make each token, scores allow all of them."""
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = BpeTrainer(vocab_size=40, show_progress=False, special_tokens=["<s>"])
    backend.train_from_iterator(corpus, trainer)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    content = json.loads(backend.to_str())
    vocab = content["model"]["vocab"]
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        (path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        header = FolderHeader(path, {"model_type": "llama"}, {}, {})
        source = tokenizer_from_folder(header)
        target = as_gguf(path / "a.gguf", tokenizer_values(header))
    for text in texts:
        assert target.encode(text) == source.encode(text)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rope_parameters": LLAMA3},
        {"rope_parameters": YARN},
        {"rope_parameters": LINEAR},
        {"tie_word_embeddings": True, "head_dim": 16, "attention_bias": True},
        {"tokenizer": "prepend", "mistral": True},
    ],
    ids=["plain", "llama3", "yarn", "linear", "tied", "mistral"],
)
def test_model_gives_the_same_logits_as_gguf(tmp_path: Path, options: dict[str, Any]) -> None:
    header, weights = model_folder(tmp_path / "folder", **options)
    path = write_converted_gguf(tmp_path / "a.gguf", header, gguf_metadata(header), weights)
    prompt = [(11 * i) % 400 for i in range(140)]
    found = []
    for source in (tmp_path / "folder", path):
        wanted = request("a", prompt, prompt_logprobs=0, max_tokens=1)
        result = run_all(make_engine(source, num_kv_blocks=64), [wanted])["a", 0]
        found.append([entry.logprob for entry in result.prompt_logprobs if entry is not None])
    assert found[1] == pytest.approx(found[0], abs=2e-3)


def test_reader_of_the_gguf_package_finds_every_value(tmp_path: Path) -> None:
    header, weights = model_folder(tmp_path / "folder", rope_parameters=YARN, head_dim=16)
    values = gguf_metadata(header)
    path = write_converted_gguf(tmp_path / "a.gguf", header, values, weights)
    fields = gguf.GGUFReader(path).fields
    for key, value in values.items():
        read = fields[key].contents()
        expected = value.plain
        assert read == pytest.approx(expected) if isinstance(expected, float) else read == expected
        kinds = [int(kind) for kind in fields[key].types]
        assert kinds == ([9] if value.is_array else []) + [int(value.type)], key
    assert values["llama.attention.key_length"] == GGUFValue(GGUFValueType.UINT32, 16)
    assert values["llama.rope.scaling.original_context_length"].value == 64
    assert values["general.file_type"].value == 0
    assert values["tokenizer.ggml.eos_token_id"].value == 2


def test_padded_rows_get_names(tmp_path: Path) -> None:
    header, _ = model_folder(tmp_path)
    values = gguf_metadata(header)
    tokens, types = (values[f"tokenizer.ggml.{key}"].value for key in ("tokens", "token_type"))
    assert isinstance(tokens, tuple)
    assert isinstance(types, tuple)
    assert len(tokens) == len(types) == header.config["vocab_size"]
    assert (tokens[-1], types[-1]) == (f"[PAD{len(tokens) - 1}]", 5)


def test_name_of_a_snapshot_is_the_repositorys(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--Tiny-1M" / "snapshots" / "0123abc"
    header, _ = model_folder(folder)
    assert gguf_metadata(header)["general.name"].value == "Tiny-1M"


def test_gguf_metadata_is_kept_with_its_types(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint64("some.large", 1 << 40)
    writer.add_int8("some.small", -3)
    writer.add_array("some.flags", [True, False])
    writer.add_array("some.texts", ["a", "\ufffd"])
    writer.add_float64("some.real", 0.1)
    writer.add_uint16("split.count", 1)
    writer.add_string("quantize.imatrix.file", "x")
    writer.add_custom_alignment(64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    values = gguf_metadata(read_gguf_header(path))
    assert values == {
        "general.architecture": GGUFValue(GGUFValueType.STRING, "llama"),
        "some.large": GGUFValue(GGUFValueType.UINT64, 1 << 40),
        "some.small": GGUFValue(GGUFValueType.INT8, -3),
        "some.flags": GGUFValue(GGUFValueType.BOOL, (True, False)),
        "some.texts": GGUFValue(GGUFValueType.STRING, ("a", "\ufffd")),
        "some.real": GGUFValue(GGUFValueType.FLOAT64, 0.1),
    }


def test_text_that_reading_has_changed_is_refused(tmp_path: Path) -> None:
    path = TinyLlama(name="broken->X<-name \ufffd").write(tmp_path / "a.gguf")
    assert gguf_metadata(read_gguf_header(path))
    path.write_bytes(path.read_bytes().replace(b"->X<-", b"->\xff<-"))
    with pytest.raises(UnsupportedModelError, match="UTF-8"):
        gguf_metadata(read_gguf_header(path))


def test_qwen_composes_letters_and_marks(tmp_path: Path) -> None:
    write_family_tokenizer(tmp_path, "qwen")

    def keep_what_gguf_can_say(content: dict[str, Any]) -> None:
        for token in content["added_tokens"]:
            token |= {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}

    header = change_tokenizer(tmp_path, keep_what_gguf_can_say)
    values = tokenizer_values(header)
    assert values["tokenizer.ggml.pre"].plain == "qwen2"
    read_back = tokenizer_from_metadata({key: value.plain for key, value in values.items()})
    assert read_back.encode("e\u0301") == tokenizer_from_folder(header).encode("\u00e9")


@pytest.mark.parametrize("kind", sorted(SENTENCEPIECE.keys() - {"unigram"}))
def test_folder_with_nothing_but_a_tokenizer_model(tmp_path: Path, kind: str) -> None:
    model = SENTENCEPIECE[kind]["model"]
    (tmp_path / "tokenizer.model").write_bytes(base64.b64decode(model))
    header = FolderHeader(tmp_path, {"model_type": "llama"}, {}, {})
    source, values = tokenizer_from_folder(header), tokenizer_values(header)
    target = as_gguf(tmp_path / "a.gguf", values)
    for text in TEXTS:
        assert target.encode(text, parse_special=True) == source.encode(text, parse_special=True)
        assert target.decode(source.encode(text)) == source.decode(source.encode(text))


@pytest.mark.parametrize("kind", ["gemma", "llama2"])
def test_sentence_piece_of_families(tmp_path: Path, kind: str) -> None:
    write_family_tokenizer(tmp_path, kind, has_manners=False)
    header = FolderHeader(tmp_path, {"model_type": "llama"}, {}, {})
    source, values = tokenizer_from_folder(header), tokenizer_values(header)
    target = as_gguf(tmp_path / "a.gguf", values)
    for text in (*TEXTS, "a   b", "   x", "x      \n\n    y"):
        # Only Gemma's vocabulary has tokens of blanks alone, which a typed ▁ is then taken for.
        text = text.replace("▁", " ") if kind == "gemma" else text
        assert target.encode(text) == source.encode(text), text
        assert target.decode(source.encode(text)) == source.decode(source.encode(text))


def test_blanks_that_merging_makes_are_ordinary_tokens(tmp_path: Path) -> None:
    write_family_tokenizer(tmp_path, "gemma", has_manners=False)

    def look_only_for_the_symbol(content: dict[str, Any]) -> None:
        model = content["model"]
        for token in content["added_tokens"]:
            if token["content"] == "▁▁▁":
                token["normalized"] = False
                model["vocab"]["▁▁▁"] = token["id"]
        if "▁▁" not in model["vocab"]:
            # In the place of one that nothing is made of.
            last = model["merges"][-1]
            model["vocab"]["▁▁"] = model["vocab"].pop("".join(last))
            model["merges"][-1] = ["▁", "▁"]
        model["merges"].append(["▁▁", "▁"])

    header = change_tokenizer(tmp_path, look_only_for_the_symbol)
    source, values = tokenizer_from_folder(header), tokenizer_values(header)
    target = as_gguf(tmp_path / "a.gguf", values)
    for text in ("a   b", "   ", "x    y", " " * 9 + "z"):
        assert target.encode(text) == source.encode(text), text
    blanks = source.vocabulary.ids["▁▁▁"]
    assert blanks in source.encode("   ")
    assert target.decode([blanks]) == "   "


class TestCarriedFiles:
    """What GGUF has no key for is read from the folder's own files inside the GGUF file."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def note(self, header: FolderHeader, *, opens: str) -> str:
        """Why the files are carried; checks that they give the same tokens, and come back."""
        source, values = tokenizer_from_folder(header), tokenizer_values(header)
        path = self.folder / "a.gguf"
        target = as_gguf(path, values)
        back = self.folder / "back"
        back.mkdir()
        write_folder_files(read_gguf_header(path), back, None)
        config = json.loads((back / "config.json").read_text(encoding="utf-8"))
        generation = json.loads((back / "generation_config.json").read_text(encoding="utf-8"))
        again = tokenizer_from_folder(FolderHeader(back, config, generation, {}))
        for other in (target, again):
            assert other.stop_token_ids == source.stop_token_ids
            assert other.special_tokens == source.special_tokens
            for text in (*TEXTS, "<|pad|>  x <|pad|>", "<s>x  <s> y"):
                for parses in (False, True):
                    expected = source.encode(text, parse_special=parses)
                    assert other.encode(text, parse_special=parses) == expected, text
                    assert other.decode(expected) == source.decode(expected)
        assert values["tokenizer.ggml.model"].value == opens
        remark = tokenizer_remark(values)
        assert ("will not open it" in remark) == (opens == "huggingface")
        note = values[NOTE_KEY].value
        assert isinstance(note, str)
        assert remark.startswith(note)
        return note

    def test_tokens_that_swallow_blanks(self, tmp_path: Path) -> None:
        write_tokenizer(tmp_path)
        header = FolderHeader(tmp_path, {"model_type": "llama"}, {}, {})
        assert "'<|pad|>'" in self.note(header, opens="gpt2")

    def test_blank_before_the_beginning_only(self, tmp_path: Path) -> None:
        header = tokenizer_folder(tmp_path, "metaspace")
        assert "very beginning" in self.note(header, opens="llama")

    def test_unknown_rule_for_words(self, tmp_path: Path) -> None:
        tokenizer_folder(tmp_path, "llama3")

        def change(content: dict[str, Any]) -> None:
            content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] += "|x"

        assert "no name" in self.note(change_tokenizer(tmp_path, change), opens="huggingface")

    def test_normalised_text(self, tmp_path: Path) -> None:
        tokenizer_folder(tmp_path, "byte-level")
        header = change_tokenizer(
            tmp_path, lambda content: content.update(normalizer={"type": "NFC"})
        )
        assert "NFC" in self.note(header, opens="huggingface")

    def test_tokens_that_are_whole_words(self, tmp_path: Path) -> None:
        tokenizer_folder(tmp_path, "byte-level")
        header = change_tokenizer(
            tmp_path, lambda content: content["added_tokens"][-1].update(single_word=True)
        )
        assert "whole word" in self.note(header, opens="gpt2")

    def test_merges_that_no_scores_give(self, tmp_path: Path) -> None:
        tokenizer_folder(tmp_path, "prepend")
        header = change_tokenizer(tmp_path, lambda content: content["model"]["merges"].pop())
        assert "no scores" in self.note(header, opens="huggingface")

    def test_more_ends_of_turn_than_gguf_has_keys_for(self, tmp_path: Path) -> None:
        write_tokenizer(tmp_path)
        change_tokenizer(tmp_path, keep_blanks)
        stops = {"eos_token_id": [2, 300, 301, 302]}
        header = FolderHeader(tmp_path, {"model_type": "llama"}, stops, {})
        assert "3 tokens beside EOS" in self.note(header, opens="gpt2")

    @pytest.mark.parametrize("kind", ["mistral", "phi3", "qwen", "gemma", "llama2"])
    def test_families(self, tmp_path: Path, kind: str) -> None:
        write_family_tokenizer(tmp_path, kind)
        header = FolderHeader(tmp_path, {"model_type": "llama"}, {}, {})
        assert self.note(header, opens="gpt2" if kind == "qwen" else "llama")

    def test_damaged_files_are_named(self, tmp_path: Path) -> None:
        values = plain_values(tokenizer_values(tokenizer_folder(tmp_path, "metaspace")))
        contents = {"{": "a.gguf .* tokenizer.json inside it is no valid", 7: "neither text nor"}
        for text, message in contents.items():
            header = gguf_with(tmp_path / "a.gguf", {**values, "tokenizer.huggingface.json": text})
            with pytest.raises(CheckpointError, match=message):
                read_tokenizer(header)


class TestRefusals:
    def test_architecture_without_an_entry(self, tmp_path: Path) -> None:
        write_model_folder(tmp_path)
        change_json(tmp_path / "config.json", model_type="mamba")
        with pytest.raises(UnsupportedModelError, match="'mamba'"):
            gguf_metadata(read_folder_header(tmp_path))


def test_sliding_windows_are_kept(tmp_path: Path) -> None:
    write_model_folder(tmp_path, mistral=True)
    change_json(tmp_path / "config.json", sliding_window=32)
    values = gguf_metadata(read_folder_header(tmp_path))
    assert values["llama.attention.sliding_window"].value == 32


@pytest.mark.starter
def test_starter_model_comes_back_from_a_folder(starter_model: Path, tmp_path: Path) -> None:
    source = read_gguf_header(starter_model)
    write_folder_files(source, tmp_path, None)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    generation = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    back = tokenizer_values(FolderHeader(tmp_path, config, generation, {}))
    kept = {
        key: value for key, value in gguf_metadata(source).items() if key.startswith("tokenizer.")
    }
    assert len(kept) == 12
    assert {key: back[key] for key in kept} == kept
    assert back.keys() - kept.keys() == {"tokenizer.ggml.add_eos_token"}


def test_eot_and_eom_come_back_from_a_folder(tmp_path: Path) -> None:
    metadata = vocabulary("sentence_piece", eot_token_id=700, eom_token_id=701)
    source: GGUFHeader = gguf_with(tmp_path / "a.gguf", metadata)
    write_folder_files(source, tmp_path, None)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    generation = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    back = tokenizer_values(FolderHeader(tmp_path, config, generation, {}))
    assert back["tokenizer.ggml.eot_token_id"].value == 700
    assert back["tokenizer.ggml.eom_token_id"].value == 701
    assert back["tokenizer.ggml.model"].value == "llama"
