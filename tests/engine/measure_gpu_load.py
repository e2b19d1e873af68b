"""Measures loads of an 8B model's files onto a card: seconds to a first token, memory, unloading.

    python -m tests.engine.measure_gpu_load FOLDER

Writes 16 GB of safetensors and 5 GB of GGUF with random weights into FOLDER, once. Each case is a
process of its own, timed from its start: with an empty cache of compiled kernels or a full one,
with the files in memory or (as root, on Linux) not.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pynvml

if TYPE_CHECKING:
    from octavo.engine.engine import Engine

FOLDER, GGUF = "llama-8b-bf16", "llama-8b-q4_k_m.gguf"
NUM_LAYERS, HIDDEN, INTERMEDIATE, VOCAB = 32, 4096, 14336, 128256
KV_SIZE = 1024
MAX_MODEL_LEN = 8192
SHARD_LAYERS = 8
_TILED_BLOCKS = 2**18


def matrix_shapes() -> dict[str, tuple[int, int]]:
    """Of every matrix, under the names of Hugging Face, in the order of a file."""
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(NUM_LAYERS):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{prefix}self_attn.k_proj.weight": (KV_SIZE, HIDDEN),
            f"{prefix}self_attn.v_proj.weight": (KV_SIZE, HIDDEN),
            f"{prefix}self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{prefix}mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
            f"{prefix}mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
            f"{prefix}mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
        }
    shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    return shapes


def norm_names() -> list[str]:
    """Of every norm."""
    names = [
        f"model.layers.{layer}.{norm}_layernorm.weight"
        for layer in range(NUM_LAYERS)
        for norm in ("input", "post_attention")
    ]
    return [*names, "model.norm.weight"]


def write_folder(folder: Path) -> None:
    """Five files of safetensors, with config and tokenizer."""
    import torch
    from safetensors.torch import save_file

    from tests.support.model_folders import write_tokenizer

    folder.mkdir(parents=True)
    shards: list[dict[str, torch.Tensor]] = [{} for _ in range(NUM_LAYERS // SHARD_LAYERS + 1)]

    def put(name: str, tensor: torch.Tensor) -> None:
        layer = name.split(".layers.")[-1].split(".")[0]
        shards[int(layer) // SHARD_LAYERS if layer.isdigit() else -1][name] = tensor

    for name, shape in matrix_shapes().items():
        noise = torch.randn(shape, dtype=torch.bfloat16, device="cuda")
        put(name, (noise * shape[1] ** -0.5).cpu())
    for name in norm_names():
        put(name, torch.ones(HIDDEN, dtype=torch.bfloat16))
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file_name, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file_name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)


def write_gguf_file(path: Path) -> None:
    """The types of Q4_K_M: Q6_K for the output and half of the values' and down projections."""
    from octavo.checkpoint.gguf import BLOCK_LAYOUT, GGMLType
    from tests.support.gguf_files import TinyLlama, gguf_name, random_blocks, write_gguf

    small = TinyLlama()
    shape = TinyLlama(
        num_layers=NUM_LAYERS,
        hidden_size=HIDDEN,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=INTERMEDIATE,
        context_length=131072,
        tie_embeddings=False,
        extra_vocab=VOCAB - small.vocab_size,
        tokenizer_pre="llama-bpe",
    )
    blocks = {kind: random_blocks(kind, _TILED_BLOCKS) for kind in (GGMLType.Q4_K, GGMLType.Q6_K)}
    tensors: dict[str, tuple[GGMLType, Any]] = {}
    for name, (rows, columns) in matrix_shapes().items():
        is_finer = name == "lm_head.weight" or (
            ("v_proj" in name or "down_proj" in name) and int(name.split(".")[2]) % 2 == 0
        )
        kind = GGMLType.Q6_K if is_finer else GGMLType.Q4_K
        elements, _ = BLOCK_LAYOUT[kind]
        num_blocks = rows * columns // elements
        some = blocks[kind].reshape(_TILED_BLOCKS, -1)
        repeated = np.resize(some, (num_blocks, some.shape[1]))
        tensors[gguf_name(name)] = kind, repeated.reshape(rows, -1)
    for name in norm_names():
        tensors[gguf_name(name)] = GGMLType.F32, np.ones(HIDDEN, dtype=np.float32)
    write_gguf(path, shape.metadata(), tensors)


def used_mib(handle: Any) -> float:
    """What the card has in use, in MiB."""
    return float(pynvml.nvmlDeviceGetMemoryInfo(handle).used) / 2**20


def run(engine: "Engine", count: int, length: int, max_tokens: int) -> None:
    """Random prompts, all at once."""
    from octavo.engine.request import GenerationRequest
    from octavo.engine.sampling_params import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    random = np.random.default_rng(count)
    for index in range(count):
        prompt = tuple(random.integers(300, size=length).tolist())
        engine.add_request(GenerationRequest(f"{length}-{index}", prompt, params))
    while engine.has_work:
        for delta in engine.step():
            if delta.error is not None:
                raise delta.error


def measure(path: Path) -> dict[str, Any]:
    """In a fresh process: loads, answers, fills the card as far as it will go, unloads; twice."""
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    found: dict[str, Any] = {}
    before = used_mib(handle)
    from octavo.engine.config import EngineConfig
    from octavo.engine.loading import load_engine
    from octavo.jobs import JobControl

    started_at = psutil.Process().create_time()
    found["imported after s"] = time.time() - started_at
    for attempt in ("first", "second"):
        engine, report = load_engine(path, EngineConfig(max_model_len=MAX_MODEL_LEN), JobControl())
        found[f"{attempt} load s"] = report.load_s
        after_load = used_mib(handle)

        run(engine, 1, 20, 1)
        if attempt == "first":
            found["first token after s"] = time.time() - started_at
        run(engine, 64, 600, 4)
        run(engine, 3, MAX_MODEL_LEN - 8, 4)
        plan = report.plan
        planned = sum(item.num_bytes for item in plan.items if item.name != "Reserve") / 2**20
        measured = used_mib(handle) - before
        found[f"{attempt}: MiB after load"] = after_load - before
        found[f"{attempt}: MiB measured"] = measured
        found[f"{attempt}: MiB planned"] = planned
        found[f"{attempt}: measured / planned"] = measured / planned
        if attempt == "first":
            found["plan"] = {item.name: item.num_bytes >> 20 for item in plan.items}
        engine.close()
        del engine, report
        gc.collect()
        found[f"{attempt}: MiB after unloading"] = used_mib(handle) - before
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", nargs="*", default=[FOLDER, GGUF], choices=[FOLDER, GGUF])
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(measure(options.child)))
        return
    paths = [options.folder / name for name in options.files]
    for path in paths:
        if not path.exists():
            started_at = time.perf_counter()
            (write_gguf_file if path.name == GGUF else write_folder)(path)
            print(f"{path.name} written in {time.perf_counter() - started_at:.1f} s", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        for path in paths:
            for case in ("nothing compiled", "compiled", "compiled, files not in memory"):
                if case.endswith("not in memory") and not _drop_page_cache():
                    continue
                command = [sys.executable, "-m", __spec__.name, str(options.folder)]
                outcome = subprocess.run(
                    [*command, "--child", str(path)],
                    env={**os.environ, "TRITON_CACHE_DIR": f"{cache}/{path.name}"},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                print(f"{path.name}, {case}:")
                if outcome.returncode:
                    print(outcome.stderr[:4000], flush=True)
                    continue
                for name, value in json.loads(outcome.stdout.splitlines()[-1]).items():
                    shown = f"{value:,.3f}" if isinstance(value, float) else value
                    print(f"    {name:28} {shown}", flush=True)


def _drop_page_cache() -> bool:
    """Whether the system could be told to forget what it has of files."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
