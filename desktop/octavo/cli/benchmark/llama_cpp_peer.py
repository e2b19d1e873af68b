"""Runs llama.cpp on a model for `octavo bench --against`; a program of its own (see `peer.py`).

    python llama_cpp_peer.py MODEL THREADS [TYPE]

It knows nothing of Octavo, so that it also runs in the environment where llama-cpp-python is. With
TYPE, llama.cpp's own quantiser first writes the model anew in that type, into a temporary file. The
low-level functions are called, one token a sequence and step.
"""

import contextlib
import ctypes
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

STEP_TOKENS = 512


class LlamaCpp:
    """One model, and a context as large as a run needs."""

    def __init__(self, path: str, num_threads: int) -> None:
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}.")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._num_threads = num_threads

    def run(self, prompts: list[list[int]], output_tokens: int) -> dict[str, float]:
        """Computes the prompts, then decodes greedily, all sequences in each step."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = sum(len(prompt) + output_tokens for prompt in prompts) + 64 * len(prompts)
        params.n_batch = params.n_ubatch = STEP_TOKENS
        params.n_seq_max = len(prompts)
        params.n_threads = params.n_threads_batch = self._num_threads
        params.kv_unified = True
        context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            raise SystemExit(f"llama.cpp has no memory for {params.n_ctx} tokens.")
        try:
            started_at = time.perf_counter()
            tokens = self._prefill(context, prompts)
            prefilled_at, cpu_s = time.perf_counter(), time.process_time()
            positions = [len(prompt) for prompt in prompts]
            for step in range(output_tokens - 1):
                entries = [
                    (token, position + step, number, True)
                    for number, (token, position) in enumerate(zip(tokens, positions, strict=True))
                ]
                self._decode(context, entries)
                tokens = [self._best(context, row) for row in range(len(entries))]
            ended_at, cpu_s = time.perf_counter(), time.process_time() - cpu_s
        finally:
            llama_cpp.llama_free(context)
        return {
            "prefill_s": prefilled_at - started_at,
            "decode_s": ended_at - prefilled_at,
            "decode_cpu_s": cpu_s,
        }

    def _prefill(self, context: Any, prompts: list[list[int]]) -> list[int]:
        """The first token after each prompt; short prompts share a step."""
        entries = [
            (token, position, number, position == len(prompt) - 1)
            for number, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        tokens = []
        for first in range(0, len(entries), STEP_TOKENS):
            part = entries[first : first + STEP_TOKENS]
            self._decode(context, part)
            ends = [row for row, (_, _, _, wants_logits) in enumerate(part) if wants_logits]
            tokens += [self._best(context, row) for row in ends]
        return tokens

    def _decode(self, context: Any, entries: list[tuple[int, int, int, bool]]) -> None:
        batch = llama_cpp.llama_batch_init(len(entries), 0, 1)
        batch.n_tokens = len(entries)
        for index, (token, position, number, wants_logits) in enumerate(entries):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, number
            batch.logits[index] = wants_logits
        code = llama_cpp.llama_decode(context, batch)
        llama_cpp.llama_batch_free(batch)
        if code:
            raise SystemExit(f"llama_decode returned {code}.")

    def _best(self, context: Any, row: int) -> int:
        pointer = llama_cpp.llama_get_logits_ith(context, row)
        return int(np.ctypeslib.as_array(pointer, (self._vocab_size,)).argmax())


def quantize(source: str, target: Path, type_name: str, num_threads: int) -> None:
    """Writes a model anew with llama.cpp's own quantiser, also from weights that are quantised."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{type_name.upper()}")
    params.nthread = num_threads
    params.allow_requantize = True
    code = llama_cpp.llama_model_quantize(
        source.encode(), str(target).encode(), ctypes.byref(params)
    )
    if code:
        raise SystemExit(f"llama.cpp cannot write {source} in {type_name}: it returned {code}.")


def main() -> None:
    """Answers on standard output, a line for each line of standard input."""
    path, num_threads, type_name = sys.argv[1], int(sys.argv[2]), (*sys.argv[3:], "")[0]
    llama_cpp.llama_backend_init()
    # Kept, for the library calls it for as long as it runs.
    silence = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
    version = f"llama-cpp-python {llama_cpp.__version__}"
    with contextlib.ExitStack() as stack:
        if type_name:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            source, path = path, str(folder / "model.gguf")
            quantize(source, Path(path), type_name, num_threads)
            version += f", its own quantiser to {type_name.upper()}"
        peer = LlamaCpp(path, num_threads)
        print(json.dumps({"version": version}), flush=True)
        for line in sys.stdin:
            question = json.loads(line)
            answer = peer.run(question["prompts"], question["output_tokens"])
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
