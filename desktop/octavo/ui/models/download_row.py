"""One download: how far, how fast, what stands in its way, and what can be done."""

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QHBoxLayout, QProgressBar, QVBoxLayout, QWidget

from octavo.hub.download_queue import Download, DownloadState
from octavo.ui.tokens import SPACE_TIGHT, SPACE_WITHIN
from octavo.ui.widgets.buttons import Button, IconButton
from octavo.ui.widgets.labels import ElidedLabel, label, set_tone
from octavo.units import format_bytes

STEPS = 1000
LONG_S = 3 * 24 * 3600
"""An estimate beyond it says nothing."""


class DownloadRow(QWidget):
    """Asks through its signals; the list acts."""

    pause_asked = Signal()
    resume_asked = Signal()
    cancel_asked = Signal()
    chat_asked = Signal()

    def __init__(self, download: Download, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.download = download
        title = download.title
        column = QVBoxLayout(self)
        column.setContentsMargins(0, SPACE_WITHIN, 0, SPACE_WITHIN)
        column.setSpacing(SPACE_TIGHT)
        first = QHBoxLayout()
        first.setSpacing(SPACE_TIGHT)
        first.addWidget(ElidedLabel(title, "strong"), 1)
        self.chat_button = Button("Chat with it", variant="primary")
        self.chat_button.setAccessibleName(f"Chat with {title}")
        self.chat_button.clicked.connect(self.chat_asked)
        self.retry_button = Button("Try again", icon_name="rotate-ccw")
        self.retry_button.setAccessibleName(f"Try the download of {title} again")
        self.retry_button.clicked.connect(self.resume_asked)
        self.pause_button = IconButton("pause", f"Pause the download of {title}")
        self.pause_button.clicked.connect(self.pause_asked)
        self.resume_button = IconButton("play", f"Go on with the download of {title}")
        self.resume_button.clicked.connect(self.resume_asked)
        self.cancel_button = IconButton("x", f"Stop the download of {title}")
        self.cancel_button.clicked.connect(self.cancel_asked)
        for button in (
            self.chat_button,
            self.retry_button,
            self.pause_button,
            self.resume_button,
            self.cancel_button,
        ):
            first.addWidget(button)
        column.addLayout(first)
        self._bar = QProgressBar()
        self._bar.setTextVisible(False)
        self._bar.setAccessibleName(f"Download of {title}")
        column.addWidget(self._bar)
        self._figures = label("", "figure", wrap=True)
        self._words = label("", "soft", wrap=True)
        column.addWidget(self._figures)
        column.addWidget(self._words)
        self.show_download(download, can_act=True)

    @property
    def text(self) -> str:
        """The numbers and the words below the bar."""
        return f"{self._figures.text()} {self._words.text()}".strip()

    def show_download(self, download: Download, *, can_act: bool) -> None:
        """Shows how it stands.

        Args:
            can_act: whether the downloads run here; False in a second Octavo.
        """
        self.download = download
        state = download.state
        is_under_way = state in (DownloadState.WAITING, DownloadState.RUNNING)
        self.pause_button.setVisible(is_under_way)
        self.resume_button.setVisible(state is DownloadState.PAUSED)
        self.retry_button.setVisible(state is DownloadState.FAILED)
        self.chat_button.setVisible(state is DownloadState.DONE and download.path is not None)
        for button in (
            self.pause_button,
            self.resume_button,
            self.retry_button,
            self.cancel_button,
        ):
            button.setEnabled(can_act)
        is_done = state is DownloadState.DONE
        remove = f"Take {download.title} off this list"
        stop = f"Stop the download of {download.title}"
        self.cancel_button.set_name(remove if is_done else stop)
        self._show_fraction(download)
        self._figures.setText(describe_download(download))
        self._figures.setVisible(bool(self._figures.text()))
        self._words.setText(_words(download))
        self._words.setVisible(bool(self._words.text()))
        set_tone(self._words, "bad" if state is DownloadState.FAILED else "soft")

    def _show_fraction(self, download: Download) -> None:
        self._bar.setVisible(download.state is not DownloadState.DONE)
        if download.fraction is None and download.state is DownloadState.RUNNING:
            # Qt shows a moving bar while minimum and maximum are equal.
            self._bar.setRange(0, 0)
        else:
            self._bar.setRange(0, STEPS)
            self._bar.setValue(round((download.fraction or 0) * STEPS))


def describe_download(download: Download) -> str:
    """Share, bytes, speed and the time left, as far as they are known."""
    if download.state is DownloadState.DONE:
        return ""
    parts = []
    if download.fraction is not None:
        parts.append(f"{int(download.fraction * 100)} %")
        done, total = format_bytes(download.done_bytes), format_bytes(download.size_bytes)
        parts.append(f"{done} of {total}")
    elif download.done_bytes:
        parts.append(format_bytes(download.done_bytes))
    if download.state is DownloadState.RUNNING and download.done_bytes:
        parts.append(f"{format_bytes(download.bytes_per_second)}/s")
    left_s = download.seconds_left
    if left_s is not None and left_s < LONG_S:
        parts.append(describe_left(left_s))
    return " · ".join(parts)


def describe_left(seconds: float) -> str:
    """The time left in words no finer than the estimate is."""
    if seconds < 60:
        return "less than a minute left"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"about {minutes} min left"
    return f"about {minutes // 60} h {minutes % 60:02d} min left"


def _words(download: Download) -> str:
    match download.state:
        case DownloadState.WAITING:
            return download.stage or "Waiting for its turn"
        case DownloadState.PAUSED:
            return "Paused. What has arrived is kept."
        case DownloadState.FAILED:
            return f"{download.error} {download.hint}".strip()
        case DownloadState.DONE:
            size = f", {format_bytes(download.size_bytes)}" if download.size_bytes else ""
            return f"Downloaded and checked{size}."
        case _:
            # That is what the bar shows.
            return "" if download.stage.startswith("Downloading") else download.stage
