"""The incremental detokenizer: what it lets out is what decoding everything at once gives."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.engine.detokenizer import IncrementalDetokenizer
from octavo.engine.tokenizer import Tokenizer, tokenizer_from_metadata
from tests.engine.test_tokenizer import byte_level, sentence_piece

BYTE_LEVEL = tokenizer_from_metadata(byte_level())
PIECES = {"▁hello": 0.0, "▁": -1.0, "▁▁": -2.0, "a": -3.0, "b": -4.0, "ab": -5.0, "é": -6.0}
SENTENCE_PIECE = tokenizer_from_metadata(sentence_piece(PIECES, user_defined=["<tool>"]))
TOKENIZERS = st.sampled_from([BYTE_LEVEL, SENTENCE_PIECE])
TEXTS = st.text("ab é🙂\n", max_size=12)
STOPS = st.lists(st.text("ab é\ufffd", min_size=1, max_size=4), max_size=3)


def pushed(detokenizer: IncrementalDetokenizer, token_ids: Sequence[int]) -> list[str]:
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.finish()]


@st.composite
def token_sequences(draw: st.DrawFn) -> tuple[Tokenizer, list[int]]:
    """Random ids, bytes of many characters among them, mixed with ids of real text."""
    tokenizer = draw(TOKENIZERS)
    ids = st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=6)
    parts = draw(st.lists(ids | TEXTS.map(tokenizer.encode), max_size=5))
    return tokenizer, [token_id for part in parts for token_id in part]


@given(token_sequences())
def test_pushes_and_finish_are_the_whole_text(case: tuple[Tokenizer, list[int]]) -> None:
    tokenizer, token_ids = case
    for skip in (True, False):
        detokenizer = IncrementalDetokenizer(tokenizer, [], skip_special_tokens=skip)
        whole = tokenizer.decode(token_ids, skip_special_tokens=skip)
        assert "".join(pushed(detokenizer, token_ids)) == whole


@given(token_sequences(), st.integers(0, 10))
def test_it_continues_the_prompt(case: tuple[Tokenizer, list[int]], cut: int) -> None:
    """The prompt's own text ends before a character that the completion finishes."""
    tokenizer, token_ids = case
    prompt, completion = token_ids[:cut], token_ids[cut:]
    text = "".join(pushed(IncrementalDetokenizer(tokenizer, prompt), completion))
    assert tokenizer.decode(token_ids).endswith(text)
    before = tokenizer.decode(prompt).rstrip("\ufffd")
    assert tokenizer.decode(token_ids).startswith(before)
    if "\ufffd" not in tokenizer.decode(prompt)[-1:]:
        assert tokenizer.decode(prompt) + text == tokenizer.decode(token_ids)


def first_complete(text: str, stops: Sequence[str], exempt: int = 0) -> tuple[int, str] | None:
    """Start and text of the stop string that ends first behind `exempt` characters."""
    for end in range(exempt + 1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return end - len(longest), longest
    return None


@given(token_sequences(), STOPS, st.booleans(), st.integers(0, 4))
def test_text_ends_at_the_stop_string_that_is_complete_first(
    case: tuple[Tokenizer, list[int]], stops: list[str], include: bool, min_tokens: int
) -> None:
    tokenizer, token_ids = case
    detokenizer = IncrementalDetokenizer(
        tokenizer,
        [],
        stop=tuple(stops),
        min_tokens=min_tokens,
        include_stop_str_in_output=include,
    )
    text = "".join(pushed(detokenizer, token_ids))
    # What the first tokens have brought for certain; bytes of an open character are not text yet.
    open_text = IncrementalDetokenizer(tokenizer, [])
    exempt = sum(len(open_text.push(token_id)) for token_id in token_ids[:min_tokens])
    whole = tokenizer.decode(token_ids)
    found = first_complete(whole, stops, exempt) if len(token_ids) > min_tokens else None
    if found is None:
        assert detokenizer.stopped_by is None
        assert text == whole
    else:
        start, stop = found
        assert detokenizer.stopped_by == stop
        assert text == whole[: start + len(stop) if include else start]


@given(token_sequences(), STOPS)
def test_nothing_certain_is_held_back(case: tuple[Tokenizer, list[int]], stops: list[str]) -> None:
    tokenizer, token_ids = case
    detokenizer = IncrementalDetokenizer(tokenizer, [], stop=tuple(stops))
    plain = IncrementalDetokenizer(tokenizer, [])
    shown = certain = ""
    for token_id in token_ids:
        shown += detokenizer.push(token_id)
        certain += plain.push(token_id)
        if detokenizer.stopped_by is not None:
            break
        held = certain[len(shown) :]
        assert held == "" or any(stop != held and stop.startswith(held) for stop in stops)


class TestStopStrings:
    def text(self, *tokens: str, **options: object) -> tuple[list[str], str | None]:
        token_ids = [token_id for token in tokens for token_id in BYTE_LEVEL.encode(token)]
        detokenizer = IncrementalDetokenizer(BYTE_LEVEL, [], **options)  # type: ignore[arg-type]
        return pushed(detokenizer, token_ids), detokenizer.stopped_by

    def test_only_a_possible_beginning_waits(self) -> None:
        assert self.text("x", "S", "T", "y", stop=("STOP",)) == (["x", "", "", "STy", ""], None)

    def test_beginning_within_a_beginning(self) -> None:
        assert self.text("a", "a", "b", "c", stop=("abc",))[0] == ["", "a", "", "", ""]

    def test_the_held_end_comes_with_finish(self) -> None:
        assert self.text("a", "S", "T", stop=("STOP",)) == (["a", "", "", "ST"], None)

    def test_included(self) -> None:
        parts, stopped_by = self.text("a", "b", "c", stop=("b",), include_stop_str_in_output=True)
        assert ("".join(parts), stopped_by) == ("ab", "b")

    def test_nothing_comes_after_the_stop(self) -> None:
        assert self.text("a", "b", "c", "d", stop=("b",)) == (["a", "", "", "", ""], "b")

    def test_min_tokens(self) -> None:
        assert self.text("a", "b", "a", "b", stop=("b",), min_tokens=2)[0] == [
            "a",
            "b",
            "a",
            "",
            "",
        ]
        parts, _ = self.text("a", "b", "c", "a", "b", "c", stop=("bc",), min_tokens=2)
        assert "".join(parts) == "a"

    def test_stop_that_no_token_ends_with(self) -> None:
        assert self.text("hello", stop=("ell",)) == (["h", ""], "ell")

    def test_empty_stop_strings_are_none(self) -> None:
        assert self.text("a", stop=("",)) == (["a", ""], None)


class TestCharacters:
    def test_a_character_comes_when_it_is_whole(self) -> None:
        detokenizer = IncrementalDetokenizer(BYTE_LEVEL, [])
        assert pushed(detokenizer, BYTE_LEVEL.encode("🙂")) == ["", "", "", "🙂", ""]

    def test_an_incomplete_one_is_one_mark_at_the_end(self) -> None:
        detokenizer = IncrementalDetokenizer(BYTE_LEVEL, [])
        assert pushed(detokenizer, BYTE_LEVEL.encode("🙂")[:3]) == ["", "", "", "\ufffd"]

    def test_the_prompt_may_end_inside_one(self) -> None:
        smile = BYTE_LEVEL.encode("🙂")
        detokenizer = IncrementalDetokenizer(BYTE_LEVEL, [*BYTE_LEVEL.encode("a"), *smile[:2]])
        assert pushed(detokenizer, smile[2:]) == ["", "🙂", ""]

    def test_byte_tokens_join(self) -> None:
        smile = SENTENCE_PIECE.encode("🙂")[1:]
        detokenizer = IncrementalDetokenizer(SENTENCE_PIECE, [])
        assert pushed(detokenizer, smile) == ["", "", "", "🙂", ""]


@pytest.mark.parametrize(("prompt", "text"), [("", "hello"), ("a", " hello")])
def test_leading_space_goes_only_at_the_very_start(prompt: str, text: str) -> None:
    hello = SENTENCE_PIECE.encode("hello")
    begin = [1, *SENTENCE_PIECE.encode(prompt)]
    assert "".join(pushed(IncrementalDetokenizer(SENTENCE_PIECE, begin), hello)) == text
