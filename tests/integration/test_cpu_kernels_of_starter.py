"""The starter model on the CPU kernels, through the whole engine, against float32 in torch."""

from pathlib import Path

import pytest

from octavo.checkpoint.gguf import read_gguf_header
from octavo.engine.config import EngineConfig
from octavo.engine.engine import Engine
from octavo.engine.kernels.cpu.simd_tier import has_bfloat_dots
from octavo.engine.load_report import LoadReport
from octavo.engine.loading import load_engine
from octavo.engine.request import TokenLogprob
from octavo.engine.tokenizer import tokenizer_from_gguf
from octavo.jobs import JobControl
from tests.support.engines import make_engine, mean_nll, request, run_all

pytestmark = [pytest.mark.starter, pytest.mark.timeout(600)]

ENGLISH = Path(__file__).parent.parent / "data" / "english.txt"
NUM_TOKENS = 512
CLEAR_MARGIN = 0.5


@pytest.fixture(scope="module")
def token_ids(starter_model: Path) -> list[int]:
    tokenizer = tokenizer_from_gguf(read_gguf_header(starter_model))
    return tokenizer.encode(ENGLISH.read_text(encoding="utf-8"))[:NUM_TOKENS]


@pytest.fixture(scope="module")
def loaded(starter_model: Path) -> tuple[Engine, LoadReport]:
    config = EngineConfig(device="cpu", num_kv_blocks=200, cpu_threads=2)
    return load_engine(starter_model, config, JobControl())


@pytest.fixture(scope="module")
def kernels(loaded: tuple[Engine, LoadReport]) -> Engine:
    return loaded[0]


def read(engine: Engine, token_ids: list[int]) -> list[TokenLogprob]:
    """What a model says of each token of a text but the first, and its two likeliest tokens."""
    prompt = request("r", token_ids, max_tokens=1, prompt_logprobs=2)
    entries = run_all(engine, [prompt])["r", 0].prompt_logprobs
    return [entry for entry in entries if entry is not None]


def test_the_load_says_what_computes(loaded: tuple[Engine, LoadReport]) -> None:
    report = loaded[1]
    assert report.executor == "CPU kernels"
    assert "2 threads" in report.executor_reason
    assert ("prompts attend in 16 bits" in report.executor_reason) == has_bfloat_dots()
    assert report.plan.uses_kernels
    assert "packed" in report.weights_note


def test_a_text_is_as_likely_and_clear_choices_are_the_same(
    kernels: Engine, starter_model: Path, token_ids: list[int]
) -> None:
    """Teacher-forced: wherever float32's best token leads by half a logit, it is the best here."""
    exact = read(make_engine(starter_model, num_kv_blocks=80), token_ids)
    actual = read(kernels, token_ids)
    change = mean_nll(actual) / mean_nll(exact) - 1
    assert change != 0
    assert abs(change) < 1e-3
    num_clear = 0
    for wanted, found in zip(exact, actual, strict=True):
        (best, first), (_, second) = wanted.top[:2]
        if first - second > CLEAR_MARGIN:
            num_clear += 1
            assert found.top[0][0] == best
    print(f"NLL {change:+.4%}; {num_clear} of {len(exact)} choices are clear")
    assert num_clear > len(exact) // 3


def test_a_batch_decodes_what_each_decodes_alone(kernels: Engine, token_ids: list[int]) -> None:
    prompts = [token_ids[start : start + 20 + start] for start in (0, 40, 77)]
    requests = [
        request(str(number), prompt, max_tokens=24, ignore_eos=True)
        for number, prompt in enumerate(prompts)
    ]
    together = run_all(kernels, requests)
    for one in requests:
        alone = run_all(kernels, [one])
        key = (one.request_id, 0)
        assert together[key].token_ids == alone[key].token_ids
