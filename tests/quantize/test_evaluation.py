"""The numbers of a report: right, repeatable, and refused where they would mean nothing."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from octavo.checkpoint.folder import read_folder_header
from octavo.engine.teacher_forcing import TeacherForcing
from octavo.engine.tokenizer_json import tokenizer_from_folder
from octavo.errors import InvalidInputError, UnsupportedModelError
from octavo.jobs import JobControl
from octavo.paths import AppPaths
from octavo.quantize.evaluation import CHUNK_TOKENS, evaluate_models, shipped_text
from tests.support.gguf_files import write_tiny_llama
from tests.support.model_folders import write_model_folder

pytestmark = pytest.mark.usefixtures("paths")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The hello world and you are the one. " * 30, encoding="utf-8")
    return path


def test_perplexity_is_that_of_transformers(tmp_path: Path, text: Path) -> None:
    twin = write_model_folder(tmp_path / "m", max_position_embeddings=128)
    evaluation = evaluate_models(tmp_path / "m", None, text, JobControl())
    tokenizer = tokenizer_from_folder(read_folder_header(tmp_path / "m"))
    token_ids = tokenizer.encode(text.read_text())
    start = [tokenizer.bos_token_id] if tokenizer.adds_bos else []
    size = 128 - len(start)
    nll, count = 0.0, 0
    for first in range(0, len(token_ids), size):
        chunk = torch.tensor(start + token_ids[first : first + size])
        with torch.inference_mode():
            logits = twin(chunk[None]).logits[0, :-1].double()
        nll += float(functional.cross_entropy(logits, chunk[1:], reduction="sum"))
        count += len(chunk) - 1
    assert evaluation.num_tokens == count
    assert evaluation.perplexity == pytest.approx(math.exp(nll / count), rel=1e-4)
    assert evaluation.kl_divergence is None


def test_model_does_not_stray_from_itself(tmp_path: Path, text: Path) -> None:
    model = write_tiny_llama(tmp_path / "m.gguf")
    evaluation = evaluate_models(model, model, text, JobControl())
    assert evaluation.perplexity == evaluation.against_perplexity
    assert (evaluation.kl_divergence, evaluation.top1_agreement) == (0.0, 1.0)


def test_numbers_repeat_bit_for_bit(tmp_path: Path, text: Path) -> None:
    before = write_tiny_llama(tmp_path / "a.gguf")
    after = write_tiny_llama(tmp_path / "b.gguf", seed=1)
    first = evaluate_models(after, before, text, JobControl())
    assert first == evaluate_models(after, before, text, JobControl())
    assert first.kl_divergence is not None
    assert first.kl_divergence > 0.5
    assert first.top1_agreement is not None
    assert first.top1_agreement < 0.5


def test_divergence_by_its_definition(tmp_path: Path, text: Path) -> None:
    before = write_tiny_llama(tmp_path / "a.gguf")
    after = write_tiny_llama(tmp_path / "b.gguf", seed=1)
    text.write_text("hello world and you", encoding="utf-8")
    rows = []
    for path in (before, after):
        forcing = TeacherForcing(path, chunk_tokens=64, dtype="float32", control=JobControl())
        token_ids = forcing.tokenizer.encode(text.read_text())
        rows.append(torch.cat(list(forcing.logits(token_ids))).double().log_softmax(-1))
    expected = functional.kl_div(rows[1], rows[0], log_target=True, reduction="batchmean")
    found = evaluate_models(after, before, text, JobControl()).kl_divergence
    assert found == pytest.approx(float(expected), rel=1e-6)


def test_other_vocabulary_is_refused(tmp_path: Path, text: Path) -> None:
    model = write_tiny_llama(tmp_path / "m.gguf")
    write_model_folder(tmp_path / "other")
    with pytest.raises(UnsupportedModelError, match="different tokens"):
        evaluate_models(tmp_path / "other", model, text, JobControl())


def test_text_must_be_text(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "m.gguf")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInputError, match="not UTF-8"):
        evaluate_models(model, None, tmp_path / "a.txt", JobControl())
    (tmp_path / "a.txt").write_text("h")
    with pytest.raises(InvalidInputError, match="only 1 tokens"):
        evaluate_models(model, None, tmp_path / "a.txt", JobControl())


def test_no_trace_is_left(tmp_path: Path, text: Path, paths: AppPaths) -> None:
    model = write_tiny_llama(tmp_path / "m.gguf")
    evaluate_models(model, model, text, JobControl())
    assert list(paths.cache_dir.iterdir()) == []


def test_shipped_text_is_long_enough() -> None:
    content = shipped_text().read_text(encoding="utf-8")
    assert len(content) > 16 * CHUNK_TOKENS
