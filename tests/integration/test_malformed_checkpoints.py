"""Damaged model files load, or are refused by name: in bounded memory and time, never by a crash.

Each case is a random damage that is the same in every run. `OCTAVO_FUZZ_CASES` multiplies their
number for a longer look.
"""

import contextlib
import json
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from octavo.checkpoint.gguf import GGMLType, read_gguf_header
from octavo.checkpoint.header import read_checkpoint
from octavo.engine.checkpoint_parts import read_chat_template, read_model_config, read_tokenizer
from octavo.engine.config import EngineConfig
from octavo.engine.device import Device
from octavo.engine.memory import plan_memory
from octavo.engine.models.decoder import build_model
from octavo.engine.weights.load import load_weights
from octavo.errors import (
    ChatTemplateError,
    CheckpointError,
    InsufficientMemoryError,
    ModelError,
    StorageError,
    UnsupportedModelError,
)
from octavo.jobs import JobControl
from tests.engine.models.test_text_parts import make_model
from tests.engine.weights.test_merged_experts import write_packed_folder
from tests.support.damage import damaged_bytes, damaged_json
from tests.support.gguf_files import Array, TinyLlama, write_gguf, write_tiny_llama
from tests.support.model_folders import write_model_folder
from tests.support.quantized_folders import kind_named, write_quantized_folder

NUM_CASES = 15 * int(os.environ.get("OCTAVO_FUZZ_CASES", "1"))
MOST_BYTES = 768 << 20
"""Of address space beyond what the process has already, threads included."""
MOST_CPU_S = 5.0
MACHINE = Device("cpu", 0, "test CPU", 2 << 30, 3 << 29)
CONFIGS = [
    EngineConfig(device="cpu", dtype="float32", num_kv_blocks=8, weights=weights)
    for weights in ("unpacked", "packed")
]
"""Cases take turns."""
CHAT = [{"role": "user", "content": "Hi <|im_end|> there"}]


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Address space and processor time that no header may make a load exceed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (now + MOST_BYTES, hard))
    start = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.process_time() - start < MOST_CPU_S


def load(path: Path, engine_config: EngineConfig) -> None:
    """All that a load does but for running the model."""
    header = read_checkpoint(path)
    config = read_model_config(header)
    assert header.quantization
    plan = plan_memory(config, engine_config, MACHINE)
    plan.require_fit()
    if not path.is_dir() or (path / "tokenizer.json").exists():
        tokenizer = read_tokenizer(header)
        tokenizer.decode(tokenizer.encode("Hello 日本", parse_special=True))
        template = read_chat_template(header, tokenizer)
        if template is not None:
            template.encode(tokenizer, CHAT)
    model = build_model(config, plan)
    load_weights(model, header, config, JobControl())


def outcome(path: Path, engine_config: EngineConfig) -> str:
    """What became of a load; anything but these outcomes fails the test."""
    try:
        with bounded():
            load(path, engine_config)
    except (ModelError, StorageError, InsufficientMemoryError) as error:
        return refusal(path, error)
    return "loaded"


def refusal(path: Path, error: ModelError | StorageError | InsufficientMemoryError) -> str:
    """What was refused, in a word, after a look at how."""
    assert len(str(error)) < 4000, "a sentence for people"
    if isinstance(error, InsufficientMemoryError):
        assert error.needed_bytes > error.free_bytes, "refused by the plan, before it happened"
        return "too large"
    if isinstance(error, ChatTemplateError):
        return "template"
    names = {path.name, *(file.name for file in path.glob("*"))}
    assert any(name in str(error) for name in names), str(error)
    if isinstance(error, UnsupportedModelError):
        return "unsupported"
    assert isinstance(error, CheckpointError | StorageError)
    assert error.path is not None
    assert error.path.name in names
    return "damaged tensor" if getattr(error, "tensor", None) else "damaged file"


def run_cases(path: Path, damage: Callable[[random.Random], None]) -> set[str]:
    """The outcomes of all cases, after that of the whole file."""
    for engine_config in CONFIGS:
        load(path, engine_config)
    outcomes = set()
    for number in range(NUM_CASES):
        damage(random.Random(number))
        try:
            outcomes.add(outcome(path, CONFIGS[number % len(CONFIGS)]))
        except Exception as error:
            error.add_note(f"case {number} of {path}")
            raise
    return outcomes


SMALL: dict[str, Any] = {
    "num_layers": 1,
    "hidden_size": 32,
    "num_heads": 2,
    "num_kv_heads": 1,
    "intermediate_size": 32,
}


@pytest.mark.parametrize("ggml_type", [GGMLType.F32, GGMLType.Q4_0, GGMLType.Q8_0])
def test_bytes_of_gguf_files(tmp_path: Path, ggml_type: GGMLType) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", ggml_type=ggml_type, **SMALL)
    content = path.read_bytes()
    header_bytes = read_gguf_header(path).data_offset

    def damage(random_: random.Random) -> None:
        path.write_bytes(damaged_bytes(content, random_, header_bytes))

    assert run_cases(path, damage) >= {"damaged file"}


def test_values_of_gguf_files(tmp_path: Path) -> None:
    """The format is right, what it says is not."""
    model = TinyLlama(**SMALL)
    path = model.write(tmp_path / "tiny.gguf")

    def damage(random_: random.Random) -> None:
        metadata = dict(model.metadata())
        tensors = dict(model.tensors())
        for _ in range(random_.randint(1, 2)):
            match random_.randrange(4):
                case 0:
                    metadata[random_.choice(list(metadata))] = random_.choice(GGUF_VALUES)
                case 1:
                    del metadata[random_.choice(list(metadata))]
                case 2:
                    name = random_.choice(list(tensors))
                    change_array(tensors, name, random_)
                case 3:
                    name = random_.choice(list(tensors))
                    tensors[random_.choice(("blk.1.attn_q.weight", "x", name + "x"))] = tensors.pop(
                        name
                    )
        path.unlink(missing_ok=True)
        write_gguf(path, metadata, tensors)

    assert run_cases(path, damage) >= {"damaged file", "damaged tensor", "unsupported", "loaded"}


GGUF_VALUES: tuple[Any, ...] = (
    True,
    0,
    1,
    3,
    2**32 - 1,
    float("nan"),
    float("inf"),
    -1.0,
    1e-30,
    "",
    "x",
    "\0" * 50,
    "{% for i in range(10**9) %}x{% endfor %}",
    [0],
    [1.5, 2.5],
    ["x"] * 300,
    [3] * 300,
)


def change_array(
    tensors: dict[str, tuple[GGMLType, Array]], name: str, random_: random.Random
) -> None:
    kind, array = tensors[name]
    array = array.copy()
    match random_.randrange(5):
        case 0:
            del tensors[name]
            return
        case 1:
            array.flat[random_.randrange(array.size)] = random_.choice((np.nan, np.inf, -np.inf))
        case 2:
            array = array[: max(1, len(array) - random_.randrange(1, 9))]
        case 3:
            array = array.reshape(-1, 1) if array.ndim == 1 else array.T.copy()
        case 4:
            array = array.reshape(1, *array.shape)
    tensors[name] = kind, array


def write_plain(folder: Path) -> None:
    write_model_folder(folder, num_hidden_layers=1, max_shard_size="40KB")


def write_single(folder: Path) -> None:
    write_model_folder(folder, num_hidden_layers=1, tokenizer="prepend")


def write_kind(name: str) -> Callable[[Path], object]:
    return lambda folder: write_quantized_folder(folder, kind_named(name))


FOLDERS: dict[str, Callable[[Path], object]] = {
    "shards": write_plain,
    "one file": write_single,
    "gptq": write_kind("gptq 4 bit v2 desc_act asym"),
    "awq": write_kind("awq"),
    "nf4": write_kind("bnb nf4 nested"),
    "fp8": write_kind("fp8 blocks"),
    "packed": write_kind("ct int4 g_idx"),
    # These two have no tokenizer.
    "mxfp4": write_packed_folder,
    "one that sees": lambda folder: make_model("gemma3").save_pretrained(folder),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_bytes_of_folders(tmp_path: Path, kind: str) -> None:
    """Of the weights: the header most of the time, and the values of any tensor."""
    FOLDERS[kind](tmp_path)
    contents = {path: path.read_bytes() for path in sorted(tmp_path.glob("*.safetensors"))}

    def damage(random_: random.Random) -> None:
        for path, content in contents.items():
            path.write_bytes(content)
        path, content = random_.choice(list(contents.items()))
        header_bytes = 8 + int.from_bytes(content[:8], "little")
        path.write_bytes(damaged_bytes(content, random_, header_bytes))

    assert run_cases(tmp_path, damage) >= {"damaged file"}


@pytest.mark.parametrize("kind", FOLDERS)
def test_descriptions_of_folders(tmp_path: Path, kind: str) -> None:
    """Of every JSON file in turn, and of the header of the weights."""
    FOLDERS[kind](tmp_path)
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(tmp_path.glob("*.json"))}
    weights = {path: path.read_bytes() for path in sorted(tmp_path.glob("*.safetensors"))}

    def damage(random_: random.Random) -> None:
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
        for path, content in weights.items():
            path.write_bytes(content)
        path = random_.choice([*texts, *weights])
        if path in weights:
            content = weights[path]
            length = int.from_bytes(content[:8], "little")
            changed = as_json(damaged_json(json.loads(content[8 : 8 + length]), random_))
            start = len(changed).to_bytes(8, "little")
            path.write_bytes(start + changed + content[8 + length :])
        else:
            path.write_bytes(as_json(damaged_json(json.loads(texts[path]), random_)))

    assert run_cases(tmp_path, damage) >= {"damaged file", "loaded"}


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")
