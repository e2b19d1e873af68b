"""`CrashDialog`: a mistake of ours in words, with the report to copy; it stops nothing."""

import asyncio
from collections.abc import Callable

from PySide6.QtGui import QCloseEvent, QGuiApplication
from PySide6.QtWidgets import QDialog, QHBoxLayout, QVBoxLayout, QWidget

from octavo.ui.crash_report import Failure, make_report
from octavo.ui.tasks import spawn
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import SPACE_PAGE, SPACE_TIGHT, SPACE_WITHIN, scaled
from octavo.ui.widgets.buttons import Button
from octavo.ui.widgets.cards import IconLabel
from octavo.ui.widgets.labels import label
from octavo.ui.widgets.mono_text import MonoText

WIDTH = 640
HEIGHT = 460
MAX_FAILURES = 5
"""Whole tracebacks in one report; of further ones only the number is kept."""

TITLE = "Something went wrong inside Octavo"
MEANING = "What you were doing may not have worked. Your conversations and models are not touched."
NEXT_STEP = (
    "You can go on. If something no longer answers, close Octavo and start it again. The report"
    " helps to correct the mistake; it holds no conversation and no key."
)


class CrashDialog(QDialog):
    """One dialog for all failures; more of them make it count, not stack up."""

    def __init__(self, show_log: Callable[[], None], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle(TITLE)
        scale = ThemeController.current().scale
        self.resize(scaled(WIDTH, scale), scaled(HEIGHT, scale))
        self._failures: list[Failure] = []
        self._num_failures = 0
        self._is_filling = False
        column = QVBoxLayout(self)
        column.setContentsMargins(SPACE_PAGE, SPACE_PAGE, SPACE_PAGE, SPACE_PAGE)
        column.setSpacing(SPACE_WITHIN)
        head = QHBoxLayout()
        head.setSpacing(SPACE_WITHIN)
        head.addWidget(IconLabel("circle-alert", "bad", 20))
        head.addWidget(label(TITLE, "heading"), 1)
        column.addLayout(head)
        self._what = label("", wrap=True)
        column.addWidget(self._what)
        column.addWidget(label(f"{MEANING} {NEXT_STEP}", "soft", wrap=True))
        column.addSpacing(SPACE_TIGHT)
        self._text = MonoText("Report")
        column.addWidget(self._text, 1)
        row = QHBoxLayout()
        row.setSpacing(SPACE_WITHIN)
        self.copy_button = Button("Copy report", variant="primary", icon_name="clipboard-copy")
        self.copy_button.clicked.connect(self._copy)
        log = Button("Show the log")
        log.clicked.connect(show_log)
        close = Button("Close")
        close.clicked.connect(self.close)
        row.addWidget(self.copy_button)
        row.addWidget(log)
        row.addStretch(1)
        row.addWidget(close)
        column.addLayout(row)
        self.copy_button.setFocus()

    @property
    def report(self) -> str:
        return self._text.toPlainText()

    def add(self, failure: Failure) -> None:
        """Shows a failure; the same one again only counts."""
        self._num_failures += 1
        self._what.setText(self._sentence(failure))
        is_new = failure.traceback not in (known.traceback for known in self._failures)
        if is_new and len(self._failures) < MAX_FAILURES:
            self._failures.append(failure)
            if not self._is_filling:
                self._is_filling = True
                self._text.setPlainText("Putting the report together…")
                self.copy_button.setEnabled(False)
                spawn(self._fill())
        self.copy_button.setText("Copy report")
        self.show()
        self.raise_()

    def reject(self) -> None:
        """Escape and Close end it alike."""
        self._failures.clear()
        self._num_failures = 0
        self._text.clear()
        super().reject()

    def closeEvent(self, event: QCloseEvent) -> None:
        self.reject()
        event.accept()

    def _sentence(self, failure: Failure) -> str:
        times = f" This is number {self._num_failures}." if self._num_failures > 1 else ""
        return f"In {failure.place}: {failure.title}{times}"

    async def _fill(self) -> None:
        """Until the report holds what came while it was put together."""
        try:
            num_told = -1
            while num_told != len(self._failures):
                num_told = len(self._failures)
                text = "\n\n".join(f"In {one.place}:\n{one.traceback}" for one in self._failures)
                self._text.setPlainText(await asyncio.to_thread(make_report, text))
        finally:
            self._is_filling = False
        self.copy_button.setEnabled(True)

    def _copy(self) -> None:
        QGuiApplication.clipboard().setText(self.report)
        self.copy_button.setText("Copied")
