import shutil
from pathlib import Path

import pytest

from octavo.checkpoint.gguf import GGMLType
from octavo.checkpoint.gguf_split import read_gguf_model
from octavo.checkpoint.header import read_checkpoint
from octavo.errors import CheckpointError
from tests.support.engines import make_engine, request, run_all
from tests.support.gguf_files import TinyLlama, write_gguf, write_split_llama

MODEL = TinyLlama(ggml_type=GGMLType.Q8_0)


def test_parts_are_one_model(tmp_path: Path) -> None:
    paths = write_split_llama(tmp_path, MODEL)
    whole = read_gguf_model(MODEL.write(tmp_path / "whole.gguf"))
    for given in (paths[0], paths[2]):
        header = read_checkpoint(given)
        assert header.path == paths[0]
        assert list(header.tensors) == list(whole.tensors)
        assert {tensor.path for tensor in header.tensors.values()} == set(paths)
        assert header.tensor_bytes == whole.tensor_bytes
        assert header.num_parameters == whole.num_parameters
        assert header.quantization == "Q8_0"


def test_parts_say_what_the_whole_file_says(tmp_path: Path) -> None:
    paths = write_split_llama(tmp_path, MODEL)
    prompt = request("one", list(range(3, 40)), max_tokens=8, ignore_eos=True, logprobs=1)
    [split] = run_all(make_engine(paths[0]), [prompt]).values()
    [whole] = run_all(make_engine(MODEL.write(tmp_path / "whole.gguf")), [prompt]).values()
    assert split.token_ids == whole.token_ids
    assert [one.logprob for one in split.logprobs] == [one.logprob for one in whole.logprobs]


def test_missing_part_is_named(tmp_path: Path) -> None:
    paths = write_split_llama(tmp_path, MODEL)
    paths[1].unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00003\.gguf of its 3 parts") as caught:
        read_gguf_model(paths[0])
    assert caught.value.path == paths[1]
    assert "tiny-00002-of-00003.gguf" in caught.value.hint
    paths[2].unlink()
    with pytest.raises(CheckpointError, match=r"tiny-00002-of-00003\.gguf and 1 more of its 3"):
        read_gguf_model(paths[0])


def test_part_under_another_name_cannot_find_the_others(tmp_path: Path) -> None:
    paths = write_split_llama(tmp_path, MODEL)
    renamed = paths[0].rename(tmp_path / "mine.gguf")
    with pytest.raises(CheckpointError, match=r"mine\.gguf is one of 3 parts") as caught:
        read_gguf_model(renamed)
    assert "00001-of-00003.gguf" in caught.value.hint


def test_part_in_the_place_of_another_is_refused(tmp_path: Path) -> None:
    paths = write_split_llama(tmp_path, MODEL)
    shutil.copy(paths[1], paths[2])
    with pytest.raises(CheckpointError, match="says that it is part 2 of 3, not 3 of 3"):
        read_gguf_model(paths[0])


def test_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    paths = write_split_llama(tmp_path, MODEL)
    name, tensor = next(iter(MODEL.tensors().items()))
    write_gguf(paths[2], {"split.no": 2, "split.count": 3}, {name: tensor})
    with pytest.raises(CheckpointError, match=f"{name}.*which tiny-00001-of") as caught:
        read_gguf_model(paths[0])
    assert caught.value.tensor == name


def test_part_with_too_few_tensors_is_refused(tmp_path: Path) -> None:
    paths = write_split_llama(tmp_path, MODEL)
    write_gguf(paths[2], {"split.no": 2, "split.count": 3}, {})
    with pytest.raises(CheckpointError, match=r"all parts hold 20 tensors, but it is \d+"):
        read_gguf_model(paths[0])


@pytest.mark.parametrize("count", [-5, 100_000, "3"])
def test_absurd_counts_are_refused(tmp_path: Path, count: int | str) -> None:
    path = tmp_path / "tiny.gguf"
    value: float | int | str = float(count) if count == -5 else count
    write_gguf(path, {"split.count": value}, {})
    with pytest.raises(CheckpointError, match=r"split\.count"):
        read_gguf_model(path)
