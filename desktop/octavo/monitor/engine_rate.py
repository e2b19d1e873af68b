"""Tokens per second and cache use of a running engine, from two of its statistics."""

from dataclasses import dataclass

from octavo.engine.request import EngineStats


@dataclass(frozen=True, slots=True)
class EngineRate:
    """What the engine did between two looks; None where nothing can be said yet."""

    output_tokens_per_s: float | None = None
    prompt_tokens_per_s: float | None = None
    prefix_hit_percent: float | None = None
    """Share of the prompt tokens that came from the prefix cache, since the engine started."""


class EngineRateMeter:
    """Remembers the statistics before; an engine that was loaded anew starts over."""

    def __init__(self) -> None:
        self._before: tuple[float, EngineStats] | None = None

    def measure(self, time_s: float, stats: EngineStats) -> EngineRate:
        before, self._before = self._before, (time_s, stats)
        queried = stats.prefix_queried_tokens
        hit_percent = 100.0 * stats.prefix_hit_tokens / queried if queried else None
        if before is None or time_s <= before[0] or stats.num_steps < before[1].num_steps:
            return EngineRate(prefix_hit_percent=hit_percent)
        seconds = time_s - before[0]
        return EngineRate(
            output_tokens_per_s=(stats.output_tokens - before[1].output_tokens) / seconds,
            prompt_tokens_per_s=(stats.prompt_tokens_computed - before[1].prompt_tokens_computed)
            / seconds,
            prefix_hit_percent=hit_percent,
        )
