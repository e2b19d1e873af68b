"""Fetches files of one commit of a hub's repository, whole or their beginnings."""

from pathlib import Path

from octavo.errors import DownloadError
from octavo.hub.download import Patience, RemoteFile, Share, fetch
from octavo.hub.hub_files import HubFile, HubRepository
from octavo.hub.hugging_face import HuggingFace
from octavo.hub.transport import HUB_ADVICE
from octavo.jobs import JobControl


class HubTransfer:
    """The way from one repository to this machine; on the thread that made it."""

    def __init__(
        self,
        hub: HuggingFace,
        repository: HubRepository,
        control: JobControl,
        patience: Patience | None = None,
    ) -> None:
        """Raises DownloadError if nothing is to be sent."""
        self._hub = hub
        self._repository = repository
        self._control = control
        self._patience = patience or Patience()
        self._opener = hub.make_opener()

    def fetch(
        self,
        file: HubFile,
        part: Path,
        *,
        stage: str,
        until_bytes: int | None = None,
        share: Share | None = None,
    ) -> None:
        """Fills the part file as `download.fetch` does, and raises as it does."""
        if not file.blob_id:
            raise DownloadError(
                f"The hub gives no checksum for {file.path}, so Octavo could not tell whether it "
                "arrives whole.",
                hint="Choose another file or repository.",
            )
        fetch(
            RemoteFile(
                self._hub.file_url(self._repository, file),
                file.size_bytes,
                file.sha256,
                self._hub.token,
                HUB_ADVICE,
                git_sha1="" if file.sha256 else file.blob_id,
            ),
            part,
            self._control,
            stage=stage,
            opener=self._opener,
            patience=self._patience,
            until_bytes=until_bytes,
            share=share,
        )
