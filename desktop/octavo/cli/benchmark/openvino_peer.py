"""Runs OpenVINO GenAI for `octavo bench --against`; a program of its own (see `peer.py`).

    python openvino_peer.py MODEL THREADS

It knows nothing of Octavo, so that it also runs in the environment where openvino-genai is. Its
pipeline with continuous batching is stepped from here.
"""

import json
import sys
import time
from itertools import count

import numpy as np
import openvino
import openvino_genai

MAX_STEP_TOKENS = 1 << 16
"""Whole prompts in one step, as its pipeline for single requests does it."""
CACHE_GIB = 2


class OpenVINO:
    """One model, read from its GGUF file and compiled for this processor."""

    def __init__(self, path: str, num_threads: int) -> None:
        scheduling = openvino_genai.SchedulerConfig()
        scheduling.enable_prefix_caching = False
        scheduling.max_num_batched_tokens = MAX_STEP_TOKENS
        scheduling.cache_size = CACHE_GIB
        properties = {"INFERENCE_NUM_THREADS": num_threads}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            path, scheduling, "CPU", properties
        )
        self._numbers = count()

    def run(self, prompts: list[list[int]], output_tokens: int) -> dict[str, float]:
        """Hands over all prompts and steps until each has its tokens."""
        config = openvino_genai.GenerationConfig(
            max_new_tokens=output_tokens, ignore_eos=True, do_sample=False
        )
        started_at = time.perf_counter()
        handles = [
            self._pipeline.add_request(
                next(self._numbers), openvino.Tensor(np.array([prompt], dtype=np.int64)), config
            )
            for prompt in prompts
        ]
        while not all(handle.can_read() for handle in handles):
            self._pipeline.step()
        prefilled_at, cpu_s = time.perf_counter(), time.process_time()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        ended_at, cpu_s = time.perf_counter(), time.process_time() - cpu_s
        for handle in handles:
            (output,) = handle.read_all()
            if len(output.generated_ids) != output_tokens:
                raise SystemExit(
                    f"OpenVINO GenAI ended a request after {len(output.generated_ids)} of"
                    f" {output_tokens} tokens."
                )
        return {
            "prefill_s": prefilled_at - started_at,
            "decode_s": ended_at - prefilled_at,
            "decode_cpu_s": cpu_s,
        }


def main() -> None:
    """Answers on standard output, a line for each line of standard input."""
    peer = OpenVINO(sys.argv[1], int(sys.argv[2]))
    print(json.dumps({"version": f"openvino-genai {openvino_genai.__version__}"}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        answer = peer.run(question["prompts"], question["output_tokens"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
