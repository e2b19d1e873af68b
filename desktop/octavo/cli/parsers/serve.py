"""Options of `octavo serve` and `octavo doctor`."""

from octavo.cli.parsers.manual import Example, Verbs, add_engine, add_verb
from octavo.settings import Server


def add_serve(verbs: Verbs) -> None:
    """`octavo serve`."""
    parser = add_verb(
        verbs,
        "serve",
        "serve a model to other programs (OpenAI API)",
        "Loads a model and serves /v1/chat/completions, /v1/completions, /v1/models, /health and"
        " /metrics until Ctrl-C or SIGTERM. Clients take the printed address as their base URL.",
        [
            Example("octavo serve starter", "at http://127.0.0.1:8000/v1"),
            Example("octavo serve starter --port 0", "at any free port"),
            Example(
                'OCTAVO_API_KEY="$(cat key.txt)" octavo serve --host 0.0.0.0',
                "for the whole network",
            ),
        ],
        environment=["OCTAVO_API_KEY", "CUDA_VISIBLE_DEVICES"],
    )
    parser.add_argument(
        "model", nargs="?", default="starter", metavar="MODEL", help="a name, a path or `starter`"
    )
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
        help=f"default: the settings' ({Server().port}); the next free one if it is taken; 0 takes"
        " any",
    )
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help="what clients must send on every route; default: $OCTAVO_API_KEY, which keeps it out"
        " of the process list, or the settings'",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        metavar="ORIGIN",
        help="web pages that may ask from a browser, such as https://app.example.org; may be given"
        " several times; default: the settings'",
    )
    add_engine(parser)
    parser.set_defaults(verb="serve:serve_verb")


def add_doctor(verbs: Verbs) -> None:
    """`octavo doctor`."""
    parser = add_verb(
        verbs,
        "doctor",
        "machine, devices, versions, what is missing and what to do",
        "Says what this machine is, which devices Octavo would use and why not others, which"
        " versions are installed, where files lie, which families of models run from which formats,"
        " and what is missing. Loads no model.",
        [
            Example("octavo doctor", ""),
            Example("octavo doctor --json > report.json", "to go with a bug report"),
        ],
        environment=["HF_ENDPOINT", "CUDA_VISIBLE_DEVICES"],
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(verb="doctor:doctor_verb")
