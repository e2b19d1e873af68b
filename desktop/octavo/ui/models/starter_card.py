"""The offer of the starter model: what it is, how large, under which licence, and one button."""

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QHBoxLayout, QWidget

from octavo.core import Core
from octavo.host import HostState, HostStatus
from octavo.jobs import Progress
from octavo.ui.models.starter_pull import PullStatus, StarterPull
from octavo.ui.tokens import SPACE_PAGE, SPACE_TIGHT, SPACE_WITHIN
from octavo.ui.widgets.buttons import Button
from octavo.ui.widgets.cards import Card, ErrorCard
from octavo.ui.widgets.labels import label
from octavo.ui.widgets.progress import ProgressLine
from octavo.units import format_bytes

MAX_WIDTH = 520
CARD_STRETCH = 1000
"""Against 1 on either side: the card takes what it may, the sides the rest."""


class StarterCard(Card):
    """Offers the starter model and shows its download and load; two cards show the same one."""

    finished = Signal()
    """The model is loaded and ready for its first question."""

    def __init__(self, core: Core, parent: QWidget | None = None) -> None:
        super().__init__(parent=parent)
        self._pull = StarterPull.of(core)
        starter = core.starter
        self.setMaximumWidth(MAX_WIDTH)
        self.body.setContentsMargins(SPACE_PAGE, SPACE_PAGE, SPACE_PAGE, SPACE_PAGE)
        self.body.addWidget(label(starter.title, "heading", wrap=True))
        self.body.addWidget(label(starter.summary, "soft", wrap=True))
        facts = (
            f"{format_bytes(starter.download_bytes)} to download · {_license_name(starter.license)}"
        )
        self.body.addWidget(label(facts, "figure"))
        self.body.addSpacing(SPACE_TIGHT)

        self._progress = ProgressLine(f"Download of {starter.title}")
        self.body.addWidget(self._progress)
        self._error = ErrorCard()
        self.body.addWidget(self._error)

        self.start_button = Button("Download and start", variant="primary", icon_name="download")
        self.start_button.clicked.connect(self._pull.start)
        self.cancel_button = Button("Cancel")
        self.cancel_button.clicked.connect(self._pull.cancel)
        row = QHBoxLayout()
        row.setSpacing(SPACE_WITHIN)
        row.addWidget(self.start_button)
        row.addWidget(self.cancel_button)
        row.addStretch(1)
        self.body.addLayout(row)

        self._pull.changed.connect(self._refresh)
        self._pull.finished.connect(self.finished)
        disconnect = core.host.state_changed.connect(self._show_host)
        self.destroyed.connect(lambda _=None: disconnect())
        self._refresh()

    def _refresh(self) -> None:
        pull = self._pull
        self._progress.setVisible(pull.is_running)
        self.start_button.setVisible(not pull.is_running)
        self.cancel_button.setVisible(pull.is_running)
        is_retry = pull.status is PullStatus.FAILED
        self.start_button.setText("Try again" if is_retry else "Download and start")
        if pull.status is PullStatus.LOADING:
            self._progress.show_progress(Progress("Starting the engine"))
        elif pull.progress is not None:
            self._progress.show_progress(pull.progress)
        if pull.error is not None:
            self._error.show_error(pull.error)
        else:
            self._error.clear()

    def _show_host(self, state: HostState) -> None:
        is_loading = state.status is HostStatus.LOADING and state.progress is not None
        if self._pull.status is PullStatus.LOADING and is_loading and state.progress is not None:
            self._progress.show_progress(state.progress)


def centred(card: StarterCard) -> QHBoxLayout:
    """A row with the card in its middle.

    By an alignment Qt would give the card the height its text needs in the width of the whole page.
    """
    row = QHBoxLayout()
    row.addStretch(1)
    row.addWidget(card, CARD_STRETCH)
    row.addStretch(1)
    return row


def _license_name(license_id: str) -> str:
    """`apache-2.0`, as model files write it, with its usual capitals."""
    return "Apache-2.0" if license_id.lower() == "apache-2.0" else license_id
