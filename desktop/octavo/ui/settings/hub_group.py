"""The group of the settings page about the model hub: token, address, proxy, offline, a test."""

import asyncio
import dataclasses

from PySide6.QtCore import QSignalBlocker
from PySide6.QtWidgets import QHBoxLayout, QLineEdit, QWidget

from octavo.core import Core
from octavo.errors import OctavoError
from octavo.hub.hub_files import DEFAULT_ENDPOINT
from octavo.hub.token_store import TokenPlace
from octavo.settings import Settings
from octavo.ui.settings.groups import Save
from octavo.ui.settings.rows import SettingGroup, SettingRow
from octavo.ui.tasks import spawn
from octavo.ui.tokens import SPACE_WITHIN
from octavo.ui.widgets.buttons import Button
from octavo.ui.widgets.labels import set_tone
from octavo.ui.widgets.switch import Switch

_PLACES = {
    TokenPlace.NOWHERE: "None is kept. Gated models need one of your account.",
    TokenPlace.ENVIRONMENT: "$HF_TOKEN is set and counts before any that is kept here.",
    TokenPlace.KEYRING: "Kept in the system's keyring.",
    TokenPlace.FILE: "Kept in a file that only you may read: this system offers no keyring.",
}


class HubGroup(SettingGroup):
    """How Octavo reaches the hub. The token is never shown again once it is kept."""

    def __init__(self, core: Core, save: Save) -> None:
        super().__init__("Hugging Face", "Where models are found and downloaded from.")
        self._core = core
        self._save = save
        self.token = _line_edit("Token", "hf_…")
        self.token.setEchoMode(QLineEdit.EchoMode.Password)
        self.token.returnPressed.connect(self._ask_to_keep)
        self.keep = Button("Save")
        self.keep.setAccessibleName("Save the token")
        self.keep.clicked.connect(self._ask_to_keep)
        self.forget = Button("Forget")
        self.forget.setAccessibleName("Forget the token")
        self.forget.clicked.connect(lambda: spawn(self._forget(), self.show_error))
        self.forget.hide()
        line = _side_by_side(self.token, self.keep, self.forget)
        self._token_row = SettingRow("Token", " ", line, is_below=True)
        self.add_row(self._token_row)
        self.endpoint = _line_edit("Endpoint", DEFAULT_ENDPOINT)
        self.endpoint.editingFinished.connect(
            lambda: self._change("endpoint", self.endpoint.text().strip())
        )
        sentence = "A mirror of the hub. Empty: $HF_ENDPOINT, else the hub itself."
        self.add_row(SettingRow("Endpoint", sentence, self.endpoint, is_below=True))
        self.proxy = _line_edit("Proxy", "http://proxy.example.org:8080")
        self.proxy.editingFinished.connect(lambda: self._change("proxy", self.proxy.text().strip()))
        sentence = "Empty: as the environment says."
        self.add_row(SettingRow("Proxy", sentence, self.proxy, is_below=True))
        self.offline = Switch("Offline")
        self.offline.clicked.connect(lambda is_on: self._change("is_offline", is_on))
        sentence = "Nothing is sent to any hub; downloads wait."
        self.add_row(SettingRow("Offline", sentence, self.offline))
        self.test = Button("Test")
        self.test.setAccessibleName("Test the connection to the hub")
        self.test.clicked.connect(lambda: spawn(self._test(), self.show_error))
        self._test_row = SettingRow(
            "Connection", "Asks whether the hub answers, and as whom.", self.test
        )
        self.add_row(self._test_row)

    @property
    def token_sentence(self) -> str:
        return self._token_row.sentence.text()

    @property
    def outcome(self) -> str:
        """What the last test or the last change of the token said."""
        return self._test_row.sentence.text()

    def show_settings(self, settings: Settings) -> None:
        for edit, value in (
            (self.endpoint, settings.hub.endpoint),
            (self.proxy, settings.hub.proxy),
        ):
            # What is being typed is not taken away.
            if not edit.hasFocus():
                with QSignalBlocker(edit):
                    edit.setText(value)
        self.offline.setChecked(settings.hub.is_offline)

    def show_error(self, error: OctavoError) -> None:
        """Shows what stood in the way of a test or of keeping the token."""
        self._say(str(error), "bad")

    async def show_place(self) -> None:
        """Says where the token is kept; the keyring is asked on a worker."""
        place = await asyncio.to_thread(lambda: self._core.tokens.place)
        self._token_row.sentence.setText(_PLACES[place])
        self.forget.setVisible(place in (TokenPlace.KEYRING, TokenPlace.FILE))

    def _ask_to_keep(self) -> None:
        token = self.token.text()
        # Out of the window at once, whatever comes of it.
        self.token.clear()
        spawn(self._keep(token), self.show_error)

    async def _keep(self, token: str) -> None:
        await asyncio.to_thread(self._core.tokens.write, token)
        await self.show_place()
        self._say("The token is kept. Test says whether the hub knows it.", "")

    async def _forget(self) -> None:
        await asyncio.to_thread(self._core.tokens.forget)
        await self.show_place()
        self._say("The token is forgotten here; on the hub's page it can be revoked.", "")

    async def _test(self) -> None:
        self.test.setEnabled(False)
        self._say("Asking the hub…", "")
        try:
            sentence = await asyncio.to_thread(_ask_hub, self._core)
        finally:
            self.test.setEnabled(True)
        self._say(sentence, "good")

    def _say(self, sentence: str, tone: str) -> None:
        self._test_row.sentence.setText(sentence)
        set_tone(self._test_row.sentence, tone)

    def _change(self, name: str, value: str | bool) -> None:
        if getattr(self._core.settings.value.hub, name) == value:
            return

        def change(now: Settings) -> Settings:
            hub = dataclasses.replace(now.hub, **{name: value})  # type: ignore[arg-type]
            return dataclasses.replace(now, hub=hub)

        self._save(change)


def _ask_hub(core: Core) -> str:
    """Whether the hub answers, in a sentence; raises OctavoError. Blocks."""
    hub = core.hub()
    if account := hub.account():
        return f"{hub.endpoint} answers, and knows the token as {account}."
    return f"{hub.endpoint} answers. Without a token, open models can be downloaded."


def _line_edit(name: str, placeholder: str) -> QLineEdit:
    edit = QLineEdit()
    edit.setAccessibleName(name)
    edit.setPlaceholderText(placeholder)
    return edit


def _side_by_side(*widgets: QWidget) -> QWidget:
    box = QWidget()
    row = QHBoxLayout(box)
    row.setContentsMargins(0, 0, 0, 0)
    row.setSpacing(SPACE_WITHIN)
    for widget in widgets:
        row.addWidget(widget)
    return box
