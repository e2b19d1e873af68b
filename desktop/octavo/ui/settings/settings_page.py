"""The settings page: every change is saved at once, and what cannot be saved says so here."""

import asyncio
from collections.abc import Callable

from PySide6.QtGui import QHideEvent, QShowEvent
from PySide6.QtWidgets import QWidget

from octavo.core import Core
from octavo.engine.device import detect_devices
from octavo.errors import InvalidSettingsError, OctavoError
from octavo.settings import Settings
from octavo.ui.settings.groups import AppearanceGroup, ChatGroup, EngineGroup
from octavo.ui.settings.hub_group import HubGroup
from octavo.ui.settings.storage_group import AboutGroup, StorageGroup
from octavo.ui.tasks import spawn
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import SPACE_WITHIN
from octavo.ui.widgets.cards import ErrorCard
from octavo.ui.widgets.dialogs import confirm
from octavo.ui.widgets.labels import label
from octavo.ui.widgets.page import ScrolledPage
from octavo.ui.widgets.toast import find_toast

WIDE_FROM = 500
MAX_WIDTH = 880


class SettingsPage(ScrolledPage):
    """Shows `Settings` and writes what the person changes."""

    def __init__(self, core: Core, parent: QWidget | None = None) -> None:
        super().__init__(MAX_WIDTH, parent)
        self._core = core
        self._store = core.settings
        self._knows_devices = False
        self.error_card = ErrorCard("Reset the settings")
        self.error_card.retry.clicked.connect(lambda: spawn(self._reset(), self.show_error))
        self.appearance = AppearanceGroup(self.save)
        self.storage = StorageGroup(self.save, core)
        self.hub = HubGroup(core, self.save)
        self.chat = ChatGroup(self.save)
        self.engine = EngineGroup(self.save)
        self._about = AboutGroup(core.paths.log_file)
        self._groups = (
            self.appearance,
            self.storage,
            self.hub,
            self.chat,
            self.engine,
            self._about,
        )
        self._build()
        self._show(self._store.value)
        disconnect = self._store.changed.connect(self._show)
        self.destroyed.connect(lambda _=None: disconnect())

    def save(self, change: Callable[[Settings], Settings]) -> None:
        """Applies a change and writes it; what stands in the way is shown on the page."""
        try:
            self._store.save(change(self._store.value))
        except OctavoError as error:
            self.show_error(error)
            self._show(self._store.value)
        else:
            self.error_card.clear()

    def show_error(self, error: OctavoError) -> None:
        """Shows what is wrong with the settings or their file."""
        self.error_card.show_error(error)
        self.error_card.retry.setVisible(isinstance(error, InvalidSettingsError))
        self.scroll_area.ensureVisible(0, 0)

    def arrange(self) -> None:
        scale = ThemeController.current().scale
        is_wide = self.is_at_least(WIDE_FROM)
        self.chat.apply_scale(scale)
        self.engine.apply_scale(scale)
        for group in self._groups:
            for row in group.rows:
                row.set_wide(is_wide)

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        # Drives come and go, and another Octavo may have changed the token.
        self.storage.show_folders()
        spawn(self.storage.show_kept(), self.show_error)
        spawn(self.hub.show_place(), self.hub.show_error)
        if not self._knows_devices:
            self._knows_devices = True
            spawn(self._find_devices(), self.show_error)

    def hideEvent(self, event: QHideEvent) -> None:
        self.chat.save_prompt()
        super().hideEvent(event)

    def _build(self) -> None:
        self.column.addWidget(label("Settings", "title"))
        self.column.addWidget(self.error_card)
        self.column.addSpacing(SPACE_WITHIN)
        for group in self._groups:
            self.column.addWidget(group)
        self.column.addStretch(1)

    def _show(self, settings: Settings) -> None:
        for group in (self.appearance, self.storage, self.hub, self.chat, self.engine):
            group.show_settings(settings)

    async def _find_devices(self) -> None:
        self.engine.show_devices(await asyncio.to_thread(detect_devices))
        self.engine.show_settings(self._store.value)

    async def _reset(self) -> None:
        agreed = await confirm(
            self,
            "Reset the settings?",
            "Everything on this page goes back to its default. The file as it is now is kept"
            " beside the new one.",
            "Reset",
        )
        if not agreed:
            return
        # A few hundred bytes; on a worker the settings' event would come from the wrong thread.
        backup = self._store.reset()
        self.error_card.clear()
        if backup is not None and (toast := find_toast(self)) is not None:
            toast.show_message(f"The old settings are in {backup}.")
