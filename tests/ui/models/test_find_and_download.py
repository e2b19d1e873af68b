"""From words to a model on this machine: the real page, core and queue with a hub of the test's."""

import dataclasses
from pathlib import Path

from octavo.core import Core
from octavo.hub.library import LibraryModel
from octavo.paths import AppPaths
from octavo.settings import Hub
from octavo.ui.models.models_page import LIBRARY, ModelsPage
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from tests.hub.hub_server import Repo, serving_hub
from tests.support.gguf_files import write_tiny_llama
from tests.ui.conftest import until

NAME = "acme/Tiny-GGUF"


async def test_search_check_download_and_chat(
    tmp_path: Path, paths: AppPaths, tasks: UiTasks, theme: ThemeController
) -> None:
    content = write_tiny_llama(tmp_path / "tiny.gguf").read_bytes()
    with serving_hub({NAME: Repo({"tiny-Q4_0.gguf": content, "README.md": b"Hi"})}) as server:
        core = Core(paths)
        core.settings.update(hub=dataclasses.replace(Hub(), endpoint=server.url))
        core.downloads.start()
        page = ModelsPage(core)
        asked: list[LibraryModel] = []
        page.chat_asked.connect(asked.append)
        page.resize(900, 700)
        page.show()
        page.open_search()
        assert server.hub_paths == []
        page.finder.search_for("tiny")
        await until(lambda: page.finder.results.isVisible())
        page.finder.results.rows[0].click()
        repository = page.finder.repository_view
        await until(lambda: repository.take_button.isVisible())
        assert repository.rows[0].verdict_button.text() == "Fits"
        repository.take_button.click()
        await until(lambda: repository.rows[0].chat_button.isVisible())
        (row,) = page.downloads.rows.values()
        assert row.text.startswith("Downloaded and checked")
        row.chat_button.click()
        await until(lambda: bool(asked))
        assert asked[0].repository == NAME
        page.show_view(LIBRARY)
        await until(lambda: len(page.library.rows) == 1)
        assert f"from {NAME}" in page.library.rows[0]._facts.text()
        await tasks.cancel_all()
        assert await core.close()
