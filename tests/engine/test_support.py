"""The table of families and formats says what the tests test, and the page says what it says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.checkpoint.header import read_checkpoint
from octavo.checkpoint.quantization_config import read_weight_format
from octavo.checkpoint.weight_format import Layout
from octavo.engine import support
from octavo.engine.checkpoint_parts import read_model_config
from octavo.engine.families import FAMILIES
from octavo.engine.model_config import SUPPORTED_TYPES
from octavo.engine.support import FORMATS, TESTED, family_of, format_of, runs
from octavo.errors import UnsupportedModelError
from tests.engine.models import test_families, test_quantized_families
from tests.engine.quantization import test_gguf
from tests.engine.weights import test_merged_experts
from tests.support.family_folders import GPT_OSS, write_family_folder
from tests.support.gguf_files import write_tiny_llama
from tests.support.model_folders import change_json
from tests.support.quantized_folders import KINDS, kind_named, write_quantized_folder

PAGE = Path(__file__).parents[2] / "desktop" / "MEASUREMENTS.md"


def cases(test: Any) -> list[Any]:
    """What a test is run with."""
    [mark] = [mark for mark in test.pytestmark if mark.name == "parametrize"]
    return list(mark.args[1])


def pairs_tested() -> set[tuple[str, str]]:
    """Family and format of every comparison with transformers."""
    plain = {(name, support.PLAIN.title) for name, _ in cases(test_families.test_folders)}
    gguf = {(name, support.GGUF_PLAIN.title) for name, _ in cases(test_families.test_gguf)}
    blocks = {
        (name, support.GGUF_BLOCKS.title) for name, _ in cases(test_families.test_gguf_in_blocks)
    }
    quantized = {tuple(case.values) for case in cases(test_quantized_families.test_folders)}
    assert callable(test_merged_experts.test_packed_experts)
    return plain | gguf | blocks | quantized | {("gpt_oss", support.MXFP4.title)}


def test_what_is_said_to_run_is_tested() -> None:
    said = {
        (family.model_type, stored.title)
        for family in FAMILIES
        for stored in FORMATS
        if runs(family, stored)
    }
    assert said == pairs_tested()


def test_the_kinds_stand_for_their_formats() -> None:
    for title, name in test_quantized_families.KINDS_OF_FORMATS.items():
        weight_format = read_weight_format(
            {"quantization_config": dict(kind_named(name).config)}, name
        )
        assert weight_format is not None
        assert weight_format.default is not None
        [stored] = [one for one in FORMATS if one.title == title]
        assert weight_format.default.layout in stored.layouts


def test_every_format_is_tested_by_itself() -> None:
    assert frozenset().union(*(stored.layouts for stored in FORMATS)) == set(Layout)
    tested = {Layout.MXFP4}
    for kind in KINDS:
        weight_format = read_weight_format({"quantization_config": dict(kind.config)}, kind.name)
        assert weight_format is not None
        assert weight_format.default is not None
        tested.add(weight_format.default.layout)
    assert tested == set(Layout)
    assert {*test_gguf.PLAIN_TYPES, *test_gguf.BLOCK_TYPES} == SUPPORTED_TYPES


def test_the_page_has_the_table() -> None:
    rows = [
        "| family | " + " | ".join(stored.title for stored in FORMATS) + " |",
        "|---" * (len(FORMATS) + 1) + "|",
        *(
            f"| {family.covers} | "
            + " | ".join(TESTED if runs(family, stored) else "–" for stored in FORMATS)
            + " |"
            for family in FAMILIES
        ),
    ]
    assert "\n".join(rows) in PAGE.read_text(encoding="utf-8"), "\n".join(
        ["put this there:", *rows]
    )


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("gptq 4 bit v1", support.GPTQ),
        ("awq", support.AWQ),
        ("bnb int8", support.BITSANDBYTES),
        ("ct int4 group", support.COMPRESSED),
        ("ct float-quantized tensor", support.FLOAT8),
        ("fp8 blocks", support.FLOAT8),
    ],
)
def test_quantised_folders_are_found(
    tmp_path: Path, name: str, stored: support.StoredFormat
) -> None:
    write_quantized_folder(tmp_path, kind_named(name))
    header = read_checkpoint(tmp_path)
    assert format_of(header) is stored
    family = family_of(header)
    assert family is not None
    assert runs(family, format_of(header))


def test_gguf_files_are_found(tmp_path: Path) -> None:
    header = read_checkpoint(write_tiny_llama(tmp_path / "tiny.gguf"))
    family = family_of(header)
    assert family is not None
    assert family.model_type == "llama"
    assert format_of(header) in (support.GGUF_PLAIN, support.GGUF_BLOCKS)


def test_a_pair_that_does_not_run_is_refused_before_a_load(tmp_path: Path) -> None:
    write_family_folder(tmp_path, "llama")
    change_json(tmp_path / "config.json", quantization_config={"quant_method": "mxfp4"})
    with pytest.raises(UnsupportedModelError, match="others built like them in MXFP4"):
        read_model_config(read_checkpoint(tmp_path))


def test_experts_of_gpt_oss_in_another_way_are_refused_before_a_load(tmp_path: Path) -> None:
    write_family_folder(tmp_path, "gpt_oss", **GPT_OSS)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.experts.gate_up_projs.0.weight"] = torch.zeros(2, 2)
    save_file(tensors, path)
    with pytest.raises(UnsupportedModelError, match="stores its experts as"):
        read_model_config(read_checkpoint(tmp_path))
