"""Options of `octavo bench`."""

from octavo.cli.benchmark.peer_kinds import PEERS
from octavo.cli.parsers.manual import Example, VerbParser, Verbs, add_engine, add_verb


def add_bench(verbs: Verbs) -> None:
    """`octavo bench`."""
    parser = add_verb(
        verbs,
        "bench",
        "measure tokens per second and time to first token",
        "Runs fresh random prompts without end of text: prefill and decode of N streams"
        " at once, one number of streams after the other. Medians of the repetitions. Against peers"
        " and over HTTP, the sides take turns in each repetition, and ratios are of its two runs.",
        [
            Example("octavo bench starter", "one stream, then eight"),
            Example("octavo bench starter --streams 1 4 16 --json", "one JSON object"),
            Example("octavo bench starter --against llama.cpp llama.cpp-q4_0 openvino", "in turn"),
            Example(
                "octavo bench starter --against llama.cpp --cpu-threads 1 --streams 1",
                "processor time of a token",
            ),
            Example("octavo bench starter --temperature 0.7 --top-p 0.95", "as the chat samples"),
            Example("octavo bench starter --http --streams 16", "what the server costs"),
            Example("octavo bench --dummy-weights Llama-3.2-1B", "no model file; see below"),
            Example(
                "octavo bench --dummy-weights Llama-3.2-3B --weight-format q4_k --streams 1", ""
            ),
            Example("octavo bench --tune", "find what suits this GPU"),
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
        "--streams", type=int, nargs="*", default=[1, 8], metavar="N", help="concurrent requests"
    )
    parser.add_argument(
        "--repetitions", type=int, default=5, metavar="N", help="runs after a warm-up"
    )
    _add_sampling(parser)
    parser.add_argument(
        "--tune",
        action="store_true",
        help="instead, find out how attention runs fastest on this GPU, and keep it for every model"
        " (minutes; some cards are known already)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    _add_peers(parser)
    _add_http(parser)
    _add_dummy(parser)
    add_engine(parser)
    # Figures are of the kernels, even where they must be compiled first.
    parser.set_defaults(verb="bench:bench_verb", waits_for_kernels=True)


def _add_sampling(parser: VerbParser) -> None:
    group = parser.add_argument_group("how tokens are chosen")
    group.add_argument(
        "--temperature", type=float, default=0.0, metavar="X", help="0 takes the likeliest token"
    )
    group.add_argument(
        "--top-p", type=float, default=1.0, metavar="X", help="likeliest tokens up to this share"
    )
    group.add_argument(
        "--top-k", type=int, default=0, metavar="N", help="likeliest N tokens; 0 is all of them"
    )
    group.add_argument(
        "--min-p", type=float, default=0.0, metavar="X", help="least share of the likeliest"
    )


def _add_peers(parser: VerbParser) -> None:
    group = parser.add_argument_group(
        "against other programs",
        "The same file, prompts and number of threads on each, in processes of their own. Beside\n"
        "the rates: processor time of a decoded token, and what memory bandwidth allows.",
    )
    group.add_argument(
        "--against",
        nargs="+",
        choices=tuple(PEERS),
        metavar="PEER",
        help="llama.cpp (the file as it is), llama.cpp-q4_0 (after its own quantiser) and openvino",
    )
    group.add_argument(
        "--peer-python",
        metavar="PATH",
        help="the Python that has them; default: the one that runs Octavo",
    )


def _add_http(parser: VerbParser) -> None:
    group = parser.add_argument_group("through the whole stack")
    group.add_argument(
        "--http",
        action="store_true",
        help="as many streaming clients of `octavo serve` in a process of its own, in turn with the"
        " engine alone",
    )


def _add_dummy(parser: VerbParser) -> None:
    group = parser.add_argument_group(
        "a model that need not be there",
        "Random weights in the shape of a known model. In q4_0 and q4_k they become a GGUF file,\n"
        "and all options above hold. In bf16 and int4 they are made on the device, for fixed\n"
        "workloads in place of the options above: 512/256 tokens alone, 512/128 in batches, a\n"
        "prompt of 16,384, a shared prefix.",
    )
    group.add_argument(
        "--dummy-weights",
        metavar="SHAPE",
        help="Llama-3.2-1B, Llama-3.2-3B, Llama-3.1-8B, Qwen3-0.6B, Qwen3-8B or, with experts and"
        " in bf16 alone, Qwen3-30B-A3B",
    )
    group.add_argument(
        "--weight-format",
        default="bf16",
        metavar="NAME",
        help="bf16, q4_0 or q4_k; on GPUs int4 (groups of 128), int8, fp8, q4_k_m or q8_0, too",
    )
    group.add_argument(
        "--keep-file",
        metavar="PATH",
        help="where the file of a q4_0 or q4_k model goes and stays; default: none is kept",
    )
    group.add_argument(
        "--batch-sizes",
        type=int,
        nargs="*",
        default=[1, 8, 32, 128, 256],
        metavar="N",
        help="requests of 512/128 handed over at once",
    )
    group.add_argument(
        "--no-long",
        action="store_false",
        dest="long_workloads",
        help="leave out the long prompt and the shared prefix",
    )
