"""What a model of a hub is, read from the beginnings of its files before anything is downloaded.

The beginnings are kept by commit: a second look asks for nothing, and a pull goes on from them.
"""

import contextlib
import os
import shutil
from pathlib import Path

from octavo.checkpoint.folder import CONFIG_FILE, INDEX_FILE, WEIGHTS_SUFFIX
from octavo.checkpoint.gguf import GGUFHeader, read_gguf_header
from octavo.checkpoint.gguf_split import join_gguf_parts
from octavo.checkpoint.header import CheckpointHeader, read_checkpoint
from octavo.checkpoint.quantization_config import LEGACY_FILES
from octavo.checkpoint.safetensors import MAX_HEADER_BYTES, MAX_JSON_BYTES
from octavo.errors import DownloadError, OctavoError
from octavo.hub.disk import make_folder, storage_error
from octavo.hub.download import Patience
from octavo.hub.file_lock import locked
from octavo.hub.hub_files import GGUF, HubFile, HubRepository, HubVariant
from octavo.hub.hub_transfer import HubTransfer
from octavo.hub.hugging_face import HuggingFace
from octavo.jobs import JobControl
from octavo.units import format_bytes

_LOOKS = "hub-headers"
_MOST_LOOKS = 64
_DESCRIPTIONS = (CONFIG_FILE, "generation_config.json", INDEX_FILE, *LEGACY_FILES)
_FIRST_GGUF_BYTES = 1 << 20
_FIRST_SAFETENSORS_BYTES = 128 << 10
_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 256 << 20
"""Of one GGUF file, and of all the weights of a folder together."""
_FILLING_BYTES = 16 << 20
"""Longer than any one list of numbers in a header, which a reader skips at once."""


def inspect_variant(
    hub: HuggingFace,
    repository: HubRepository,
    variant: HubVariant,
    cache_dir: Path,
    control: JobControl,
    *,
    patience: Patience | None = None,
) -> CheckpointHeader:
    """Reads a variant's header without downloading the variant. Blocks for a few requests.

    Of a folder, the tokenizer's files are not fetched: the header tells numbers and tensors.

    Args:
        cache_dir: where what is fetched is kept, for the next look and for `pull_variant`.

    Raises:
        UnsupportedModelError, CheckpointError: what the header's reader says.
        DownloadError: the hub cannot be reached or refuses, or a header is longer than is sane.
        StorageError: the cache cannot be written.
        JobCancelled: the work is to stop.
    """
    folder = _look_folder(cache_dir, repository)
    make_folder(folder)
    _drop_oldest(folder.parent)
    title = variant.files[0].name if variant.kind == GGUF else repository.name
    with locked(folder / ".lock", control, f"Waiting for another Octavo that reads {title}"):
        look = _Look(hub, repository, folder, title, control, patience)
        if variant.kind == GGUF:
            return join_gguf_parts([look.gguf_header(file) for file in variant.files])
        return look.folder_header(variant)


def beginning_path(cache_dir: Path, repository: HubRepository, file: HubFile) -> Path:
    """Where `inspect_variant` keeps the first bytes of a file, if it needed any."""
    return _look_folder(cache_dir, repository) / "beginnings" / f"{file.blob_id}.part"


class _Look:
    """One look at one commit."""

    def __init__(
        self,
        hub: HuggingFace,
        repository: HubRepository,
        folder: Path,
        title: str,
        control: JobControl,
        patience: Patience | None,
    ) -> None:
        self._hub = hub
        self._repository = repository
        self._beginnings = folder / "beginnings"
        self._stand_ins = folder / repository.short_name
        self._title = title
        self._control = control
        self._patience = patience
        self._transfer: HubTransfer | None = None
        make_folder(self._beginnings)
        make_folder(self._stand_ins)

    def gguf_header(self, file: HubFile) -> GGUFHeader:
        """Reads the header from as many of the first bytes as it takes."""
        wanted_bytes = _FIRST_GGUF_BYTES
        while True:
            num_bytes = self._fetch(file, wanted_bytes)
            is_all = num_bytes >= min(file.size_bytes, _MOST_HEADER_BYTES)
            # What has not arrived is stood in for by one filling, then by another: only what does
            # not depend on the filling has been read from the file itself.
            outcome = self._read_gguf_with(b"\0", file, num_bytes)
            if isinstance(outcome, GGUFHeader):
                if outcome.data_offset <= num_bytes:
                    return outcome
            elif is_all or str(self._read_gguf_with(b"\xff", file, num_bytes)) == str(outcome):
                raise outcome
            if is_all:
                raise DownloadError(
                    f"The header of {self._title} is longer than {format_bytes(num_bytes)}.",
                    hint="Choose another file or repository.",
                )
            wanted_bytes = min(max(wanted_bytes * 4, num_bytes + 1), _MOST_HEADER_BYTES)

    def folder_header(self, variant: HubVariant) -> CheckpointHeader:
        """Lays out the small files and stand-ins of the weights, and reads them as a folder."""
        weights = [file for file in variant.files if file.path.endswith(WEIGHTS_SUFFIX)]
        header_bytes = 0
        try:
            for file in variant.files:
                if file in weights:
                    header_bytes += self._fetch_safetensors_header(file)
                    if header_bytes > _MOST_HEADER_BYTES:
                        raise DownloadError(
                            f"The headers of {self._title} are longer than "
                            f"{format_bytes(_MOST_HEADER_BYTES)}.",
                            hint="Choose another repository.",
                        )
                elif file.path not in _DESCRIPTIONS:
                    continue
                elif file.size_bytes <= MAX_JSON_BYTES:
                    self._fetch(file, file.size_bytes)
                self._stand_in(file)
            return read_checkpoint(self._stand_ins)
        finally:
            for file in weights:
                # Nobody must take them for weights; and not every file system has holes.
                with contextlib.suppress(OSError):
                    (self._stand_ins / file.path).unlink(missing_ok=True)

    def _fetch_safetensors_header(self, file: HubFile) -> int:
        num_bytes = self._fetch(file, _FIRST_SAFETENSORS_BYTES)
        with self._beginning(file).open("rb") as beginning:
            length = int.from_bytes(beginning.read(_LENGTH_BYTES), "little")
        # A longer one is refused by its reader, whatever follows.
        if num_bytes < _LENGTH_BYTES + length <= min(file.size_bytes, MAX_HEADER_BYTES):
            num_bytes = self._fetch(file, _LENGTH_BYTES + length)
        return min(num_bytes, length)

    def _fetch(self, file: HubFile, until_bytes: int) -> int:
        """Makes sure that so many first bytes are here, if the file has them; how many are."""
        beginning = self._beginning(file)
        try:
            num_bytes = beginning.stat().st_size if beginning.exists() else 0
        except OSError as error:
            raise storage_error(error, beginning) from error
        until_bytes = min(until_bytes, file.size_bytes)
        if num_bytes >= until_bytes and beginning.exists():
            return num_bytes
        if self._transfer is None:
            self._hub.require_access(self._repository, file)
            self._transfer = HubTransfer(self._hub, self._repository, self._control, self._patience)
        stage = f"Reading what {self._title} is"
        self._transfer.fetch(file, beginning, stage=stage, until_bytes=until_bytes)
        return beginning.stat().st_size

    def _read_gguf_with(
        self, filling: bytes, file: HubFile, num_bytes: int
    ) -> GGUFHeader | OctavoError:
        """The header of a stand-in: the file's first bytes, then a filling."""
        stand_in = self._stand_in(file, filling=filling, num_bytes=num_bytes)
        try:
            return read_gguf_header(stand_in)
        except OctavoError as error:
            return error
        finally:
            with contextlib.suppress(OSError):
                stand_in.unlink()

    def _stand_in(self, file: HubFile, *, filling: bytes = b"\0", num_bytes: int = -1) -> Path:
        """A file as long as the real one, with its first bytes and a filling, else a hole."""
        stand_in = self._stand_ins / file.name
        beginning = self._beginning(file)
        try:
            with stand_in.open("wb") as content:
                if beginning.exists():
                    with beginning.open("rb") as source:
                        num_bytes = content.write(source.read(num_bytes))
                if filling != b"\0":
                    left_bytes = file.size_bytes - num_bytes
                    content.write(filling * min(left_bytes, _FILLING_BYTES))
                # A hole: it takes no room on the disk.
                content.truncate(file.size_bytes)
        except OSError as error:
            raise storage_error(error, stand_in) from error
        return stand_in

    def _beginning(self, file: HubFile) -> Path:
        return self._beginnings / f"{file.blob_id}.part"


def _look_folder(cache_dir: Path, repository: HubRepository) -> Path:
    return cache_dir / _LOOKS / repository.name.replace("/", "--") / repository.commit


def _drop_oldest(folder: Path) -> None:
    """Deletes looks at repositories that nobody looked at for longest."""
    with contextlib.suppress(OSError):
        os.utime(folder)
        looks = sorted(folder.parent.iterdir(), key=lambda path: -path.stat().st_mtime)
        for look in looks[_MOST_LOOKS:]:
            shutil.rmtree(look, ignore_errors=True)
