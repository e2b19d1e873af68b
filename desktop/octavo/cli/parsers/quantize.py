"""Options of `quantize` and `evaluate`."""

from octavo.cli.parsers.manual import Example, Verbs, add_verb
from octavo.quantize.methods import METHODS


def add_quantize_verbs(verbs: Verbs) -> None:
    """`quantize` and `evaluate`."""
    quantize = add_verb(
        verbs,
        "quantize",
        "write a smaller form of a model",
        "Quantises MODEL by METHOD into the library, then reads a text with both and says what it"
        " cost: size, perplexity before and after, divergence, agreement. Started again after an"
        " interruption, it goes on where it stopped, also in the midst of measuring. "
        + " ".join(f"{method.id}: {method.summary}" for method in METHODS),
        [
            Example("octavo quantize starter q8_0", ""),
            Example("octavo quantize my-model int4-g128 --output ~/my-model-int4", "a folder"),
            Example("octavo quantize my-model q4_0 --no-evaluate --json", "one JSON object"),
        ],
    )
    quantize.add_argument("model", metavar="MODEL", help="a name, a path or `starter`")
    quantize.add_argument(
        "method", metavar="METHOD", help=", ".join(method.id for method in METHODS)
    )
    quantize.add_argument(
        "--output", metavar="PATH", help="default: in the models folder, named after both"
    )
    quantize.add_argument(
        "--no-evaluate", action="store_true", help="write the model and do not measure it"
    )
    quantize.add_argument("--json", action="store_true", help="one JSON object")
    quantize.set_defaults(verb="quantize:quantize_verb")
    evaluate = add_verb(
        verbs,
        "evaluate",
        "measure how well a model predicts a text",
        "Reads a text with MODEL on the CPU and prints its perplexity; lower is better. With"
        " --against it also says how far MODEL strays from another model of the same vocabulary,"
        " usually the one it was made from. The numbers of two texts cannot be compared.",
        [
            Example("octavo evaluate starter", ""),
            Example("octavo evaluate my-model-int8 --against my-model", ""),
            Example("octavo evaluate my-model --text notes.txt --json", "one JSON object"),
        ],
    )
    evaluate.add_argument("model", metavar="MODEL", help="a name, a path or `starter`")
    evaluate.add_argument("--against", metavar="MODEL", help="the model to compare with")
    evaluate.add_argument(
        "--text", metavar="FILE", help="UTF-8; default: a text that comes with Octavo"
    )
    evaluate.add_argument("--json", action="store_true", help="one JSON object")
    evaluate.set_defaults(verb="evaluate:evaluate_verb")
