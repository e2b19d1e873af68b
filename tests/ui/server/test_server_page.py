"""The server page: on and off, port and key, and the requests of other programs."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QMainWindow

from octavo.errors import ServerError
from octavo.host import HostState, HostStatus
from octavo.server.address import ServerAddress
from octavo.server.board import RequestState
from octavo.settings import Server
from octavo.ui.server.request_table import MAX_ENDED, MAX_LIVE, RequestTable
from octavo.ui.server.server_page import (
    ServerPage,
    describe_endpoint,
    make_example,
    make_python_example,
)
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from tests.ui.conftest import settled, until
from tests.ui.fakes import FakeCore, make_model, make_record


@pytest.fixture
async def page(core: FakeCore, tasks: UiTasks, theme: ThemeController) -> AsyncIterator[ServerPage]:
    window = QMainWindow()
    page = ServerPage(core.as_core)
    window.setCentralWidget(page)
    window.resize(1000, 900)
    window.show()
    window.activateWindow()
    yield page
    await tasks.cancel_all()
    window.hide()


def click(page: ServerPage) -> None:
    QTest.mouseClick(page.endpoint.switch, Qt.MouseButton.LeftButton)


async def test_it_is_off_at_first_and_says_where_it_would_be(page: ServerPage) -> None:
    assert not page.endpoint.switch.isChecked()
    assert page.endpoint.state_text == "Off. No other program can use the model."
    assert page.endpoint.address.text() == "http://127.0.0.1:8000/v1"


async def test_the_switch_starts_and_stops(page: ServerPage, core: FakeCore) -> None:
    core.server_gate = asyncio.Event()
    click(page)
    assert page.endpoint.state_text == "Switching on…"
    assert not page.endpoint.switch.isEnabled()
    core.server_gate.set()
    await until(page.endpoint.switch.isEnabled)
    assert page.endpoint.switch.isChecked()
    assert page.endpoint.state_text.startswith("On. No model is loaded")
    assert not page.endpoint.port.isEnabled()
    click(page)
    await until(lambda: core.server.address is None)
    await until(page.endpoint.switch.isEnabled)
    assert not page.endpoint.switch.isChecked()
    assert page.endpoint.port.isEnabled()


async def test_the_switch_is_remembered(page: ServerPage, core: FakeCore) -> None:
    click(page)
    await until(lambda: core.settings.value.server.is_on)
    await until(page.endpoint.switch.isEnabled)
    click(page)
    await until(lambda: not core.settings.value.server.is_on)


async def test_an_endpoint_that_failed_is_not_remembered_as_on(
    page: ServerPage, core: FakeCore
) -> None:
    core.server_error = ServerError("Ports 8000 to 8020 are taken.")
    click(page)
    await until(page.error_card.isVisible)
    assert not core.settings.value.server.is_on


async def test_allowed_pages_are_checked_and_saved(page: ServerPage, core: FakeCore) -> None:
    field = page.endpoint.origins
    field.setText("https://app.example.org/, http://localhost:3000 https://app.example.org")
    field.editingFinished.emit()
    origins = ("https://app.example.org", "http://localhost:3000")
    assert core.settings.value.server.allowed_origins == origins
    assert field.text() == "https://app.example.org, http://localhost:3000"
    field.setText("app.example.org")
    field.editingFinished.emit()
    assert page.error_card.error is not None
    assert "'app.example.org'" in page.error_card.error.message
    assert core.settings.value.server.allowed_origins == origins


async def test_space_turns_the_switch(page: ServerPage, core: FakeCore) -> None:
    page.endpoint.switch.setFocus()
    QTest.keyClick(page.endpoint.switch, Qt.Key.Key_Space)
    await until(lambda: core.server.address is not None)


async def test_an_endpoint_that_cannot_start_says_why_and_is_off(
    page: ServerPage, core: FakeCore
) -> None:
    core.server_error = ServerError("Ports 8000 to 8020 are taken.", hint="Choose another.")
    click(page)
    await until(page.error_card.isVisible)
    assert page.error_card.error is core.server_error
    assert not page.endpoint.switch.isChecked()
    core.server_error = None
    click(page)
    await until(lambda: core.server.address is not None)
    assert not page.error_card.isVisible()


async def test_an_endpoint_that_does_not_end_says_so(
    page: ServerPage, core: FakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await core.start_server()
    page.refresh()

    async def stop_server() -> bool:
        return False

    monkeypatch.setattr(core, "stop_server", stop_server)
    click(page)
    await until(page.error_card.isVisible)
    assert page.endpoint.switch.isChecked()


async def test_a_port_that_is_taken_is_said_with_the_one_in_use(
    page: ServerPage, core: FakeCore
) -> None:
    core.server.address = ServerAddress("127.0.0.1", 8001, "Port 8000 is held by python.")
    page.refresh()
    assert page.note.text == "Port 8000 is held by python."
    assert page.endpoint.address.text() == "http://127.0.0.1:8001/v1"
    assert "127.0.0.1:8001" in page.example.text()


async def test_an_endpoint_that_ended_by_itself_is_shown_as_off(
    page: ServerPage, core: FakeCore
) -> None:
    await core.start_server()
    page.refresh()
    assert page.endpoint.switch.isChecked()
    core.server.address = None
    await until(lambda: not page.endpoint.switch.isChecked())


async def test_port_is_saved(page: ServerPage, core: FakeCore) -> None:
    page.endpoint.port.setValue(9001)
    assert core.settings.value.server == Server(port=9001)
    assert page.endpoint.address.text() == "http://127.0.0.1:9001/v1"


async def test_a_key_is_generated_copied_and_cleared(page: ServerPage, core: FakeCore) -> None:
    endpoint = page.endpoint
    assert not endpoint.clear.isVisible()
    endpoint.generate.click()
    key = core.settings.value.server.api_key
    assert len(key) > 30
    assert not endpoint.generate.isVisible()
    assert key not in page.example.text()
    assert "Authorization: Bearer $OCTAVO_API_KEY" in page.example.text()
    endpoint.copy_key.click()
    assert QGuiApplication.clipboard().text() == key
    assert QApplication.focusWidget() is endpoint.key
    endpoint.clear.click()
    assert core.settings.value.server.api_key == ""
    assert endpoint.generate.isVisible()


async def test_a_key_of_ones_own_is_saved_and_a_bad_one_refused(
    page: ServerPage, core: FakeCore
) -> None:
    endpoint = page.endpoint
    endpoint.key.setText("my-own-key")
    endpoint.key.editingFinished.emit()
    assert core.settings.value.server.api_key == "my-own-key"
    endpoint.key.setText("two words")
    endpoint.key.editingFinished.emit()
    assert page.error_card.isVisible()
    assert core.settings.value.server.api_key == "my-own-key"
    assert endpoint.key.text() == "my-own-key"


async def test_port_and_key_wait_while_it_is_on(page: ServerPage, core: FakeCore) -> None:
    core.settings.update(server=Server(api_key="key"))
    await core.start_server()
    page.refresh()
    endpoint = page.endpoint
    assert not any(one.isEnabled() for one in (endpoint.port, endpoint.key, endpoint.clear))
    assert endpoint.copy_key.isEnabled()
    assert endpoint.port.toolTip() == "Switch the endpoint off to change it."


async def test_the_address_is_copied(page: ServerPage) -> None:
    page.endpoint.copy_address.click()
    assert QGuiApplication.clipboard().text() == "http://127.0.0.1:8000/v1"


async def test_the_page_follows_the_host(page: ServerPage, core: FakeCore) -> None:
    await core.start_server()
    page.refresh()
    core.host.set_ready(make_model())
    assert page.endpoint.state_text == "On. SmolLM2 135M Instruct answers."
    assert '"model": "smollm2-135m-instruct-q4_1"' in page.example.text()


def test_loading_is_named() -> None:
    state = HostState(HostStatus.LOADING, make_model())
    sentence, tone = describe_endpoint(state, is_on=True)
    assert sentence == "On. Requests get status 503 until SmolLM2 135M Instruct is loaded."
    assert tone == "caution"


def test_the_example_leaves_the_model_out_while_none_is_loaded() -> None:
    example = make_example("http://127.0.0.1:8000/v1", HostState(), needs_key=False)
    assert '"model"' not in example
    assert "Authorization" not in example


async def test_the_example_is_there_in_python_too(page: ServerPage, core: FakeCore) -> None:
    core.host.set_ready(make_model())
    page.language._buttons["python"].click()
    text = page.example.text()
    assert compile(text, "example", "exec")
    assert 'base_url="http://127.0.0.1:8000/v1", api_key="none"' in text
    assert 'model="smollm2-135m-instruct-q4_1"' in text


def test_the_python_example_asks_for_the_model_and_reads_the_key() -> None:
    text = make_python_example("http://127.0.0.1:8000/v1", HostState(), needs_key=True)
    assert compile(text, "example", "exec")
    assert "model=client.models.list().data[0].id" in text
    assert 'api_key=os.environ["OCTAVO_API_KEY"]' in text


async def test_requests_are_shown_live(page: ServerPage, core: FakeCore) -> None:
    assert page.requests.summary.text() == "No program has asked yet. Try the example above."
    core.server.board.live_records = [make_record()]
    await until(lambda: bool(page.requests.rows))
    row = page.requests.rows["one"]
    model = "smollm2-135m-instruct-q4_1"
    assert row.texts == ["127.0.0.1:51234", model, "Running", "1,204", "–", "96", "41.2"]
    done = make_record(state=RequestState.FINISHED, cached_tokens=1024, output_tokens=120)
    core.server.board.live_records = []
    core.server.board.recent_records = [done]
    await until(lambda: row.state.text() == "Finished")
    assert page.requests.rows["one"] is row
    assert row.texts[3:6] == ["1,204", "1,024", "120"]
    assert not row.cancel.isVisible()


async def test_a_request_is_cancelled_by_its_button(page: ServerPage, core: FakeCore) -> None:
    core.server.board.live_records = [make_record("one"), make_record("two")]
    page.refresh()
    page.requests.rows["two"].cancel.click()
    assert core.server.board.cancelled == ["two"]


async def test_nothing_is_asked_while_hidden_or_minimised(page: ServerPage) -> None:
    assert page._timer.isActive()
    page.hide()
    assert not page._timer.isActive()
    page.show()
    assert page._timer.isActive()
    page.window().showMinimized()
    await until(lambda: not page._timer.isActive())


def test_rows_keep_their_order_and_the_keyboard(app: QApplication, theme: ThemeController) -> None:
    table = RequestTable()
    table.show()
    names = ["a", "b", "c"]
    table.show_records([make_record(name) for name in names], [])
    button = table.rows["c"].cancel
    button.setFocus()
    ended = make_record("a", state=RequestState.FINISHED)
    table.show_records([make_record("b"), make_record("c"), make_record("d")], [ended])
    column = table._row_column
    assert [column.indexOf(table.rows[name]) for name in ("b", "c", "d", "a")] == [0, 1, 2, 3]
    assert table.rows["c"].cancel is button
    table.show_records([], [])
    assert table.rows == {}


def test_a_request_that_ends_between_two_looks_is_shown_once(
    app: QApplication, theme: ThemeController
) -> None:
    table = RequestTable()
    table.show_records([make_record()], [make_record(state=RequestState.FINISHED)])
    (row,) = table.rows.values()
    assert row.state.text() == "Finished"


def test_very_many_requests_are_counted_rather_than_shown(
    app: QApplication, theme: ThemeController
) -> None:
    table = RequestTable()
    live = [make_record(f"live {number}") for number in range(MAX_LIVE + 5)]
    ended = [make_record(f"end {n}", state=RequestState.FAILED) for n in range(MAX_ENDED + 5)]
    table.show_records(live, ended)
    assert len(table.rows) == MAX_LIVE + MAX_ENDED
    assert table.summary.text().startswith(f"{MAX_LIVE + 5} at work, 5 of them not shown")


@pytest.mark.parametrize("width", [480, 1000])
async def test_nothing_is_wider_than_the_window(
    page: ServerPage, core: FakeCore, width: int
) -> None:
    core.settings.update(server=Server(api_key="octavo-" + "k" * 32))
    core.server.board.live_records = [make_record()]
    page.refresh()
    page.window().resize(width, 900)
    body = page.scroll_area.widget()
    assert body is not None
    facts = page.requests.rows["one"]._facts
    await until(lambda: facts.isVisible() == (width == 480))
    await settled()
    assert body.width() <= page.scroll_area.viewport().width()
    assert facts.isVisible() == (width == 480)
    text = facts.text().replace("\N{NO-BREAK SPACE}", " ").replace("\N{WORD JOINER}", "")
    assert text.endswith("1,204 prompt, 96 output tokens · 41.2 tok/s")
