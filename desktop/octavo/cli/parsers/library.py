"""Options of the verbs that deal with models on disk and on the hub."""

import argparse

from octavo.cli.parsers.manual import Example, Verbs, add_engine, add_verb


def add_library_verbs(verbs: Verbs) -> None:
    """`search`, `pull`, `import`, `list`, `show`, `rm` and `ps`."""
    search = add_verb(
        verbs,
        "search",
        "find models on the hub",
        "Lists the hub's repositories of language models that Octavo can read, the most downloaded"
        " first.",
        [
            Example("octavo search smollm2 instruct", ""),
            Example("octavo search qwen --kind safetensors --sort updated", "the newest folders"),
            Example("octavo search qwen --limit 5 --json", "one JSON array"),
        ],
        environment=["HF_TOKEN", "HF_ENDPOINT", "HTTPS_PROXY"],
    )
    search.add_argument("text", nargs="+", metavar="TEXT", help="words of the model's name")
    search.add_argument(
        "--kind",
        choices=("gguf", "safetensors", "any"),
        default="gguf",
        help="which files a repository must have; default: gguf",
    )
    search.add_argument(
        "--sort",
        choices=("downloads", "likes", "trending", "updated"),
        default="downloads",
        help="what comes first; default: downloads",
    )
    search.add_argument("--limit", type=int, default=20, metavar="N", help="results at most")
    search.add_argument("--json", action="store_true", help="one JSON array")
    _add_endpoint(search)
    search.set_defaults(verb="hub:search_verb")
    pull = add_verb(
        verbs,
        "pull",
        "download a model",
        "Downloads `starter`, or a model of the hub: a GGUF file, all parts of a split one, or a"
        " folder of safetensors. Its header is read first and says whether it runs and fits here,"
        " before anything large is downloaded. Started again after an interruption, it resumes."
        " Without QUANT it takes Q4_K_M, else the next best there is; `safetensors` or a file's"
        " name can stand for QUANT. Models go into the hub's cache, which other programs share, or"
        " below the models folder of the settings. The token of the settings, or $HF_TOKEN, opens"
        " gated models.",
        [
            Example("octavo pull starter", "the small model Octavo offers itself"),
            Example("octavo pull ORG/NAME:Q4_K_M", "one quantisation of a hub's model"),
            Example("octavo pull ORG/NAME:safetensors", "the folder of safetensors"),
        ],
        environment=["HF_TOKEN", "HF_ENDPOINT", "HF_HUB_CACHE", "HTTPS_PROXY"],
    )
    pull.add_argument(
        "name", metavar="NAME", help="`starter`, ORG/NAME, ORG/NAME:QUANT or the URL of its page"
    )
    pull.add_argument(
        "--force", action="store_true", help="download what can never fit into this machine, too"
    )
    _add_endpoint(pull)
    pull.set_defaults(verb="models:pull_verb")
    importing = add_verb(
        verbs,
        "import",
        "take models that lie elsewhere into the library",
        "Links GGUF files and folders of models into the models folder; nothing is copied or moved"
        " where the system has links. The header is checked first. `octavo rm` takes away the link"
        " alone.",
        [
            Example("octavo import ~/Downloads/model.gguf", ""),
            Example("octavo import /data/models/My-Model", "a folder with config.json"),
        ],
    )
    importing.add_argument(
        "paths", nargs="+", metavar="PATH", help="a .gguf file, or a folder with safetensors"
    )
    importing.set_defaults(verb="models:import_verb")
    listing = add_verb(
        verbs,
        "list",
        "list the models on this machine",
        "Lists what lies in the models folder, in the hub's cache and in the further folders of the"
        " settings, with size, quantisation, where it comes from and what keeps a model from"
        " running.",
        [Example("octavo list", ""), Example("octavo list --json", "one JSON array")],
        environment=["HF_HUB_CACHE"],
    )
    listing.add_argument("--json", action="store_true", help="one JSON array")
    listing.set_defaults(verb="models:list_verb")
    show = add_verb(
        verbs,
        "show",
        "what a model is and whether it fits",
        "Reads the model's header: what it is, whether it runs, and the memory plan of a load;"
        " loads nothing.",
        [
            Example("octavo show starter", ""),
            Example("octavo show starter --max-model-len 4096", "the plan of a shorter context"),
        ],
        environment=["CUDA_VISIBLE_DEVICES"],
    )
    show.add_argument("model", metavar="MODEL", help="a name, a path or `starter`")
    show.add_argument("--json", action="store_true", help="one JSON object")
    add_engine(show)
    show.set_defaults(verb="models:show_verb")
    remove = add_verb(
        verbs,
        "rm",
        "delete a model from disk",
        "Deletes the files of a model and says how much room that made. Of a folder only what a"
        " model consists of goes; what else lies there stays. Of an imported model only the link"
        " goes.",
        [Example("octavo rm starter", "")],
    )
    remove.add_argument("model", metavar="MODEL", help="a name from `octavo list`")
    remove.set_defaults(verb="models:remove_verb")
    running = add_verb(
        verbs,
        "ps",
        "list the models that are loaded now",
        "Lists the models that are loaded now, in every Octavo process of this person.",
        [Example("octavo ps", ""), Example("octavo ps --json", "one JSON array")],
    )
    running.add_argument("--json", action="store_true", help="one JSON array")
    running.set_defaults(verb="models:ps_verb")


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        help="a mirror of the hub; default: the settings', else $HF_ENDPOINT, else the hub itself",
    )
