"""Runs the whole app in a process of its own and types one message when its model is ready.

Usage: python -m tests.support.typing_app ROOT TEXT
"""

import sys
from pathlib import Path

from PySide6.QtCore import Qt, QTimer
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QPlainTextEdit

from octavo.core import Core
from octavo.host import HostState, HostStatus
from octavo.paths import AppPaths
from octavo.ui.desktop import run_desktop


def main(root: Path, text: str) -> int:
    def make_core(paths: AppPaths) -> Core:
        core = Core(paths)
        core.host.state_changed.connect(type_when_ready)
        return core

    def type_when_ready(state: HostState) -> None:
        if state.status is HostStatus.READY:
            QTimer.singleShot(200, type_message)

    def type_message() -> None:
        composer = next(
            widget
            for widget in QApplication.allWidgets()
            if isinstance(widget, QPlainTextEdit) and widget.accessibleName() == "Message"
        )
        composer.setPlainText(text)
        QTest.keyClick(composer, Qt.Key.Key_Return)

    return run_desktop(AppPaths.below(root), make_core)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
