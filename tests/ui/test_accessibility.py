"""Everything that can be reached has a name, and everything that acts can be reached."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QAccessible
from PySide6.QtWidgets import QAbstractButton, QDialog, QWidget

from octavo.ui.models.fit import PlanDialog
from octavo.ui.models.models_page import ModelsPage
from octavo.ui.monitor.monitor_page import MonitorPage
from octavo.ui.server.request_table import RequestTable
from octavo.ui.server.server_page import ServerPage
from octavo.ui.settings.settings_page import SettingsPage
from octavo.ui.shortcuts import Shortcut, ShortcutsDialog
from octavo.ui.sidebar import Sidebar, SidebarEntry
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from octavo.ui.widgets.cards import ErrorCard
from octavo.ui.widgets.dialogs import ConfirmDialog
from octavo.ui.widgets.toast import Toast
from tests.ui.conftest import until
from tests.ui.fakes import MODELS, FakeCore, make_plan, make_record

# A part of its owner, which has the name: the line edit of a spin box, the view port of a list.
INNER_NAMES = ("qt_spinbox_lineedit", "qt_scrollarea_viewport")


def focusable(root: QWidget) -> Iterator[QWidget]:
    """What the Tab key stops at."""
    for widget in [root, *root.findChildren(QWidget)]:
        is_inner = widget.objectName() in INNER_NAMES
        if widget.focusPolicy() & Qt.FocusPolicy.TabFocus and not is_inner:
            yield widget


def nameless(root: QWidget) -> list[str]:
    """Focusable widgets that a screen reader could only call "button"."""
    found = []
    for widget in focusable(root):
        interface = QAccessible.queryAccessibleInterface(widget)
        name = interface.text(QAccessible.Text.Name) if interface is not None else ""
        is_bare = isinstance(widget, QDialog) or type(widget) is QWidget
        if not name and not is_bare and widget.focusProxy() is None:
            found.append(f"{type(widget).__name__} in {type(widget.parent()).__name__}")
    return found


def unreachable(root: QWidget) -> list[str]:
    """Buttons that the keyboard cannot reach; within a choice, the arrow keys do."""
    return [
        button.accessibleName() or button.text()
        for button in root.findChildren(QAbstractButton)
        if not button.focusPolicy() & Qt.FocusPolicy.TabFocus
        and not (button.group() and button.group().exclusive() and not button.isChecked())
    ]


@pytest.fixture
def core(tmp_path: Path) -> FakeCore:
    return FakeCore(tmp_path, MODELS)


def make_sidebar(core: FakeCore) -> QWidget:
    return Sidebar([SidebarEntry("chat", "Chat", "message-square", ("Ctrl+1",))])


def make_error_card(core: FakeCore) -> QWidget:
    return ErrorCard("Try again")


def make_toast(core: FakeCore) -> QWidget:
    parent = QWidget()
    Toast(parent).show_message("Deleted.", action_text="Undo", action=lambda: None)
    return parent


def make_confirm(core: FakeCore) -> QWidget:
    return ConfirmDialog("Remove it?", "It is gone.", "Remove")


def make_plan_dialog(core: FakeCore) -> QWidget:
    return PlanDialog(MODELS[0].title, make_plan(MODELS[0]))


def make_request_table(core: FakeCore) -> QWidget:
    table = RequestTable()
    table.show_records([make_record()], [])
    return table


def make_shortcuts(core: FakeCore) -> QWidget:
    return ShortcutsDialog({"Everywhere": [Shortcut("New chat", ("Ctrl+N",))]})


@pytest.mark.parametrize(
    "make",
    [
        make_sidebar,
        make_error_card,
        make_toast,
        make_confirm,
        make_plan_dialog,
        make_shortcuts,
        lambda core: SettingsPage(core.as_core),
        lambda core: ModelsPage(core.as_core),
        lambda core: MonitorPage(core.as_core),
        lambda core: ServerPage(core.as_core),
        make_request_table,
    ],
    ids=[
        "sidebar",
        "error",
        "toast",
        "confirm",
        "plan",
        "shortcuts",
        "settings",
        "models",
        "monitor",
        "server",
        "requests",
    ],
)
async def test_every_control_has_a_name_and_a_keyboard_way(
    make: Callable[[FakeCore], QWidget], core: FakeCore, tasks: UiTasks, theme: ThemeController
) -> None:
    widget = make(core)
    assert nameless(widget) == []
    assert unreachable(widget) == []


async def test_rows_of_models_have_names(
    core: FakeCore, tasks: UiTasks, theme: ThemeController
) -> None:
    page = ModelsPage(core.as_core)
    page.show()
    await until(lambda: len(page.library.rows) == len(MODELS))
    assert nameless(page) == []
    assert unreachable(page) == []
    await tasks.cancel_all()


def test_the_test_finds_a_control_without_a_name(app: object) -> None:
    root = QWidget()
    button = QAbstractButtonForTest(root)
    assert nameless(root) == ["QAbstractButtonForTest in QWidget"]
    button.setAccessibleName("Go")
    assert nameless(root) == []


class QAbstractButtonForTest(QAbstractButton):
    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)

    def paintEvent(self, _event: object) -> None:
        """Nothing to draw."""
