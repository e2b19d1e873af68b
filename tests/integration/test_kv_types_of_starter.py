"""What other types of cached keys and values cost the starter model: nats per token of English."""

from pathlib import Path

import pytest

from octavo.checkpoint.gguf import read_gguf_header
from octavo.engine.tokenizer import tokenizer_from_gguf
from tests.support.engines import make_engine, mean_nll, request, run_all

pytestmark = [pytest.mark.starter, pytest.mark.timeout(600)]

ENGLISH = Path(__file__).parent.parent / "data" / "english.txt"
NUM_TOKENS = 1024


@pytest.fixture(scope="module")
def token_ids(starter_model: Path) -> list[int]:
    tokenizer = tokenizer_from_gguf(read_gguf_header(starter_model))
    return tokenizer.encode(ENGLISH.read_text(encoding="utf-8"))[:NUM_TOKENS]


def nll(path: Path, kv_dtype: str, token_ids: list[int]) -> float:
    engine = make_engine(path, kv_dtype=kv_dtype, num_kv_blocks=80)
    prompt = request("r", token_ids, max_tokens=1, prompt_logprobs=0)
    return mean_nll(run_all(engine, [prompt])["r", 0].prompt_logprobs)


@pytest.fixture(scope="module")
def exact(starter_model: Path, token_ids: list[int]) -> float:
    return nll(starter_model, "auto", token_ids)


@pytest.mark.parametrize(
    ("kv_dtype", "most"),
    [
        ("int8", 0.01),
        pytest.param("float16", 0.0005, marks=pytest.mark.slow),
        pytest.param("bfloat16", 0.003, marks=pytest.mark.slow),
        pytest.param("float8_e4m3", 0.03, marks=pytest.mark.slow),
    ],
)
def test_mean_nll_moves_little(
    starter_model: Path, token_ids: list[int], exact: float, kv_dtype: str, most: float
) -> None:
    change = nll(starter_model, kv_dtype, token_ids) - exact
    print(f"{kv_dtype}: {change:+.5f} nats per token, from {exact:.5f}")
    assert change != 0
    assert abs(change) < most
