"""`QuantizeRecipe`: which model, how, and where to; checked before anything runs. No torch."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

from octavo.checkpoint.folder import FolderHeader
from octavo.checkpoint.gguf import GGUFHeader
from octavo.checkpoint.header import CheckpointHeader, read_checkpoint
from octavo.engine.checkpoint_parts import read_model_config
from octavo.errors import (
    InsufficientMemoryError,
    InvalidInputError,
    ModelError,
    StorageError,
    UnsupportedModelError,
)
from octavo.quantize.methods import QuantizeMethod, find_method
from octavo.quantize.plan import QuantizePlan, plan_output
from octavo.units import format_bytes

GGUF_SUFFIX = ".gguf"
PARTIAL_SUFFIX = ".partial"
METHOD_KEY = "octavo.quantize.method"
"""Of a GGUF file's metadata: says that Octavo wrote the file, and how."""

_SMALL_FILES_BYTES = 32 << 20
"""Tokenizer, config and header of a model, generously."""
_WORKER_BYTES = 400 << 20
"""What the child process takes beside the weights that are unpacked."""


@dataclass(frozen=True, slots=True)
class QuantizeRecipe:
    """One quantisation to run."""

    source: Path
    """A .gguf file or a folder of safetensors."""
    method: str
    output: Path
    """A .gguf file or a folder, as the method has it; must not exist yet."""

    @property
    def partial(self) -> Path:
        """The folder in which the output grows, and from which an interrupted run goes on."""
        return self.output.with_name(self.output.name + PARTIAL_SUFFIX)

    def check(self) -> QuantizePlan:
        """Finds out what can be known before anything runs; reads headers only.

        Raises:
            InvalidInputError: the method is unknown, or the output has the wrong kind of name.
            ModelError: the source is damaged, not one that Octavo runs, or quantised already.
            StorageError: the output exists, its folder cannot be written to, or has no room.
            InsufficientMemoryError: there is less memory than the work needs.
        """
        method = find_method(self.method)
        self._check_output(method)
        header = read_checkpoint(self.source)
        refuse_quantized(header)
        read_model_config(header)
        plan = plan_output(header, method)
        self._check_room(plan)
        _check_memory(plan)
        return plan

    def check_tokens(self) -> str:
        """Finds out whether the other kind of file can say how the tokenizer works.

        It takes some seconds for large vocabularies, so that it is a check of its own.

        Returns:
            What somebody should know who gives the result to other programs, or nothing.

        Raises:
            UnsupportedModelError: it cannot.
            CheckpointError: a file of the source is damaged.
        """
        # They load the library of tokenizers, which nobody needs who only looks at sizes.
        from octavo.quantize.conversion.folder_files import write_folder_files
        from octavo.quantize.conversion.gguf_metadata import gguf_metadata
        from octavo.quantize.conversion.gguf_tokenizer import tokenizer_remark

        container, header = find_method(self.method).container, read_checkpoint(self.source)
        if container == "gguf":
            return tokenizer_remark(gguf_metadata(header))
        if isinstance(header, GGUFHeader):
            with tempfile.TemporaryDirectory() as folder:
                write_folder_files(header, Path(folder), None)
        return ""

    def _check_output(self, method: QuantizeMethod) -> None:
        is_gguf_name = self.output.suffix.lower() == GGUF_SUFFIX
        if method.container == "gguf" and not is_gguf_name:
            raise InvalidInputError(
                f"{method.title} is written into one GGUF file, but {self.output.name} does not"
                f" end in {GGUF_SUFFIX}.",
                hint=f"Name it {self.output.name}{GGUF_SUFFIX}.",
            )
        if method.container == "safetensors" and is_gguf_name:
            raise InvalidInputError(
                f"{method.title} is written into a folder of safetensors, but {self.output.name}"
                " is the name of a GGUF file.",
                hint=f"Name the folder {self.output.stem}.",
            )
        if self.output.exists() or self.output.is_symlink():
            raise StorageError(
                f"{self.output} exists already.",
                hint="Delete it first, or choose another place for the result.",
                path=self.output,
            )

    def _check_room(self, plan: QuantizePlan) -> None:
        folder = self.output.absolute().parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise StorageError(
                f"The folder {folder} cannot be written to.",
                hint="Check who owns it, or choose another place for the result.",
                path=folder,
            )
        needed_bytes = plan.num_bytes + _SMALL_FILES_BYTES - _allocated_bytes(self.partial)
        free_bytes = shutil.disk_usage(folder).free
        if needed_bytes > free_bytes:
            raise StorageError(
                f"The result needs {format_bytes(needed_bytes)} in {folder}, but only"
                f" {format_bytes(free_bytes)} are free there.",
                hint=f"Free {format_bytes(needed_bytes - free_bytes)}, choose a smaller method,"
                " or another place for the result.",
                path=folder,
            )


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a method would give of a model, as far as headers say it."""

    num_bytes: int
    """Without tokenizer and config; 0 if it cannot be done."""
    remarks: tuple[str, ...] = ()
    """What is special about it, in sentences; why not, if it cannot be done."""


def estimate(header: CheckpointHeader, method: QuantizeMethod) -> Estimate:
    """How large the result will be, and what is special about it."""
    try:
        plan = plan_output(header, method)
    except ModelError as error:
        return Estimate(0, (error.message,))
    return Estimate(plan.num_bytes, tuple(plan.remarks))


def default_output(models_dir: Path, name: str, method: QuantizeMethod) -> Path:
    """Where the result goes unless somebody says otherwise.

    Args:
        models_dir: the library's first folder.
        name: of the source, as on disk but without `.gguf`.
        method: gives the rest of the name.
    """
    suffix = GGUF_SUFFIX if method.container == "gguf" else ""
    return models_dir / f"{name}-{method.id}{suffix}"


def source_name(source: Path, library_name: str) -> str:
    """What a source is called in the names of its results.

    Args:
        source: a file, a folder, or a snapshot in the hub's cache, whose name is only a number.
        library_name: the library's name for it.
    """
    if source.parent.name == "snapshots":
        return library_name
    return source.stem if source.suffix.lower() == GGUF_SUFFIX else source.name


def refuse_quantized(header: CheckpointHeader) -> None:
    """Refuses a source that was quantised once and whose original is to be had.

    Raises:
        UnsupportedModelError: it was.
    """
    if isinstance(header, FolderHeader):
        is_quantized = bool(header.config.get("quantization_config"))
        by = header.quantization.lower()
    else:
        is_quantized = METHOD_KEY in header.metadata
        by = f"Octavo, by {header.metadata.get(METHOD_KEY)}"
    if is_quantized:
        raise UnsupportedModelError(
            f"{header.path.name} is quantised already ({by}); doing it again only adds to the"
            " loss.",
            hint="Quantise the model it was made from.",
        )


def _check_memory(plan: QuantizePlan) -> None:
    needed_bytes = plan.unpacked_bytes + _WORKER_BYTES
    free_bytes = psutil.virtual_memory().available
    if needed_bytes > free_bytes:
        raise InsufficientMemoryError(
            f"Quantising needs {format_bytes(needed_bytes)} of memory, but"
            f" only {format_bytes(free_bytes)} are free.",
            hint="Unload the model that is loaded, or close other programs.",
            needed_bytes=needed_bytes,
            free_bytes=free_bytes,
        )


def _allocated_bytes(folder: Path) -> int:
    """What an interrupted run has taken of the disk already."""
    try:
        files = [file.stat() for file in folder.rglob("*") if file.is_file()]
    except OSError:
        return 0
    return sum(getattr(file, "st_blocks", 0) * 512 for file in files)
