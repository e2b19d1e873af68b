"""Options of the verbs that answer: `run` and `generate`."""

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
