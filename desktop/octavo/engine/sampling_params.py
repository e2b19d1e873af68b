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
    logit_bias: Mapping[int, float] = field(default_factory=dict)
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
        for token_id, bias in self.logit_bias.items():
            _check_integer("logit_bias", token_id, 0, None)
            _check_number("logit_bias", bias, -100.0, 100.0)
        if self.seed is not None:
            _check_integer("seed", self.seed, -(2**63), 2**64 - 1)
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError(
                f"stop has {len(self.stop)} strings; at most {MAX_STOP_STRINGS} are allowed.",
                field="stop",
            )
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise InvalidRequestError(
                    "stop must hold strings that are not empty.",
                    hint="Leave stop out if nothing is to end the answer early.",
                    field="stop",
                )
        for token_id in self.stop_token_ids:
            _check_integer("stop_token_ids", token_id, 0, None)
        for name in ("logprobs", "prompt_logprobs"):
            if (value := getattr(self, name)) is not None:
                _check_integer(name, value, 0, MAX_LOGPROBS)
        for name in ("ignore_eos", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequestError(f"{name} must be true or false.", field=name)

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
        for name in ("stop", "stop_token_ids"):
            if name in arguments:
                if not isinstance(arguments[name], list | tuple):
                    raise InvalidRequestError(f"{name} must be a list.", field=name)
                arguments[name] = tuple(arguments[name])
        if "logit_bias" in arguments:
            arguments["logit_bias"] = _read_logit_bias(arguments["logit_bias"])
        return cls(**arguments)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


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


def _check_integer(name: str, value: object, minimum: int, maximum: int | None) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequestError(f"{name} must be a whole number, not {value!r}.", field=name)
    if value < minimum or (maximum is not None and value > maximum):
        upper = f"to {maximum}" if maximum is not None else "up"
        raise InvalidRequestError(f"{name} is {value}; it must be {minimum} {upper}.", field=name)


def _check_number(
    name: str, value: object, minimum: float, maximum: float, *, open_minimum: bool = False
) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InvalidRequestError(f"{name} must be a number, not {value!r}.", field=name)
    if value < minimum or value > maximum or (open_minimum and value == minimum):
        lower = f"above {minimum:g}" if open_minimum else f"at least {minimum:g}"
        raise InvalidRequestError(
            f"{name} is {value:g}; it must be {lower} and at most {maximum:g}.", field=name
        )
