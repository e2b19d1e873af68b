"""`merged_deltas`: the streams of a request's prompts as one, in pieces of all that has come."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import TypeAlias

from octavo.engine.request import GenerationDelta
from octavo.engine.sampling_params import SamplingParams
from octavo.host import ModelHost

ChoiceDelta: TypeAlias = tuple[int, GenerationDelta]
"""Which of all prompts' completions, and what it has grown by."""


class _Inbox:
    """What has arrived and was not taken yet; of one event loop."""

    def __init__(self) -> None:
        self._items: list[ChoiceDelta | asyncio.Task[None]] = []
        self._waiter: asyncio.Future[None] | None = None
        self._is_silent = True

    def put(self, item: ChoiceDelta | asyncio.Task[None]) -> None:
        self._items.append(item)
        self._is_silent = False
        self._wake()

    def remind(self) -> None:
        """Ends a wait with nothing if nothing has come since the last time."""
        if self._is_silent:
            self._wake()
        self._is_silent = True

    async def take(self) -> list[ChoiceDelta | asyncio.Task[None]]:
        """All that is there, after a wait if need be; nothing after a reminder."""
        if not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        taken, self._items = self._items, []
        return taken

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def merged_deltas(
    host: ModelHost,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    request_id: str,
    *,
    silence_s: float,
) -> AsyncGenerator[list[ChoiceDelta], None]:
    """What has come since the last time, of all prompts in its order; [] while nothing comes.

    Leave it through `aclosing`, which aborts them.

    Args:
        silence_s: between two looks whether anything has come.
    """
    inbox = _Inbox()

    async def pump(index: int, prompt: Sequence[int]) -> None:
        deltas = host.generate(prompt, params, request_id=f"{request_id}-{index}")
        async with contextlib.aclosing(deltas) as stream:
            async for delta in stream:
                inbox.put((index * params.n + delta.index, delta))

    async def remind() -> None:
        while True:
            await asyncio.sleep(silence_s)
            inbox.remind()

    pumps = [asyncio.create_task(pump(index, prompt)) for index, prompt in enumerate(prompts)]
    for task in pumps:
        task.add_done_callback(inbox.put)
    # One timer for the whole answer: one for each wait costs as much as a token's JSON.
    reminder = asyncio.create_task(remind())
    num_unfinished = len(pumps)
    try:
        while num_unfinished:
            taken = await inbox.take()
            ended = [item for item in taken if isinstance(item, asyncio.Task)]
            arrived = [item for item in taken if not isinstance(item, asyncio.Task)]
            if arrived or not ended:
                yield arrived
            num_unfinished -= len(ended)
            for task in ended:
                task.result()
    finally:
        await end_tasks(*pumps, reminder)


async def end_tasks(*tasks: asyncio.Task[None]) -> None:
    """Cancels tasks and waits until they are done."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
