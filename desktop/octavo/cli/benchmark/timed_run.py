"""`TimedRun`: how long some prompts and their answers took; `time_prompts` is our engine's way."""

import argparse
import asyncio
import contextlib
import random
import time
from dataclasses import dataclass

from octavo.core import Core
from octavo.engine.sampling_params import SamplingParams
from octavo.errors import EngineError, InvalidInputError


@dataclass(frozen=True, slots=True)
class TimedRun:
    """One run of some prompts together, on whatever engine."""

    prompt_tokens: int
    """Of all prompts together, as the next."""
    output_tokens: int
    prefill_s: float
    """Until the last of them had its first token."""
    decode_s: float
    """From then on."""
    decoded_tokens: int
    """In that time."""
    decode_cpu_s: float
    """Processor time of the engine's whole process in that time, all threads together."""

    @property
    def prefill_tokens_per_second(self) -> float:
        return self.prompt_tokens / self.prefill_s

    @property
    def decode_tokens_per_second(self) -> float:
        return self.decoded_tokens / max(self.decode_s, 1e-9)

    @property
    def output_tokens_per_second(self) -> float:
        """All output tokens by the whole wall time."""
        return self.output_tokens / (self.prefill_s + self.decode_s)

    @property
    def decode_cpu_ms_per_token(self) -> float:
        return self.decode_cpu_s * 1000 / max(self.decoded_tokens, 1)


def measured_sampling(options: argparse.Namespace) -> SamplingParams:
    """How the answers of `octavo bench` are sampled; no end of text ends them.

    Raises:
        InvalidRequestError: a value is out of its range.
        InvalidInputError: tokens are to be left out of a choice that always takes the likeliest.
    """
    params = SamplingParams(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        max_tokens=options.output_tokens,
        ignore_eos=True,
    )
    if params.truncates and params.is_greedy:
        raise InvalidInputError(
            "--temperature is 0, which takes the likeliest token whatever --top-p, --top-k and"
            " --min-p leave.",
            hint="Add a temperature, as the chat's --temperature 0.7.",
        )
    return params


def random_prompts(core: Core, streams: int, prompt_tokens: int) -> list[list[int]]:
    """Fresh ones for every run, so that no prefix is cached."""
    vocab_size = core.host.tokenizer.vocab_size
    return [
        [random.randrange(vocab_size) for _ in range(prompt_tokens)]  # noqa: S311
        for _ in range(streams)
    ]


async def time_prompts(core: Core, prompts: list[list[int]], params: SamplingParams) -> TimedRun:
    """Runs prompts together.

    Args:
        core: has the model loaded.
        prompts: token ids.
        params: as `measured_sampling` gives them.

    Raises:
        EngineError: one of them ended early.
    """
    output_tokens = params.max_tokens
    assert output_tokens is not None
    arrivals: list[list[_Arrival]] = [[] for _ in prompts]

    async def complete(prompt: list[int], arrived: list[_Arrival]) -> None:
        async with contextlib.aclosing(core.host.generate(prompt, params)) as deltas:
            async for delta in deltas:
                arrived += [_Arrival.now()] * len(delta.token_ids)
        if len(arrived) != output_tokens:
            raise EngineError(
                f"A request ended after {len(arrived)} of {output_tokens} tokens.",
                hint="Use fewer streams or tokens: the KV cache is full.",
            )

    started_at = time.perf_counter()
    await asyncio.gather(*map(complete, prompts, arrivals))
    prefilled = max((arrived[0] for arrived in arrivals), key=lambda one: one.at)
    later = [one for arrived in arrivals for one in arrived if one.at > prefilled.at]
    last = max(later, key=lambda one: one.at, default=prefilled)
    return TimedRun(
        prompt_tokens=sum(map(len, prompts)),
        output_tokens=output_tokens * len(prompts),
        prefill_s=prefilled.at - started_at,
        decode_s=last.at - prefilled.at,
        decoded_tokens=len(later),
        decode_cpu_s=last.cpu_s - prefilled.cpu_s,
    )


@dataclass(frozen=True, slots=True)
class _Arrival:
    """When a token came, and how much processor time this process had used by then."""

    at: float
    cpu_s: float

    @staticmethod
    def now() -> "_Arrival":
        return _Arrival(time.perf_counter(), time.process_time())
