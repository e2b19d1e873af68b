"""The endpoint at the start of the window: on again if it was on, once a model is there."""

import asyncio
import dataclasses

from octavo.errors import ServerError
from octavo.settings import Server
from octavo.ui.server.restore import restore_server
from octavo.ui.server.server_page import ServerPage
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from tests.ui.conftest import until
from tests.ui.fakes import FakeCore, make_model


async def test_it_waits_for_a_model(core: FakeCore) -> None:
    core.settings.update(server=Server(is_on=True))
    task = asyncio.create_task(restore_server(core.as_core))
    await asyncio.sleep(0.02)
    assert core.server.address is None
    core.host.set_ready(make_model())
    await task
    assert core.server.address is not None


async def test_it_stays_off_if_it_was_off(core: FakeCore) -> None:
    core.host.set_ready(make_model())
    await restore_server(core.as_core)
    assert core.server.address is None


async def test_the_person_may_be_quicker(core: FakeCore) -> None:
    core.settings.update(server=Server(is_on=True))
    task = asyncio.create_task(restore_server(core.as_core))
    await asyncio.sleep(0)
    core.settings.update(server=Server(is_on=False))
    core.host.set_ready(make_model())
    await task
    assert core.server.address is None


async def test_a_start_that_fails_is_said_on_the_page_once(
    core: FakeCore, tasks: UiTasks, theme: ThemeController
) -> None:
    core.settings.update(server=Server(is_on=True))
    core.server_error = ServerError("Ports 8000 to 8020 are taken.", hint="Choose another.")
    core.host.set_ready(make_model())
    await restore_server(core.as_core)
    page = ServerPage(core.as_core)
    page.show()
    assert page.error_card.error is core.server_error
    page.error_card.clear()
    page.refresh()
    assert page.error_card.error is None
    assert core.settings.value.server.is_on, "the next start tries again"


async def test_a_wait_that_is_cancelled_leaves_no_listener(core: FakeCore) -> None:
    core.settings.update(server=dataclasses.replace(core.settings.value.server, is_on=True))
    task = asyncio.create_task(restore_server(core.as_core))
    await asyncio.sleep(0)
    task.cancel()
    await until(task.done)
    core.host.set_ready(make_model())
    assert core.server.address is None
