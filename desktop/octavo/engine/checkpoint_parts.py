"""What the engine needs of a checkpoint, of whatever kind: numbers, tokenizer, chat template.

The numbers are asked for by everything that lists models; the libraries of the other two are loaded
when a model is.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.checkpoint.folder import FolderHeader
from octavo.checkpoint.gguf import GGUFHeader
from octavo.checkpoint.header import CheckpointHeader, read_checkpoint
from octavo.engine.model_config import ModelConfig
from octavo.engine.model_config_gguf import model_config_from_gguf
from octavo.engine.model_config_hf import model_config_from_folder
from octavo.engine.support import family_of, format_of, runs
from octavo.errors import UnsupportedModelError

if TYPE_CHECKING:
    from octavo.engine.chat_template import ChatTemplate
    from octavo.engine.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class CheckpointParts:
    """What was read of a checkpoint before its weights; read only, for any thread."""

    header: CheckpointHeader
    model_config: ModelConfig
    tokenizer: "Tokenizer"


def read_parts(path: Path) -> CheckpointParts:
    """Reads all but the weights; raises as `read_checkpoint`, `read_model_config`."""
    header = read_checkpoint(path)
    return CheckpointParts(header, read_model_config(header), read_tokenizer(header))


def read_model_config(header: CheckpointHeader) -> ModelConfig:
    """Reads the model's numbers and checks that Octavo can run it.

    Raises:
        UnsupportedModelError: an architecture, a variant of it or a storage type not run.
        CheckpointError: a number is missing, out of range or contradicts another.
    """
    if isinstance(header, FolderHeader):
        config = model_config_from_folder(header)
    else:
        config = model_config_from_gguf(header)
    family, stored = family_of(header), format_of(header)
    if family is not None and not runs(family, stored):
        raise UnsupportedModelError(
            f"{header.path.name} is {family.covers} in {stored.title}, "
            "a pair that Octavo does not run yet.",
            hint="Choose another version of this model.",
        )
    return config


def read_tokenizer(header: CheckpointHeader) -> "Tokenizer":
    """Builds the tokenizer; raises as `read_model_config`."""
    from octavo.engine.embedded_tokenizer import folder_inside
    from octavo.engine.tokenizer import tokenizer_from_gguf
    from octavo.engine.tokenizer_json import tokenizer_from_folder

    folder = header if isinstance(header, FolderHeader) else folder_inside(header)
    if folder is not None:
        return tokenizer_from_folder(folder)
    assert isinstance(header, GGUFHeader)
    return tokenizer_from_gguf(header)


def read_chat_template(header: CheckpointHeader, tokenizer: "Tokenizer") -> "ChatTemplate | None":
    """Compiles the chat template, None if there is none (a base model).

    Raises:
        ChatTemplateError: the template is broken.
    """
    from octavo.engine.chat_template import chat_template_from_folder, chat_template_from_gguf

    if isinstance(header, FolderHeader):
        return chat_template_from_folder(header, tokenizer)
    return chat_template_from_gguf(header, tokenizer)
