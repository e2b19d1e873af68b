"""Switches the endpoint on at the start of the window, as the person left it."""

import asyncio
import logging

from octavo.core import Core
from octavo.errors import OctavoError
from octavo.host import HostState, HostStatus

logger = logging.getLogger(__name__)


async def restore_server(core: Core) -> None:
    """Waits for a loaded model and starts the endpoint, if it was on when the window was closed.

    A start that fails is said on the server page (`ServerThread.start_error`) and in the log.
    """
    if not core.settings.value.server.is_on:
        return
    await _wait_for_model(core)
    # The person may have been quicker, in either direction.
    if not core.settings.value.server.is_on or core.server.address is not None:
        return
    try:
        await core.start_server()
    except OctavoError as error:
        logger.warning("The endpoint is not switched on again: %s", error)


async def _wait_for_model(core: Core) -> None:
    is_ready = asyncio.Event()

    def look(state: HostState) -> None:
        if state.status is HostStatus.READY:
            is_ready.set()

    disconnect = core.host.state_changed.connect(look)
    try:
        look(core.host.state)
        await is_ready.wait()
    finally:
        disconnect()
