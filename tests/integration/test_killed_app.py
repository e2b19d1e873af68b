"""kill -9 of the app during an answer: conversation and text are there after the restart."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from octavo.chats.message import MessageStatus, Role
from octavo.chats.store import ChatStore
from octavo.paths import AppPaths
from octavo.settings import ChatDefaults, SettingsStore

QUESTION = "Tell a very long story about a lighthouse."
MIN_SAVED_CHARACTERS = 20


@pytest.mark.starter
@pytest.mark.timeout(180)
def test_text_shown_so_far_survives(tmp_path: Path, starter_model: Path) -> None:
    paths = AppPaths.below(tmp_path)
    paths.models_dir.mkdir(parents=True)
    (paths.models_dir / starter_model.name).symlink_to(starter_model)
    settings = SettingsStore(paths.settings_file)
    settings.update(chat=ChatDefaults(last_model="smollm2-135m-instruct-q4_1", seed=1))
    app = subprocess.Popen(
        [sys.executable, "-m", "tests.support.typing_app", str(tmp_path), QUESTION],
        env={**os.environ, "QT_QPA_PLATFORM": "offscreen"},
    )
    try:
        wait_for_text(app, paths.chats_file)
    finally:
        app.send_signal(signal.SIGKILL)
        app.wait()
    store = ChatStore(paths.chats_file)
    (conversation,) = store.conversations()
    question, answer = store.messages(conversation.id)
    assert (question.role, question.content) == (Role.USER, QUESTION)
    assert answer.role is Role.ASSISTANT
    assert answer.status is MessageStatus.INTERRUPTED
    assert len(answer.content) >= MIN_SAVED_CHARACTERS
    store.close()


def wait_for_text(app: "subprocess.Popen[bytes]", chats_file: Path) -> None:
    """Until enough of the answer has been saved by the other process."""
    while True:
        assert app.poll() is None, "the app ended by itself"
        if chats_file.exists():
            address = f"file:{chats_file}?mode=ro"
            with contextlib.closing(sqlite3.connect(address, uri=True)) as reader:
                tables = reader.execute("SELECT name FROM sqlite_master WHERE name = 'message'")
                if tables.fetchone():
                    rows = reader.execute("SELECT content FROM message WHERE role = 'assistant'")
                    if any(len(text) >= MIN_SAVED_CHARACTERS for (text,) in rows.fetchall()):
                        return
        time.sleep(0.1)
