"""Texts of sampling parameters in a vocabulary, and contradictions between parameters."""

from pathlib import Path
from typing import Any

import pytest

from octavo.checkpoint.gguf import read_gguf_header
from octavo.engine.sampling_params import SamplingParams
from octavo.engine.token_rules import TokenRules, make_token_rules
from octavo.engine.tokenizer import Tokenizer, tokenizer_from_gguf
from octavo.errors import InvalidRequestError
from tests.support.gguf_files import write_tiny_llama


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path: Path = write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")
    return tokenizer_from_gguf(read_gguf_header(path))


def rules_of(tokenizer: Tokenizer, **values: Any) -> TokenRules | None:
    return make_token_rules(SamplingParams.from_mapping(values), tokenizer)


def test_no_texts_no_rules(tokenizer: Tokenizer) -> None:
    assert rules_of(tokenizer, temperature=0.5, min_tokens=4, allowed_token_ids=[65]) is None


def test_bad_words_in_each_way_they_are_written(tokenizer: Tokenizer) -> None:
    rules = rules_of(tokenizer, bad_words=["hello"])
    assert rules is not None
    written = {"".join(map(tokenizer.token_text, token_ids)) for token_ids in rules.bad_words}
    assert written == {"hello", " hello"}


def test_breakers_are_found_inside_tokens(tokenizer: Tokenizer) -> None:
    rules = rules_of(tokenizer, dry_multiplier=0.8, dry_sequence_breakers=["l", "\n"])
    assert rules is not None
    for token_id in range(tokenizer.vocab_size):
        text = tokenizer.token_bytes(token_id)
        assert rules.is_breaker(token_id) == (b"l" in text or b"\n" in text)


def test_contradictions(tokenizer: Tokenizer) -> None:
    letter = tokenizer.encode("\nA")[-1]
    stop = min(tokenizer.stop_token_ids)
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"bad_words": ["A"], "logit_bias": {str(letter): 1}}, "logit_bias", "forbids"),
        ({"bad_words": ["A"], "allowed_token_ids": [letter]}, "allowed_token_ids", "every token"),
        ({"allowed_token_ids": [stop], "min_tokens": 1}, "min_tokens", "ends the completion"),
        (
            {"stop_token_ids": list(range(tokenizer.vocab_size)), "min_tokens": 1},
            "min_tokens",
            "min_tokens is 1",
        ),
    ]
    for values, field, words in cases:
        with pytest.raises(InvalidRequestError, match=words) as caught:
            rules_of(tokenizer, **values)
        assert caught.value.field == field
        assert caught.value.hint
    assert rules_of(tokenizer, allowed_token_ids=[stop]) is None
    assert rules_of(tokenizer, bad_words=["A"], logit_bias={str(letter): -5}) is not None
