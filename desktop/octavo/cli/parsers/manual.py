"""How a help text is laid out: synopsis, what it does, options, examples, exit statuses, files."""

import argparse
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from octavo.paths import HOME_VARIABLE
from octavo.settings import ChatDefaults, EngineSettings

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

WIDTH = 98
EXIT_STATUSES = {
    0: "done",
    EXIT_FAILED: "it failed; standard error says why and what to do",
    EXIT_USAGE: "the command line cannot be understood",
    EXIT_INTERRUPTED: "interrupted with Ctrl-C",
}
FILES = "Files lie in the folders that `octavo doctor` names."
ENVIRONMENT = {
    HOME_VARIABLE: "puts settings, models, conversations and logs all below one folder",
    "HF_TOKEN": "a token of the hub, for models that are gated or private",
    "HF_ENDPOINT": "a mirror of the hub",
    "HF_HUB_CACHE": "where hub models lie; else $HF_HOME/hub, else ~/.cache/huggingface/hub",
    "HTTPS_PROXY": "the proxy that downloads go through; $NO_PROXY names exceptions",
    "OCTAVO_API_KEY": "what clients of `octavo serve` must send",
    "CUDA_VISIBLE_DEVICES": "which NVIDIA cards Octavo may use",
}
"""What the environment can say, and what it means."""


@dataclass(frozen=True, slots=True)
class Example:
    """A command line and, perhaps, what it is for."""

    command: str
    meaning: str


class VerbParser(argparse.ArgumentParser):
    """argparse with Octavo's voice for usage errors."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}.", file=sys.stderr)
        print(f"        `{self.prog} --help` lists what there is.", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


Verbs: TypeAlias = "argparse._SubParsersAction[VerbParser]"


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Names the real default of every option that has one and does not speak of it itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        says_nothing = action.default in (None, False, argparse.SUPPRESS)
        if says_nothing or "default" in text:
            return text
        shown = " ".join(map(str, action.default)) if isinstance(action.default, list) else None
        default = "%(default)s" if shown is None else shown
        return f"{text}; default: {default}" if text else f"default: {default}"


def make_formatter(prog: str) -> _Formatter:
    """The layout of every help text."""
    return _Formatter(prog, max_help_position=30, width=WIDTH)


def add_verb(
    verbs: Verbs,
    name: str,
    summary: str,
    description: str,
    examples: Sequence[Example],
    *,
    environment: Iterable[str] = (),
) -> VerbParser:
    """A verb with a help text that is laid out as all others are.

    Args:
        summary: a few words, for the list of verbs.
        description: sentences; what the verb does.
        environment: names in `ENVIRONMENT` that matter to it; $OCTAVO_HOME always does.
    """
    return verbs.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description, WIDTH, break_on_hyphens=False),
        epilog=make_epilog(examples, environment),
        formatter_class=make_formatter,
    )


def make_epilog(examples: Sequence[Example], environment: Iterable[str] = ()) -> str:
    """Examples, exit statuses, files and environment: what follows the options."""
    names = dict.fromkeys([HOME_VARIABLE, *environment])
    parts = (
        ("examples", [(example.command, example.meaning) for example in examples]),
        ("exit status", [(str(status), what) for status, what in EXIT_STATUSES.items()]),
        ("files and environment", [("", FILES), *((f"${n}", ENVIRONMENT[n]) for n in names)]),
    )
    return "\n\n".join(f"{title}:\n{_table(rows)}" for title, rows in parts)


def _table(rows: Sequence[tuple[str, str]]) -> str:
    width = max((len(left) for left, right in rows if right), default=0)
    lines = (f"{left:<{width}}  {right}" if left else right for left, right in rows)
    return "\n".join(f"  {line}".rstrip() for line in lines)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Options for the answer; left out, the settings' hold."""
    chat = ChatDefaults()
    group = parser.add_argument_group("sampling (where left out, the settings' hold)")
    group.add_argument(
        "--temperature",
        type=float,
        metavar="X",
        help=f"0 is greedy; default: the settings' ({chat.temperature:g})",
    )
    group.add_argument(
        "--top-p",
        type=float,
        metavar="X",
        help=f"likeliest tokens up to this share; default: the settings' ({chat.top_p:g})",
    )
    group.add_argument("--top-k", type=int, metavar="N", help="likeliest N tokens; default: all")
    group.add_argument(
        "--min-p", type=float, metavar="X", help="least share of the likeliest; default: none"
    )
    group.add_argument(
        "--repetition-penalty", type=float, metavar="X", help="above 1 repeats less; default: none"
    )
    group.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help="of one answer; default: the settings' (until the context is full)",
    )
    group.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="the same one gives the same answer; default: the settings' (a fresh one each time)",
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Options for the load; left out, the settings' hold."""
    engine = EngineSettings()
    group = parser.add_argument_group("engine (where left out, the settings' hold)")
    group.add_argument(
        "--device",
        metavar="NAME",
        help=f"auto, cpu, cuda or cuda:N; default: the settings' ({engine.device})",
    )
    group.add_argument(
        "--dtype",
        metavar="NAME",
        help=f"auto, float32, bfloat16 or float16; default: the settings' ({engine.dtype})",
    )
    group.add_argument(
        "--weights",
        metavar="HOW",
        help="how matrices lie in memory: packed (as the file stores them: small, slow), unpacked"
        " (to --dtype: large, fast) or auto (unpacked where there is room);"
        f" default: the settings' ({engine.weights})",
    )
    group.add_argument(
        "--kv-dtype",
        metavar="NAME",
        help="of cached keys and values: auto (as --dtype), float16, bfloat16, float8_e4m3 or int8;"
        f" default: the settings' ({engine.kv_dtype})",
    )
    group.add_argument(
        "--max-model-len",
        type=int,
        metavar="N",
        help="longest sequence in tokens; default: the settings' (what the model was trained for)",
    )
    group.add_argument(
        "--max-num-seqs",
        type=int,
        metavar="N",
        help=f"sequences at the same time; default: the settings' ({engine.max_num_seqs})",
    )
    group.add_argument(
        "--max-num-batched-tokens",
        type=int,
        metavar="N",
        help="tokens of one step; longer prompts are computed in chunks; default: the settings'"
        " (512 on the CPU, on a GPU 1,024 to 16,384 as its memory lets)",
    )
    group.add_argument(
        "--cpu-threads",
        type=int,
        metavar="N",
        help="threads of the CPU's kernels; default: the settings' (one for each core)",
    )
