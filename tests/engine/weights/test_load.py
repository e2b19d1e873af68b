from pathlib import Path

import pytest
import torch
from torch import nn

from octavo.checkpoint.gguf import GGMLType, read_gguf_header
from octavo.engine.model_config_gguf import model_config_from_gguf
from octavo.engine.weights.load import load_weights
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.jobs import JobCancelled, JobControl, Progress
from tests.support.gguf_files import TinyLlama, write_gguf


def empty_module(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> nn.Module:
    """A module with parameters of these names and shapes, full of NaN."""
    root = nn.Module()
    for name, shape in shapes.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(torch.full(shape, torch.nan, dtype=dtype)))
    return root


def shapes_of(model: TinyLlama) -> dict[str, tuple[int, ...]]:
    return {name: weight.shape for name, weight in model.weights().items()}


def load(path: Path, module: nn.Module, control: JobControl | None = None) -> None:
    header = read_gguf_header(path)
    load_weights(module, header, model_config_from_gguf(header), control or JobControl())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_parameter_is_filled(tmp_path: Path, dtype: torch.dtype) -> None:
    model = TinyLlama(tie_embeddings=False, attention_bias=True)
    module = empty_module(shapes_of(model), dtype)
    load(model.write(tmp_path / "tiny.gguf"), module)
    expected = model.weights()
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, torch.from_numpy(expected[name]).to(dtype)), name


def test_parameters_may_be_views_of_one_matrix(tmp_path: Path) -> None:
    model = TinyLlama()
    module = empty_module(shapes_of(model), torch.float32)
    fused = torch.empty(2 * 96, 64)
    mlp = module.get_submodule("model.layers.0.mlp")
    for part, view in zip(("gate_proj", "up_proj"), fused.chunk(2), strict=True):
        mlp.get_submodule(part).register_parameter("weight", nn.Parameter(view))
    load(model.write(tmp_path / "tiny.gguf"), module)
    up = torch.from_numpy(model.weights()["model.layers.0.mlp.up_proj.weight"])
    assert torch.equal(fused[96:], up)


def test_progress_counts_the_bytes_of_the_file(tmp_path: Path) -> None:
    model = TinyLlama(ggml_type=GGMLType.Q8_0)
    reports: list[Progress] = []
    module = empty_module(shapes_of(model), torch.float32)
    load(model.write(tmp_path / "tiny.gguf"), module, JobControl(reports.append))
    total = sum(stored.nbytes for _, stored in model.tensors().values())
    assert {report.total for report in reports} == {total}
    done = [report.done for report in reports]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, total)


def test_cancelling_stops_the_work(tmp_path: Path) -> None:
    model = TinyLlama()
    reports: list[Progress] = []

    def cancel_at_the_second(progress: Progress) -> None:
        reports.append(progress)
        if len(reports) == 2:
            control.cancel()

    control = JobControl(cancel_at_the_second)
    module = empty_module(shapes_of(model), torch.float32)
    with pytest.raises(JobCancelled):
        load(model.write(tmp_path / "tiny.gguf"), module, control)
    assert len(reports) == 2


def test_the_number_of_torch_threads_is_as_before(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = TinyLlama()
        load(model.write(tmp_path / "tiny.gguf"), empty_module(shapes_of(model), torch.float32))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_damaged_weight_ends_the_load(tmp_path: Path) -> None:
    model = TinyLlama()
    tensors = model.tensors()
    tensors["blk.0.ffn_down.weight"][1][0, 0] = float("nan")
    path = write_gguf(tmp_path / "tiny.gguf", model.metadata(), tensors)
    with pytest.raises(CheckpointError, match="NaN") as caught:
        load(path, empty_module(shapes_of(model), torch.float32))
    assert caught.value.tensor == "blk.0.ffn_down.weight"


def test_missing_weight_is_named(tmp_path: Path) -> None:
    model = TinyLlama()
    module = empty_module({**shapes_of(model), "lm_head.weight": (309, 64)}, torch.float32)
    with pytest.raises(CheckpointError, match=r"tiny\.gguf has no weights for 'lm_head") as caught:
        load(model.write(tmp_path / "tiny.gguf"), module)
    assert caught.value.tensor == "lm_head.weight"
    assert caught.value.hint


def test_weight_without_a_parameter_is_named(tmp_path: Path) -> None:
    model = TinyLlama(attention_bias=True)
    module = empty_module(shapes_of(TinyLlama()), torch.float32)
    with pytest.raises(UnsupportedModelError, match=r"'blk\.0\.attn_q\.bias'"):
        load(model.write(tmp_path / "tiny.gguf"), module)


def test_wrong_shape_says_both_shapes(tmp_path: Path) -> None:
    model = TinyLlama()
    shapes = {**shapes_of(model), "model.layers.1.mlp.up_proj.weight": (64, 96)}
    module = empty_module(shapes, torch.float32)
    with pytest.raises(CheckpointError, match=r"\[96, 64\] instead of \[64, 96\]") as caught:
        load(model.write(tmp_path / "tiny.gguf"), module)
    assert caught.value.tensor == "blk.1.ffn_up.weight"
