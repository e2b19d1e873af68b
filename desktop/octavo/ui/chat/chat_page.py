"""`ChatPage`: a conversation with the loaded model; connects its parts and shows what they say."""

import asyncio
import time

from PySide6.QtCore import Qt, QTimer, QUrl, Signal
from PySide6.QtGui import (
    QDesktopServices,
    QHideEvent,
    QKeyEvent,
    QKeySequence,
    QResizeEvent,
    QShortcut,
    QShowEvent,
)
from PySide6.QtWidgets import QStackedWidget, QVBoxLayout, QWidget

from octavo.chats.message import Message
from octavo.core import Core
from octavo.errors import OctavoError
from octavo.host import HostState, HostStatus
from octavo.hub.library import LibraryModel
from octavo.ui.chat.chat_style import OVERHANG, ChatStyle
from octavo.ui.chat.chat_turns import ChatTurns
from octavo.ui.chat.composer import Composer
from octavo.ui.chat.context_gauge import count_context
from octavo.ui.chat.conversation_list import NEW_CONVERSATION
from octavo.ui.chat.model_picker import ModelPicker
from octavo.ui.chat.transcript_model import TranscriptModel
from octavo.ui.chat.transcript_view import TranscriptView
from octavo.ui.chat.welcome import Welcome
from octavo.ui.shortcuts import Shortcut
from octavo.ui.tasks import spawn
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import SPACE_GROUP, SPACE_WITHIN
from octavo.ui.widgets.buttons import set_property
from octavo.ui.widgets.cards import ErrorCard
from octavo.ui.widgets.dialogs import confirm
from octavo.ui.widgets.labels import hairline

COUNT_DELAY_MS = 250
COUNT_COST_SHARE = 0.05
"""Counting a conversation that is so long that it takes more of the time than this waits longer."""
OPENED_SCHEMES = ("http", "https", "mailto")
REASONS = {
    HostStatus.EMPTY: "No model is loaded. Choose one above.",
    HostStatus.LOADING: "The model is still loading.",
    HostStatus.FAILED: "The model could not be loaded. See above.",
    HostStatus.UNLOADING: "The model is being unloaded.",
    HostStatus.READY: "",
}
SHORTCUTS = (
    Shortcut("Send the message", ("Enter",)),
    Shortcut("Begin a new line", ("Shift+Enter",)),
    Shortcut("Stop the answer", ("Esc",)),
    Shortcut("Choose the model", ("Ctrl+M",)),
    Shortcut("Go from message to message", ("Alt+Up", "Alt+Down"), shown=2),
    Shortcut("Copy the selection, or the message", ("Ctrl+C",)),
)


class ChatPage(QWidget):
    """Shows one conversation at a time; answers of others go on being written meanwhile."""

    models_asked = Signal()
    """The list of models was not enough."""

    def __init__(self, core: Core, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._core = core
        self._conversation_id = NEW_CONVERSATION
        self._drafts: dict[int, str] = {}
        """Of the conversations that are not shown."""
        self._sent: dict[int, str] = {}
        """Texts of turns that are not saved yet, by conversation."""
        self._is_counting = False
        self._shown_host: tuple[HostStatus, LibraryModel | None] | None = None
        self.setProperty("surface", "paper")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self.turns = ChatTurns(core, self)
        self.picker = ModelPicker(core)
        self.picker.models_asked.connect(self.models_asked)
        self.transcript = TranscriptModel(self)
        self.view = TranscriptView(self.transcript, _current_style())
        self.welcome = Welcome(core)
        self.error_card = ErrorCard()
        self.composer = Composer()
        self._stack = QStackedWidget()
        self._stack.addWidget(self.welcome)
        self._stack.addWidget(self.view)
        self._line = hairline()
        self._foot = QWidget()
        foot = QVBoxLayout(self._foot)
        foot.setContentsMargins(0, SPACE_WITHIN, 0, SPACE_GROUP)
        foot.setSpacing(SPACE_WITHIN)
        foot.addWidget(self.error_card)
        foot.addWidget(self.composer)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, SPACE_WITHIN, 0, 0)
        column.setSpacing(0)
        column.addWidget(self.picker)
        column.addWidget(self._line)
        column.addWidget(self._stack, 1)
        column.addWidget(self._foot)
        self.picker.setContentsMargins(SPACE_WITHIN, 0, SPACE_WITHIN, SPACE_WITHIN)
        self._count_timer = QTimer(self, singleShot=True, interval=COUNT_DELAY_MS)
        self._count_timer.timeout.connect(self._count_now)
        self._connect()
        self._show_host(core.host.state)
        QTimer.singleShot(0, self, self.picker.refresh)
        QShortcut(QKeySequence("Ctrl+M"), self).activated.connect(self.picker.open_menu)
        self.setFocusProxy(self.composer.editor)

    @property
    def conversation_id(self) -> int:
        """The conversation that is shown; NEW_CONVERSATION before its first message."""
        return self._conversation_id

    def show_conversation(self, conversation_id: int) -> None:
        """Shows a conversation with the draft that was being written in it."""
        self._drafts[self._conversation_id] = self.composer.text
        self._conversation_id = conversation_id
        self.error_card.clear()
        self._show_messages()
        self.composer.set_text(self._drafts.pop(conversation_id, ""))
        self.composer.set_busy(self.turns.is_busy(conversation_id))
        self._count_soon()
        self.focus_composer()

    def focus_composer(self) -> None:
        self.composer.editor.setFocus()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        step = {Qt.Key.Key_Up: -1, Qt.Key.Key_Down: 1}.get(Qt.Key(event.key()), 0)
        is_alt = bool(event.modifiers() & Qt.KeyboardModifier.AltModifier)
        if event.key() == Qt.Key.Key_Escape and self.composer.is_busy:
            self._stop()
        elif step and is_alt and self._stack.currentWidget() is self.view:
            # From the composer: the messages take the keyboard.
            self.view.setFocus()
            self.view.move_current(step)
        else:
            super().keyPressEvent(event)

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        self._count_timer.start()

    def hideEvent(self, event: QHideEvent) -> None:
        """Nobody sees the gauge of a page that is not shown."""
        super().hideEvent(event)
        self._count_timer.stop()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._arrange()

    def _connect(self) -> None:
        core = self._core
        self.composer.submitted.connect(self._send)
        self.composer.stop_requested.connect(self._stop)
        self.composer.text_changed.connect(self._count_soon)
        self.view.regenerate_requested.connect(self._regenerate)
        self.view.link_activated.connect(lambda url: spawn(self._open_link(url)))
        bar = self.view.verticalScrollBar()
        bar.rangeChanged.connect(self._arrange)
        bar.valueChanged.connect(self._arrange)
        self._stack.currentChanged.connect(self._arrange)
        self.welcome.example_chosen.connect(self._send)
        self.welcome.load_requested.connect(self.picker.choose)
        self.picker.models_changed.connect(self._show_welcome)
        self.turns.began.connect(self._show_begun)
        self.turns.updated.connect(self._show_update)
        self.turns.ended.connect(self._show_ended)
        self.turns.failed.connect(self._show_failure)
        ThemeController.current().changed.connect(self._apply_theme)
        disconnects = (
            core.host.state_changed.connect(self._show_host),
            core.chats.changed.connect(self._stop_if_deleted),
        )
        self.destroyed.connect(lambda _=None: [disconnect() for disconnect in disconnects])

    def _send(self, text: str) -> None:
        """The text stays in the composer until the turn has been saved with it."""
        if self.turns.is_busy(self._conversation_id):
            return
        self.error_card.clear()
        try:
            self._save_model()
        except OctavoError as error:
            self.error_card.show_error(error)
            return
        self._sent[self._conversation_id] = text
        self.composer.set_busy(True)
        self.turns.send(self._conversation_id, text)

    def _save_model(self) -> None:
        """Writes down which model answers; makes the conversation if this is its first message."""
        chats, model = self._core.chats, self._core.host.state.model
        name = "" if model is None else model.name
        if self._conversation_id == NEW_CONVERSATION:
            system_prompt = self._core.settings.value.chat.system_prompt
            conversation = chats.create_conversation(model=name, system_prompt=system_prompt)
            self._conversation_id = conversation.id
        else:
            chats.update_conversation(self._conversation_id, model=name)

    def _regenerate(self) -> None:
        if self.turns.is_busy(self._conversation_id):
            return
        self.error_card.clear()
        try:
            self._save_model()
        except OctavoError as error:
            self.error_card.show_error(error)
            return
        self.composer.set_busy(True)
        self.turns.regenerate(self._conversation_id)

    def _stop(self) -> None:
        self.turns.stop(self._conversation_id)

    def _show_begun(self, conversation_id: int) -> None:
        sent = self._sent.pop(conversation_id, None)
        if conversation_id != self._conversation_id:
            if self._drafts.get(conversation_id) == sent:
                self._drafts.pop(conversation_id, None)
            return
        # What was written while the turn was being saved is the next message's.
        if self.composer.text == sent:
            self.composer.clear()
        self._show_messages()
        self._count_now()

    def _show_update(self, conversation_id: int, message: Message) -> None:
        if conversation_id == self._conversation_id:
            self.transcript.show_snapshot(message)
            if not self._count_timer.isActive():
                self._count_soon()

    def _show_ended(self, conversation_id: int) -> None:
        refused = self._sent.pop(conversation_id, None)
        if conversation_id != self._conversation_id:
            if refused is not None:
                self._drafts.setdefault(conversation_id, refused)
            return
        self.composer.set_busy(False)
        if refused is not None and not self.composer.text:
            self.composer.set_text(refused)
        messages = self._read_messages()
        if messages and len(self.transcript) == len(messages):
            self.transcript.show_snapshot(messages[-1])
        else:
            self.transcript.set_messages(messages)
        self._count_soon()

    def _show_failure(self, conversation_id: int, error: OctavoError) -> None:
        if conversation_id == self._conversation_id:
            self.error_card.show_error(error)

    def _show_messages(self) -> None:
        messages = self._read_messages()
        latest = self.turns.latest(self._conversation_id)
        if latest is not None and messages and messages[-1].id == latest.id:
            messages[-1] = latest
        self.transcript.set_messages(messages)
        self._stack.setCurrentWidget(self.view if messages else self.welcome)

    def _read_messages(self) -> list[Message]:
        if self._conversation_id == NEW_CONVERSATION:
            return []
        try:
            return self._core.chats.messages(self._conversation_id)
        except OctavoError as error:
            self.error_card.show_error(error)
            return []

    def _show_host(self, state: HostState) -> None:
        """A load tells of its progress many times a second, which changes nothing here."""
        if (state.status, state.model) == self._shown_host:
            return
        self._shown_host = (state.status, state.model)
        self.composer.set_unavailable(REASONS[state.status])
        self._show_welcome()
        self._count_soon()

    def _show_welcome(self) -> None:
        last_model = self._core.settings.value.chat.last_model
        self.welcome.show_state(self._core.host.state, self.picker.models, last_model)

    def _stop_if_deleted(self, conversation_id: int) -> None:
        """An answer to a deleted conversation is not worth the machine's time."""
        if not self.turns.is_busy(conversation_id):
            return
        try:
            self._core.chats.conversation(conversation_id)
        except OctavoError:
            self.turns.stop(conversation_id)

    def _count_soon(self) -> None:
        if self.isVisible():
            self._count_timer.start()

    def _count_now(self) -> None:
        """One count at a time: text that grows meanwhile is counted after it."""
        if self._is_counting:
            self._count_soon()
        else:
            self._is_counting = True
            spawn(self._count_tokens())

    async def _count_tokens(self) -> None:
        host, conversation_id = self._core.host, self._conversation_id
        limit = host.context_limit_tokens
        began = time.perf_counter()
        try:
            messages = [self.transcript[index] for index in range(len(self.transcript))]
            draft = self.composer.text
            prompt = self._system_prompt()
            used = 0
            if limit:
                used = await asyncio.to_thread(
                    count_context, messages, prompt, draft, host.count_tokens
                )
        except OctavoError:
            # A model without a chat template cannot chat; the turn will say so.
            used, limit = 0, 0
        finally:
            self._is_counting = False
        cost_ms = (time.perf_counter() - began) * 1000
        self._count_timer.setInterval(max(COUNT_DELAY_MS, int(cost_ms / COUNT_COST_SHARE)))
        if conversation_id == self._conversation_id:
            self.composer.gauge.set_counts(used, limit)

    def _system_prompt(self) -> str:
        if self._conversation_id == NEW_CONVERSATION:
            return self._core.settings.value.chat.system_prompt
        return self._core.chats.conversation(self._conversation_id).system_prompt

    async def _open_link(self, url: QUrl) -> None:
        """A model may write any address: it is shown in full and opened only on a yes."""
        if url.scheme() not in OPENED_SCHEMES:
            self.error_card.show_error(
                OctavoError(
                    f"The address {url.toDisplayString()} is not opened.",
                    hint="Only web and mail addresses are.",
                )
            )
        elif await confirm(self, "Open this address?", url.toDisplayString(), "Open"):
            QDesktopServices.openUrl(url)

    def _apply_theme(self) -> None:
        self.view.set_style(_current_style())
        self._arrange()

    def _arrange(self) -> None:
        """The composer stands under the column of text, as wide as a person's card.

        A hairline closes the head where text has been scrolled under it.
        """
        bar = self.view.verticalScrollBar()
        is_chat = self._stack.currentWidget() is self.view
        set_property(self._line, "surface", "rule" if is_chat and bar.value() else "")
        # Not its width: a bar that is about to be shown has not been given one yet.
        free = self.width() - (bar.sizeHint().width() if is_chat and bar.maximum() else 0)
        width = min(_current_style().reading_width + 2 * OVERHANG, free - 2 * SPACE_WITHIN)
        left = max(SPACE_WITHIN, (free - width) // 2)
        layout = self._foot.layout()
        assert layout is not None
        layout.setContentsMargins(left, SPACE_WITHIN, self.width() - left - width, SPACE_GROUP)


def _current_style() -> ChatStyle:
    controller = ThemeController.current()
    return ChatStyle(controller.theme, controller.scale)
