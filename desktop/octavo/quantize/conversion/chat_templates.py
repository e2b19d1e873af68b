"""Chat templates of a model by name, as GGUF files and folders hold them."""

from collections.abc import Mapping

from octavo.checkpoint.gguf import GGUFHeader
from octavo.engine.chat_template import DEFAULT_TEMPLATE
from octavo.errors import CheckpointError
from octavo.quantize.conversion.gguf_values import GGUFValue, GGUFValueType, array, string

_KEY = "tokenizer.chat_template"
_NAMES_KEY = "tokenizer.chat_templates"


def gguf_file_chat_templates(header: GGUFHeader) -> dict[str, str]:
    """The templates of a GGUF file by name.

    Raises:
        CheckpointError: the file lists one that it does not hold.
    """
    templates: dict[str, str] = {}
    default = header.metadata.get(_KEY)
    if isinstance(default, str) and default.strip():
        templates[DEFAULT_TEMPLATE] = default
    names = header.metadata.get(_NAMES_KEY)
    for name in names if isinstance(names, list) else []:
        text = header.metadata.get(f"{_KEY}.{name}")
        if not isinstance(text, str):
            raise CheckpointError(
                f"{header.path.name} lists the chat template {name!r} but does not hold it.",
                path=header.path,
                hint="Download the file again, or another conversion of this model.",
            )
        templates[str(name)] = text
    return templates


def gguf_chat_templates(templates: Mapping[str, str]) -> dict[str, GGUFValue]:
    """The keys of a GGUF file for templates by name."""
    values = {
        _KEY if name == DEFAULT_TEMPLATE else f"{_KEY}.{name}": string(text)
        for name, text in templates.items()
    }
    others = [name for name in templates if name != DEFAULT_TEMPLATE]
    if others:
        values[_NAMES_KEY] = array(GGUFValueType.STRING, others)
    return values


def folder_chat_template_value(templates: Mapping[str, str]) -> str | list[dict[str, str]] | None:
    """What `chat_template` of a tokenizer_config.json says for templates by name."""
    if not templates:
        return None
    if list(templates) == [DEFAULT_TEMPLATE]:
        return templates[DEFAULT_TEMPLATE]
    return [{"name": name, "template": text} for name, text in templates.items()]
