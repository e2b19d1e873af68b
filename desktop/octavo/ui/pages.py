"""The pages of the window: their keys, names, icons and shortcuts, and how each is made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from PySide6.QtWidgets import QWidget

from octavo.core import Core
from octavo.hub.library import LibraryModel
from octavo.ui.sidebar import SidebarEntry

CHAT = "chat"
MODELS = "models"
QUANTIZE = "quantize"
MONITOR = "monitor"
SERVER = "server"
SETTINGS = "settings"

ENTRIES = (
    SidebarEntry(CHAT, "Chat", "message-square", ("Ctrl+1",)),
    SidebarEntry(MODELS, "Models", "boxes", ("Ctrl+2",)),
    SidebarEntry(QUANTIZE, "Quantise", "shrink", ("Ctrl+3",)),
    SidebarEntry(MONITOR, "Monitor", "activity", ("Ctrl+4",)),
    SidebarEntry(SERVER, "Server", "server", ("Ctrl+5",)),
    SidebarEntry(SETTINGS, "Settings", "settings", ("Ctrl+6", "Ctrl+,")),
)


@dataclass(frozen=True, slots=True)
class PageLinks:
    """What pages ask of each other, by way of the window."""

    chat_with: Callable[[LibraryModel], None]
    show_page: Callable[[str], None]


def make_page(key: str, core: Core, links: PageLinks) -> QWidget:
    """Makes any page but the chat. Their modules are loaded here: the first paint comes sooner."""
    return _FACTORIES[key](core, links)


def _make_models_page(core: Core, links: PageLinks) -> QWidget:
    from octavo.ui.models.models_page import ModelsPage

    page = ModelsPage(core)
    page.chat_asked.connect(links.chat_with)
    page.settings_asked.connect(lambda: links.show_page(SETTINGS))
    return page


def _make_quantize_page(core: Core, links: PageLinks) -> QWidget:
    from octavo.ui.quantize.quantize_page import QuantizePage

    page = QuantizePage(core)
    page.chat_asked.connect(links.chat_with)
    page.models_asked.connect(lambda: links.show_page(MODELS))
    return page


def _make_monitor_page(core: Core, _links: PageLinks) -> QWidget:
    from octavo.ui.monitor.monitor_page import MonitorPage

    return MonitorPage(core)


def _make_server_page(core: Core, _links: PageLinks) -> QWidget:
    from octavo.ui.server.server_page import ServerPage

    return ServerPage(core)


def _make_settings_page(core: Core, _links: PageLinks) -> QWidget:
    from octavo.ui.settings.settings_page import SettingsPage

    return SettingsPage(core)


_FACTORIES: Mapping[str, Callable[[Core, PageLinks], QWidget]] = MappingProxyType(
    {
        MODELS: _make_models_page,
        QUANTIZE: _make_quantize_page,
        MONITOR: _make_monitor_page,
        SERVER: _make_server_page,
        SETTINGS: _make_settings_page,
    }
)
