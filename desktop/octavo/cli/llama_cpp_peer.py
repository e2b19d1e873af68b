"""Runs llama.cpp on a model for `octavo bench --against llama.cpp`; a program of its own.

It knows nothing of Octavo, so that it also runs in the environment where llama-cpp-python is. Each
line it reads is a JSON list of prompts (token ids) and a number of tokens; each line it writes says
how long prompts and tokens took. The low-level functions are called, one token a sequence and step.
"""

import ctypes
import json
import sys
import time
from typing import Any

import llama_cpp
import numpy as np

STEP_TOKENS = 512


class LlamaCpp:
    """One model, and a context as large as a run needs."""

    def __init__(self, path: str, num_threads: int) -> None:
        llama_cpp.llama_backend_init()
        # Kept, for the library calls it for as long as it runs.
        self._silence = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p(0))
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}.")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._num_threads = num_threads

    def run(self, prompts: list[list[int]], num_output: int) -> dict[str, float]:
        """Computes the prompts, then decodes greedily, all sequences in each step."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = sum(len(prompt) + num_output for prompt in prompts) + 64 * len(prompts)
        params.n_batch = params.n_ubatch = STEP_TOKENS
        params.n_seq_max = len(prompts)
        params.n_threads = params.n_threads_batch = self._num_threads
        params.kv_unified = True
        context = llama_cpp.llama_init_from_model(self._model, params)
        try:
            started_at = time.perf_counter()
            tokens = [self._prefill(context, number, ids) for number, ids in enumerate(prompts)]
            prefilled_at = time.perf_counter()
            positions = [len(prompt) for prompt in prompts]
            for step in range(num_output - 1):
                entries = [
                    (token, position + step, number, True)
                    for number, (token, position) in enumerate(zip(tokens, positions, strict=True))
                ]
                self._decode(context, entries)
                tokens = [self._best(context, row) for row in range(len(entries))]
            ended_at = time.perf_counter()
        finally:
            llama_cpp.llama_free(context)
        return {"prefill_s": prefilled_at - started_at, "decode_s": ended_at - prefilled_at}

    def _prefill(self, context: Any, number: int, prompt: list[int]) -> int:
        for first in range(0, len(prompt), STEP_TOKENS):
            part = prompt[first : first + STEP_TOKENS]
            entries = [
                (token, first + index, number, first + index == len(prompt) - 1)
                for index, token in enumerate(part)
            ]
            self._decode(context, entries)
        return self._best(context, -1)

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


def main() -> None:
    """Answers on standard output, a line for each line of standard input."""
    peer = LlamaCpp(sys.argv[1], int(sys.argv[2]))
    print(json.dumps({"version": llama_cpp.__version__}), flush=True)
    for line in sys.stdin:
        prompts, num_output = json.loads(line)
        print(json.dumps(peer.run(prompts, num_output)), flush=True)


if __name__ == "__main__":
    main()
