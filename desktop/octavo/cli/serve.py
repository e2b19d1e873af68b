"""`octavo serve`: a model behind the OpenAI-compatible endpoint, until Ctrl-C."""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from octavo.cli.terminal import find_model, loaded, make_core
from octavo.core import Core
from octavo.hub.library import LibraryModel
from octavo.paths import AppPaths
from octavo.server.address import check_wanted

KEY_VARIABLE = "OCTAVO_API_KEY"


def serve_verb(options: argparse.Namespace, paths: AppPaths) -> int:
    """`octavo serve [MODEL]`."""
    core = make_core(options, paths)
    # Before the starter model is fetched for nothing.
    check_wanted(options.host, _port(core, options), has_key=bool(_key(core, options)))
    return asyncio.run(_serve(core, find_model(core, options.model), options))


async def _serve(core: Core, model: LibraryModel, options: argparse.Namespace) -> int:
    """Listens first, so that a taken or refused address is said before the load.

    Clients are told that the model is being loaded.
    """
    settings = core.settings.value.server
    port = _port(core, options)
    key = _key(core, options)
    origins = settings.allowed_origins if options.allow_origin is None else options.allow_origin
    with _signals_cancel(asyncio.current_task()):
        address = await asyncio.to_thread(core.server.start, options.host, port, key, origins)
        if address.note:
            print(f"octavo: {address.note}", file=sys.stderr)
        try:
            # Closes the core when it is left: the endpoint first, then the model.
            async with loaded(core, model):
                needs_key = " An API key is needed." if key else ""
                print(f"{model.name} is served at {address.url}/v1.{needs_key}")
                print("Ctrl-C ends it.", flush=True)
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            print("Stopped.", file=sys.stderr)
    return 0


def _port(core: Core, options: argparse.Namespace) -> int:
    return core.settings.value.server.port if options.port is None else int(options.port)


def _key(core: Core, options: argparse.Namespace) -> str:
    """The command line's before the environment's before the settings'."""
    if options.api_key is not None:
        return str(options.api_key)
    return os.environ.get(KEY_VARIABLE, core.settings.value.server.api_key)


@contextlib.contextmanager
def _signals_cancel(task: "asyncio.Task[int] | None") -> Iterator[None]:
    """Ctrl-C and SIGTERM cancel the task, which ends everything in order."""
    loop = asyncio.get_running_loop()
    assert task is not None
    installed = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # Windows and threads that are not the main one have no such handlers.
        with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
            loop.add_signal_handler(number, task.cancel)
            installed.append(number)
    try:
        yield
    finally:
        for number in installed:
            loop.remove_signal_handler(number)
