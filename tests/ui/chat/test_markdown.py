"""Blocks depend on the text alone, and HTML is only ever ours."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.ui.chat.markdown import (
    Block,
    BlockStream,
    CodeBlock,
    TextBlock,
    render_html,
    render_plain_html,
    split_blocks,
)

LINES = st.sampled_from(
    [
        "",
        "words",
        "two words  ",
        "# heading",
        "===",
        "---",
        "- item",
        "  more of it",
        "1. first",
        "    indented",
        "> quote",
        "```",
        "```python",
        "~~~~ js",
        "  ```",
        "``` not`a fence",
        "| a | b |",
        "|---|--:|",
        "[link]: http://example.org 'title",
        "end'",
        "* * *",
        "<div>",
        "\u2028odd\x0cends",
    ]
)
TEXTS = st.lists(LINES, max_size=12).flatmap(
    lambda lines: st.sampled_from(["\n", "\r\n", "\r"]).map(lambda end: end.join(lines))
) | st.text(alphabet="ab \n\r`~-=|#>*1.", max_size=60)


def feed_in_pieces(text: str, cuts: list[int]) -> list[Block]:
    stream = BlockStream()
    blocks: list[Block] = []
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for begin, end in itertools.pairwise(edges):
        blocks += stream.feed(text[begin:end])
    return blocks + stream.finish()


@given(TEXTS, st.lists(st.integers(0, 120), max_size=12))
def test_any_pieces_give_the_same_blocks(text: str, cuts: list[int]) -> None:
    assert feed_in_pieces(text, cuts) == split_blocks(text)


@given(TEXTS)
def test_one_character_at_a_time_gives_the_same_blocks(text: str) -> None:
    assert feed_in_pieces(text, list(range(len(text)))) == split_blocks(text)


@given(TEXTS)
def test_blocks_hold_the_whole_text(text: str) -> None:
    joined = "".join(block.source for block in split_blocks(text))
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    assert joined.rstrip("\n") == plain.rstrip("\n") or not plain.strip()


@given(TEXTS, st.integers(0, 120))
def test_what_is_final_stays(text: str, cut: int) -> None:
    stream = BlockStream()
    final = stream.feed(text[:cut])
    assert split_blocks(text)[: len(final)] == final


def test_blocks_of_an_answer() -> None:
    assert split_blocks("Hi\n\n```py\nx = 1\n\ny\n```\nbye") == [
        TextBlock("Hi\n\n"),
        CodeBlock("```py\nx = 1\n\ny\n```\n", "py", "x = 1\n\ny"),
        TextBlock("bye\n"),
    ]


@pytest.mark.parametrize("text", ["```", "```p", "~~~py", "text\n\n```pyth"])
def test_waits_for_the_end_of_the_line_that_opens_a_fence(text: str) -> None:
    stream = BlockStream()
    stream.feed(text)
    assert not isinstance(stream.last_block(), CodeBlock)
    stream.feed("\n")
    assert isinstance(stream.last_block(), CodeBlock)


def test_code_grows_without_its_closing_fence() -> None:
    stream = BlockStream()
    shown = []
    for piece in ("```python\n", "x", " = 1\n", "`", "``", "\n"):
        stream.feed(piece)
        block = stream.last_block()
        assert isinstance(block, CodeBlock)
        shown.append((block.language, block.code))
    assert shown == [
        ("python", ""),
        ("python", "x"),
        ("python", "x = 1"),
        ("python", "x = 1"),
        ("python", "x = 1"),
        ("python", "x = 1"),
    ]


@pytest.mark.parametrize("line", ["-", "==", "1", "1.", "|", "#", "> ", "**"])
def test_a_line_that_may_become_anything_is_held_back(line: str) -> None:
    stream = BlockStream()
    stream.feed(f"A paragraph\n{line}")
    assert stream.growing_block() == TextBlock("A paragraph\n")


def test_html_and_pictures_of_the_source_are_only_text_and_links() -> None:
    shown = render_html('<script>x</script> <img src="http://a/b.png"> ![cat](http://a/c.png)')
    assert "<script" not in shown
    assert "<img" not in shown
    assert '<a href="http://a/c.png">cat</a>' in shown


def test_a_persons_text_is_no_markup() -> None:
    assert "&lt;b&gt; *not* bold" in render_plain_html("<b> *not* bold")


def test_dangerous_addresses_are_no_links() -> None:
    assert "<a " not in render_html("[x](javascript:alert(1))")
    assert "<a " not in render_html("[x](file:///etc/passwd)")
