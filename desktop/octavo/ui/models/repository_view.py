"""A repository of a hub: what it is, how one gets in, and its variants with what fits."""

from collections.abc import Mapping
from pathlib import Path

from PySide6.QtCore import Qt, QUrl, Signal
from PySide6.QtGui import QDesktopServices, QShowEvent
from PySide6.QtWidgets import QHBoxLayout, QVBoxLayout, QWidget

from octavo.core import Core
from octavo.hub.hub_files import HubRepository, HubVariant
from octavo.hub.hugging_face import HuggingFace
from octavo.ui.models.variant_checks import Inspect, VariantChecks
from octavo.ui.models.variant_row import VariantRow
from octavo.ui.tokens import SPACE_GROUP, SPACE_TIGHT, SPACE_WITHIN
from octavo.ui.widgets.buttons import Button, IconButton
from octavo.ui.widgets.cards import Card, ErrorCard, Notice
from octavo.ui.widgets.labels import ElidedLabel, hairline, label
from octavo.ui.widgets.toast import find_toast
from octavo.units import format_bytes, format_count

LONGEST_LABEL = 12


class RepositoryView(QWidget):
    """Shows one repository at a time; its headers are read by `VariantChecks`."""

    back_asked = Signal()
    settings_asked = Signal()
    download_asked = Signal(object)
    """The HubVariant to download."""
    chat_asked = Signal(object)
    """The path of the model to chat with."""

    def __init__(self, core: Core, inspect: Inspect, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._core = core
        self._checks = VariantChecks(core, inspect, self)
        self._checks.changed.connect(self._show_findings)
        self._asked: HubVariant | None = None
        self._page_url = ""
        self._is_narrow = self._is_stale = False
        self.repository: HubRepository | None = None
        self.rows: list[VariantRow] = []
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(SPACE_GROUP)
        column.addLayout(self._build_head())
        self._gate = self._build_gate()
        column.addWidget(self._gate)
        self.error_card = ErrorCard("Try again")
        self.error_card.retry.clicked.connect(self._retry)
        column.addWidget(self.error_card)
        self.note = Notice()
        column.addWidget(self.note)
        self.summary = label("", "soft", wrap=True)
        column.addWidget(self.summary)
        self.take_button = Button("Download", variant="primary", icon_name="download")
        self.take_button.clicked.connect(self._take)
        self.take_button.hide()
        column.addWidget(self.take_button, 0, Qt.AlignmentFlag.AlignLeft)
        self._row_column = QVBoxLayout()
        self._row_column.setSpacing(0)
        column.addLayout(self._row_column)

    def show_repository(
        self, hub: HuggingFace, repository: HubRepository, asked: HubVariant | None
    ) -> None:
        """Shows a repository and begins to find out which variant is the best that fits.

        Args:
            asked: the variant that the person named; checked first.
        """
        self.repository, self._asked = repository, asked
        self._page_url = f"{hub.endpoint.rstrip('/')}/{repository.name}"
        self._name.setText(repository.name)
        self._facts.setText(describe_repository(repository))
        self._gate.setVisible(bool(repository.gated))
        self._gate_text.setText(describe_gate(repository, has_token=bool(hub.token)))
        self.token_button.setVisible(not hub.token)
        self.note.set_text("" if repository.variants else _describe_empty(repository))
        self.error_card.clear()
        self._make_rows(repository)
        self._is_stale = False
        self._checks.open(hub, repository, asked)

    def show_places(self, local: Mapping[str, Path]) -> None:
        """Shows which variants are here or on their way.

        Args:
            local: paths of the variants that are on this machine, by label.
        """
        if self.repository is None:
            return
        name, revision = self.repository.name, self.repository.revision
        downloads = {
            download.label: download
            for download in self._core.downloads.downloads
            if (download.repository, download.revision) == (name, revision)
        }
        for row in self.rows:
            label_ = row.variant.label
            row.show_place(local.get(label_), downloads.get(label_))
        self._show_offer()

    def check_again(self) -> None:
        """Plans anew, as what is free has changed; while hidden, at the next showing."""
        self._is_stale = not self.isVisible()
        if not self._is_stale:
            self._checks.check_again()

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        if self._is_stale:
            self.check_again()

    def stop(self) -> None:
        """Reads no more headers."""
        self._checks.stop()

    def set_narrow(self, is_narrow: bool) -> None:
        self._is_narrow = is_narrow
        for row in self.rows:
            row.set_layout(is_narrow=is_narrow)

    def _build_head(self) -> QVBoxLayout:
        head = QVBoxLayout()
        head.setSpacing(SPACE_TIGHT)
        self.back_button = Button("Back", variant="link", icon_name="arrow-left")
        self.back_button.clicked.connect(self.back_asked)
        head.addWidget(self.back_button, 0, Qt.AlignmentFlag.AlignLeft)
        row = QHBoxLayout()
        row.setSpacing(SPACE_WITHIN)
        self._name = ElidedLabel("", "heading", mode=Qt.TextElideMode.ElideMiddle)
        row.addWidget(self._name, 1)
        page_button = IconButton("external-link", "Open its page in the browser")
        page_button.clicked.connect(self._open_page)
        row.addWidget(page_button)
        head.addLayout(row)
        self._facts = label("", "soft", wrap=True)
        head.addWidget(self._facts)
        return head

    def _build_gate(self) -> Card:
        gate = Card("notice")
        gate.body.addWidget(label("Gated", "strong"))
        self._gate_text = label("", wrap=True)
        gate.body.addWidget(self._gate_text)
        self.page_button = Button("Open its page", icon_name="external-link")
        self.page_button.clicked.connect(self._open_page)
        self.token_button = Button("Settings")
        self.token_button.setAccessibleName("Put a token into the settings")
        self.token_button.clicked.connect(self.settings_asked)
        row = QHBoxLayout()
        row.setSpacing(SPACE_WITHIN)
        row.addWidget(self.page_button)
        row.addWidget(self.token_button)
        row.addStretch(1)
        gate.body.addLayout(row)
        gate.hide()
        return gate

    def _make_rows(self, repository: HubRepository) -> None:
        while (item := self._row_column.takeAt(0)) is not None:
            if (widget := item.widget()) is not None:
                widget.hide()
                widget.deleteLater()
        self.rows = []
        for variant in sorted(repository.variants, key=lambda variant: -variant.size_bytes):
            row = VariantRow(repository.name, variant)
            row.check_asked.connect(lambda variant=variant: self._check(variant))
            row.download_asked.connect(lambda variant=variant: self.download_asked.emit(variant))
            row.chat_asked.connect(lambda row=row: self.chat_asked.emit(row.local))
            row.set_layout(is_narrow=self._is_narrow)
            self.rows.append(row)
            self._row_column.addWidget(hairline())
            self._row_column.addWidget(row)

    def _show_findings(self) -> None:
        checks = self._checks
        recommended = checks.recommended
        for row in self.rows:
            variant = row.variant
            finding = checks.finding(variant)
            is_checking = checks.checking == variant.label
            plan = None if finding is None else finding.plan
            row.show_verdict(checks.verdict(variant), plan, is_checking=is_checking)
            row.set_usable(
                is_usable=finding is None or finding.refusal is None,
                is_recommended=recommended is not None and variant.label == recommended.label,
                is_asked=self._asked is not None and variant.label == self._asked.label,
            )
        # Of a gated one the card above says what to do, and the row why.
        if checks.failure is not None and not self._gate.isVisibleTo(self):
            self.error_card.show_error(checks.failure)
        else:
            self.error_card.clear()
        self.summary.setText(self._summarise(recommended))
        self.summary.setVisible(bool(self.summary.text()))
        self._show_offer()

    def _show_offer(self) -> None:
        """The one to take can be had without looking for its line."""
        recommended = self._checks.recommended
        row = next((row for row in self.rows if row.variant is recommended), None)
        is_offered = row is not None and row.can_download
        if recommended is not None:
            size = format_bytes(recommended.size_bytes)
            self.take_button.setText(f"Download {_short(recommended.label)}, {size}")
        self.take_button.setVisible(is_offered)

    def _take(self) -> None:
        if (recommended := self._checks.recommended) is not None:
            self.download_asked.emit(recommended)

    def _summarise(self, recommended: HubVariant | None) -> str:
        checks = self._checks
        if not self.rows:
            return ""
        if checks.is_searching:
            return "Looking for the best one that fits, from the beginnings of the files…"
        if recommended is not None:
            return f"{recommended.label} is the best that fits this machine."
        if checks.failure is not None:
            return ""
        if all((finding := checks.finding(row.variant)) and finding.refusal for row in self.rows):
            return "Octavo cannot run any of these."
        return "None of those checked fits into the memory that is free."

    def _check(self, variant: HubVariant) -> None:
        self.error_card.clear()
        self._checks.check(variant)

    def _retry(self) -> None:
        self.error_card.clear()
        self._checks.check_again()

    def _open_page(self) -> None:
        is_open = QDesktopServices.openUrl(QUrl(self._page_url))
        if not is_open and (toast := find_toast(self)) is not None:
            toast.show_message(f"No browser could be opened for {self._page_url}.")


def _short(label_: str) -> str:
    """A label, which may be a path, for a button."""
    return label_ if len(label_) <= LONGEST_LABEL else "it"


def describe_repository(repository: HubRepository) -> str:
    """Licence, use and age in a line."""
    parts = [
        f"Licence {repository.license}" if repository.license else "No licence named",
        f"{format_count(repository.downloads)} downloads",
        f"{format_count(repository.likes)} likes",
        f"updated {repository.last_modified}" if repository.last_modified else "",
        f"revision {repository.revision}" if repository.revision != "main" else "",
    ]
    return " · ".join(part for part in parts if part)


def describe_gate(repository: HubRepository, *, has_token: bool) -> str:
    """What a gated repository asks of the person, step by step."""
    if repository.gated == "manual":
        terms = "Ask its owner for access on its page; that may take days."
    else:
        terms = "Accept its terms on its page."
    if has_token:
        return f"{terms} Octavo shows the token from the settings, so that account counts."
    return f"{terms} Then put a token of that account into the settings."


def _describe_empty(repository: HubRepository) -> str:
    if repository.pickle:
        return (
            f"Its weights are a pickle ({repository.pickle}), which only running a program can"
            " read. Octavo runs none: look for a version as GGUF or safetensors."
        )
    return "It has no language model as GGUF or safetensors."
