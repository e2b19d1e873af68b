"""A folder written from a GGUF file is that model to transformers and to the engine."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from octavo.checkpoint.folder import FolderHeader, read_folder_header
from octavo.checkpoint.gguf import GGMLType, read_gguf_header
from octavo.engine.checkpoint_parts import read_chat_template, read_model_config, read_tokenizer
from octavo.engine.pre_tokenizers import PRE_TOKENIZERS
from octavo.engine.tokenizer import tokenizer_from_gguf
from octavo.engine.tokenizer_json import tokenizer_from_folder
from octavo.errors import StorageError, UnsupportedModelError
from octavo.quantize.conversion.folder_files import write_folder_files
from tests.quantize.conversion.sources import TEXTS, folder_from, gguf_with, vocabulary
from tests.support.engines import make_engine, request, run_all
from tests.support.gguf_files import RopeScaling, TinyLlama
from tests.support.model_folders import write_model_folder

ONE_NAME_OF_EACH = sorted({family: name for name, family in PRE_TOKENIZERS.items()}.values())
PACKING = {"quant_method": "compressed-tensors", "format": "pack-quantized"}


def written(folder: Path) -> FolderHeader:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    return FolderHeader(folder, config, generation, {})


def check_same_ids(tmp_path: Path, metadata: dict[str, Any]) -> Any:
    """Compares transformers and our reader of the folder with the engine on the GGUF file."""
    header = gguf_with(tmp_path / "source.gguf", metadata)
    folder = tmp_path / "folder"
    folder.mkdir()
    write_folder_files(header, folder, None)
    source = tokenizer_from_gguf(header)
    oracle = AutoTokenizer.from_pretrained(folder)
    ours = tokenizer_from_folder(written(folder))
    for text in TEXTS:
        expected = source.encode(text, parse_special=True)
        assert oracle.encode(text, add_special_tokens=False) == expected, text
        assert ours.encode(text, parse_special=True) == expected, text
        assert ours.encode(text) == source.encode(text), text
        with_bos = source.encode(text, add_bos=source.adds_bos)
        if not text.startswith(source.bos_token):
            assert ours.encode(text, add_bos=ours.adds_bos) == with_bos, text
        assert oracle.decode(expected, skip_special_tokens=True) == source.decode(expected), text
    assert ours.stop_token_ids == source.stop_token_ids
    return oracle


@pytest.mark.parametrize("pre", ONE_NAME_OF_EACH)
def test_byte_level_ids(tmp_path: Path, pre: str) -> None:
    check_same_ids(tmp_path, vocabulary("pre_tokenizers", pre=pre))


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("removes", [True, False])
def test_sentence_piece_ids(tmp_path: Path, prefix: bool, removes: bool) -> None:
    changes = {"add_space_prefix": prefix, "remove_extra_whitespaces": removes}
    check_same_ids(tmp_path, vocabulary("sentence_piece", **changes))


@pytest.mark.parametrize("kind", ["pre_tokenizers", "sentence_piece"])
def test_user_defined_and_unused_tokens(tmp_path: Path, kind: str) -> None:
    plain = vocabulary(kind, pre="smollm")
    more = ["<a_tool>", "<a_tool>>", "<never>", "<ctrl>"]
    tokens = [*plain["tokenizer.ggml.tokens"], *more]
    types = [*plain["tokenizer.ggml.token_type"], 4, 4, 5, 3]
    changes = {"tokens": tokens, "token_type": types, "pre": "smollm"}
    if kind == "sentence_piece":
        changes["scores"] = [*plain["tokenizer.ggml.scores"], 0.0, 0.0, 0.0, 0.0]
    oracle = check_same_ids(tmp_path, vocabulary(kind, **changes))
    first = len(tokens) - len(more)
    text = "<a_tool><a_tool>>"
    assert oracle.encode(text, add_special_tokens=False) == [first, first + 1]
    assert oracle.convert_tokens_to_ids("<ctrl>") == first + 3


def test_bos_and_eos_are_added_where_the_file_asks_for_them(tmp_path: Path) -> None:
    oracle = check_same_ids(tmp_path, vocabulary("sentence_piece", add_eos_token=True))
    inside = oracle.encode("Hello there", add_special_tokens=False)
    assert oracle.encode("Hello there") == [1, *inside, 2]
    assert (oracle.bos_token, oracle.eos_token, oracle.unk_token) == ("<s>", "</s>", None)


def test_pad_role_of_ordinary_text_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    oracle = check_same_ids(tmp_path, vocabulary("sentence_piece", padding_token_id=700))
    assert oracle.pad_token is None
    assert "pad_token" in caplog.text


@pytest.mark.parametrize(
    "tiny",
    [
        TinyLlama(),
        TinyLlama(tie_embeddings=False, head_dim=32, num_kv_heads=4, rope_theta=5e5),
        TinyLlama(attention_bias=True, rms_norm_eps=1e-6),
        TinyLlama(rope_scaling=RopeScaling("linear", 2.5)),
        TinyLlama(rope_scaling=RopeScaling("yarn", 4.0)),
        TinyLlama(rope_scaling=RopeScaling("llama3", 8.0)),
    ],
    ids=["plain", "untied", "biases", "linear", "yarn", "llama3"],
)
def test_logits_are_those_of_the_engine_on_the_source(tmp_path: Path, tiny: TinyLlama) -> None:
    folder = folder_from(tiny, tmp_path / "tiny.gguf", tmp_path / "folder")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = [(7 * i) % tiny.vocab_size for i in range(150)]
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    for source in (tmp_path / "tiny.gguf", folder):
        wanted = request("a", prompt, prompt_logprobs=0, max_tokens=1)
        result = run_all(make_engine(source, num_kv_blocks=64), [wanted])["a", 0]
        ours = [entry.logprob for entry in result.prompt_logprobs if entry is not None]
        theirs = [float(expected[i, token]) for i, token in enumerate(prompt[1:])]
        assert ours == pytest.approx(theirs, abs=2e-3)


def test_numbers_of_the_model(tmp_path: Path) -> None:
    tiny = TinyLlama(rope_scaling=RopeScaling("llama3", 8.0), ggml_type=GGMLType.F16)
    folder = folder_from(tiny, tmp_path / "tiny.gguf", tmp_path / "folder")
    theirs = AutoConfig.from_pretrained(folder)
    assert theirs.architectures == ["LlamaForCausalLM"]
    assert theirs.dtype == torch.float16
    assert theirs.rms_norm_eps == 1e-5
    assert theirs.rope_parameters["rope_type"] == "llama3"
    assert (theirs.bos_token_id, theirs.eos_token_id) == (1, [2, 0])
    source, ours = read_gguf_header(tmp_path / "tiny.gguf"), read_folder_header(folder)
    before, after = read_model_config(source), read_model_config(ours)
    for name in ("num_layers", "hidden_size", "num_kv_heads", "vocab_size", "tie_word_embeddings"):
        assert getattr(after, name) == getattr(before, name), name
    assert (after.rope.factor, after.rope.original_max_position) == (8.0, 64)


def test_chat_template(tmp_path: Path) -> None:
    folder = folder_from(TinyLlama(), tmp_path / "tiny.gguf", tmp_path / "folder")
    messages = [{"role": "user", "content": "hello <|im_end|>"}]
    header = read_folder_header(folder)
    template = read_chat_template(header, read_tokenizer(header))
    oracle = AutoTokenizer.from_pretrained(folder)
    theirs = oracle.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert template is not None
    assert template.render(messages) == theirs
    assert template.source == TinyLlama().chat_template


def test_named_chat_templates(tmp_path: Path) -> None:
    metadata = {
        **vocabulary("sentence_piece"),
        "tokenizer.chat_template": "one",
        "tokenizer.chat_template.tool_use": "two",
        "tokenizer.chat_templates": ["tool_use"],
    }
    oracle = check_same_ids(tmp_path, metadata)
    assert oracle.chat_template == {"default": "one", "tool_use": "two"}


def test_packing_and_type(tmp_path: Path) -> None:
    header = read_gguf_header(TinyLlama(ggml_type=GGMLType.Q4_0).write(tmp_path / "tiny.gguf"))
    write_folder_files(header, tmp_path, PACKING)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"] == PACKING
    assert config["torch_dtype"] == "float16"
    write_folder_files(header, tmp_path, None, dtype="bfloat16")
    config = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["torch_dtype"] == "bfloat16"


def test_folder_is_copied(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    write_model_folder(source)
    (source / "LICENSE").write_text("free")
    (source / "modeling_evil.py").write_text("import os")
    target.mkdir()
    write_folder_files(read_folder_header(source), target, PACKING, dtype="float16")
    copied = {file.name for file in target.iterdir()}
    assert copied >= {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert "LICENSE" in copied
    assert copied.isdisjoint({"modeling_evil.py", "model.safetensors"})
    before = json.loads((source / "config.json").read_text())
    after = json.loads((target / "config.json").read_text())
    assert after.pop("quantization_config") == PACKING
    assert after.pop("torch_dtype") == "float16"
    assert after == {key: value for key, value in before.items() if key != "dtype"}
    assert (target / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("llama.attention.scale", 0.5, "attention_scale 0.5"),
        ("llama.rope.dimension_count", 8, "8 of the 16 channels"),
        ("llama.rope.scaling.attn_factor", 1.5, "attention"),
    ],
)
def test_what_a_config_cannot_say_is_refused(
    tmp_path: Path, key: str, value: float, match: str
) -> None:
    header = gguf_with(tmp_path / "a.gguf", {**vocabulary("sentence_piece"), key: value})
    with pytest.raises(UnsupportedModelError, match=match):
        write_folder_files(header, tmp_path, None)


def test_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    header = gguf_with(tmp_path / "a.gguf", vocabulary("sentence_piece"))
    with pytest.raises(StorageError, match="missing"):
        write_folder_files(header, tmp_path / "missing", None)


def test_roles_outside_the_vocabulary_are_left_out(tmp_path: Path) -> None:
    roles = {"padding_token_id": 4294967295, "unknown_token_id": "0"}
    header = gguf_with(tmp_path / "a.gguf", vocabulary("sentence_piece", **roles))
    write_folder_files(header, tmp_path, None)
    names = json.loads((tmp_path / "special_tokens_map.json").read_text(encoding="utf-8"))
    assert names == {"bos_token": "<s>", "eos_token": "</s>"}
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["pad_token_id"] is None
