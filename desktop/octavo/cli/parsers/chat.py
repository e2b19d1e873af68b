"""Options of the verbs that run a model: `run`, `bench`, `generate`."""

import dataclasses

from octavo.cli.parsers.manual import Example, Verbs, add_engine, add_sampling, add_verb
from octavo.engine.sampling_params import SamplingParams


def add_run(verbs: Verbs) -> None:
    """`octavo run`."""
    parser = add_verb(
        verbs,
        "run",
        "chat with a model on the terminal",
        "Streams an answer to PROMPT, or to what stands on standard input; without either it holds"
        " a conversation. A single argument that is no model is a prompt for the starter model."
        " Conversations on the terminal are not kept.",
        [
            Example('octavo run starter "Why is the sky blue?"', "one answer"),
            Example("octavo run starter", "a conversation; Ctrl-D ends it"),
            Example('git diff | octavo run starter "Summarise this change."', ""),
            Example('octavo run --temperature 0 --seed 1 "Name a colour."', "the same every time"),
        ],
        environment=["CUDA_VISIBLE_DEVICES"],
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="default: the starter model")
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="default: what stands on standard input"
    )
    parser.add_argument("--system", help="system prompt; default: the settings' (none)")
    add_sampling(parser)
    add_engine(parser)
    parser.set_defaults(verb="chat:run_verb")


def add_bench(verbs: Verbs) -> None:
    """`octavo bench`."""
    parser = add_verb(
        verbs,
        "bench",
        "measure tokens per second and time to first token",
        "Runs fresh random prompts, greedy and without end of text: prefill and decode of one"
        " stream, then N streams at once. Medians of the repetitions.",
        [
            Example("octavo bench starter", "one stream, then eight"),
            Example("octavo bench starter --streams 1 4 16 --json", "one JSON object"),
            Example("octavo bench --dummy-weights Llama-3.2-1B", "no model file; see below"),
            Example("octavo bench starter --against llama.cpp", "both in turn, with ratios"),
        ],
        environment=["CUDA_VISIBLE_DEVICES"],
    )
    parser.add_argument(
        "model", nargs="?", default="starter", metavar="MODEL", help="a name, a path or `starter`"
    )
    parser.add_argument(
        "--prompt-tokens", type=int, default=512, metavar="N", help="length of a prompt"
    )
    parser.add_argument(
        "--output-tokens", type=int, default=64, metavar="N", help="length of an answer"
    )
    parser.add_argument(
        "--streams", type=int, nargs="*", default=[8], metavar="N", help="concurrent requests"
    )
    parser.add_argument(
        "--repetitions", type=int, default=5, metavar="N", help="runs after a warm-up"
    )
    parser.add_argument(
        "--against",
        choices=("llama.cpp",),
        help="run the same file and prompts on it, too, in turn; needs llama-cpp-python",
    )
    parser.add_argument(
        "--peer-python",
        metavar="PATH",
        help="the Python that has it; default: the one that runs Octavo",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_engine(parser)
    dummy = parser.add_argument_group(
        "a model that need not be there",
        "Random weights in the shape of a known model, and fixed workloads in place of the\n"
        "options above: 512/256 tokens alone, 512/128 in batches, a prompt of 16,384, a shared\n"
        "prefix.",
    )
    dummy.add_argument(
        "--dummy-weights",
        metavar="SHAPE",
        help="Llama-3.2-1B, Llama-3.1-8B, Qwen3-0.6B or Qwen3-8B",
    )
    dummy.add_argument(
        "--weight-format",
        default="bf16",
        metavar="NAME",
        help="bf16, int4 (groups of 128), int8, fp8, q4_k_m or q8_0",
    )
    dummy.add_argument(
        "--batch-sizes",
        type=int,
        nargs="*",
        default=[1, 8, 32, 128, 256],
        metavar="N",
        help="requests of 512/128 handed over at once",
    )
    dummy.add_argument(
        "--no-long",
        action="store_false",
        dest="long_workloads",
        help="leave out the long prompt and the shared prefix",
    )
    parser.set_defaults(verb="bench:bench_verb")


def add_generate(verbs: Verbs) -> None:
    """`octavo generate`."""
    parser = add_verb(
        verbs,
        "generate",
        "JSON lines in, JSON lines out: the door for scripts",
        "Reads requests from standard input, one JSON object a line: `messages`, `prompt` or"
        " `prompt_token_ids`, and sampling parameters under their OpenAI or vLLM names. All are"
        " submitted at once and batch together; results come in the order of the input. Parameters:"
        f" {', '.join(field.name for field in dataclasses.fields(SamplingParams))}.",
        [
            Example(
                """echo '{"prompt": "The sky is", "max_tokens": 8}' | octavo generate --json""", ""
            ),
            Example("octavo generate --model starter < requests.jsonl > results.jsonl", ""),
        ],
        environment=["CUDA_VISIBLE_DEVICES"],
    )
    parser.add_argument(
        "--model", default="starter", metavar="MODEL", help="a name, a path or `starter`"
    )
    parser.add_argument("--json", action="store_true", help="JSON lines (the only format so far)")
    add_engine(parser)
    parser.set_defaults(verb="generate:generate_verb")
