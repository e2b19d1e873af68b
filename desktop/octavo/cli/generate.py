"""`octavo generate`: JSON lines in, JSON lines out; the door for scripts."""

import argparse
import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.cli.terminal import find_model, loaded, make_core, read_stdin
from octavo.core import Core
from octavo.engine.request import FinishReason, GenerationDelta, RequestMetrics, TokenLogprob
from octavo.engine.sampling_params import MAX_LOGPROBS, SamplingParams
from octavo.errors import InvalidInputError, InvalidRequestError, OctavoError
from octavo.paths import AppPaths

PROMPT_FIELDS = ("messages", "prompt", "prompt_token_ids")
ROLES = ("system", "user", "assistant", "tool")


@dataclass(slots=True)
class _Completion:
    """One of a request's n completions, put together from its deltas."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    metrics: RequestMetrics | None = None

    def add(self, delta: GenerationDelta) -> None:
        self.token_ids += delta.token_ids
        self.text += delta.text
        self.logprobs += delta.logprobs or ()
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason
            self.stop_reason = delta.stop_reason
            self.metrics = delta.metrics


def generate_verb(options: argparse.Namespace, paths: AppPaths) -> int:
    """`octavo generate`: 0 if every line was answered, 1 if any holds an error."""
    text = read_stdin()
    if text is None:
        raise InvalidInputError(
            "There are no requests: standard input is a terminal.",
            hint="""Try: echo '{"prompt": "Once"}' | octavo generate""",
        )
    lines = [line for line in text.splitlines() if line.strip()]
    core = make_core(options, paths)
    model = find_model(core, options.model)

    async def answer_all() -> int:
        async with loaded(core, model):
            tasks = [
                asyncio.ensure_future(_answer_line(core, index, line))
                for index, line in enumerate(lines)
            ]
            num_failed = 0
            for task in tasks:
                result = await task
                num_failed += "error" in result
                print(json.dumps(result, ensure_ascii=False), flush=True)
            return 1 if num_failed else 0

    return asyncio.run(answer_all())


async def _answer_line(core: Core, index: int, line: str) -> dict[str, Any]:
    try:
        return {"index": index, **await _answer(core, _parse(line))}
    except OctavoError as error:
        return {"index": index, "error": str(error)}


def _parse(line: str) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"The line is not JSON: {error}.") from error
    if not isinstance(request, dict):
        raise InvalidRequestError("The line is not a JSON object.")
    given = [name for name in PROMPT_FIELDS if request.get(name) is not None]
    if len(given) != 1:
        raise InvalidRequestError(
            f"A request needs one of {', '.join(PROMPT_FIELDS)}; this one has {len(given)}."
        )
    return request


async def _answer(core: Core, request: Mapping[str, Any]) -> dict[str, Any]:
    params = _sampling(request)
    prompt_token_ids = _prompt_token_ids(core, request)
    completions = [_Completion() for _ in range(params.n)]
    prompt_logprobs: Sequence[TokenLogprob | None] | None = None
    async with contextlib.aclosing(core.host.generate(prompt_token_ids, params)) as deltas:
        async for delta in deltas:
            completions[delta.index].add(delta)
            prompt_logprobs = delta.prompt_logprobs or prompt_logprobs
    result = _as_json(completions[0], params)
    if prompt_logprobs is not None:
        result["prompt_logprobs"] = [entry and entry.logprob for entry in prompt_logprobs]
        if params.prompt_logprobs:
            result["prompt_top_logprobs"] = [entry and _top(entry) for entry in prompt_logprobs]
    if params.n > 1:
        result["choices"] = [_as_json(completion, params) for completion in completions]
    return result


def _sampling(request: Mapping[str, Any]) -> SamplingParams:
    """OpenAI's chat API asks with `logprobs: true` and `top_logprobs: N`; vLLM with a number."""
    values = {name: value for name, value in request.items() if name not in PROMPT_FIELDS}
    top = values.pop("top_logprobs", None)
    if top is not None and (type(top) is not int or not 0 <= top <= MAX_LOGPROBS):
        raise InvalidRequestError(
            f"top_logprobs is {str(top)[:60]}; it must be a whole number from 0 to {MAX_LOGPROBS}.",
            field="top_logprobs",
        )
    for name in ("logprobs", "prompt_logprobs"):
        if isinstance(values.get(name), bool):
            values[name] = (top or 0) if values[name] else None
    return SamplingParams.from_mapping(values)


def _prompt_token_ids(core: Core, request: Mapping[str, Any]) -> list[int]:
    """`prompt` is raw text, in which control tokens count; in messages' text they never do."""
    if (token_ids := request.get("prompt_token_ids")) is not None:
        if not isinstance(token_ids, list) or not all(type(item) is int for item in token_ids):
            raise InvalidRequestError(
                "prompt_token_ids must be a list of whole numbers.", field="prompt_token_ids"
            )
        return token_ids
    if (prompt := request.get("prompt")) is not None:
        if not isinstance(prompt, str):
            raise InvalidRequestError("prompt must be a string.", field="prompt")
        tokenizer = core.host.tokenizer
        return tokenizer.encode(prompt, add_bos=tokenizer.adds_bos, parse_special=True)
    return core.host.encode_chat(_check_messages(request["messages"]))


def _check_messages(messages: object) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise InvalidRequestError("messages must be a list that is not empty.", field="messages")
    for message in messages:
        if (
            not isinstance(message, dict)
            or message.get("role") not in ROLES
            or not isinstance(message.get("content"), str)
        ):
            raise InvalidRequestError(
                f"Each message needs a role of {', '.join(ROLES)} and a content in text.",
                field="messages",
            )
    return messages


def _as_json(completion: _Completion, params: SamplingParams) -> dict[str, Any]:
    metrics = completion.metrics
    assert metrics is not None, "a completion ends with its metrics"
    result: dict[str, Any] = {
        "output_token_ids": completion.token_ids,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
        "prompt_tokens": metrics.prompt_tokens,
        "cached_tokens": metrics.cached_tokens,
        "output_tokens": metrics.output_tokens,
        "time_to_first_token_s": metrics.time_to_first_token_s,
        "tokens_per_second": metrics.tokens_per_second,
    }
    if params.logprobs is not None:
        result["logprobs"] = [entry.logprob for entry in completion.logprobs]
        if params.logprobs:
            result["top_logprobs"] = [_top(entry) for entry in completion.logprobs]
    return result


def _top(entry: TokenLogprob) -> list[dict[str, float]]:
    return [{"token_id": token_id, "logprob": logprob} for token_id, logprob in entry.top]
