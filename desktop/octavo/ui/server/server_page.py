"""The server page: other programs may use the loaded model; who does, and how to begin."""

import dataclasses
from typing import Any

from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QGuiApplication, QHideEvent, QShowEvent
from PySide6.QtWidgets import QHBoxLayout, QSizePolicy, QWidget

from octavo.core import Core
from octavo.errors import OctavoError, ServerError
from octavo.host import HostState, HostStatus
from octavo.settings import Settings
from octavo.ui.server.endpoint_group import EndpointGroup
from octavo.ui.server.request_table import RequestTable
from octavo.ui.tasks import spawn
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import SPACE_WITHIN
from octavo.ui.widgets.buttons import IconButton, SegmentedChoice
from octavo.ui.widgets.cards import Card, ErrorCard, Notice
from octavo.ui.widgets.labels import label
from octavo.ui.widgets.page import ScrolledPage
from octavo.ui.widgets.toast import find_toast

WIDE_FROM = 700
ROWS_WIDE_FROM = 500
MAX_WIDTH = 880
REFRESH_MS = 500
KEY_VARIABLE = "OCTAVO_API_KEY"
CURL, PYTHON = "curl", "python"


class ServerPage(ScrolledPage):
    """Starts and stops the endpoint through the core; looks at the board while it is shown."""

    def __init__(self, core: Core, parent: QWidget | None = None) -> None:
        super().__init__(MAX_WIDTH, parent)
        self._core = core
        self._is_turning = False
        self._is_turning_on = False
        self._seen_error: OctavoError | None = None
        self._timer = QTimer(self)
        self._timer.setInterval(REFRESH_MS)
        self._timer.timeout.connect(self.refresh)
        self._build()
        self._show_settings(core.settings.value)
        connections = [
            core.settings.changed.connect(self._show_settings),
            core.host.state_changed.connect(lambda _: self._show_state()),
        ]
        self.destroyed.connect(lambda _=None: [disconnect() for disconnect in connections])

    def refresh(self) -> None:
        """Shows the endpoint and its requests as they are now."""
        self._show_state()
        self._show_start_error()
        board = self._core.server.board
        self.requests.show_records(board.live(), board.recent())

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        self.refresh()
        self._timer.start()

    def hideEvent(self, event: QHideEvent) -> None:
        """Qt sends it for a minimised window, too."""
        self._timer.stop()
        super().hideEvent(event)

    def _build(self) -> None:
        self.add_title(
            "Server", "Programs on this machine use the loaded model as they would use OpenAI's."
        )
        self.error_card = ErrorCard()
        self.note = Notice()
        self.column.addWidget(self.error_card)
        self.column.addWidget(self.note)
        self.endpoint = EndpointGroup()
        self.endpoint.switched.connect(self._turn)
        self.endpoint.port_chosen.connect(lambda port: self._save(port=port))
        self.endpoint.key_chosen.connect(lambda key: self._save(api_key=key))
        self.endpoint.origins_chosen.connect(lambda origins: self._save(allowed_origins=origins))
        self.column.addWidget(self.endpoint)
        self.column.addLayout(self._build_example_head())
        self.column.addWidget(self._build_example())
        self.column.addSpacing(SPACE_WITHIN)
        self.column.addWidget(label("Requests", "heading"))
        self.requests = RequestTable()
        self.requests.cancel_asked.connect(self._cancel)
        self.column.addWidget(self.requests)
        self.column.addStretch(1)

    def _build_example_head(self) -> QHBoxLayout:
        head = QHBoxLayout()
        head.addWidget(label("Example", "heading"), 1)
        self.language = SegmentedChoice("Example", [(CURL, "curl"), (PYTHON, "Python")])
        self.language.set_value(CURL)
        self.language.chosen.connect(lambda _value: self._show_state())
        head.addWidget(self.language)
        return head

    def _build_example(self) -> Card:
        card = Card("notice")
        row = QHBoxLayout()
        row.setSpacing(SPACE_WITHIN)
        self.example = label("", "figure", wrap=True)
        # Its hint is that of a narrow column, and would have the page scroll without need.
        self.example.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Preferred)
        self.example.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        copy = IconButton("copy", "Copy the example")
        copy.clicked.connect(self._copy_example)
        row.addWidget(self.example, 1)
        row.addWidget(copy, 0, Qt.AlignmentFlag.AlignTop)
        card.body.addLayout(row)
        return card

    def _turn(self, is_on: bool) -> None:
        if not self._is_turning:
            self.error_card.clear()
            self._is_turning, self._is_turning_on = True, is_on
            self._show_state()
            spawn(self._switch(is_on), self.error_card.show_error)

    async def _switch(self, is_on: bool) -> None:
        try:
            if is_on:
                await self._core.start_server()
            elif not await self._core.stop_server():
                raise ServerError(
                    "The endpoint did not end in time.",
                    hint="It takes no more requests. Restart Octavo to free its port.",
                )
            # At the next start it is as the person left it.
            self._save(is_on=is_on)
        finally:
            self._seen_error = self._core.server.start_error
            self._is_turning = False
            self.refresh()

    def _save(self, **changes: Any) -> None:
        """Args:
        changes: fields of `settings.Server`.
        """
        try:
            changed = dataclasses.replace(self._core.settings.value.server, **changes)
            self._core.settings.update(server=changed)
        except OctavoError as error:
            self.error_card.show_error(error)
            self._show_settings(self._core.settings.value)
        else:
            self.error_card.clear()

    def _show_settings(self, settings: Settings) -> None:
        self.endpoint.show_settings(settings.server)
        self._show_state()

    def _show_state(self) -> None:
        address = self._core.server.address
        settings = self._core.settings.value.server
        url = address.url if address is not None else f"http://127.0.0.1:{settings.port}"
        if self._is_turning:
            is_on = self._is_turning_on
            sentence, tone = ("Switching on…" if is_on else "Switching off…"), "soft"
        else:
            is_on = address is not None
            sentence, tone = describe_endpoint(self._core.host.state, is_on=is_on)
        self.endpoint.show_state(sentence, tone, f"{url}/v1", is_on=is_on, is_busy=self._is_turning)
        self.note.set_text(address.note if address is not None else "")
        make = make_python_example if self.language.value == PYTHON else make_example
        text = make(f"{url}/v1", self._core.host.state, needs_key=bool(settings.api_key))
        if text != self.example.text():
            self.example.setText(text)

    def _show_start_error(self) -> None:
        """Says once why the start with the window failed, which nobody was there to see."""
        error = self._core.server.start_error
        if not self._is_turning and error is not self._seen_error:
            self._seen_error = error
            if error is not None:
                self.error_card.show_error(error)

    def _copy_example(self) -> None:
        QGuiApplication.clipboard().setText(self.example.text())
        if (toast := find_toast(self)) is not None:
            toast.show_message("The example is in the clipboard.")

    def _cancel(self, request_id: str) -> None:
        self._core.server.board.cancel(request_id)
        self.refresh()

    def arrange(self) -> None:
        self.endpoint.apply_scale(ThemeController.current().scale)
        for row in self.endpoint.rows:
            row.set_wide(self.is_at_least(ROWS_WIDE_FROM))
        self.requests.set_wide(self.is_at_least(WIDE_FROM))


def describe_endpoint(host: HostState, *, is_on: bool) -> tuple[str, str]:
    """The state of the endpoint in a sentence, and its tone."""
    if not is_on:
        return "Off. No other program can use the model.", "soft"
    title = host.model.title if host.model is not None else ""
    match host.status:
        case HostStatus.READY:
            return f"On. {title} answers.", "good"
        case HostStatus.LOADING:
            return f"On. Requests get status 503 until {title} is loaded.", "caution"
        case _:
            return "On. No model is loaded; requests get status 503 until one is.", "caution"


def make_example(base_url: str, host: HostState, *, needs_key: bool) -> str:
    """A first request for the terminal; a key stays out of it, for examples are passed on."""
    # Without a name the loaded model is meant, whichever that will be.
    name = _loaded_name(host)
    model = f'"model": "{name}", ' if name else ""
    lines = [
        f"curl {base_url}/chat/completions",
        "-H 'Content-Type: application/json'",
        *([f'-H "Authorization: Bearer ${KEY_VARIABLE}"'] if needs_key else []),
        f"""-d '{{{model}"messages": [{{"role": "user", "content": "Hello"}}]}}'""",
    ]
    return " \\\n  ".join(lines)


def make_python_example(base_url: str, host: HostState, *, needs_key: bool) -> str:
    """The same request through OpenAI's package, which insists on a key and on a model."""
    name = _loaded_name(host)
    key = f'os.environ["{KEY_VARIABLE}"]' if needs_key else '"none"'
    return "\n".join(
        [
            *(["import os", ""] if needs_key else []),
            "from openai import OpenAI",
            "",
            f'client = OpenAI(base_url="{base_url}", api_key={key})',
            "answer = client.chat.completions.create(",
            f'    model="{name}",' if name else "    model=client.models.list().data[0].id,",
            '    messages=[{"role": "user", "content": "Hello"}],',
            ")",
            "print(answer.choices[0].message.content)",
        ]
    )


def _loaded_name(host: HostState) -> str:
    """Of the model that answers; empty while none does."""
    is_ready = host.status is HostStatus.READY and host.model is not None
    return host.model.name if is_ready and host.model is not None else ""
