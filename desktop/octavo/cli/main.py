"""The parser and the one place where errors become sentences on the terminal."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from octavo import __version__
from octavo.errors import OctavoError
from octavo.log import setup_logging
from octavo.paths import AppPaths

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


DESCRIPTION = """\
Run language models on your own machine.

Without a verb Octavo opens its window. MODEL is a name from `octavo list`, a path to a GGUF file
or to a folder with config.json and safetensors, or `starter`, the small model that comes with
Octavo and is fetched on first use.
"""

EPILOG = """\
examples:
  octavo                                     open the window
  octavo run starter "Why is the sky blue?"  one answer on the terminal
  octavo run starter                         a conversation on the terminal
  git diff | octavo run starter "Summarise this change."
  octavo bench starter                       tokens per second on this machine

Files lie in the folders that `octavo doctor` names; $OCTAVO_HOME puts them all below one folder.
"""


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit status: 0, 1 failed, 2 usage, 130 interrupted."""
    options = _parser().parse_args(arguments)
    paths = AppPaths.default()
    setup_logging(paths.log_file, verbose=options.verbose)
    try:
        return _find_verb(options.verb)(options, paths)
    except OctavoError as error:
        print(f"octavo: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"        {error.hint}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has left: silence is what it wants.
        sys.stderr.close()
        return EXIT_FAILED


def _find_verb(name: str) -> Callable[[argparse.Namespace, AppPaths], int]:
    """Imports a verb's module only when it runs, so that `octavo --help` is quick."""
    module, function = name.split(":")
    verb: Callable[[argparse.Namespace, AppPaths], int]
    verb = getattr(importlib.import_module(f"octavo.cli.{module}"), function)
    return verb


class _Parser(argparse.ArgumentParser):
    """argparse with Octavo's voice for usage errors."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}.", file=sys.stderr)
        print(f"        `{self.prog} --help` lists what there is.", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="octavo",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"octavo {__version__}")
    parser.add_argument("--verbose", action="store_true", help="write more into the log file")
    parser.set_defaults(verb="window:open_window")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", parser_class=_Parser)
    _add_run(verbs)
    _add_library_verbs(verbs)
    _add_doctor(verbs)
    _add_bench(verbs)
    _add_generate(verbs)
    _add_serve(verbs)
    return parser


def _add_run(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    parser = verbs.add_parser(
        "run",
        help="chat with a model on the terminal",
        description="Streams an answer to PROMPT, or to what stands on standard input; without"
        " either it holds a conversation. A single argument that is no model is a prompt for the"
        " starter model.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="default: the starter model")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT")
    parser.add_argument("--system", help="system prompt")
    _add_sampling(parser)
    _add_engine(parser)
    parser.set_defaults(verb="chat:run_verb")


def _add_library_verbs(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    search = verbs.add_parser(
        "search",
        help="find models on the hub",
        description="Lists the hub's repositories with GGUF files, the most downloaded first.",
    )
    search.add_argument("text", nargs="+", metavar="TEXT", help="words of the model's name")
    search.add_argument("--limit", type=int, default=20, metavar="N", help="default: 20")
    search.add_argument("--json", action="store_true", help="one JSON array")
    _add_endpoint(search)
    search.set_defaults(verb="hub:search_verb")
    pull = verbs.add_parser(
        "pull",
        help="download a model",
        description="Downloads a GGUF model into the models folder: `starter`, or one of the hub."
        " Its header is read first, so that a model Octavo cannot run costs no download. Started"
        " again after an interruption, it resumes. Without QUANT it takes Q4_K_M, else the next"
        " best there is; a file's name can stand for QUANT. $HF_TOKEN opens gated models.",
    )
    pull.add_argument(
        "name", metavar="NAME", help="`starter`, ORG/NAME, ORG/NAME:QUANT or the URL of its page"
    )
    _add_endpoint(pull)
    pull.set_defaults(verb="models:pull_verb")
    listing = verbs.add_parser("list", help="list the models on this machine")
    listing.add_argument("--json", action="store_true", help="one JSON array")
    listing.set_defaults(verb="models:list_verb")
    show = verbs.add_parser(
        "show",
        help="what a model is and whether it fits",
        description="Reads the model's header and the memory plan of a load; loads nothing.",
    )
    show.add_argument("model", metavar="MODEL")
    show.add_argument("--json", action="store_true", help="one JSON object")
    _add_engine(show)
    show.set_defaults(verb="models:show_verb")
    remove = verbs.add_parser("rm", help="delete a model from disk")
    remove.add_argument("model", metavar="MODEL")
    remove.set_defaults(verb="models:remove_verb")
    running = verbs.add_parser("ps", help="list the models that are loaded now")
    running.add_argument("--json", action="store_true", help="one JSON array")
    running.set_defaults(verb="models:ps_verb")


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        help="a mirror of the hub; default: $HF_ENDPOINT, else the hub itself",
    )


def _add_doctor(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    parser = verbs.add_parser(
        "doctor", help="machine, devices, versions, what is missing and what to do"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(verb="doctor:doctor_verb")


def _add_bench(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    parser = verbs.add_parser(
        "bench",
        help="measure tokens per second and time to first token",
        description="Runs fresh random prompts, greedy and without end of text: prefill and decode"
        " of one stream, then N streams at once. Medians of the repetitions.",
    )
    parser.add_argument("model", nargs="?", default="starter", metavar="MODEL")
    parser.add_argument("--prompt-tokens", type=int, default=512, metavar="N")
    parser.add_argument("--output-tokens", type=int, default=64, metavar="N")
    parser.add_argument(
        "--streams", type=int, nargs="*", default=[8], metavar="N", help="concurrent requests"
    )
    parser.add_argument("--repetitions", type=int, default=5, metavar="N")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    _add_engine(parser)
    parser.set_defaults(verb="bench:bench_verb")


def _add_generate(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    parser = verbs.add_parser(
        "generate",
        help="JSON lines in, JSON lines out: the door for scripts",
        description="Reads requests from standard input, one JSON object a line: `messages`,"
        " `prompt` or `prompt_token_ids`, and sampling parameters under their OpenAI or vLLM names."
        " All are submitted at once and batch together; results come in the order of the input.",
    )
    parser.add_argument("--model", default="starter", metavar="MODEL")
    parser.add_argument("--json", action="store_true", help="JSON lines (the only format so far)")
    _add_engine(parser)
    parser.set_defaults(verb="generate:generate_verb")


def _add_serve(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    parser = verbs.add_parser(
        "serve",
        help="serve a model to other programs (OpenAI API)",
        description="Loads a model and serves /v1/chat/completions, /v1/completions, /v1/models,"
        " /health and /metrics until Ctrl-C or SIGTERM. Clients take the printed address as their"
        " base URL.",
    )
    parser.add_argument("model", nargs="?", default="starter", metavar="MODEL")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="default: 127.0.0.1, this machine only; any other needs an API key",
    )
    parser.add_argument(
        "--port",
        type=int,
        metavar="N",
        help="default: the settings' (8000); the next free one if it is taken; 0 takes any",
    )
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help="what clients must send on every route; default: $OCTAVO_API_KEY, which keeps it out"
        " of the process list, or the settings'",
    )
    _add_engine(parser)
    parser.set_defaults(verb="serve:serve_verb")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling (default: the settings')")
    group.add_argument("--temperature", type=float, metavar="X", help="0 is greedy")
    group.add_argument("--top-p", type=float, metavar="X")
    group.add_argument("--top-k", type=int, metavar="N")
    group.add_argument("--min-p", type=float, metavar="X")
    group.add_argument("--repetition-penalty", type=float, metavar="X")
    group.add_argument("--max-tokens", type=int, metavar="N")
    group.add_argument("--seed", type=int, metavar="N")


def _add_engine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine (default: the settings')")
    group.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    group.add_argument("--dtype", metavar="NAME", help="auto, float32, bfloat16 or float16")
    group.add_argument("--max-model-len", type=int, metavar="N", help="longest sequence in tokens")
    group.add_argument("--max-num-seqs", type=int, metavar="N", help="sequences at the same time")
