"""From each kind of source to each method: readable by others, close to the original, the same."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from octavo.checkpoint.gguf import GGMLType
from octavo.checkpoint.header import read_checkpoint
from octavo.errors import InvalidInputError, OctavoError, StorageError, UnsupportedModelError
from octavo.jobs import JobCancelled, JobControl, Progress
from octavo.quantize.methods import find_method
from octavo.quantize.recipe import QuantizeRecipe, default_output
from octavo.quantize.report import weights_bytes
from octavo.quantize.writing import write_model
from tests.quantize.methods.test_group_rounding import unpack
from tests.support.engines import make_engine, request, run_all
from tests.support.gguf_files import TinyLlama, write_tiny_llama

SHAPE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256}


@pytest.fixture
def gguf_source(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "Tiny.gguf", num_heads=8, **SHAPE)


def write(source: Path, method: str) -> Path:
    recipe = QuantizeRecipe(
        source, method, default_output(source.parent / "out", source.stem, find_method(method))
    )
    write_model(recipe, JobControl())
    assert not recipe.partial.exists()
    return recipe.output


def test_engine_answers(gguf_source: Path) -> None:
    engine = make_engine(write(gguf_source, "int4-g32"))
    results = run_all(engine, [request("r", [5, 6, 7], max_tokens=4, ignore_eos=True)])
    assert len(results["r", 0].token_ids) == 4


def test_gguf_is_what_the_gguf_package_would_write(tmp_path: Path) -> None:
    tiny = TinyLlama(**SHAPE, num_heads=8)
    source = tiny.write(tmp_path / "Tiny.gguf")
    reader = gguf.GGUFReader(write(source, "q8_0"))
    assert reader.fields["general.file_type"].contents() == 7
    assert reader.fields["tokenizer.ggml.tokens"].contents() == tiny.tokens
    assert [tensor.name for tensor in reader.tensors] == list(tiny.tensors())
    for tensor in reader.tensors:
        _, values = tiny.tensors()[tensor.name]
        if values.ndim == 2:
            values = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        assert np.array_equal(np.asarray(tensor.data), values)


def test_folder_reads_as_compressed_tensors(gguf_source: Path) -> None:
    output = write(gguf_source, "int4-g32")
    config = json.loads((output / "config.json").read_text())
    packing = config["quantization_config"]
    assert packing["quant_method"] == "compressed-tensors"
    assert packing["format"] == "pack-quantized"
    weights = packing["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["group_size"], weights["symmetric"]) == (4, 32, True)
    assert packing["ignore"] == ["lm_head"]
    assert config["dtype" if "dtype" in config else "torch_dtype"] == "float16"
    tensors = load_file(output / "model.safetensors")
    name = "model.layers.1.mlp.down_proj."
    assert tensors[name + "weight_shape"].tolist() == [128, 256]
    scales = tensors[name + "weight_scale"].float().repeat_interleave(32, dim=1)
    restored = unpack(tensors[name + "weight_packed"], 4) * scales
    original = torch.from_numpy(TinyLlama(**SHAPE, num_heads=8).weights()[name + "weight"])
    assert float((restored - original).norm() / original.norm()) < 0.12


def test_smaller_groups_are_named_before_the_class_they_belong_to(tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "a.gguf", hidden_size=128, intermediate_size=160)
    config = json.loads((write(source, "int4-g128") / "config.json").read_text())
    groups = config["quantization_config"]["config_groups"]
    found = {
        name: (group["targets"], group["weights"]["group_size"]) for name, group in groups.items()
    }
    # Which compressed-tensors matches in this order: names, patterns, classes.
    assert found == {
        "group_0": (["Linear"], 128),
        "group_1": ([r"re:model\.layers\.[0-9]+\.self_attn\.o_proj$"], 64),
        "group_2": ([r"re:model\.layers\.[0-9]+\.mlp\.down_proj$"], 32),
    }


def test_quantized_source_types_are_read(tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "a.gguf", num_heads=8, ggml_type=GGMLType.Q5_0, **SHAPE)
    assert read_checkpoint(write(source, "q4_0")).quantization == "Q4_0"


def stopping_after(num_reports: int) -> JobControl:
    """Cancels itself in the midst of the work."""
    left = num_reports

    def count(_: Progress) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            control.cancel()

    control = JobControl(count)
    return control


def test_interrupted_run_goes_on_to_the_same_bytes(gguf_source: Path, tmp_path: Path) -> None:
    whole = write(gguf_source, "int4-g64")
    recipe = QuantizeRecipe(gguf_source, "int4-g64", tmp_path / "again")
    for stop_at in (5, 17, 40):
        with pytest.raises(JobCancelled):
            write_model(recipe, stopping_after(stop_at))
        assert not recipe.output.exists()
        assert recipe.partial.exists()
    # What a crash of the machine may do to bytes that the journal vouches for.
    with (recipe.partial / "model" / "model.safetensors").open("r+b") as weights:
        weights.seek(-100, 2)
        weights.write(b"\xff" * 60)
    with (recipe.partial / "journal.jsonl").open("a") as journal:
        journal.write('{"weight": "cut sho')
    write_model(recipe, JobControl())
    for file in sorted(whole.iterdir()):
        assert (recipe.output / file.name).read_bytes() == file.read_bytes(), file.name


def test_other_method_does_not_take_over(gguf_source: Path, tmp_path: Path) -> None:
    first = QuantizeRecipe(gguf_source, "int4-g64", tmp_path / "same")
    with pytest.raises(JobCancelled):
        write_model(first, stopping_after(9))
    second = QuantizeRecipe(gguf_source, "int4-g32", tmp_path / "same")
    write_model(second, JobControl())
    expected = write(gguf_source, "int4-g32") / "model.safetensors"
    assert (second.output / "model.safetensors").read_bytes() == expected.read_bytes()


def test_estimate_is_what_is_written(gguf_source: Path) -> None:
    recipe = QuantizeRecipe(gguf_source, "q4_0", gguf_source.parent / "x.gguf")
    plan = write_model(recipe, JobControl())
    written = weights_bytes(recipe.output)
    assert plan.num_bytes < written < plan.num_bytes + 40_000
    assert read_checkpoint(recipe.output).tensor_bytes == plan.num_bytes


def refusal(source: Path, method: str, output: Path) -> OctavoError:
    with pytest.raises(OctavoError) as caught:
        QuantizeRecipe(source, method, output).check()
    assert caught.value.hint
    return caught.value


def test_what_cannot_be_is_said_first(
    gguf_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = tmp_path / "free"
    assert "q8_0, q4_0, int8" in str(refusal(gguf_source, "q3", free))
    assert isinstance(refusal(gguf_source, "q8_0", free), InvalidInputError)
    assert isinstance(refusal(gguf_source, "int8", tmp_path / "a.gguf"), InvalidInputError)
    assert "exists already" in str(refusal(gguf_source, "q8_0", gguf_source))
    for method in ("q8_0", "int8"):
        done = write(gguf_source, method)
        error = refusal(done, "int4-g32", free)
        assert isinstance(error, UnsupportedModelError)
        assert "quantised already" in str(error)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1 << 20}))
    error = refusal(gguf_source, "int8", free)
    assert isinstance(error, StorageError)
    assert "1.0 MiB are free" in str(error)
    gguf_source.write_bytes(gguf_source.read_bytes()[:-4000])
    assert "incomplete" in str(refusal(gguf_source, "int8", free))
