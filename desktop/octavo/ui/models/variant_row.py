"""One line of a repository: a variant, whether it runs here, and what can be done with it."""

from pathlib import Path

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QBoxLayout, QHBoxLayout, QSizePolicy, QVBoxLayout, QWidget

from octavo.engine.memory import MemoryPlan
from octavo.hub.download_queue import Download, DownloadState
from octavo.hub.hub_files import GGUF, HubVariant
from octavo.ui.models.fit import FitVerdict, PlanDialog
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import SPACE_GROUP, SPACE_INSET, SPACE_TIGHT, SPACE_WITHIN, scaled
from octavo.ui.widgets.buttons import Button, set_property
from octavo.ui.widgets.labels import ElidedLabel, label, set_tone
from octavo.units import format_bytes

SIZE_WIDTH = 84
VERDICT_WIDTH = 112
ACTION_WIDTH = 128

_STATES = {
    DownloadState.WAITING: "Waiting",
    DownloadState.RUNNING: "Downloading",
    DownloadState.PAUSED: "Paused",
    DownloadState.FAILED: "Failed",
}


class VariantRow(QWidget):
    """Asks through its signals; the page acts."""

    check_asked = Signal()
    download_asked = Signal()
    chat_asked = Signal()

    def __init__(self, repository: str, variant: HubVariant, parent: QWidget | None = None) -> None:
        """Args:
        repository: its name, for screen readers.
        """
        super().__init__(parent)
        self.variant = variant
        self._title = f"{repository} {variant.label}"
        self._plan: MemoryPlan | None = None
        self._is_narrow = False
        self.local: Path | None = None
        """Where it lies on this machine, if it does."""
        self._line = QBoxLayout(QBoxLayout.Direction.LeftToRight, self)
        self._line.setContentsMargins(0, SPACE_INSET, 0, SPACE_INSET)
        self._line.setSpacing(SPACE_GROUP)
        self._line.addLayout(self._build_names(), 1)
        row = QHBoxLayout()
        row.setSpacing(SPACE_GROUP)
        self._line.addLayout(row)
        self._size = label(format_bytes(variant.size_bytes), "figure")
        self._size.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        row.addWidget(self._size)
        self.verdict_button = Button("", variant="verdict")
        self.verdict_button.clicked.connect(self._act_on_verdict)
        row.addWidget(self.verdict_button)
        row.addStretch(1)
        row.addWidget(self._build_actions())
        ThemeController.current().changed.connect(self._apply_scale)
        self._apply_scale()
        self.show_verdict(None, None)
        self.show_place(None, None)

    @property
    def detail(self) -> str:
        """The sentence under the name; empty if there is none."""
        return self._detail.text()

    @property
    def mark(self) -> str:
        """What sets it apart from the others; empty if nothing does."""
        return self._mark.text()

    @property
    def can_download(self) -> bool:
        """Whether it is to be had and not on its way."""
        return not self.download_button.isHidden() and self.download_button.isEnabled()

    def show_verdict(
        self, verdict: FitVerdict | None, plan: MemoryPlan | None, *, is_checking: bool = False
    ) -> None:
        """Shows what is known of the fit; without a verdict the button asks for one.

        Args:
            plan: what stands behind the verdict, if anything was planned.
        """
        self._plan = plan
        button = self.verdict_button
        if is_checking:
            button.setText("Checking")
            spoken = f"Checking whether {self._title} fits"
        elif verdict is None:
            button.setText("Check fit")
            spoken = f"Check whether {self._title} fits"
            button.setToolTip("Reads the beginning of the file, some MB, and plans its memory")
        else:
            button.setText(verdict.word)
            spoken = f"{verdict.word}: {self._title}"
            button.setToolTip("")
        button.set_variant("link" if verdict is None and not is_checking else "verdict")
        button.setEnabled(not is_checking)
        button.setAccessibleName(spoken)
        button.setAccessibleDescription("" if verdict is None else verdict.sentence)
        set_property(button, "tone", "" if verdict is None or is_checking else verdict.tone)
        self._detail.setText("" if verdict is None else verdict.sentence)
        self._detail.setVisible(verdict is not None)

    def show_place(self, local: Path | None, download: Download | None) -> None:
        """Shows whether the variant is here, on its way, or to be had."""
        self.local = local
        is_coming = download is not None and download.state in _STATES
        self.chat_button.setVisible(local is not None and not is_coming)
        self.download_button.setVisible(local is None and not is_coming)
        self._state.setVisible(is_coming)
        if is_coming and download is not None:
            text = _STATES[download.state]
            is_running = download.state is DownloadState.RUNNING
            if is_running and download.fraction is not None:
                text = f"{text} {100 * download.fraction:.0f} %"
            self._state.setText(text)
            set_tone(self._state, "bad" if download.state is DownloadState.FAILED else "soft")

    def set_usable(self, *, is_usable: bool, is_recommended: bool, is_asked: bool) -> None:
        """Marks the one to take, and keeps what cannot run from being downloaded.

        Args:
            is_asked: the person named this variant.
        """
        self.download_button.setEnabled(is_usable)
        marks = ["Recommended"] if is_recommended else []
        marks += ["As you asked"] if is_asked else []
        self._mark.setText(" · ".join(marks))
        self._mark.setVisible(bool(marks))

    def set_layout(self, *, is_narrow: bool) -> None:
        """What can be done stands below the name where it is narrow."""
        direction = QBoxLayout.Direction
        self._line.setDirection(direction.TopToBottom if is_narrow else direction.LeftToRight)
        self._line.setSpacing(SPACE_TIGHT if is_narrow else SPACE_GROUP)
        self._size.setVisible(not is_narrow)
        self._is_narrow = is_narrow
        self._apply_scale()
        self._facts.setText(_facts(self.variant, with_size=is_narrow))
        self._facts.setVisible(bool(self._facts.text()))

    def _build_names(self) -> QVBoxLayout:
        names = QVBoxLayout()
        names.setSpacing(SPACE_TIGHT // 2)
        first = QHBoxLayout()
        first.setSpacing(SPACE_WITHIN)
        # A label may be a path.
        title = ElidedLabel(self.variant.label, "strong", mode=Qt.TextElideMode.ElideMiddle)
        title.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self._mark = label("", "caption")
        set_tone(self._mark, "accent")
        first.addWidget(title, 0)
        first.addWidget(self._mark)
        first.addStretch(1)
        self._facts = ElidedLabel("", "caption")
        self._detail = label("", "caption", wrap=True)
        names.addLayout(first)
        names.addWidget(self._facts)
        names.addWidget(self._detail)
        return names

    def _build_actions(self) -> QWidget:
        self.download_button = Button("Download")
        self.download_button.setAccessibleName(f"Download {self._title}")
        self.download_button.clicked.connect(self.download_asked)
        self.chat_button = Button("Chat with it")
        self.chat_button.setAccessibleName(f"Chat with {self._title}")
        self.chat_button.clicked.connect(self.chat_asked)
        self._state = label("", "soft")
        self._actions = QWidget()
        inner = QHBoxLayout(self._actions)
        inner.setContentsMargins(0, 0, 0, 0)
        inner.addStretch(1)
        for widget in (self._state, self.chat_button, self.download_button):
            inner.addWidget(widget)
        return self._actions

    def _apply_scale(self) -> None:
        scale = ThemeController.current().scale
        self._size.setFixedWidth(scaled(SIZE_WIDTH, scale))
        self.verdict_button.setFixedWidth(scaled(VERDICT_WIDTH, scale))
        # Columns line up only where there are some.
        least = 0 if self._is_narrow else scaled(ACTION_WIDTH, scale)
        self._actions.setMinimumWidth(least)
        self._actions.setMaximumWidth(least or self._actions.sizeHint().width() + ACTION_WIDTH)

    def _act_on_verdict(self) -> None:
        if self._plan is None:
            self.check_asked.emit()
            return
        dialog = PlanDialog(self._title, self._plan, self)
        dialog.finished.connect(dialog.deleteLater)
        dialog.open()


def _facts(variant: HubVariant, *, with_size: bool) -> str:
    num_weights = sum(file.path.endswith((".gguf", ".safetensors")) for file in variant.files)
    parts = [format_bytes(variant.size_bytes)] if with_size else []
    if variant.kind != GGUF:
        parts.append("the weights as their maker published them")
    if num_weights > 1:
        parts.append(f"in {num_weights} files")
    return " · ".join(parts)
