"""`spawn`: errors are shown, nothing is lost, everything ends at close."""

import asyncio
import gc
import logging

import pytest
from PySide6.QtWidgets import QApplication

from octavo.errors import ChatTemplateError, OctavoError, StorageError
from octavo.jobs import JobCancelled
from octavo.ui.tasks import UiTasks, spawn
from tests.ui.conftest import until


async def raise_error(error: Exception) -> None:
    await asyncio.sleep(0)
    raise error


async def test_an_error_is_given_to_its_place(tasks: UiTasks) -> None:
    shown: list[OctavoError] = []
    spawn(raise_error(StorageError("The disk is full.")), shown.append)
    await until(lambda: len(shown) == 1)
    assert shown[0].message == "The disk is full."


async def test_an_error_without_a_place_is_announced(tasks: UiTasks) -> None:
    shown: list[OctavoError] = []
    tasks.failed.connect(shown.append)
    spawn(raise_error(StorageError("The disk is full.")))
    await until(lambda: len(shown) == 1)


async def test_our_own_mistakes_are_logged_and_put_into_words(
    tasks: UiTasks, caplog: pytest.LogCaptureFixture
) -> None:
    shown: list[OctavoError] = []
    spawn(raise_error(KeyError("x")), shown.append)
    await until(lambda: len(shown) == 1)
    assert "KeyError" in shown[0].message
    assert shown[0].hint
    assert any(record.levelno == logging.ERROR for record in caplog.records)


async def test_what_a_template_says_is_not_logged(
    tasks: UiTasks, caplog: pytest.LogCaptureFixture
) -> None:
    """It may quote the messages."""
    shown: list[OctavoError] = []
    error = ChatTemplateError("The template refuses these messages: Dear Ada.")
    error.__cause__ = ValueError("Dear Ada.")
    spawn(raise_error(error), shown.append)
    await until(lambda: shown == [error])
    assert "ChatTemplateError" in caplog.text
    assert "Ada" not in caplog.text


async def test_a_cancelled_job_is_no_error(tasks: UiTasks) -> None:
    shown: list[OctavoError] = []
    task = spawn(raise_error(JobCancelled()), shown.append)
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert shown == []


async def test_cancel_all_waits_for_the_clean_up(tasks: UiTasks) -> None:
    steps: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            steps.append("cleaned up")

    spawn(work())
    await asyncio.sleep(0)
    await tasks.cancel_all()
    assert steps == ["cleaned up"]


async def test_a_task_cancelled_before_its_start_leaves_no_warning(tasks: UiTasks) -> None:
    spawn(asyncio.sleep(60)).cancel()
    await tasks.cancel_all()


def test_without_a_loop_the_mistake_is_said_here_and_not_when_the_coroutine_is_collected(
    app: QApplication,
) -> None:
    """The suite makes errors of warnings: one about the coroutine would fail a later test."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        spawn(asyncio.sleep(0))
    gc.collect()
