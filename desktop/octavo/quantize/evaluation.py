"""`evaluate_models`: perplexity of a text, and how far one model strays from another on it.

The same models and text give the same numbers bit for bit on one machine: chunks, data type and
number of threads are fixed, and sums are in float64.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch

from octavo.checkpoint.safetensors import read_bounded
from octavo.engine.teacher_forcing import TeacherForcing
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import InvalidInputError, UnsupportedModelError
from octavo.hub.disk import make_folder, storage_error
from octavo.jobs import JobControl, Progress
from octavo.paths import AppPaths, resources_dir
from octavo.quantize.report import Evaluation

CHUNK_TOKENS = 512
MAX_TOKENS = 4096
"""Of a text; what is longer is cut there, so that nobody waits an hour for a novel."""
_MAX_TEXT_BYTES = 16 << 20
_SHIPPED_TEXT = "octavo-prose-and-code.txt"


@dataclass(slots=True)
class _Sums:
    """What adds up over the tokens, in float64."""

    num_tokens: int = 0
    nll: float = 0.0
    against_nll: float = 0.0
    divergence: float = 0.0
    num_agreed: int = 0


def shipped_text() -> Path:
    """The text that reports are made with: prose and code, written for Octavo."""
    return resources_dir() / "calibration" / _SHIPPED_TEXT


def evaluate_models(
    model: Path, against: Path | None, text: Path | None, control: JobControl
) -> Evaluation:
    """Reads a text with a model, and first with the one it is compared with.

    Only one model is in memory at a time; the first one's logits wait in a temporary file.

    Raises:
        InvalidInputError: the text is too short, or no text.
        ModelError: a model is damaged, not one that Octavo runs, or the two do not share a
            vocabulary.
        InsufficientMemoryError: a model does not fit.
        StorageError: no room for the temporary file.
        JobCancelled: `control` was cancelled.
    """
    text_file = shipped_text() if text is None else text
    content = _read_text(text_file)
    if against is None:
        forcing = _load(model, "auto", control)
        chunks = _chunks(forcing, content, text_file)
        sums = _Sums()
        for logits, next_ids in _steps(forcing, chunks, "Reading the text", control):
            sums.num_tokens += len(next_ids)
            sums.nll += _nll(logits.double().log_softmax(-1), next_ids)
        return Evaluation(
            text_file.name, sums.num_tokens, forcing.dtype, _perplexity(sums.nll, sums)
        )
    return _compare(model, against, text_file, content, control)


def _compare(
    model: Path, against: Path, text_file: Path, content: str, control: JobControl
) -> Evaluation:
    with _temporary_file() as file:
        forcing = _load(against, "auto", control)
        chunks = _chunks(forcing, content, text_file)
        dtype, vocab_size = forcing.dtype, forcing.vocab_size
        try:
            for logits, _ in _steps(forcing, chunks, "Reading with the original", control):
                file.write(logits.numpy().data)
            file.seek(0)
        except OSError as error:
            raise storage_error(error, AppPaths.default().cache_dir) from error
        # The original's memory is needed for the other one.
        del forcing
        forcing = _load(model, dtype, control)
        if _chunks(forcing, content, text_file) != chunks:
            raise _other_vocabulary(model, against)
        sums = _Sums()
        for logits, next_ids in _steps(forcing, chunks, "Reading with the result", control):
            row_bytes = vocab_size * 4
            stored = file.read(len(next_ids) * row_bytes)
            before = torch.from_numpy(np.frombuffer(stored, np.float32).copy())
            _add(sums, logits, before.view(len(next_ids), vocab_size), next_ids)
    return Evaluation(
        text_name=text_file.name,
        num_tokens=sums.num_tokens,
        dtype=dtype,
        perplexity=_perplexity(sums.nll, sums),
        against_perplexity=_perplexity(sums.against_nll, sums),
        kl_divergence=sums.divergence / sums.num_tokens,
        top1_agreement=sums.num_agreed / sums.num_tokens,
    )


def _add(sums: _Sums, logits: torch.Tensor, before: torch.Tensor, next_ids: list[int]) -> None:
    """Adds some rows of both models' logits.

    Args:
        sums: grows.
        logits: [num_rows, vocab_size], float32.
        before: the same of the original. Vocabularies are padded to round numbers, so that one
            may be longer; what both have counts.
        next_ids: the token that follows each row.
    """
    width = min(logits.shape[1], before.shape[1])
    logprobs = logits[:, :width].double().log_softmax(-1)
    before_logprobs = before[:, :width].double().log_softmax(-1)
    sums.num_tokens += len(next_ids)
    sums.nll += _nll(logprobs, next_ids)
    sums.against_nll += _nll(before_logprobs, next_ids)
    sums.divergence += float((before_logprobs.exp() * (before_logprobs - logprobs)).sum())
    sums.num_agreed += int((logprobs.argmax(-1) == before_logprobs.argmax(-1)).sum())


def _nll(logprobs: torch.Tensor, next_ids: list[int]) -> float:
    return -float(logprobs.gather(1, torch.tensor(next_ids)[:, None]).sum())


def _perplexity(nll: float, sums: _Sums) -> float:
    try:
        return math.exp(nll / sums.num_tokens)
    except OverflowError:
        return math.inf


def _load(path: Path, dtype: str, control: JobControl) -> TeacherForcing:
    return TeacherForcing(path, chunk_tokens=CHUNK_TOKENS, dtype=dtype, control=control)


def _chunks(forcing: TeacherForcing, content: str, text_file: Path) -> list[list[int]]:
    """The text's token ids, cut to chunks that each begin as a text does for this model."""
    tokenizer: Tokenizer = forcing.tokenizer
    token_ids = tokenizer.encode(content)[:MAX_TOKENS]
    start = [tokenizer.bos_token_id] if tokenizer.adds_bos else []
    starts: list[int] = [token_id for token_id in start if token_id is not None]
    size = forcing.chunk_tokens - len(starts)
    chunks = [starts + token_ids[first : first + size] for first in range(0, len(token_ids), size)]
    chunks = [chunk for chunk in chunks if len(chunk) > 1]
    if not chunks:
        raise InvalidInputError(
            f"{text_file.name} has only {len(token_ids)} tokens; at least two are needed.",
            hint="Choose a longer text, of some thousand words.",
        )
    return chunks


def _steps(
    forcing: TeacherForcing,
    chunks: Sequence[list[int]],
    stage: str,
    control: JobControl,
) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """Logits of some rows, and the token that follows each."""
    total = sum(len(chunk) for chunk in chunks)
    done = 0
    control.report(Progress(stage, 0, total, "tokens"))
    for chunk in chunks:
        first = 1
        for logits in forcing.logits(chunk):
            yield logits, chunk[first : first + len(logits)]
            first += len(logits)
            control.report(Progress(stage, done + first, total, "tokens"))
        done += len(chunk)


def _temporary_file() -> IO[bytes]:
    """On a disk of the person's own: the system's folder for such files may lie in memory."""
    folder = AppPaths.default().cache_dir
    make_folder(folder)
    try:
        return tempfile.TemporaryFile(prefix="logits-", dir=folder)
    except OSError as error:
        raise storage_error(error, folder) from error


def _read_text(path: Path) -> str:
    try:
        return read_bounded(path, _MAX_TEXT_BYTES).decode()
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{path.name} is not UTF-8 text (byte {error.start}).",
            hint="Convert it first, for example with iconv.",
        ) from error


def _other_vocabulary(model: Path, against: Path) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{model.name} and {against.name} cut the same text into different tokens, so their "
        "answers cannot be compared token by token.",
        hint="Compare a model with the one that it was made from.",
    )
