"""A model that counts words and says what it is told to."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

from octavo.engine.request import FinishReason, GenerationDelta, RequestMetrics
from octavo.engine.sampling_params import SamplingParams

METRICS = RequestMetrics(
    prompt_tokens=10,
    cached_tokens=4,
    output_tokens=3,
    queue_s=0.25,
    time_to_first_token_s=0.5,
    total_s=1.5,
)


def delta(text: str = "", **fields: object) -> GenerationDelta:
    return GenerationDelta(request_id="1", index=0, text=text, **fields)  # type: ignore[arg-type]


END = delta(finish_reason=FinishReason.STOP, metrics=METRICS)

Step = GenerationDelta | Exception | Callable[[], None]


class FakeModel:
    """Plays steps: a delta is sent, an exception raised, a function called, None waits for ever."""

    def __init__(self, *steps: Step | None, limit: int = 1000) -> None:
        self.steps = steps
        self.context_limit_tokens = limit
        self.sent: list[list[tuple[str, str]]] = []
        self.num_closed = 0
        self.waits = asyncio.Event()
        self.count_error: Exception | None = None

    def count_tokens(self, messages: Sequence[Mapping[str, str]]) -> int:
        """One token a word and one a message."""
        if self.count_error is not None:
            raise self.count_error
        return sum(1 + len(message["content"].split()) for message in messages)

    async def stream_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling_params: SamplingParams,
        *,
        request_id: str | None = None,
    ) -> AsyncGenerator[GenerationDelta, None]:
        self.sent.append([(message["role"], message["content"]) for message in messages])
        try:
            for step in self.steps:
                await asyncio.sleep(0)
                if step is None:
                    self.waits.set()
                    await asyncio.Event().wait()
                elif isinstance(step, Exception):
                    raise step
                elif isinstance(step, GenerationDelta):
                    yield step
                else:
                    step()
        finally:
            self.num_closed += 1
