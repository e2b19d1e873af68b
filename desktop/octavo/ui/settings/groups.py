"""The groups of the settings page that need nothing but the settings: look, chats, engine."""

import dataclasses
from collections.abc import Callable, Sequence

from PySide6.QtCore import QSignalBlocker, Qt, QTimer
from PySide6.QtWidgets import QHBoxLayout, QPlainTextEdit, QSlider, QWidget

from octavo.engine.device import Device
from octavo.settings import DTYPES, KV_DTYPES, Settings
from octavo.ui.settings.rows import SettingGroup, SettingRow
from octavo.ui.tokens import SPACE_WITHIN, scaled
from octavo.ui.widgets.buttons import SegmentedChoice
from octavo.ui.widgets.inputs import ChoiceBox, DecimalBox, NumberBox
from octavo.ui.widgets.labels import label
from octavo.ui.widgets.switch import Switch

SAVE_AFTER_MS = 400
"""Text is saved when the typing pauses."""
SCALE_PERCENT = (80, 160)
NO_LIMIT = 0
MAX_ANSWER_TOKENS = 1_000_000
CONTROL_WIDTH = 152

Save = Callable[[Callable[[Settings], Settings]], None]
"""Takes the change as a function from the settings as they are to the settings as they shall be."""


class AppearanceGroup(SettingGroup):
    """Theme and font size; both are seen at once."""

    def __init__(self, save: Save) -> None:
        super().__init__("Appearance")
        self._save = save
        self.theme = SegmentedChoice(
            "Theme", [("auto", "Auto"), ("light", "Light"), ("dark", "Dark")]
        )
        self.theme.chosen.connect(lambda value: self._change(theme=value))
        self.add_row(SettingRow("Theme", "Auto follows the desktop.", self.theme))
        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.slider.setAccessibleName("Font size in percent")
        self.slider.setRange(*SCALE_PERCENT)
        self.slider.setSingleStep(5)
        self.slider.setPageStep(10)
        self.slider.setFixedWidth(CONTROL_WIDTH)
        self._percent = label("", "figure")
        self._percent.setMinimumWidth(48)
        self._percent.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        self.slider.valueChanged.connect(self._preview)
        self.slider.sliderReleased.connect(self._save_scale)
        control = QWidget()
        row = QHBoxLayout(control)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(SPACE_WITHIN)
        row.addWidget(self.slider)
        row.addWidget(self._percent)
        row.addStretch(1)
        self.add_row(SettingRow("Font size", "Of the whole window.", control))
        self.strip = Switch("Monitor strip")
        self.strip.clicked.connect(lambda is_on: self._change(shows_monitor_strip=is_on))
        sentence = "Memory, load and rate at the lower edge of every page."
        self.add_row(SettingRow("Monitor strip", sentence, self.strip))

    def show_settings(self, settings: Settings) -> None:
        self.theme.set_value(settings.appearance.theme)
        percent = round(settings.appearance.font_scale * 100)
        with QSignalBlocker(self.slider):
            self.slider.setValue(percent)
        self._percent.setText(f"{percent} %")
        self.strip.setChecked(settings.appearance.shows_monitor_strip)

    def _preview(self, percent: int) -> None:
        self._percent.setText(f"{percent} %")
        # While it is dragged a new size would move the slider away from under the pointer.
        if not self.slider.isSliderDown():
            self._save_scale()

    def _save_scale(self) -> None:
        self._change(font_scale=self.slider.value() / 100)

    def _change(self, **fields: str | float) -> None:
        self._save(
            lambda now: dataclasses.replace(
                now,
                appearance=dataclasses.replace(now.appearance, **fields),  # type: ignore[arg-type]
            )
        )


class ChatGroup(SettingGroup):
    """What a new conversation begins with."""

    def __init__(self, save: Save) -> None:
        super().__init__("New conversations")
        self._save = save
        self._pause = QTimer(self)
        self._pause.setSingleShot(True)
        self._pause.setInterval(SAVE_AFTER_MS)
        self._pause.timeout.connect(self._save_prompt)
        self.system_prompt = QPlainTextEdit()
        self.system_prompt.setAccessibleName("System prompt")
        self.system_prompt.setPlaceholderText("For example: Answer in one short paragraph.")
        self.system_prompt.setTabChangesFocus(True)
        self.system_prompt.textChanged.connect(self._pause.start)
        self.add_row(
            SettingRow(
                "System prompt",
                "Stands before every new conversation.",
                self.system_prompt,
                is_below=True,
            )
        )
        self.temperature = DecimalBox("Temperature", 0.0, 5.0, 0.1)
        self.temperature.valueChanged.connect(lambda value: self._change(temperature=value))
        self.add_row(
            SettingRow("Temperature", "0 always takes the likeliest token.", self.temperature)
        )
        self.top_p = DecimalBox("Top-p", 0.01, 1.0, 0.05)
        self.top_p.valueChanged.connect(lambda value: self._change(top_p=value))
        sentence = "Draws from the likeliest tokens that together reach this probability."
        self.add_row(SettingRow("Top-p", sentence, self.top_p))
        self.max_tokens = NumberBox("Longest answer in tokens", NO_LIMIT, MAX_ANSWER_TOKENS)
        self.max_tokens.setSpecialValueText("No limit")
        self.max_tokens.setSuffix(" tokens")
        self.max_tokens.setSingleStep(64)
        self.max_tokens.valueChanged.connect(lambda value: self._change(max_tokens=value or None))
        self.add_row(
            SettingRow("Longest answer", "0 leaves it to the model's context.", self.max_tokens)
        )

    def show_settings(self, settings: Settings) -> None:
        chat = settings.chat
        if self.system_prompt.toPlainText() != chat.system_prompt and not self._pause.isActive():
            with QSignalBlocker(self.system_prompt):
                self.system_prompt.setPlainText(chat.system_prompt)
        with QSignalBlocker(self.temperature):
            self.temperature.setValue(chat.temperature)
        with QSignalBlocker(self.top_p):
            self.top_p.setValue(chat.top_p)
        with QSignalBlocker(self.max_tokens):
            self.max_tokens.setValue(chat.max_tokens or NO_LIMIT)

    def apply_scale(self, scale: float) -> None:
        self.system_prompt.setFixedHeight(scaled(92, scale))
        for box in (self.temperature, self.top_p, self.max_tokens):
            box.setFixedWidth(scaled(CONTROL_WIDTH, scale))

    def save_prompt(self) -> None:
        """Saves a system prompt that waits for its pause, as when the page is left."""
        if self._pause.isActive():
            self._pause.stop()
            self._save_prompt()

    def _save_prompt(self) -> None:
        self._change(system_prompt=self.system_prompt.toPlainText())

    def _change(self, **fields: str | float | None) -> None:
        self._save(
            lambda now: dataclasses.replace(
                now,
                chat=dataclasses.replace(now.chat, **fields),  # type: ignore[arg-type]
            )
        )


class EngineGroup(SettingGroup):
    """Options of the engine that count from the next load."""

    def __init__(self, save: Save) -> None:
        super().__init__("Engine", "Applies when a model is loaded the next time.")
        self._save = save
        self.device = ChoiceBox("Device", [("auto", "Auto"), ("cpu", "CPU"), ("cuda", "GPU")])
        self.device.chosen.connect(lambda value: self._change(device=value))
        self.add_row(SettingRow("Device", "Auto takes a supported GPU, else the CPU.", self.device))
        names = [(name, "Auto" if name == "auto" else name) for name in DTYPES]
        self.dtype = ChoiceBox("Data type", names)
        self.dtype.chosen.connect(lambda value: self._change(dtype=value))
        sentence = "float32 is exact; the 16-bit types take half the memory."
        self.add_row(SettingRow("Data type", sentence, self.dtype))
        names = [(name, "Auto" if name == "auto" else name) for name in KV_DTYPES]
        self.kv_dtype = ChoiceBox("Conversation memory", names)
        self.kv_dtype.chosen.connect(lambda value: self._change(kv_dtype=value))
        sentence = "Type of the KV cache. Auto is the data type; int8 holds longer conversations."
        self.add_row(SettingRow("Conversation memory", sentence, self.kv_dtype))
        self.max_num_seqs = NumberBox("Answers at the same time", 1, 1024)
        self.max_num_seqs.valueChanged.connect(lambda value: self._change(max_num_seqs=value))
        sentence = "Answers share the steps of the model and the memory of its cache."
        self.add_row(SettingRow("Answers at the same time", sentence, self.max_num_seqs))

    def show_settings(self, settings: Settings) -> None:
        self.device.set_value(settings.engine.device)
        self.dtype.set_value(settings.engine.dtype)
        self.kv_dtype.set_value(settings.engine.kv_dtype)
        with QSignalBlocker(self.max_num_seqs):
            self.max_num_seqs.setValue(settings.engine.max_num_seqs)

    def show_devices(self, devices: Sequence[Device]) -> None:
        """Names each GPU where this machine has several."""
        gpus = [device for device in devices if device.kind == "cuda" and device.supported]
        for gpu in gpus if len(gpus) > 1 else []:
            if self.device.findData(gpu.torch_name) < 0:
                self.device.addItem(f"GPU {gpu.index}: {gpu.name}", gpu.torch_name)

    def apply_scale(self, scale: float) -> None:
        for control in (self.device, self.dtype, self.kv_dtype, self.max_num_seqs):
            control.setFixedWidth(scaled(CONTROL_WIDTH, scale))

    def _change(self, **fields: str | int) -> None:
        self._save(
            lambda now: dataclasses.replace(
                now,
                engine=dataclasses.replace(now.engine, **fields),  # type: ignore[arg-type]
            )
        )
