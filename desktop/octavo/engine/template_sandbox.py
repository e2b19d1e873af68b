"""Runs a chat template, a program from a file nobody vouched for, within bounds of time and memory.

Jinja's sandbox keeps a template from reaching Python's insides, but not from counting to a
trillion. Here every loop turn, macro call, operator, filter and output is charged to a budget
before the next one runs, and what could make something huge in a single step is checked first or
left out: only the filters and string methods that chat templates use are there.

Not bounded to the millisecond: one step over data that fits the budget always runs to its end.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

_FILTERS: Final = (
    "abs attr capitalize count d default dictsort e escape first float forceescape groupby indent"
    " int items join last length list lower map max min reject rejectattr replace reverse round"
    " safe select selectattr sort string striptags title trim truncate unique upper wordcount"
)
_STRING_METHODS: Final = (
    "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit"
    " isidentifier islower isnumeric isprintable isspace istitle isupper join lower lstrip"
    " partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split"
    " splitlines startswith strip swapcase title upper"
)
_MAX_INT_BITS: Final = 1024
_MAX_INDENT: Final = 16
_LOOP_TURN_COST: Final = 32
_CALL_COST: Final = 8
_ITEM_COST: Final = 8


class TemplateLimitError(jinja2.TemplateError):
    """The template does more than any real one needs."""


class TemplateRefusal(jinja2.TemplateError):
    """The template itself says that it cannot take these messages (`raise_exception`)."""


class _Budget:
    """What one rendering may still produce, in characters and items, and until when."""

    def __init__(self, amount: int, seconds: float) -> None:
        self._left = amount
        self._seconds = seconds
        self._ends_at = time.monotonic() + seconds

    def charge(self, amount: int) -> None:
        self._left -= amount
        if self._left < 0:
            raise TemplateLimitError("it does far more work than the messages need")
        if time.monotonic() > self._ends_at:
            raise TemplateLimitError(f"it runs for longer than {self._seconds:g} seconds")

    def charge_value(self, value: object, *, as_text: bool = False) -> None:
        """Charges a value with all it contains, an item as often as it appears.

        Args:
            value: strings count their characters, containers their items.
            as_text: whether strings inside containers count theirs, too.
        """
        if isinstance(value, str):
            self.charge(len(value))
            return
        pending = [value]
        while pending:
            item = pending.pop()
            if isinstance(item, Mapping):
                self.charge((len(item) + 1) * _ITEM_COST)
                pending += item.keys()
                pending += item.values()
            elif isinstance(item, list | tuple | set | frozenset):
                self.charge((len(item) + 1) * _ITEM_COST)
                pending += item
            elif as_text and isinstance(item, str):
                self.charge(len(item))


class _GenerationTag(Extension):
    """`{% generation %}`, which marks what training counts as the answer; here it does nothing."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _ChargeEverything(NodeTransformer):
    """Rewrites a parsed template so that what it does is charged to the environment's budget."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        return self._charge_body(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._charge_body(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._charge_body(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("concatenated", *node.nodes, lineno=node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("charged", node, lineno=node.lineno)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("charged", node, lineno=node.lineno)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("charged", node, lineno=node.lineno) if node.ctx == "load" else node

    def _charge_body(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        text = sum(
            len(part.data) for item in node.body for part in item.find_all(nodes.TemplateData)
        )
        cost = nodes.Const(_LOOP_TURN_COST + text, lineno=node.lineno)
        self.generic_visit(node)
        charge = nodes.ExprStmt(_call("charge", cost, lineno=node.lineno), lineno=node.lineno)
        node.body.insert(0, charge)
        return node


def _call(name: str, *arguments: nodes.Expr, lineno: int) -> nodes.Call:
    method = nodes.EnvironmentAttribute(name, lineno=lineno)
    return nodes.Call(method, list(arguments), [], None, None, lineno=lineno)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """A Jinja environment for chat templates, as `transformers` sets it up, with a budget.

    May be used from several threads; each renders under a budget of its own.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension, _GenerationTag],
            # Constant expressions must be charged like others, not be computed while compiling.
            optimized=False,
            finalize=self._finalize,
        )
        self._rendering = threading.local()
        self._string_methods = frozenset(_STRING_METHODS.split())
        kept = {name: self.filters[name] for name in _FILTERS.split()}
        guards: dict[str, Callable[..., None]] = {
            "join": self._check_join_filter,
            "replace": self._check_replace,
            "indent": self._check_indent,
            "string": self._check_text,
        }
        self.filters = {
            name: self._charging(function, guards.get(name)) for name, function in kept.items()
        }
        self.filters["tojson"] = self._to_json
        self.globals = {
            "range": self.globals["range"],
            "dict": self.globals["dict"],
            "namespace": self.globals["namespace"],
            "raise_exception": _raise_exception,
            "strftime_now": self._strftime_now,
        }

    def compile_template(self, source: str) -> jinja2.Template:
        """Parses and compiles; raises what jinja2 and Python raise for broken source."""
        tree = _ChargeEverything().visit(self.parse(source))
        return jinja2.Template.from_code(self, self.compile(tree), self.make_globals(None))

    @contextmanager
    def budget(self, amount: int, seconds: float, now: datetime) -> Iterator[None]:
        """Sets what the renderings of this thread may use until the block ends."""
        self._rendering.budget = _Budget(amount, seconds)
        self._rendering.now = now
        try:
            yield
        finally:
            del self._rendering.budget, self._rendering.now

    def charge(self, amount: int) -> None:
        """Charges a loop turn or macro call; the rewritten template calls it."""
        self._budget.charge(amount)

    def charged(self, value: Any) -> Any:
        """Charges a list, tuple or dictionary the template writes down."""
        self._budget.charge_value(value)
        return value

    def concatenated(self, *values: object) -> str:
        """The operator `~`."""
        for value in values:
            self._budget.charge_value(value, as_text=True)
        return "".join(map(str, values))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(obj, "__self__", None)
        if owner is self:
            return super().call(context, obj, *args, **kwargs)
        self._budget.charge(_CALL_COST)
        if isinstance(owner, str) and obj.__name__ == "replace":
            self._check_replace(owner, *args, **kwargs)
        elif isinstance(owner, str) and obj.__name__ == "join" and args:
            args = (self._joinable(owner, args[0]), *args[1:])
        result = super().call(context, obj, *args, **kwargs)
        self._budget.charge_value(result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            raise TemplateLimitError("it formats text with %, which Octavo does not allow")
        if isinstance(left, int) and isinstance(right, int):
            _check_integers(operator, left, right)
        elif operator == "*":
            for sized, times in ((left, right), (right, left)):
                if isinstance(sized, str | list | tuple) and isinstance(times, int):
                    self._budget.charge(len(sized) * max(0, times))
        elif operator == "+" and isinstance(left, str | list | tuple):
            self._budget.charge(len(left) + (len(right) if isinstance(right, type(left)) else 0))
        result = super().call_binop(context, operator, left, right)
        if not isinstance(result, str):
            self._budget.charge_value(result)
        return result

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in self._string_methods
        if isinstance(obj, int | float | bytes | bytearray):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:  # noqa: ARG002
        # jinja2 would let `str.format` through, which pads to any width.
        return None

    @property
    def _budget(self) -> _Budget:
        budget = self._rendering.budget
        assert isinstance(budget, _Budget)
        return budget

    def _finalize(self, value: Any) -> Any:
        self._budget.charge_value(value, as_text=True)
        return value

    def _charging(
        self, function: Callable[..., Any], guard: Callable[..., None] | None
    ) -> Callable[..., Any]:
        # jinja2 marks filters that take a context, evaluation context or environment first.
        num_leading = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def charging(*args: Any, **kwargs: Any) -> Any:
            value = args[num_leading] if len(args) > num_leading else None
            if isinstance(value, Iterator):
                # Nothing lazy: what a filter takes is charged as it is taken.
                value = list(self._charge_items(value))
                args = (*args[:num_leading], value, *args[num_leading + 1 :])
            if guard is not None:
                guard(*args[num_leading:], **kwargs)
            result = function(*args, **kwargs)
            if isinstance(result, Iterator):
                return list(self._charge_items(result))
            self._budget.charge_value(result)
            return result

        return charging

    def _charge_items(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._budget.charge_value(item)
            self._budget.charge(_ITEM_COST)
            yield item

    def _check_text(self, value: object) -> None:
        self._budget.charge_value(value, as_text=True)

    def _check_replace(self, text: object, old: str, new: object, count: int | None = None) -> None:
        if isinstance(text, str) and isinstance(old, str):
            num_places = len(text) + 1 if not old else text.count(old)
            if count is not None and count >= 0:
                num_places = min(num_places, count)
            self._budget.charge(num_places * len(str(new)))

    def _joinable(self, separator: str, values: Iterable[Any]) -> list[Any]:
        items = list(values)
        self._budget.charge(len(separator) * len(items))
        self._budget.charge_value(items, as_text=True)
        return items

    def _check_join_filter(self, value: Iterable[Any], d: str = "", *_: Any, **__: Any) -> None:
        if not isinstance(value, Undefined):
            self._joinable(str(d), value)

    def _check_indent(self, text: str, width: int | str = 4, *_: Any, **__: Any) -> None:
        size = len(width) if isinstance(width, str) else width
        self._budget.charge((str(text).count("\n") + 1) * max(0, size))

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """As `transformers` has it: no HTML escapes, and letters stay letters."""
        if isinstance(indent, str) or (indent is not None and indent > _MAX_INDENT):
            raise TemplateLimitError(f"it indents JSON by more than {_MAX_INDENT} spaces")
        self._budget.charge_value(value, as_text=True)
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        chunks = []
        for chunk in encoder.iterencode(value):
            self._budget.charge(len(chunk))
            chunks.append(chunk)
        return "".join(chunks)

    def _strftime_now(self, form: str) -> str:
        if len(form) > 100 or re.search(r"%\W*\d", form):
            raise TemplateLimitError("it writes the date in a form of unusual length")
        now: datetime = self._rendering.now
        return now.strftime(form)


def _check_integers(operator: str, left: int, right: int) -> None:
    bits = 0
    if operator == "**":
        bits = left.bit_length() * right
    elif operator == "*":
        bits = left.bit_length() + right.bit_length()
    if bits > _MAX_INT_BITS:
        raise TemplateLimitError("it computes with numbers of hundreds of digits")


def _raise_exception(message: object) -> None:
    raise TemplateRefusal(str(message))
