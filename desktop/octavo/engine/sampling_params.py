"""How the next token is chosen: the parameters of one request, checked at birth."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.errors import InvalidRequestError

MAX_LOGPROBS = 20
MAX_SEQUENCES_PER_REQUEST = 64
MAX_STOP_STRINGS = 16
MAX_BAD_WORDS = 128
MAX_DRY_ALLOWED_LENGTH = 100
MAX_SEQUENCE_BREAKERS = 128
DEFAULT_SEQUENCE_BREAKERS = ("\n", ":", '"', "*")
_LIST_FIELDS = (
    "stop",
    "stop_token_ids",
    "allowed_token_ids",
    "bad_words",
    "dry_sequence_breakers",
)
_MOST_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters under their OpenAI or vLLM names.

    Raises:
        InvalidRequestError: a value is out of its range; the message names field and range.
    """

    n: int = 1
    """Completions of the same prompt; they share its blocks."""
    max_tokens: int | None = None
    """Tokens to generate at most; None: until the context is full."""
    min_tokens: int = 0
    """Tokens to generate before a stop id, end of text or stop string may end the completion."""
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """0 or -1: off."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt and completion."""
    presence_penalty: float = 0.0
    """Subtracted once from tokens already in the completion."""
    frequency_penalty: float = 0.0
    """Subtracted per occurrence in the completion."""
    dry_multiplier: float = 0.0
    """Strength of DRY, which lowers what would go on repeating the text so far; 0: off."""
    dry_base: float = 1.75
    """Factor on DRY's penalty for each further token of the repetition."""
    dry_allowed_length: int = 2
    """The longest repetition, in tokens, that DRY leaves alone."""
    dry_range: int = 0
    """Last tokens of prompt and completion that DRY looks at; 0: all."""
    dry_sequence_breakers: tuple[str, ...] = DEFAULT_SEQUENCE_BREAKERS
    """No repetition goes across a token whose text contains one of these."""
    xtc_probability: float = 0.0
    """How often XTC removes the likeliest tokens, of those left by min_p; 0: off."""
    xtc_threshold: float = 0.1
    """XTC removes the tokens of at least this probability but for the least likely of them."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids."""
    allowed_token_ids: tuple[int, ...] | None = None
    """The only ones that may come; None: all. Without a stop id, max_tokens ends the completion."""
    bad_words: tuple[str, ...] = ()
    """Texts that are not to come, in their own tokens; other tokens may still spell them."""
    seed: int | None = None
    """None: a fresh one for every request."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    """Number of most likely tokens to report beside the chosen one; 0 reports only that one."""
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        _check_integer("n", self.n, 1, MAX_SEQUENCES_PER_REQUEST)
        if self.max_tokens is not None:
            _check_integer("max_tokens", self.max_tokens, 1, None)
        _check_integer("min_tokens", self.min_tokens, 0, self.max_tokens)
        _check_number("temperature", self.temperature, 0.0, 100.0)
        _check_integer("top_k", self.top_k, -1, None)
        _check_number("top_p", self.top_p, 0.0, 1.0, open_minimum=True)
        _check_number("min_p", self.min_p, 0.0, 1.0)
        _check_number("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_minimum=True)
        _check_number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_number("dry_multiplier", self.dry_multiplier, 0.0, 100.0)
        _check_number("dry_base", self.dry_base, 1.0, 10.0)
        _check_integer("dry_allowed_length", self.dry_allowed_length, 1, MAX_DRY_ALLOWED_LENGTH)
        _check_integer("dry_range", self.dry_range, 0, None)
        _check_number("xtc_probability", self.xtc_probability, 0.0, 1.0)
        _check_number("xtc_threshold", self.xtc_threshold, 0.0, 1.0, open_minimum=True)
        for token_id, bias in self.logit_bias.items():
            _check_integer("logit_bias", token_id, 0, None)
            _check_number("logit_bias", bias, -100.0, 100.0)
        if self.seed is not None:
            _check_integer("seed", self.seed, -(2**63), 2**64 - 1)
        _check_texts("stop", self.stop, MAX_STOP_STRINGS)
        _check_texts("bad_words", self.bad_words, MAX_BAD_WORDS)
        _check_texts("dry_sequence_breakers", self.dry_sequence_breakers, MAX_SEQUENCE_BREAKERS)
        for token_id in self.stop_token_ids:
            _check_integer("stop_token_ids", token_id, 0, None)
        self._check_allowed()
        for name in ("logprobs", "prompt_logprobs"):
            if (value := getattr(self, name)) is not None:
                _check_integer(name, value, 0, MAX_LOGPROBS)
        for name in ("ignore_eos", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequestError(f"{name} must be true or false.", field=name)

    def _check_allowed(self) -> None:
        if self.allowed_token_ids is None:
            return
        if not self.allowed_token_ids:
            raise InvalidRequestError(
                "allowed_token_ids is empty: no token could ever come.",
                hint="Leave it out to allow every token.",
                field="allowed_token_ids",
            )
        for token_id in self.allowed_token_ids:
            _check_integer("allowed_token_ids", token_id, 0, None)
        if outside := sorted(set(self.logit_bias).difference(self.allowed_token_ids)):
            raise InvalidRequestError(
                f"logit_bias holds token {outside[0]}, which allowed_token_ids leaves out.",
                hint="Add the token to allowed_token_ids or take it out of logit_bias.",
                field="logit_bias",
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "SamplingParams":
        """Reads the parameters as JSON has them; null stands for the default.

        Raises:
            InvalidRequestError: a name is unknown, or a value is of the wrong type or range.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise InvalidRequestError(
                f"{unknown[0]!r} is not a sampling parameter.",
                hint=f"Known are: {', '.join(sorted(known))}.",
                field=unknown[0],
            )
        arguments = {name: value for name, value in values.items() if value is not None}
        if isinstance(stop := arguments.get("stop"), str):
            arguments["stop"] = (stop,)
        for name in _LIST_FIELDS:
            if name in arguments:
                if not isinstance(arguments[name], list | tuple):
                    raise InvalidRequestError(
                        f"{name} must be a list, not {_shown(arguments[name])}.", field=name
                    )
                arguments[name] = tuple(arguments[name])
        if "logit_bias" in arguments:
            arguments["logit_bias"] = _read_logit_bias(arguments["logit_bias"])
        return cls(**arguments)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def changes_logits(self) -> bool:
        """Whether a step before temperature applies to every token of the completion."""
        return bool(
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.dry_multiplier > 0.0
            or self.logit_bias
            or self.bad_words
            or self.allowed_token_ids is not None
        )

    @property
    def suits_device(self) -> bool:
        """Whether a device can choose the tokens by itself, as far as these parameters go.

        What looks at the tokens so far, or is to be reported, is the host's.
        """
        return not (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.dry_multiplier > 0.0
            or self.logit_bias
            or self.xtc_probability > 0.0
            or self.logprobs is not None
            or self.prompt_logprobs is not None
        )

    @property
    def is_plain(self) -> bool:
        """Whether a token is chosen from its logits and the temperature alone."""
        leaves_out = self.bad_words or self.allowed_token_ids is not None
        return self.suits_device and not (leaves_out or self.truncates)

    @property
    def truncates(self) -> bool:
        """Whether top_k, top_p or min_p leave candidates out."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0


def _read_logit_bias(value: object) -> dict[int, float]:
    """JSON's keys are strings; the token ids in them are numbers."""
    if not isinstance(value, Mapping):
        raise InvalidRequestError("logit_bias must map token ids to numbers.", field="logit_bias")
    try:
        return {int(token_id): bias for token_id, bias in value.items()}
    except (TypeError, ValueError):
        raise InvalidRequestError(
            "logit_bias must map token ids to numbers.", field="logit_bias"
        ) from None


def _check_texts(name: str, texts: object, most: int) -> None:
    if not isinstance(texts, tuple):
        raise InvalidRequestError(f"{name} must be a list, not {_shown(texts)}.", field=name)
    if len(texts) > most:
        raise InvalidRequestError(
            f"{name} has {len(texts)} strings; at most {most} are allowed.", field=name
        )
    for text in texts:
        if not isinstance(text, str) or not text:
            raise InvalidRequestError(
                f"{name} must hold strings that are not empty.",
                hint=f"Leave {name} out if it has nothing to say.",
                field=name,
            )


def _check_integer(name: str, value: object, minimum: int, maximum: int | None) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequestError(
            f"{name} must be a whole number, not {_shown(value)}.", field=name
        )
    if value < minimum or (maximum is not None and value > maximum):
        upper = f"to {maximum}" if maximum is not None else "up"
        raise InvalidRequestError(
            f"{name} is {_shown(value)}; it must be {minimum} {upper}.", field=name
        )


def _check_number(
    name: str, value: object, minimum: float, maximum: float, *, open_minimum: bool = False
) -> None:
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or math.isnan(_as_float(value))
    ):
        raise InvalidRequestError(f"{name} must be a number, not {_shown(value)}.", field=name)
    if value < minimum or value > maximum or (open_minimum and value == minimum):
        lower = f"above {minimum:g}" if open_minimum else f"at least {minimum:g}"
        raise InvalidRequestError(
            f"{name} is {_shown(_as_float(value))}; it must be {lower} and at most {maximum:g}.",
            field=name,
        )


def _as_float(value: float) -> float:
    """Whole numbers of JSON may be longer than any float."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _shown(value: object) -> str:
    """A value for a message: short whatever a client sent."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int) and abs(value) >= 10**_MOST_SHOWN_CHARACTERS:
        return f"a number of more than {_MOST_SHOWN_CHARACTERS} digits"
    shown = repr(value)
    return shown if len(shown) <= _MOST_SHOWN_CHARACTERS else f"{shown[:_MOST_SHOWN_CHARACTERS]}…"
