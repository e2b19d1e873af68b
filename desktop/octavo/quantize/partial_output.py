"""`PartialOutput`: a file that grows tensor by tensor, and survives `kill -9` at any moment.

Beside the file lies a journal, one line for each weight that is finished: written, on the disk,
and with the checksum of what was written. A later run takes over what the journal says and what
still has that checksum.
"""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch
from torch import Tensor

from octavo.errors import StorageError
from octavo.hub.disk import make_folder, storage_error
from octavo.quantize.file_layout import FileLayout
from octavo.quantize.plan import WeightPlan

_JOURNAL = "journal.jsonl"
_MODEL = "model"
"""What will be the output: nothing else lies in it."""
_SMALL_FILES = "small-files"
_READ_BYTES = 1 << 20


class PartialOutput:
    """The folder `<output>.partial` of one run. For one process at a time; use it in a `with`."""

    def __init__(self, folder: Path, layout: FileLayout, fingerprint: str) -> None:
        """Opens what an earlier run left if it was for the same, else begins anew.

        Args:
            folder: made if it is missing.
            layout: of the one large file.
            fingerprint: of everything that the result depends on.

        Raises:
            StorageError: the folder or the file cannot be written.
        """
        self._model = folder / _MODEL
        self.small_files = folder / _SMALL_FILES
        """A folder for what else belongs to the model; written anew by every run."""
        self._folder = folder
        self._layout = layout
        self._path = self._model / layout.file_name
        self._finished: dict[str, list[int]] = {}
        make_folder(self._model)
        try:
            shutil.rmtree(self.small_files, ignore_errors=True)
            self.small_files.mkdir()
            lines = self._read_journal()
            if lines[:1] == [{"fingerprint": fingerprint}] and self._path.exists():
                self._finished = {line["weight"]: line["crc32"] for line in lines[1:]}
            self._file: BinaryIO = self._open(is_new=not self._finished)
            # Written whole: the last line of a killed run may have been cut short.
            kept = [{"weight": key, "crc32": crcs} for key, crcs in self._finished.items()]
            self._journal = (folder / _JOURNAL).open("w", encoding="utf-8")
            for line in [{"fingerprint": fingerprint}, *kept]:
                self._journal.write(json.dumps(line) + "\n")
            _sync(self._journal)
        except OSError as error:
            raise storage_error(error, self._path) from error

    def __enter__(self) -> "PartialOutput":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._journal.close()

    def holds(self, weight: WeightPlan) -> bool:
        """Whether an earlier run finished this weight and its bytes are still right.

        Raises:
            StorageError: the file cannot be read.
        """
        checksums = self._finished.get(weight.name)
        if checksums is None:
            return False
        try:
            found = [
                self._checksum(self._layout.offsets[output.name], output.num_bytes)
                for output in weight.outputs
            ]
        except OSError as error:
            raise storage_error(error, self._path) from error
        return found == checksums

    def write(
        self,
        weight: WeightPlan,
        pieces: Iterable[tuple[int, Tensor]],
        on_piece: Callable[[int], None],
    ) -> None:
        """Writes one weight and notes it in the journal once it is on the disk.

        Args:
            weight: the plan for it.
            pieces: which of its outputs, and the next piece of that.
            on_piece: called with the bytes of each piece when it is written.

        Raises:
            StorageError: it cannot be written.
        """
        places = [self._layout.offsets[output.name] for output in weight.outputs]
        checksums = [0] * len(places)
        try:
            for index, piece in pieces:
                content = piece.contiguous().view(-1).view(torch.uint8).numpy().data
                self._file.seek(places[index])
                self._file.write(content)
                checksums[index] = zlib.crc32(content, checksums[index])
                places[index] += len(content)
                on_piece(len(content))
            ends = [self._layout.offsets[out.name] + out.num_bytes for out in weight.outputs]
            assert places == ends, "the encoder keeps to the plan"
            _sync(self._file)
            self._journal.write(json.dumps({"weight": weight.name, "crc32": checksums}) + "\n")
            _sync(self._journal)
        except OSError as error:
            raise storage_error(error, self._path) from error

    def finish(self, output: Path, *, is_folder: bool) -> None:
        """Moves the result to its place in one step and removes the rest.

        Raises:
            StorageError: the output exists by now, or cannot be moved.
        """
        self._file.close()
        self._journal.close()
        if output.exists():
            raise StorageError(
                f"{output} was made by somebody else meanwhile.",
                hint="Move it away, then run the same again; what is finished is kept.",
                path=output,
            )
        try:
            # Last, so that nothing looks like a model before it is one.
            shutil.copytree(self.small_files, self._model, dirs_exist_ok=True)
            for file in self._model.rglob("*"):
                if file.is_file():
                    with file.open("r+b") as opened:
                        os.fsync(opened.fileno())
            (self._model if is_folder else self._path).replace(output)
            _sync_folder(output.parent)
            shutil.rmtree(self._folder, ignore_errors=True)
        except OSError as error:
            raise storage_error(error, output) from error

    def _read_journal(self) -> list[dict[str, Any]]:
        """Its lines as far as they are whole."""
        try:
            text = (self._folder / _JOURNAL).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        lines: list[dict[str, Any]] = []
        for line in text.splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
        return lines

    def _open(self, *, is_new: bool) -> BinaryIO:
        """The file in its final size; what is not written yet takes no room."""
        file = self._path.open("w+b" if is_new else "r+b")
        file.truncate(self._layout.num_bytes)
        file.write(self._layout.header)
        return file

    def _checksum(self, offset: int, num_bytes: int) -> int:
        self._file.seek(offset)
        checksum = 0
        while num_bytes:
            content = self._file.read(min(num_bytes, _READ_BYTES))
            if not content:
                return -1
            checksum = zlib.crc32(content, checksum)
            num_bytes -= len(content)
        return checksum


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Puts a rename on the disk; Windows cannot open folders and does it by itself."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
