"""Sampling parameters refuse what cannot be meant, in a sentence with the value and the limit."""

from typing import Any

import pytest

from octavo.engine.sampling_params import DEFAULT_SEQUENCE_BREAKERS, SamplingParams
from octavo.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"n": 65}, "n", "n is 65; it must be 1 to 64."),
        ({"n": True}, "n", "whole number, not True"),
        ({"max_tokens": 0}, "max_tokens", "is 0; it must be 1 up."),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens", "is 4; it must be 0 to 3."),
        ({"temperature": 100.5}, "temperature", "is 100.5; it must be at least 0"),
        ({"temperature": 10**400}, "temperature", "is inf"),
        ({"temperature": float("nan")}, "temperature", "not nan"),
        ({"temperature": "x" * 999}, "temperature", "…"),
        ({"top_k": -2}, "top_k", "-1 up"),
        ({"top_k": -(10**5000)}, "top_k", "more than 60 digits"),
        ({"top_p": 0}, "top_p", "above 0 and at most 1"),
        ({"min_p": -0.1}, "min_p", "is -0.1"),
        ({"dry_multiplier": -1}, "dry_multiplier", "at least 0"),
        ({"dry_base": 0.9}, "dry_base", "is 0.9; it must be at least 1"),
        ({"dry_allowed_length": 0}, "dry_allowed_length", "is 0; it must be 1 to 100"),
        ({"dry_range": -1}, "dry_range", "is -1; it must be 0 up"),
        ({"dry_sequence_breakers": "\n"}, "dry_sequence_breakers", "must be a list"),
        ({"dry_sequence_breakers": ["x"] * 129}, "dry_sequence_breakers", "129 strings"),
        ({"xtc_probability": 1.1}, "xtc_probability", "is 1.1"),
        ({"xtc_threshold": 0}, "xtc_threshold", "above 0"),
        ({"bad_words": "word"}, "bad_words", "must be a list, not 'word'"),
        ({"bad_words": [3]}, "bad_words", "strings that are not empty"),
        ({"bad_words": ["x"] * 129}, "bad_words", "at most 128"),
        ({"stop": [""]}, "stop", "strings that are not empty"),
        ({"stop": ["x"] * 17}, "stop", "17 strings; at most 16"),
        ({"stop_token_ids": [1.5]}, "stop_token_ids", "not 1.5"),
        ({"stop_token_ids": 5}, "stop_token_ids", "must be a list, not 5"),
        ({"allowed_token_ids": []}, "allowed_token_ids", "is empty"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids", "is -1"),
        ({"allowed_token_ids": [1], "logit_bias": {"2": 1}}, "logit_bias", "token 2"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "map token ids"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "is 101"),
        ({"logprobs": 21}, "logprobs", "is 21; it must be 0 to 20"),
        ({"ignore_eos": 1}, "ignore_eos", "true or false"),
        ({"mirostat": 2}, "mirostat", "not a sampling parameter"),
    ],
)
def test_refusals_name_field_value_and_limit(
    values: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams.from_mapping(values)
    assert caught.value.field == field
    assert words in caught.value.message
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("name", ["stop", "bad_words", "dry_sequence_breakers"])
def test_a_bare_string_is_no_list_of_its_letters(name: str) -> None:
    values: dict[str, Any] = {name: "abc"}
    with pytest.raises(InvalidRequestError, match="must be a list"):
        SamplingParams(**values)


def test_null_stands_for_the_default() -> None:
    names = ("dry_base", "xtc_threshold", "bad_words", "allowed_token_ids", "stop")
    assert SamplingParams.from_mapping(dict.fromkeys(names)) == SamplingParams()
    assert SamplingParams().dry_sequence_breakers == DEFAULT_SEQUENCE_BREAKERS


def test_lists_of_json_become_tuples() -> None:
    params = SamplingParams.from_mapping(
        {"stop": "end", "bad_words": ["a"], "allowed_token_ids": [1, 2], "logit_bias": {"1": 2}}
    )
    assert (params.stop, params.bad_words, params.allowed_token_ids) == (("end",), ("a",), (1, 2))
    assert params.logit_bias == {1: 2}


def test_only_what_is_asked_for_runs() -> None:
    assert not SamplingParams(temperature=0.5, top_k=4, xtc_probability=1.0).changes_logits
    assert not SamplingParams(temperature=0.5, xtc_probability=1.0, dry_base=3).truncates
    for values in ({"dry_multiplier": 0.8}, {"bad_words": ("a",)}, {"allowed_token_ids": (1,)}):
        assert SamplingParams.from_mapping(values).changes_logits
