"""Makes the pictures of the window: the real window, the starter model, and what it answers.

    .venv/bin/python packaging/screenshots.py [FOLDER] [--model FILE]
    .venv/bin/python packaging/screenshots.py FOLDER --every-state --model FILE

The starter model is fetched, or taken from FILE. Its answers are greedy and its own; nothing in the
pictures is made up. A person's own chats and settings are not touched.
"""

import argparse
import asyncio
import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PySide6.QtGui import QImage, QImageWriter
from PySide6.QtWidgets import QApplication

from octavo.core import Core
from octavo.errors import OctavoError, StorageError
from octavo.hub.starter import pull
from octavo.jobs import JobControl, Progress
from octavo.paths import AppPaths
from octavo.ui.application import make_application
from octavo.ui.chat.conversation_list import ConversationList
from octavo.ui.event_loop import OctavoLoop
from octavo.ui.main_window import MainWindow
from octavo.ui.pages import CHAT, MODELS, MONITOR, QUANTIZE, SERVER, SETTINGS
from octavo.ui.quantize.quantize_page import QuantizePage
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController, ThemeMode

PRIVATE_VARIABLES = (
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "XDG_CACHE_HOME",
    "HF_TOKEN",
    "HF_ENDPOINT",
)
WIDE = (1120, 760)
NARROW = (480, 760)
CONVERSATIONS = (
    ("Why is the sky blue?",),
    ("What is photosynthesis? Answer in two sentences.",),
    (
        "Write a Python function that checks whether a word is a palindrome.",
        "Thank you. What is a palindrome?",
    ),
)
"""The last one is shown."""
MODES: tuple[ThemeMode, ...] = ("light", "dark")
MAX_ANSWER_TOKENS = 220
TURN_TIMEOUT_S = 300.0
SETTLE_S = 0.6
"""Token counts, plans and the list of conversations follow a change after a short pause."""
WATCHED_S = 12.0
"""The monitor's curves need some seconds of readings."""


def main() -> int:
    """Returns the exit status: 1 if Octavo refused something, with its sentence."""
    parser = argparse.ArgumentParser(description="Makes the pictures of Octavo's window.")
    default = Path(__file__).resolve().parent / "screenshots"
    parser.add_argument("folder", nargs="?", type=Path, default=default, help="where they go")
    parser.add_argument("--model", type=Path, help="the starter model, if it is here already")
    parser.add_argument(
        "--every-state",
        action="store_true",
        help="instead: every page in every state, both themes, wide and narrow; needs --model",
    )
    options = parser.parse_args()
    if options.every_state and (options.model is None or options.folder == default):
        parser.error("--every-state needs a FOLDER of its own and --model")
    # The tests' hub stands beside the package, not in it.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from screenshot_states import take_states

    with tempfile.TemporaryDirectory(prefix="octavo-screenshots-") as home:
        # The settings page shows folders: below this home they look like anybody's.
        os.environ.update(HOME=home, USERPROFILE=home, OCTAVO_HOME=str(Path(home) / "octavo"))
        os.environ.update(QT_QPA_PLATFORM="offscreen", QT_SCALE_FACTOR="1")
        # Nor are the models, the token and the keyring of whoever makes the pictures theirs.
        for name in PRIVATE_VARIABLES:
            os.environ.pop(name, None)
        os.environ["PYTHON_KEYRING_BACKEND"] = "keyring.backends.null.Keyring"
        app = make_application()
        app.setCursorFlashTime(0)
        try:
            options.folder.mkdir(parents=True, exist_ok=True)
            with asyncio.Runner(loop_factory=lambda: OctavoLoop(app)) as runner:
                if options.every_state:
                    runner.run(take_states(app, options.folder, options.model, save))
                else:
                    runner.run(take_pictures(app, options.folder, options.model))
        except (OctavoError, OSError) as error:
            print(error, file=sys.stderr)
            return 1
    return 0


async def take_pictures(app: QApplication, folder: Path, model: Path | None) -> None:
    """Opens the window, lets the model answer, and saves each page in both themes."""
    core = Core(AppPaths.default())
    chat = core.settings.value.chat
    core.settings.update(
        chat=dataclasses.replace(chat, temperature=0.0, seed=1, max_tokens=MAX_ANSWER_TOKENS)
    )
    await asyncio.to_thread(provide_model, core, model)
    themes = ThemeController(app, "light")
    window = MainWindow(core)
    window.resize(*WIDE)
    window.show()
    print("Loading the model")
    await core.host.load(core.library.find("starter"))
    # Its kernels are compiled beside the first answers, which are slow until then.
    await until(lambda: is_at_speed(core))
    await hold_conversations(window)
    for mode in MODES:
        appearance = dataclasses.replace(core.settings.value.appearance, theme=mode)
        core.settings.update(appearance=appearance)
        themes.set_mode(mode)
        window.resize(*WIDE)
        for page in (MODELS, QUANTIZE, MONITOR, SERVER, SETTINGS, CHAT):
            shown = window.page(page)
            if isinstance(shown, QuantizePage):
                await until(shown.start_button.isEnabled)
            await asyncio.sleep(WATCHED_S if page == MONITOR else SETTLE_S)
            save(window, folder / f"{page}-{mode}.png")
        window.resize(*NARROW)
        await asyncio.sleep(SETTLE_S)
        save(window, folder / f"{CHAT}-narrow-{mode}.png")
    await UiTasks.current().cancel_all()
    window.hide()
    await core.close()  # the window still listens to what the core tells
    window.deleteLater()


def provide_model(core: Core, model: Path | None) -> None:
    """Puts the starter model where the library finds it, and says what is done for it."""
    if model is not None:
        core.models_dir.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model, core.models_dir / core.starter.file_name)
    stages: list[str] = []

    def report(progress: Progress) -> None:
        if progress.stage not in stages:
            stages.append(progress.stage)
            print(progress.stage)

    # Checks a file that is there against its digest, and fetches one that is not.
    pull(core.starter, core.models_dir, core.paths.cache_dir, JobControl(report))


def is_at_speed(core: Core) -> bool:
    """Whether the model computes as it will from now on."""
    report = core.host.state.report
    return report is not None and not report.is_temporary


async def hold_conversations(window: MainWindow) -> None:
    """Asks as a person would: through the composer, one question after the other."""
    listed = window.findChild(ConversationList)
    assert isinstance(listed, ConversationList)
    composer = window.chat_page.composer
    for questions in CONVERSATIONS:
        listed.new_conversation()
        for question in questions:
            print(f"Asking: {question}")
            composer.set_text(question)
            composer.press()
            await until(lambda: not composer.is_busy)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what a widget shows."""
    async with asyncio.timeout(TURN_TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 (a widget's state has no event to wait for)
            await asyncio.sleep(0.05)


def save(window: MainWindow, path: Path) -> None:
    """Writes the picture without an alpha channel and as small as PNG packs it."""
    image = window.grab().toImage().convertToFormat(QImage.Format.Format_RGB888)
    writer = QImageWriter(str(path))
    writer.setCompression(100)
    if not writer.write(image):
        raise StorageError(f"{path} cannot be written: {writer.errorString()}.")
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    sys.exit(main())
