"""Checks a translated tokenizer against its original on text that finds differences."""

from collections.abc import Iterator

from octavo.checkpoint.header import CheckpointHeader
from octavo.engine.tokenizer import SPACE_SYMBOL, Tokenizer
from octavo.errors import UnsupportedModelError

_TEXTS = (
    "",
    " ",
    "Hello world, hello again! I'll, we've, they'd, DON'T, it's",
    " leading,   many    spaces, trailing  \n\n\n and\r\nlines\t\ttabs\u00a0\u3000 ",
    "In 1984 there were 123456789 of 3.14159 and 1,000,000 more; x1y22z333 ½ Ⅷ ٣٤٥ ²³",
    "for i in range(10):\n    print(f'{i}: {i ** 2}')\n\treturn {'a': [1, 2, 3]}  // ok?!\n",
    "日本語のテキストと漢字。中文文本也在这里。한국어도 있습니다. ภาษาไทย हिन्दी العربية עברית",
    "Emoji 😀👩‍👩‍👧 and 🇩🇪 flags 🏴󠁧󠁢󠁥󠁮󠁧󠁿; naïve café — “quotes” … ﬁ Åﬀ ①",
    "e\u0301 n\u0303 o\u0308\u0304 ё й \u1e9b\u0323 combining; e\u0301e\u0301",
    "ǅungla ŁÓDŹ ΑΒγδ Жизнь ʰʷ ªº CamelCaseWORDSandMore snake_case kebab-case",
    "\x00\x01\x7f controls \u200b\u200d\ufeff zero width \ufffd \ue000 \U000f0000",
    "<|im_end|> </s> <s> <unk> <pad> <0x41> [INST] <|not_a_token|> ▁ ▁▁ Ġ Ċ <",
    "a" * 300 + " " * 70 + "=" * 90 + "\n" * 40,
)


def check_same_tokens(
    source: Tokenizer,
    target: Tokenizer,
    header: CheckpointHeader,
    container: str,
    *,
    knows_space_symbol: bool = True,
) -> None:
    """Compares token ids of difficult text, and the ids that have a meaning.

    Args:
        source: as it is.
        target: translated.
        header: of the model that both belong to.
        container: what the translation is written as, for the error.
        knows_space_symbol: whether a `▁` in a text is told from a blank; otherwise no text has one.

    Raises:
        UnsupportedModelError: they differ, so the translation would be another tokenizer.
    """
    for meaning in ("bos_token_id", "eos_token_id", "adds_bos", "special_token_ids"):
        before, after = getattr(source, meaning), getattr(target, meaning)
        if before != after:
            raise _differs(header, container, f"{meaning} would be {after} instead of {before}")
    if source.stop_token_ids != target.stop_token_ids:
        before, after = sorted(source.stop_token_ids), sorted(target.stop_token_ids)
        raise _differs(header, container, f"a turn would end at {after} instead of {before}")
    for text in _probes(source):
        if not knows_space_symbol:
            text = text.replace(SPACE_SYMBOL, " ")
        for parses in (False, True):
            before = source.encode(text, parse_special=parses)
            after = target.encode(text, parse_special=parses)
            if before != after:
                sample = text if len(text) <= 60 else text[:57] + "..."
                raise _differs(
                    header, container, f"{sample!r} would be {after[:12]} instead of {before[:12]}"
                )


def _probes(tokenizer: Tokenizer) -> Iterator[str]:
    yield from _TEXTS
    for token in (*tokenizer.special_tokens, *tokenizer.user_defined_tokens):
        yield f"{token}a {token} b{token}{token}\n{token}  c"


def _differs(header: CheckpointHeader, container: str, difference: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"The tokenizer of {header.path.name} cannot be written as {container}: {difference}.",
        hint="Choose a method that keeps the kind of file the model has.",
    )
