"""The switch of the endpoint with what belongs to it: address, port and API key."""

import secrets

from PySide6.QtCore import QSignalBlocker, Signal
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QHBoxLayout, QLineEdit, QWidget

from octavo.settings import PORT_RANGE, Server
from octavo.ui.settings.rows import SettingGroup, SettingRow
from octavo.ui.tokens import SPACE_WITHIN, scaled
from octavo.ui.widgets.buttons import Button, IconButton
from octavo.ui.widgets.inputs import NumberBox
from octavo.ui.widgets.labels import label, set_tone
from octavo.ui.widgets.switch import Switch
from octavo.ui.widgets.toast import find_toast

KEY_BYTES = 24
FIELD_WIDTH = 152


class EndpointGroup(SettingGroup):
    """Asks through its signals; the page saves, starts and stops."""

    switched = Signal(bool)
    port_chosen = Signal(int)
    key_chosen = Signal(str)
    """Empty: no key."""
    origins_chosen = Signal(object)
    """A tuple of texts, as the person wrote them."""

    def __init__(self) -> None:
        super().__init__(
            "Endpoint", "What stands below the address can be changed while it is off."
        )
        self._url = ""
        self.switch = Switch("Let other programs use the model")
        self.switch.clicked.connect(self.switched)
        self._switch_row = SettingRow("Let other programs use the model", "Off.", self.switch)
        self.add_row(self._switch_row)
        self.address = label("", "figure")
        self.copy_address = IconButton("copy", "Copy the address")
        self.copy_address.clicked.connect(lambda: self._copy(self._url, "The address"))
        address_box = QWidget()
        address_row = QHBoxLayout(address_box)
        address_row.setContentsMargins(0, 0, 0, 0)
        address_row.setSpacing(SPACE_WITHIN)
        address_row.addWidget(self.address)
        address_row.addWidget(self.copy_address)
        address_row.addStretch(1)
        sentence = "What programs take as base URL of the OpenAI API."
        self.add_row(SettingRow("Address", sentence, address_box))
        self.port = NumberBox("Port", *PORT_RANGE)
        self.port.setGroupSeparatorShown(False)
        self.port.valueChanged.connect(self.port_chosen)
        sentence = "The next free one is taken where another program holds it."
        self._port_row = SettingRow("Port", sentence, self.port)
        self.add_row(self._port_row)
        self.key = QLineEdit()
        self.key.setAccessibleName("API key")
        self.key.setEchoMode(QLineEdit.EchoMode.Password)
        self.key.setPlaceholderText("No key")
        self.key.editingFinished.connect(self._choose_key)
        self.generate = Button("Generate")
        self.generate.setAccessibleName("Generate an API key")
        self.generate.clicked.connect(self._generate)
        self.copy_key = IconButton("copy", "Copy the API key")
        self.copy_key.clicked.connect(lambda: self._copy(self.key.text(), "The API key"))
        self.clear = Button("Clear")
        self.clear.setAccessibleName("Clear the API key")
        self.clear.clicked.connect(lambda: self._set_key(""))
        box = _side_by_side(self.key, self.copy_key, self.generate, self.clear)
        sentence = "What programs must send; without one every program of this machine may ask."
        self._key_row = SettingRow("API key", sentence, box, is_below=True)
        self.add_row(self._key_row)
        self._saved_key = ""
        self.origins = QLineEdit()
        self.origins.setAccessibleName("Allowed web pages")
        self.origins.setPlaceholderText("https://app.example.org")
        self.origins.editingFinished.connect(self._choose_origins)
        self._saved_origins: tuple[str, ...] = ()
        sentence = (
            "Pages that may use the model from a browser, with commas between them. All others are"
            " refused; programs need no entry."
        )
        self.add_row(SettingRow("Allowed web pages", sentence, self.origins, is_below=True))

    @property
    def state_text(self) -> str:
        return self._switch_row.sentence.text()

    def show_settings(self, server: Server) -> None:
        with QSignalBlocker(self.port):
            self.port.setValue(server.port)
        self._saved_key = server.api_key
        self.key.setText(server.api_key)
        self._saved_origins = server.allowed_origins
        self.origins.setText(", ".join(server.allowed_origins))
        self.copy_key.setVisible(bool(server.api_key))
        self.clear.setVisible(bool(server.api_key))
        self.generate.setVisible(not server.api_key)

    def show_state(self, sentence: str, tone: str, url: str, *, is_on: bool, is_busy: bool) -> None:
        """Shows how the endpoint stands.

        Args:
            sentence: the state in words.
            tone: of the sentence, as `set_tone`.
            url: with `/v1`; where it listens, or would.
            is_on: port and key are then as it was started.
            is_busy: it is being switched.
        """
        self._switch_row.sentence.setText(sentence)
        set_tone(self._switch_row.sentence, tone)
        self.switch.setChecked(is_on)
        self.switch.setEnabled(not is_busy)
        self._url = url
        self.address.setText(url)
        set_tone(self.address, "" if is_on else "soft")
        is_editable = not is_on and not is_busy
        why = "" if is_editable else "Switch the endpoint off to change it."
        for control in (self.port, self.key, self.generate, self.clear, self.origins):
            control.setEnabled(is_editable)
            control.setToolTip(why)

    def apply_scale(self, scale: float) -> None:
        self.port.setFixedWidth(scaled(FIELD_WIDTH, scale))

    def _choose_key(self) -> None:
        key = self.key.text().strip()
        if key != self._saved_key:
            self.key_chosen.emit(key)

    def _choose_origins(self) -> None:
        entries = self.origins.text().replace(",", " ").split()
        origins = tuple(dict.fromkeys(entry.rstrip("/") for entry in entries))
        if origins != self._saved_origins:
            self.origins_chosen.emit(origins)

    def _generate(self) -> None:
        self._set_key(f"octavo-{secrets.token_urlsafe(KEY_BYTES)}")

    def _set_key(self, key: str) -> None:
        # The button that was pressed goes away, and the keyboard must not go with it.
        self.key.setFocus()
        self.key_chosen.emit(key)

    def _copy(self, text: str, what: str) -> None:
        QGuiApplication.clipboard().setText(text)
        if (toast := find_toast(self)) is not None:
            toast.show_message(f"{what} is in the clipboard.")


def _side_by_side(field: QWidget, *buttons: QWidget) -> QWidget:
    box = QWidget()
    row = QHBoxLayout(box)
    row.setContentsMargins(0, 0, 0, 0)
    row.setSpacing(SPACE_WITHIN)
    row.addWidget(field, 1)
    for button in buttons:
        row.addWidget(button)
    return box
