"""`CrashWatch`: shows failures as they come, and at the start a crash of the last run."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, Slot
from PySide6.QtGui import QGuiApplication

from octavo.ui.crash_file import read_crashes, remove_crashes
from octavo.ui.crash_hooks import CrashHooks
from octavo.ui.crash_report import Failure, make_report
from octavo.ui.main_window import MainWindow
from octavo.ui.tasks import UiTasks, spawn

if TYPE_CHECKING:
    from octavo.ui.crash_dialog import CrashDialog

CRASHED = (
    "Octavo ended unexpectedly the last time. Your conversations are kept; an answer that was being"
    " written then may be incomplete. The report helps to find out why."
)


class CrashWatch(QObject):
    """Between what fails and the window that says so."""

    def __init__(self, window: MainWindow, hooks: CrashHooks) -> None:
        super().__init__(window)
        self._window = window
        self._hooks = hooks
        self._dialog: CrashDialog | None = None
        self._crashes: list[Path] = []
        hooks.failed.connect(self._show)
        UiTasks.current().broken.connect(self._announce)

    def show_last(self, crashes: list[Path]) -> None:
        """Says that earlier runs crashed, if they did."""
        self._crashes = crashes
        if crashes:
            self._window.notice.show_notice(
                CRASHED, "Copy report", lambda: spawn(self._copy()), self._forget
            )

    @Slot(object)
    def _show(self, failure: Failure) -> None:
        # A slot of an object of the main thread: failures of other threads are queued to it.
        if self._dialog is None:
            from octavo.ui.crash_dialog import CrashDialog

            self._dialog = CrashDialog(self._window.show_log, self._window)
        self._dialog.add(failure)

    def _announce(self, error: BaseException) -> None:
        self._hooks.announce(error, "a task of the window", is_logged=True)

    async def _copy(self) -> None:
        crashes = list(self._crashes)
        report = await asyncio.to_thread(lambda: make_report(read_crashes(crashes)))
        QGuiApplication.clipboard().setText(report)
        self._window.toast.show_message("The report is in the clipboard.")

    def _forget(self) -> None:
        remove_crashes(self._crashes)
        self._crashes = []
