"""`no_place`: the error for what the other kind of file cannot say."""

from octavo.checkpoint.gguf import GGUFHeader
from octavo.checkpoint.header import CheckpointHeader
from octavo.errors import UnsupportedModelError

HINT = "Choose a method that keeps the kind of file the model has."


def other_kind(header: CheckpointHeader) -> str:
    """What the model would be written as if it changed its kind of file."""
    return "config.json" if isinstance(header, GGUFHeader) else "GGUF file"


def no_place(header: CheckpointHeader, problem: str) -> UnsupportedModelError:
    """Makes the error.

    Args:
        header: of the model as it is.
        problem: continues a sentence that begins with the model's name.
    """
    name = header.title or header.path.name
    return UnsupportedModelError(
        f"{name} {problem}, which no {other_kind(header)} can say.", hint=HINT
    )
