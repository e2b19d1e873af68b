"""Questions to the person that do not stop the event loop: open, and await the answer."""

import asyncio

from PySide6.QtWidgets import QDialog, QFileDialog, QHBoxLayout, QVBoxLayout, QWidget

from octavo.ui.tokens import SPACE_GROUP, SPACE_PAGE, SPACE_WITHIN
from octavo.ui.widgets.buttons import Button
from octavo.ui.widgets.labels import label

DIALOG_WIDTH = 420


async def ask(dialog: QDialog) -> bool:
    """Opens a dialog and waits for it; True if it was accepted.

    A nested event loop inside a coroutine loses the wake-ups of all others; `open` has none.
    """
    answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def finish(result: int) -> None:
        if not answer.done():
            answer.set_result(result == QDialog.DialogCode.Accepted)

    dialog.finished.connect(finish)
    dialog.open()
    try:
        return await answer
    finally:
        dialog.close()
        dialog.deleteLater()


class ConfirmDialog(QDialog):
    """One question, what follows from yes, and two buttons; the safe one has the focus."""

    def __init__(
        self,
        question: str,
        consequence: str,
        action_text: str,
        *,
        is_danger: bool = False,
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self.setWindowTitle(question)
        self.setMinimumWidth(DIALOG_WIDTH)
        column = QVBoxLayout(self)
        column.setContentsMargins(SPACE_PAGE, SPACE_PAGE, SPACE_PAGE, SPACE_PAGE)
        column.setSpacing(SPACE_WITHIN)
        column.addWidget(label(question, "strong", wrap=True))
        column.addWidget(label(consequence, "soft", wrap=True))
        column.addSpacing(SPACE_GROUP)
        row = QHBoxLayout()
        row.setSpacing(SPACE_WITHIN)
        row.addStretch(1)
        cancel = Button("Cancel")
        cancel.clicked.connect(self.reject)
        self.confirm = Button(action_text, variant="danger" if is_danger else "primary")
        self.confirm.clicked.connect(self.accept)
        row.addWidget(cancel)
        row.addWidget(self.confirm)
        column.addLayout(row)
        cancel.setFocus()


async def confirm(
    parent: QWidget, question: str, consequence: str, action_text: str, *, is_danger: bool = False
) -> bool:
    """Asks yes or no."""
    return await ask(
        ConfirmDialog(question, consequence, action_text, is_danger=is_danger, parent=parent)
    )


async def choose_folder(parent: QWidget, title: str, start: str) -> str:
    """Lets the person pick a folder; empty if none was picked."""
    dialog = QFileDialog(parent, title, start)
    dialog.setFileMode(QFileDialog.FileMode.Directory)
    dialog.setOption(QFileDialog.Option.ShowDirsOnly)
    chosen: list[str] = []
    dialog.fileSelected.connect(chosen.append)
    accepted = await ask(dialog)
    return chosen[0] if accepted and chosen else ""
