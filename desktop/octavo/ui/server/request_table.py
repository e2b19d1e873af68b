"""The table of requests: those at work with a way to cancel them, and the latest that ended."""

from collections.abc import Sequence

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QLabel, QVBoxLayout, QWidget

from octavo.server.board import RequestRecord, RequestState
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import SPACE_TIGHT, SPACE_WITHIN, scaled
from octavo.ui.widgets.buttons import IconButton
from octavo.ui.widgets.labels import ElidedLabel, hairline, label, set_tone

STATE_WIDTH = 84
COLUMNS = (("Prompt", 60), ("Cached", 60), ("Output", 60), ("Tokens/s", 68))
"""Titles and widths at scale 1 of the columns of figures; all but the last are in tokens."""
ACTION_WIDTH = 32
MAX_LIVE = 64
MAX_ENDED = 20
UNKNOWN = "–"

_STATES: dict[RequestState, tuple[str, str]] = {
    RequestState.QUEUED: ("Waiting", "soft"),
    RequestState.RUNNING: ("Running", "accent"),
    RequestState.FINISHED: ("Finished", "good"),
    RequestState.FAILED: ("Failed", "bad"),
    RequestState.CANCELLED: ("Cancelled", "caution"),
    RequestState.DISCONNECTED: ("Client left", "caution"),
}


class RequestTable(QWidget):
    """Rows stay the same widgets while their numbers change, so the keyboard stays where it is."""

    cancel_asked = Signal(str)
    """A request's id."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.rows: dict[str, RequestRow] = {}
        self._is_wide = True
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        self.summary = label("", "soft", wrap=True)
        self.summary.setContentsMargins(0, 0, 0, SPACE_WITHIN)
        column.addWidget(self.summary)
        self._header = QWidget()
        header = QHBoxLayout(self._header)
        header.setContentsMargins(0, 0, 0, SPACE_WITHIN)
        header.setSpacing(SPACE_WITHIN)
        header.addWidget(label("Client", "caption"), 2)
        header.addWidget(label("Model", "caption"), 3)
        self._titles: list[tuple[QLabel, int]] = []
        for title, width in (("State", STATE_WIDTH), *COLUMNS, ("", ACTION_WIDTH)):
            text = label(title, "caption")
            if title != "State":
                text.setAlignment(Qt.AlignmentFlag.AlignRight)
            header.addWidget(text)
            self._titles.append((text, width))
        column.addWidget(self._header)
        self._row_column = QVBoxLayout()
        self._row_column.setSpacing(0)
        column.addLayout(self._row_column)
        ThemeController.current().changed.connect(self._apply_scale)
        self._apply_scale()
        self.show_records((), ())

    def show_records(self, live: Sequence[RequestRecord], recent: Sequence[RequestRecord]) -> None:
        """Args:
        live: at work, oldest first.
        recent: ended, newest first.
        """
        # A request that ends between the two looks is in both; the later look counts.
        shown = {record.request_id: record for record in live[:MAX_LIVE]}
        shown |= {record.request_id: record for record in recent[:MAX_ENDED]}
        for request_id in set(self.rows) - set(shown):
            row = self.rows.pop(request_id)
            self._row_column.removeWidget(row)
            row.hide()
            row.deleteLater()
        for position, record in enumerate(shown.values()):
            row = self.rows.get(record.request_id) or self._add_row(record)
            row.show_record(record)
            if self._row_column.indexOf(row) != position:
                self._row_column.insertWidget(position, row)
        self._header.setVisible(self._is_wide and bool(shown))
        self.summary.setText(_summarise(len(live), len(recent)))

    def set_wide(self, is_wide: bool) -> None:
        self._is_wide = is_wide
        self._header.setVisible(is_wide and bool(self.rows))
        for row in self.rows.values():
            row.set_wide(is_wide)

    def _add_row(self, record: RequestRecord) -> "RequestRow":
        row = RequestRow()
        row.set_wide(self._is_wide)
        row.cancel.clicked.connect(
            lambda _=False, request_id=record.request_id: self.cancel_asked.emit(request_id)
        )
        self.rows[record.request_id] = row
        return row

    def _apply_scale(self) -> None:
        for text, width in self._titles:
            text.setFixedWidth(scaled(width, ThemeController.current().scale))


class RequestRow(QWidget):
    """One request: columns where there is room, else a line of facts under client and state."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(hairline())
        line = QHBoxLayout()
        line.setContentsMargins(0, SPACE_TIGHT, 0, SPACE_TIGHT)
        line.setSpacing(SPACE_WITHIN)
        self._client = ElidedLabel("")
        self._model = ElidedLabel("", "soft")
        self.state = label("", "caption")
        line.addWidget(self._client, 2)
        line.addWidget(self._model, 3)
        line.addWidget(self.state)
        self._figures = [label("", "figure") for _ in COLUMNS]
        for figure in self._figures:
            figure.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            line.addWidget(figure)
        self._place = QWidget()
        place = QHBoxLayout(self._place)
        place.setContentsMargins(0, 0, 0, 0)
        self.cancel = IconButton("x", "Cancel the request")
        place.addWidget(self.cancel, 0, Qt.AlignmentFlag.AlignRight)
        line.addWidget(self._place)
        column.addLayout(line)
        self._facts = label("", "caption", wrap=True)
        self._facts.setContentsMargins(0, 0, 0, SPACE_WITHIN)
        column.addWidget(self._facts)
        ThemeController.current().changed.connect(self._apply_scale)
        self._apply_scale()

    @property
    def texts(self) -> list[str]:
        """Client, model, state and figures as they are shown."""
        labels: list[QLabel] = [self._client, self._model, self.state, *self._figures]
        return [text.text() for text in labels]

    def show_record(self, record: RequestRecord) -> None:
        word, tone = _STATES[record.state]
        self._client.setText(record.client)
        self._model.setText(record.model)
        self.state.setText(word)
        set_tone(self.state, tone)
        figures = _figures(record)
        for text, figure in zip(self._figures, figures, strict=True):
            text.setText(figure)
        self._facts.setText(_describe_facts(record.model, *figures))
        is_live = record.state in (RequestState.QUEUED, RequestState.RUNNING)
        self.cancel.setVisible(is_live)
        self.cancel.set_name(f"Cancel the request of {record.client}")

    def set_wide(self, is_wide: bool) -> None:
        for text in (self._model, *self._figures):
            text.setVisible(is_wide)
        self._facts.setVisible(not is_wide)

    def _apply_scale(self) -> None:
        scale = ThemeController.current().scale
        self.state.setFixedWidth(scaled(STATE_WIDTH, scale))
        for figure, (_title, width) in zip(self._figures, COLUMNS, strict=True):
            figure.setFixedWidth(scaled(width, scale))
        self._place.setFixedWidth(scaled(ACTION_WIDTH, scale))
        # A row without a button is as high as one with it: nothing jumps when a request ends.
        self._place.setMinimumHeight(scaled(ACTION_WIDTH, scale))


def _figures(record: RequestRecord) -> tuple[str, str, str, str]:
    cached, rate = record.cached_tokens, record.tokens_per_second
    return (
        f"{record.prompt_tokens:,}",
        UNKNOWN if cached is None else f"{cached:,}",
        f"{record.output_tokens:,}",
        UNKNOWN if rate is None else f"{rate:.1f}",
    )


def _describe_facts(model: str, prompt: str, cached: str, output: str, rate: str) -> str:
    """One line for a row without columns; what is not known yet is left out."""
    known = "" if cached == UNKNOWN else f"{cached} cached, "
    facts = f"{model} · {prompt} prompt, {known}{output} output tokens"
    # A number and its unit stay on one line.
    return facts if rate == UNKNOWN else f"{facts} · {rate}\N{NO-BREAK SPACE}tok/\N{WORD JOINER}s"


def _summarise(num_live: int, num_recent: int) -> str:
    if not num_live and not num_recent:
        return "No program has asked yet. Try the example above."
    hidden = num_live - MAX_LIVE
    more = f", {hidden} of them not shown" if hidden > 0 else ""
    if not num_live:
        return "None at work; these are the latest that ended."
    return f"{num_live} at work{more}; below them the latest that ended."
