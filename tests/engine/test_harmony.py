"""Answers in channels: only what is meant for the person is shown, and `<|end|>` ends no answer."""

import pytest

from octavo.checkpoint.folder import FolderHeader
from octavo.engine.detokenizer import IncrementalDetokenizer
from octavo.engine.tokenizer import Tokenizer, TokenType, tokenizer_from_metadata
from octavo.engine.tokenizer_json import tokenizer_from_folder
from tests.engine.test_tokenizer import byte_level
from tests.support.tokenizer_kinds import HARMONY, write_family_tokenizer

PROMPT = "<|start|>user<|message|>Hi<|end|><|start|>assistant"
THOUGHT = "<|channel|>analysis<|message|>The user says hi. 日本<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("harmony")
    write_family_tokenizer(folder, "harmony", eos_token="<|return|>")
    header = FolderHeader(folder, {"model_type": "gpt_oss"}, {}, {})
    return tokenizer_from_folder(header)


def shown(tokenizer: Tokenizer, prompt: str, answer: str, *, stop: tuple[str, ...] = ()) -> str:
    prompt_ids = tokenizer.encode(prompt, parse_special=True)
    detokenizer = IncrementalDetokenizer(tokenizer, prompt_ids, stop=stop)
    answer_ids = tokenizer.encode(answer, parse_special=True)
    return "".join(map(detokenizer.push, answer_ids)) + detokenizer.finish()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (THOUGHT + FINAL + "Hello! 😀\n", "Hello! 😀\n"),
        (THOUGHT, ""),
        ("<|channel|>final<|message|>Hello", "Hello"),
        ("<|message|>Hello", "Hello"),
        ("<|channel|>commentary to=functions.f json<|message|>{}<|call|>", ""),
        (THOUGHT + "<|start|>assistant<|channel|>finally<|message|>x", ""),
        (FINAL + "one<|end|>" + THOUGHT + FINAL + " two", "one two"),
        (THOUGHT + "<|start|>assistant<|channel|>final json<|message|>{}", "{}"),
    ],
)
def test_only_the_final_channel_is_shown(tokenizer: Tokenizer, answer: str, text: str) -> None:
    assert shown(tokenizer, PROMPT, answer) == text


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("Once upon", " a time"),
        (PROMPT + "<|channel|>final<|message|>So", " a time"),
        (PROMPT + "<|channel|>analysis<|message|>So", ""),
        (PROMPT + "<|channel|>fin", ""),
        (PROMPT, ""),
    ],
)
def test_an_answer_goes_on_where_the_prompt_ends(
    tokenizer: Tokenizer, prompt: str, text: str
) -> None:
    assert shown(tokenizer, prompt, " a time") == text


def test_stop_strings_count_in_what_is_shown(tokenizer: Tokenizer) -> None:
    answer = THOUGHT + FINAL + "I say hi. Bye"
    assert shown(tokenizer, PROMPT, answer, stop=("says",)) == "I say hi. Bye"
    assert shown(tokenizer, PROMPT, answer, stop=(" Bye",)) == "I say hi."


def test_special_tokens_show_everything(tokenizer: Tokenizer) -> None:
    answer_ids = tokenizer.encode(THOUGHT, parse_special=True)
    detokenizer = IncrementalDetokenizer(tokenizer, [], skip_special_tokens=False)
    assert "".join(map(detokenizer.push, answer_ids)) == THOUGHT


def test_the_end_of_a_message_is_not_that_of_the_answer(tokenizer: Tokenizer) -> None:
    stops = {tokenizer.vocabulary.tokens[token_id] for token_id in tokenizer.stop_token_ids}
    assert stops >= {"<|return|>", "<|call|>"}
    assert "<|end|>" not in stops


def test_gguf_files_that_call_the_markers_ordinary() -> None:
    base = byte_level()
    tokens = [*base["tokenizer.ggml.tokens"], *HARMONY]
    types = [*base["tokenizer.ggml.token_type"], *([int(TokenType.USER_DEFINED)] * len(HARMONY))]
    tokenizer = tokenizer_from_metadata(
        {
            **base,
            "tokenizer.ggml.pre": "gpt-4o",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.eos_token_id": tokens.index("<|return|>"),
            "tokenizer.ggml.eot_token_id": tokens.index("<|end|>"),
        }
    )
    assert set(HARMONY) <= tokenizer.special_tokens.keys()
    assert tokens.index("<|end|>") not in tokenizer.stop_token_ids
    assert tokens.index("<|call|>") in tokenizer.stop_token_ids
    assert shown(tokenizer, PROMPT, THOUGHT + FINAL + "Hello") == "Hello"


def test_other_models_end_with_that_token() -> None:
    """Phi's answers do, whose vocabulary has no channels."""
    base = byte_level()
    tokens = [*base["tokenizer.ggml.tokens"], "<|end|>"]
    types = [*base["tokenizer.ggml.token_type"], int(TokenType.CONTROL)]
    changes = {"tokens": tokens, "token_type": types}
    tokenizer = tokenizer_from_metadata(byte_level(**changes))
    assert tokens.index("<|end|>") in tokenizer.stop_token_ids
