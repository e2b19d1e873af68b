"""`ChatTemplate`: messages to the prompt a model was trained on, with the model's own template.

A template is a small Jinja program inside the model file; `template_sandbox` keeps it in bounds.
What a person typed stays text: only what the template itself writes can be a control token.
"""

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

import jinja2

from octavo.checkpoint.folder import FolderHeader
from octavo.checkpoint.gguf import GGUFHeader
from octavo.engine.template_sandbox import TemplateRefusal, TemplateSandbox
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import ChatTemplateError, InvalidRequestError

Message = Mapping[str, Any]

DEFAULT_TEMPLATE: Final = "default"
"""Name of the template that counts where a model has several."""
TOOL_TEMPLATE: Final = "tool_use"
"""Name of the one that counts instead where there are tools."""

_MAX_SOURCE_CHARS: Final = 1_000_000
_BASE_BUDGET: Final = 16_000_000
_BUDGET_PER_CHAR: Final = 64
_MAX_SECONDS: Final = 10.0
_MAX_DEPTH: Final = 100
# What a program in Jinja may raise, in its own words or in Python's. RecursionError is a
# RuntimeError.
_FAILURES: Final = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
_OTHER_MODEL: Final = "The template belongs to the model file; try another file of this model."


class ChatTemplate:
    """A compiled chat template. May be used from several threads at the same time."""

    def __init__(
        self,
        source: str,
        *,
        bos_token: str,
        eos_token: str,
        role_tokens: Mapping[str, str] = MappingProxyType({}),
        with_tools: str | None = None,
    ) -> None:
        """Compiles.

        Args:
            source: the template.
            bos_token: its text, empty if there is none.
            eos_token: as `bos_token`.
            role_tokens: of other tokens that the template may name (`pad_token`, …).
            with_tools: the template where there are tools, if it is another one.

        Raises:
            ChatTemplateError: the source is broken.
        """
        self.source = source
        self._tokens = {**role_tokens, "bos_token": bos_token, "eos_token": eos_token}
        self._with_tools: ChatTemplate | None = None
        if with_tools is not None and with_tools != source:
            self._with_tools = ChatTemplate(
                with_tools, bos_token=bos_token, eos_token=eos_token, role_tokens=role_tokens
            )
        if len(source) > _MAX_SOURCE_CHARS:
            raise ChatTemplateError(
                f"The model's chat template has {len(source)} characters; Octavo takes"
                f" {_MAX_SOURCE_CHARS} at most.",
                hint=_OTHER_MODEL,
            )
        self._sandbox = TemplateSandbox()
        try:
            self._template = self._sandbox.compile_template(source)
        except _FAILURES as error:
            line = (
                f" in line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            )
            raise ChatTemplateError(
                f"The model's chat template is broken{line}: {_words_of(error)}.",
                hint=_OTHER_MODEL,
            ) from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: object,
    ) -> str:
        """Returns the prompt as text, for display; `encode` is what a model should get.

        Raises:
            ChatTemplateError: the template fails, refuses the messages or does not end.
            InvalidRequestError: the messages hold something that is not plain JSON.
        """
        inputs = _inputs(messages, tools, variables, add_generation_prompt)
        return self._for(tools)._render(inputs, datetime.now().astimezone())

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: object,
    ) -> list[int]:
        """Returns the prompt's token ids, BOS included where the model wants it.

        Text of messages, tools and variables never becomes a control token, even if it reads
        like one. Raises as `render`.
        """
        inputs = _inputs(messages, tools, variables, add_generation_prompt)
        stretches = self._for(tools)._stretches(tokenizer, inputs)
        token_ids = tokenizer.encode_stretches(stretches)
        return tokenizer.with_bos(token_ids) if tokenizer.adds_bos else token_ids

    def _for(self, tools: Sequence[Mapping[str, Any]] | None) -> "ChatTemplate":
        """The template for a request: an empty list of tools is one, too."""
        return self if tools is None or self._with_tools is None else self._with_tools

    def _stretches(self, tokenizer: Tokenizer, inputs: Mapping[str, Any]) -> list[str | int]:
        """Renders, then cuts at the control tokens that the template wrote.

        To tell them from look-alikes in the inputs, the first character of those is rendered as a
        private-use character and put back after the cut. At first only where a look-alike stands
        whole, or begins at the end of an input: no template looks for that. But one may also come
        together from parts the template cut out, so the text is rendered once more with that
        character replaced everywhere. If the template does the same then, that rendering counts:
        no input can begin a control token in it. If not, it looks for that character (as in
        `</think>`), and must see it.
        """
        now = datetime.now().astimezone()
        begins = {token[0] for token in tokenizer.special_tokens}
        texts = list(_texts_in(inputs))
        if not any(begin in text for begin in begins for text in texts):
            return tokenizer.split_special(self._render(inputs, now))
        stand_ins = _stand_ins(begins, [*texts, self.source])
        hidden = str.maketrans(stand_ins)
        shown = str.maketrans({stand_in: begin for begin, stand_in in stand_ins.items()})

        def hide_look_alikes(text: str) -> str:
            for start in set(tokenizer.special_starts(text)):
                text = text[:start] + text[start].translate(hidden) + text[start + 1 :]
            return text

        rendered = self._render(_map_texts(inputs, hide_look_alikes), now)
        try:
            stricter = self._render(_map_texts(inputs, lambda text: text.translate(hidden)), now)
        except ChatTemplateError:
            stricter = ""
        if stricter.translate(shown) == rendered.translate(shown):
            rendered = stricter
        return [
            piece.translate(shown) if isinstance(piece, str) else piece
            for piece in tokenizer.split_special(rendered)
        ]

    def _render(self, inputs: Mapping[str, Any], now: datetime) -> str:
        amount = _BASE_BUDGET + _BUDGET_PER_CHAR * sum(map(len, _texts_in(inputs)))
        with self._sandbox.budget(amount, _MAX_SECONDS, now):
            try:
                context = self._template.new_context({**self._tokens, **inputs})
                return "".join(self._template.root_render_func(context))
            except TemplateRefusal as error:
                raise ChatTemplateError(
                    f"The model's chat template refuses these messages: {_words_of(error)}.",
                    hint="Change the messages as it says; not every model knows every role.",
                ) from error
            except _FAILURES as error:
                raise ChatTemplateError(
                    f"The model's chat template fails{self._in_line(error)}: {_words_of(error)}.",
                    hint=_OTHER_MODEL,
                ) from error

    def _in_line(self, error: BaseException) -> str:
        """The line of the template that was running, from the frames of its compiled code."""
        line = None
        for frame, line_in_code in traceback.walk_tb(error.__traceback__):
            if frame.f_globals.get("__jinja_template__") is self._template:
                line = self._template.get_corresponding_lineno(line_in_code)
        return "" if line is None else f" in line {line}"


def chat_template_from_gguf(header: GGUFHeader, tokenizer: Tokenizer) -> ChatTemplate | None:
    """Compiles the template of a checkpoint, None if it has none (a base model).

    Raises:
        ChatTemplateError: the template is broken.
    """
    named = {
        DEFAULT_TEMPLATE: header.metadata.get("tokenizer.chat_template"),
        TOOL_TEMPLATE: header.metadata.get(f"tokenizer.chat_template.{TOOL_TEMPLATE}"),
    }
    return _compiled(_without_blank(named), tokenizer)


def chat_template_from_folder(header: FolderHeader, tokenizer: Tokenizer) -> ChatTemplate | None:
    """As `chat_template_from_gguf`, with the default of `templates_in_folder`."""
    return _compiled(templates_in_folder(header), tokenizer)


def templates_in_folder(header: FolderHeader) -> dict[str, str]:
    """The templates of a model folder by name, none of them blank.

    chat_template.jinja counts, else what tokenizer_config.json holds, else chat_template.json. Of
    several with names and none called `default`, the first is the default, too.

    Raises:
        CheckpointError: a file is no JSON object.
    """
    named: dict[str, Any] = {DEFAULT_TEMPLATE: header.read_text("chat_template.jinja")}
    if named[DEFAULT_TEMPLATE] is not None:
        named[TOOL_TEMPLATE] = header.read_text(f"additional_chat_templates/{TOOL_TEMPLATE}.jinja")
        return _without_blank(named)
    for name in ("tokenizer_config.json", "chat_template.json"):
        source = (header.read_json(name) or {}).get("chat_template")
        if isinstance(source, list):
            named = {
                str(item.get("name")): item.get("template")
                for item in source
                if isinstance(item, dict)
            }
            named.setdefault(DEFAULT_TEMPLATE, next(iter(named.values()), None))
        elif source is not None:
            named = {DEFAULT_TEMPLATE: source}
        if source is not None:
            break
    return _without_blank(named)


def _without_blank(named: Mapping[str, Any]) -> dict[str, str]:
    return {name: text for name, text in named.items() if isinstance(text, str) and text.strip()}


def _compiled(templates: Mapping[str, str], tokenizer: Tokenizer) -> ChatTemplate | None:
    source = templates.get(DEFAULT_TEMPLATE)
    if source is None:
        return None
    return ChatTemplate(
        source,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        role_tokens=tokenizer.vocabulary.role_tokens,
        with_tools=templates.get(TOOL_TEMPLATE),
    )


def _inputs(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, object],
    add_generation_prompt: bool,
) -> dict[str, Any]:
    """What the template sees, as plain lists, dictionaries and values of JSON."""
    return {
        "documents": None,
        **{name: _plain(value, name) for name, value in variables.items()},
        "messages": _plain(messages, "messages"),
        "tools": _plain(tools, "tools"),
        "add_generation_prompt": add_generation_prompt,
    }


def _plain(value: object, field: str, depth: int = 0) -> Any:
    if depth > _MAX_DEPTH:
        raise InvalidRequestError(f"{field} is nested more than {_MAX_DEPTH} deep.", field=field)
    if value is None or isinstance(value, bool | float):
        return value
    # `str` and `int` turn members of enumerations into plain values.
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        return {
            _plain(key, field, depth + 1): _plain(item, field, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(item, field, depth + 1) for item in value]
    raise InvalidRequestError(
        f"{field} holds a value of the type {type(value).__name__}, which JSON does not have.",
        field=field,
    )


def _texts_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts_in(key)
            yield from _texts_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts_in(item)


def _map_texts(inputs: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Changes every string but the names of the inputs themselves."""

    def changed(value: Any) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, dict):
            return {changed(key): changed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [changed(item) for item in value]
        return value

    return {name: changed(value) for name, value in inputs.items()}


def _stand_ins(begins: Iterable[str], texts: Iterable[str]) -> dict[str, str]:
    """A private-use character of Unicode for each given one, none that appears in the texts."""
    taken = set().union(*texts)
    free = (chr(code) for code in range(0x100000, 0x10FFFE) if chr(code) not in taken)
    return {begin: next(free) for begin in sorted(begins)}


def _words_of(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply or calls itself without end"
    return str(error).rstrip(".") or type(error).__name__
