"""What packed weights take in a process of their own is what the plan says, and at no time more."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from octavo.checkpoint.gguf import BLOCK_LAYOUT, GGMLType
from octavo.engine.kernels.cpu.simd_tier import Tier, host_features, tier_of
from tests.support.gguf_files import TinyLlama, gguf_name, random_blocks, write_gguf
from tests.support.model_folders import change_json
from tests.support.quantized_folders import kind_named, write_quantized_folder

STATUS = Path("/proc/self/status")
pytestmark = pytest.mark.skipif(
    not STATUS.exists() or "VmHWM" not in STATUS.read_text(),
    reason="this system does not tell a process its peak",
)

CHILD = """
import json, re, sys
from pathlib import Path
import psutil, torch
from octavo.engine.config import EngineConfig
from octavo.engine.loading import load_engine
from octavo.jobs import JobControl
from tests.support.engines import request, run_all

def peak():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+([0-9]+) kB", status)[1]) * 1024

path = Path(sys.argv[1])
torch.randn(64, 64) @ torch.randn(64, 64)
config = EngineConfig(
    device="cpu", dtype="float32", weights="packed", num_kv_blocks=4,
    max_num_batched_tokens=64, max_num_seqs=4,
)
Path("/proc/self/clear_refs").write_text("5")
before = psutil.Process().memory_info().rss
engine, report = load_engine(path, config, JobControl())
loaded = psutil.Process().memory_info().rss
peak_of_load = peak()
run_all(engine, [request("one", list(range(3, 33)), max_tokens=2, ignore_eos=True)])
print(json.dumps({
    "items": {item.name: item.num_bytes for item in report.plan.items},
    "loaded": loaded - before,
    "peak_of_load": peak_of_load - before,
    "peak": peak() - before,
}))
"""
KERNELS_CHILD = """
import json, sys
from pathlib import Path
import psutil
from octavo.checkpoint.header import read_checkpoint
from octavo.engine import cpu_executor
from octavo.engine.config import EngineConfig
from octavo.engine.kernels.cpu.preparation import prepare_kernels
from octavo.engine.loading import load_engine
from octavo.engine.planning import kernel_forms
from octavo.jobs import JobControl
from tests.support.engines import request, run_all

path, tiles = map(Path, sys.argv[1:])
# What every model needs: torch, Numba and the kernels.
prepare_kernels(kernel_forms(read_checkpoint(path)), None, lambda *_: None)
config = EngineConfig(device="cpu", num_kv_blocks=65, cpu_threads=2, tile_cache_dir=str(tiles))
before = psutil.Process().memory_info().rss
engine, report = load_engine(path, config, JobControl())
assert report.executor == "CPU kernels"
loaded = psutil.Process().memory_info().rss
requests = [
    request(str(i), [3 + (i + 7 * j) % 200 for j in range(100)], max_tokens=20, ignore_eos=True)
    for i in range(8)
]
run_all(engine, requests)
run_all(engine, [request("p", list(range(3, 203)), max_tokens=1, prompt_logprobs=1)])
run_all(engine, [request("t", list(range(3, 203)), temperature=1.0, top_p=0.9, max_tokens=9)])
print(json.dumps({
    "items": {item.name: item.num_bytes for item in report.plan.items},
    "loaded": loaded - before,
    "used": psutil.Process().memory_info().rss - before,
}))
"""
MIB = 1 << 20


def measure(*paths: Path, program: str = CHILD) -> dict[str, Any]:
    child = subprocess.run(
        [sys.executable, "-c", program, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
    )
    measured: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return measured


def check(path: Path) -> None:
    measured = measure(path)
    items = measured["items"]
    weights_bytes = items["Weights"] + items["Unpacked weights"]
    kv_bytes = items["KV cache"]
    slack = weights_bytes // 20 + 30 * MIB
    assert weights_bytes > 3 * slack, "a second copy would show"
    assert abs(measured["loaded"] - weights_bytes) <= slack + kv_bytes
    assert measured["peak_of_load"] <= weights_bytes + kv_bytes + slack
    assert measured["peak"] <= weights_bytes + kv_bytes + items["Workspace"] + slack


def write_large_gguf(path: Path, ggml_type: GGMLType) -> Path:
    model = TinyLlama(
        num_layers=20, hidden_size=1024, num_heads=8, num_kv_heads=8, head_dim=128,
        intermediate_size=4096, extra_vocab=2000,
    )  # fmt: skip
    elements, block_bytes = BLOCK_LAYOUT[ggml_type]
    shapes = {"q": 1024, "k": 1024, "v": 1024, "o": 1024}
    raw = random_blocks(ggml_type, 4096 * 1024 // elements).reshape(-1)
    sizes = {
        **{f"self_attn.{part}_proj": (rows, 1024) for part, rows in shapes.items()},
        "mlp.gate_proj": (4096, 1024),
        "mlp.up_proj": (4096, 1024),
        "mlp.down_proj": (1024, 4096),
    }
    tensors = {}
    norm = torch.ones(1024).numpy()
    for layer in range(model.num_layers):
        for part, (rows, columns) in sizes.items():
            row_bytes = columns // elements * block_bytes
            blocks = raw[: rows * row_bytes].reshape(rows, row_bytes)
            tensors[gguf_name(f"model.layers.{layer}.{part}.weight")] = (ggml_type, blocks)
        for part in ("input_layernorm", "post_attention_layernorm"):
            name = gguf_name(f"model.layers.{layer}.{part}.weight")
            tensors[name] = (GGMLType.F32, norm)
    tensors["output_norm.weight"] = (GGMLType.F32, norm)
    row_bytes = 1024 // elements * block_bytes
    table = raw[: model.vocab_size * row_bytes].reshape(-1, row_bytes)
    tensors["token_embd.weight"] = (ggml_type, table)
    return write_gguf(path, model.metadata(), tensors)


def write_large_folder(folder: Path) -> Path:
    """The tokenizer of a tiny model, and matrices of a larger one, which are all alike."""
    kind = kind_named("gptq 4 bit v1")
    write_quantized_folder(folder, kind)
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 20}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128}
    change_json(folder / "config.json", **sizes, **heads, tie_word_embeddings=True)
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    tensors = {
        "model.embed_tokens.weight": torch.randn(vocab_size, 1024).bfloat16(),
        "model.norm.weight": torch.ones(1024),
    }
    packed = {shape: kind.packed(*shape)[0] for shape in ((1024, 1024), (4096, 1024), (1024, 4096))}
    parts = {f"self_attn.{part}_proj": (1024, 1024) for part in "qkvo"}
    parts |= {"mlp.gate_proj": (4096, 1024), "mlp.up_proj": (4096, 1024)}
    for layer in range(20):
        prefix = f"model.layers.{layer}."
        for part, shape in {**parts, "mlp.down_proj": (1024, 4096)}.items():
            for role, tensor in packed[shape].items():
                tensors[f"{prefix}{part}.{role}"] = tensor.clone()
        for part in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{part}.weight"] = torch.ones(1024)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.slow
def test_folder(tmp_path: Path) -> None:
    check(write_large_folder(tmp_path))


def test_gguf(tmp_path: Path) -> None:
    path = write_large_gguf(tmp_path / "large.gguf", GGMLType.Q4_K)
    assert path.stat().st_size > 180 * MIB
    check(path)


@pytest.mark.skipif(tier_of(host_features()) is Tier.NONE, reason="this processor has no kernels")
@pytest.mark.timeout(300)
def test_the_cpu_kernels_take_what_their_plan_says(tmp_path: Path) -> None:
    """Read from the file, and mapped from the tiles that this load has kept."""
    path = write_large_gguf(tmp_path / "large.gguf", GGMLType.Q4_K)
    for is_mapped in (False, True):
        measured = measure(path, tmp_path / "tiles", program=KERNELS_CHILD)
        items = measured["items"]
        planned_bytes = sum(items.values()) - items["Reserve"]
        print(f"mapped {is_mapped}: {measured}, planned {planned_bytes}")
        assert abs(measured["used"] - planned_bytes) <= 0.07 * planned_bytes
        limit_bytes = path.stat().st_size + items["KV cache"] + 150 * MIB
        assert measured["used"] <= limit_bytes
        if is_mapped:
            assert measured["loaded"] < 40 * MIB, "nothing was read, and no page was touched yet"
