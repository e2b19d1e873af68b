"""Sources to convert: tiny GGUF files of any vocabulary, and how their tokens are compared."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from octavo.checkpoint.gguf import GGMLType, GGUFHeader, read_gguf_header
from octavo.checkpoint.header import CheckpointHeader
from octavo.engine.checkpoint_parts import read_model_config
from octavo.quantize.conversion.folder_files import write_folder_files
from octavo.quantize.conversion.gguf_values import GGUFValue
from octavo.quantize.conversion.row_order import permute_rows
from octavo.quantize.conversion.weight_sources import weight_sources
from tests.support.gguf_files import Array, TinyLlama, write_gguf

DATA = Path(__file__).parents[2] / "data"
GOLDEN: dict[str, Any] = json.loads((DATA / "llama_cpp_tokens.json").read_text(encoding="utf-8"))
TEXTS: tuple[str, ...] = (
    *GOLDEN["sentence_piece"]["texts"][:60],
    *GOLDEN["pre_tokenizers"]["texts"][:60],
    "e\u0301 n\u0303 combining \u1e9b\u0323, 👩‍👩‍👧 🇩🇪, 漢字かな交じり文, x1y22z333",
    "<s> </s> <unk> <|im_start|>user\nHi<|im_end|> <tool>x <|im_end <0x41> ▁",
)


def vocabulary(kind: str, **changes: Any) -> dict[str, Any]:
    """Metadata of the vocabulary `pre_tokenizers` or `sentence_piece` made with llama.cpp."""
    part = GOLDEN[kind]
    keys = ("model", "tokens", "token_type", "merges", "scores")
    values = {"model": "gpt2", **{key: part[key] for key in keys if key in part}}
    roles = {"bos_token_id": 1, "eos_token_id": 1 if kind == "pre_tokenizers" else 2}
    metadata = {**values, **roles, "add_bos_token": kind == "sentence_piece", **changes}
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}


def gguf_with(path: Path, metadata: Mapping[str, Any]) -> GGUFHeader:
    """The header of a file with these keys and no more tensors than a header needs."""
    tiny = TinyLlama()
    num_tokens = len(metadata["tokenizer.ggml.tokens"])
    tensors: dict[str, tuple[GGMLType, Array]] = {
        "token_embd.weight": (GGMLType.F16, np.zeros((num_tokens, 64), np.float16)),
        "output_norm.weight": (GGMLType.F32, np.ones(64, np.float32)),
    }
    others = {key: value for key, value in tiny.metadata().items() if "tokenizer" not in key}
    others["llama.vocab_size"] = num_tokens
    return read_gguf_header(write_gguf(path, {**others, **metadata}, tensors))


def folder_from(tiny: TinyLlama, gguf_path: Path, folder: Path) -> Path:
    """The tiny llama written as GGUF, and from there converted to a folder with its weights."""
    folder.mkdir()
    write_folder_files(read_gguf_header(tiny.write(gguf_path)), folder, None)
    weights = {name: torch.from_numpy(array.copy()) for name, array in tiny.weights().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_converted_gguf(
    path: Path,
    header: CheckpointHeader,
    values: Mapping[str, GGUFValue],
    weights: Mapping[str, Any],
) -> Path:
    """A GGUF file of converted metadata and of weights under their Hugging Face names."""
    config = read_model_config(header)
    tensors: dict[str, tuple[GGMLType, Array]] = {}
    for source in weight_sources(header, "gguf"):
        weight = torch.tensor(source.values)
        if source.parts:
            [part] = source.parts
            weight = weights[part.tensor].float()
        if source.row_order == "to_gguf":
            weight = permute_rows(weight, config.head_dim, config.rope.rotary_dim)
        array: Array = weight.numpy()
        tensors[source.name] = (GGMLType.F32, array)
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in values.items():
        if key == "general.architecture":
            continue
        kind = gguf.GGUFValueType(int(value.type))
        if value.is_array:
            writer.add_key_value(key, value.plain, gguf.GGUFValueType.ARRAY, sub_type=kind)
        else:
            writer.add_key_value(key, value.value, kind)
    for name, (_, array) in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
