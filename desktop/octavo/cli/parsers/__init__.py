"""The command line's options and help texts: `make_parser`; a module for each group of verbs."""

from octavo import __version__
from octavo.cli.parsers.bench import add_bench
from octavo.cli.parsers.chat import add_generate, add_run
from octavo.cli.parsers.library import add_library_verbs
from octavo.cli.parsers.manual import (
    ENVIRONMENT,
    Example,
    VerbParser,
    Verbs,
    make_epilog,
    make_formatter,
)
from octavo.cli.parsers.quantize import add_quantize_verbs
from octavo.cli.parsers.serve import add_doctor, add_serve

DESCRIPTION = """\
Run language models on your own machine.

Without a verb Octavo opens its window; a second start brings the first window to the front. MODEL
is a name from `octavo list`, a path to a GGUF file or to a folder with config.json and
safetensors, or `starter`, the small model that comes with Octavo and is fetched on first use.
"""

EXAMPLES = (
    Example("octavo", "open the window"),
    Example("octavo ~/Downloads/model.gguf", "open it with a model file at hand"),
    Example('octavo run starter "Why is the sky blue?"', "one answer on the terminal"),
    Example("octavo run starter", "a conversation on the terminal"),
    Example('git diff | octavo run starter "Summarise this change."', ""),
    Example("octavo bench starter", "tokens per second on this machine"),
)


def make_parser() -> VerbParser:
    """The whole command line."""
    parser = VerbParser(
        prog="octavo",
        usage="octavo [--version] [--verbose] [VERB … | FILE | URL]",
        description=DESCRIPTION,
        epilog=make_epilog(EXAMPLES, ENVIRONMENT),
        formatter_class=make_formatter,
    )
    parser.add_argument("--version", action="version", version=f"octavo {__version__}")
    parser.add_argument("--verbose", action="store_true", help="write more into the log file")
    parser.set_defaults(verb="window:open_window")
    verbs: Verbs = parser.add_subparsers(
        title="verbs", metavar="VERB", parser_class=VerbParser, prog="octavo"
    )
    add_run(verbs)
    add_library_verbs(verbs)
    add_doctor(verbs)
    add_bench(verbs)
    add_generate(verbs)
    add_serve(verbs)
    add_quantize_verbs(verbs)
    return parser
