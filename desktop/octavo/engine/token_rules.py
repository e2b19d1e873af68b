"""`TokenRules`: what the texts among a request's sampling parameters mean in a model's tokens."""

from octavo.engine.sampling_params import SamplingParams
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import InvalidRequestError

_BEFORE_WORD = "\n"
"""Keeps tokenizers that put a space before text from putting it before the word."""


class TokenRules:
    """The bad words and sequence breakers of one request, shared by its sequences."""

    __slots__ = ("_breakers", "_is_breaker", "_tokenizer", "bad_words")

    def __init__(self, params: SamplingParams, tokenizer: Tokenizer) -> None:
        self.bad_words = _bad_words(params.bad_words, tokenizer)
        """Token ids of each way to write each bad word."""
        self._breakers = tuple(text.encode("utf-8") for text in params.dry_sequence_breakers)
        self._tokenizer = tokenizer
        # Grown by the tokens that come up: a vocabulary is too long to be looked through.
        self._is_breaker: dict[int, bool] = {}

    def is_breaker(self, token_id: int) -> bool:
        """Whether no repetition goes across this token."""
        known = self._is_breaker.get(token_id)
        if known is None:
            written = self._tokenizer.token_bytes(token_id)
            known = any(text in written for text in self._breakers)
            self._is_breaker[token_id] = known
        return known


def make_token_rules(params: SamplingParams, tokenizer: Tokenizer) -> TokenRules | None:
    """The rules of these parameters; None if they have none.

    Raises:
        InvalidRequestError: they contradict each other, so that no token could come.
    """
    rules = None
    if params.bad_words or params.dry_multiplier > 0.0:
        rules = TokenRules(params, tokenizer)
    banned = set() if rules is None else {ids[0] for ids in rules.bad_words if len(ids) == 1}
    for token_id in sorted(banned):
        if params.logit_bias.get(token_id, 0.0) > 0.0:
            raise InvalidRequestError(
                f"logit_bias raises token {token_id} ({tokenizer.token_text(token_id)!r}), which"
                " bad_words forbids.",
                hint="Take it out of one of the two.",
                field="logit_bias",
            )
    ending = tokenizer.stop_token_ids.union(params.stop_token_ids) if params.min_tokens else set()
    allowed = params.allowed_token_ids
    if allowed is None and len(banned) + len(ending) < tokenizer.vocab_size:
        return rules
    left = set(range(tokenizer.vocab_size) if allowed is None else allowed)
    if left <= banned:
        raise InvalidRequestError(
            "bad_words names every token of allowed_token_ids: no token could ever come.",
            hint="Allow more tokens or fewer bad words.",
            field="allowed_token_ids",
        )
    if left <= banned.union(ending):
        raise InvalidRequestError(
            f"min_tokens is {params.min_tokens}, but every token that may come ends the"
            " completion.",
            hint="Set min_tokens to 0 or allow a token that does not end it.",
            field="min_tokens",
        )
    return rules


def _bad_words(words: tuple[str, ...], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """At the start, after a space and inside a line; vocabularies have a token for each."""
    before = tokenizer.encode(_BEFORE_WORD)
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        written = [tokenizer.encode(word), tokenizer.encode(f" {word}")]
        after = tokenizer.encode(_BEFORE_WORD + word)
        if after[: len(before)] == before:
            written.append(after[len(before) :])
        if not any(written):
            raise InvalidRequestError(
                f"bad_words holds {word!r}, which this model's vocabulary cannot write.",
                field="bad_words",
            )
        found.update((tuple(token_ids), None) for token_ids in written if token_ids)
    return tuple(found)
