"""Loading a model from the window: torch's libraries first, so that the window does not freeze."""

import asyncio

from octavo.core import Core
from octavo.hub.library import LibraryModel
from octavo.ui.torch_preload import giving_way, preload_torch_libraries


async def load_model(core: Core, model: LibraryModel) -> None:
    """Loads a model; raises as `ModelHost.load`, and cancelling the task cancels the load."""
    with giving_way():
        await asyncio.to_thread(preload_torch_libraries)
        await core.host.load(model)
