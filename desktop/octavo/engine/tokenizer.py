"""`Tokenizer`: text to token ids and back, built from the vocabulary inside a GGUF file.

Control tokens are told apart here, with a pattern of our own, and never by the backend: its
vocabulary does not even hold them. So ordinary text cannot become a control token, and threads
may encode with different flags at the same time.
"""

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final

import tokenizers
from tokenizers import models, normalizers

from octavo.checkpoint.gguf import GGUFHeader
from octavo.engine.harmony import END, MARKERS, is_harmony
from octavo.engine.literal_tokens import LiteralTokens, Manners
from octavo.engine.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from octavo.errors import CheckpointError, UnsupportedModelError

logger = logging.getLogger(__name__)

END_OF_TURN: Final = (
    "</s> <eos> <EOT> <end_of_turn> <end_of_utterance> <|im_end|> <|endoftext|> <|end_of_text|>"
    " <|eot_id|> <|eom_id|> <|eot|> <|eom|> <|end|> <|end_of_turn|> <|END_OF_TURN_TOKEN|>"
    " [|endofturn|] <|endofturn|> <|return|> <|call|> <｜end▁of▁sentence｜>"
)
"""Tokens that end a turn wherever they are control tokens, even if the metadata names another."""
SPACE_SYMBOL: Final = "▁"
_MAX_MERGED_CHARS: Final = 256
"""Longer tokens are none that merging makes: it would take a file of them hours to load."""
BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenType(IntEnum):
    """What GGUF says about each token, in `tokenizer.ggml.token_type`."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a model and the ids with a meaning, as the metadata states them."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    ids: Mapping[str, int]
    """Token text to id."""
    bos_token_id: int | None
    eos_token_id: int | None
    adds_bos: bool
    stop_token_ids: frozenset[int]
    role_tokens: Mapping[str, str] = field(default_factory=dict)
    """Texts of tokens with a role (`bos_token`, `unk_token`, …), which chat templates may name."""
    manners: Mapping[str, Manners] = field(default_factory=dict)
    """Of tokens that do something to the text beside them."""

    def ids_of(self, *types: TokenType) -> list[int]:
        wanted = frozenset(types)
        return [token_id for token_id, kind in enumerate(self.types) if kind in wanted]

    def mergeable(self, *types: TokenType) -> dict[str, int]:
        """Text to id of the tokens that ordinary text may become."""
        wanted = frozenset(types)
        return {
            token: token_id
            for token_id, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in wanted
        }


class Tokenizer(ABC):
    """Text to token ids and back. May be used from several threads at the same time."""

    strips_leading_space: bool = False
    """Whether decoding drops the one space that encoding puts before the first word."""

    def __init__(self, vocabulary: Vocabulary, backend: tokenizers.Tokenizer) -> None:
        self.backend = backend
        self.vocab_size = len(vocabulary.tokens)
        self.bos_token_id = vocabulary.bos_token_id
        self.eos_token_id = vocabulary.eos_token_id
        self.stop_token_ids = vocabulary.stop_token_ids
        if is_harmony(vocabulary.ids):
            self.stop_token_ids -= {vocabulary.ids.get(END)}
        self.adds_bos = vocabulary.adds_bos
        special_ids = vocabulary.ids_of(TokenType.CONTROL, TokenType.UNKNOWN)
        self.special_token_ids = frozenset(special_ids)
        self.special_tokens = MappingProxyType({vocabulary.tokens[i]: i for i in special_ids})
        """Text to id of control tokens: what `parse_special` looks for."""
        user_defined = vocabulary.ids_of(TokenType.USER_DEFINED)
        self.user_defined_tokens = MappingProxyType({vocabulary.tokens[i]: i for i in user_defined})
        """As `special_tokens`, of tokens that any text may become."""
        self._literal_ids = self.special_token_ids.union(user_defined)
        self._special = LiteralTokens(self.special_tokens, vocabulary.manners)
        self._user_defined = LiteralTokens(self.user_defined_tokens, vocabulary.manners)
        self.vocabulary = vocabulary

    @property
    def bos_token(self) -> str:
        """Its text, empty if there is none."""
        return "" if self.bos_token_id is None else self.vocabulary.tokens[self.bos_token_id]

    @property
    def eos_token(self) -> str:
        """Its text, empty if there is none."""
        return "" if self.eos_token_id is None else self.vocabulary.tokens[self.eos_token_id]

    def encode(self, text: str, *, add_bos: bool = False, parse_special: bool = False) -> list[int]:
        """Turns text into token ids.

        Args:
            text: what to encode; lone surrogates become U+FFFD.
            add_bos: begins with BOS, unless the text itself does.
            parse_special: reads the text of control tokens as these tokens. Only for prompts
                whose author may use them; without it they are text like any other.
        """
        token_ids = self.encode_stretches(self.split_special(text) if parse_special else [text])
        if add_bos:
            token_ids = self.with_bos(token_ids)
        return token_ids

    def with_bos(self, token_ids: list[int]) -> list[int]:
        """Puts BOS before the ids unless they begin with it or the model has none."""
        if self.bos_token_id is None or token_ids[:1] == [self.bos_token_id]:
            return token_ids
        return [self.bos_token_id, *token_ids]

    def split_special(self, text: str) -> list[str | int]:
        """Cuts text at control tokens: their ids, and the stretches of text between them.

        Tokens that say so swallow the blanks beside them.
        """
        return self._special.split(text)

    def special_starts(self, text: str) -> Iterator[int]:
        """Where text that reads like a control token begins, those that overlap included.

        Also where the end of the text, blanks aside, could be the beginning of one.
        """
        yield from self._special.starts(text)
        end = len(text.rstrip())
        tail = text[max(0, end - self._special.longest) : end]
        for token in self.special_tokens:
            if token[0] in tail:
                for length in range(1, len(token)):
                    if tail.endswith(token[:length]):
                        yield end - length

    def encode_stretches(self, stretches: Iterable[str | int]) -> list[int]:
        """Encodes what `split_special` gives; nothing inside a text becomes a control token."""
        pieces: list[str | int] = []
        for stretch in stretches:
            if isinstance(stretch, int):
                pieces.append(stretch)
                continue
            for piece in self._user_defined.split(well_formed(stretch)):
                if isinstance(piece, str):
                    is_first = not pieces
                    follows_token = is_first or isinstance(pieces[-1], int)
                    piece = self._prepare(piece, is_first, follows_token)
                pieces.append(piece)
        texts = [piece for piece in pieces if isinstance(piece, str)]
        # The batch call lets go of the GIL, which a long prompt would hold for tenths of a second.
        encodings = iter(self.backend.encode_batch_fast(texts, add_special_tokens=False))
        token_ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, int):
                token_ids.append(piece)
            else:
                token_ids += next(encodings).ids
        return token_ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Turns token ids into text; bytes that are no UTF-8 become U+FFFD."""
        encoded = b"".join(
            self.token_bytes(token_id)
            for token_id in token_ids
            if not (skip_special_tokens and token_id in self.special_token_ids)
        )
        if self.strips_leading_space:
            encoded = encoded.removeprefix(b" ")
        return encoded.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, which need not be whole characters; special ones as written."""
        text = self.vocabulary.tokens[token_id]
        if token_id in self._literal_ids:
            return text.encode("utf-8", "replace")
        return self._bytes_of(text)

    def token_text(self, token_id: int) -> str:
        """The text of one token for display; incomplete characters become U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    @abstractmethod
    def _prepare(self, text: str, is_first: bool, follows_token: bool, /) -> str:
        """Turns a stretch of text into what the backend encodes."""

    @abstractmethod
    def _bytes_of(self, token: str) -> bytes:
        """Undoes the vocabulary's way of writing bytes and spaces."""


class ByteLevelTokenizer(Tokenizer):
    """Byte-level BPE (`gpt2`): every byte has a printable character of its own."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        merges: Sequence[tuple[str, str]],
        pre_tokenizer: PreTokenizer,
    ) -> None:
        model = models.BPE(
            vocab=vocabulary.mergeable(TokenType.NORMAL, TokenType.UNDEFINED),
            merges=list(merges),
            ignore_merges=pre_tokenizer.ignore_merges,
        )
        backend = tokenizers.Tokenizer(model)
        backend.pre_tokenizer = pre_tokenizer.build()
        if pre_tokenizer.composes:
            backend.normalizer = normalizers.NFC()
        super().__init__(vocabulary, backend)
        self._byte_of = {symbol: byte for byte, symbol in enumerate(byte_alphabet())}

    def _prepare(self, text: str, _is_first: bool, _follows_token: bool, /) -> str:
        return text

    def _bytes_of(self, token: str) -> bytes:
        try:
            return bytes([self._byte_of[symbol] for symbol in token])
        except KeyError:
            # Written as plain text, as converters do with tokens added after training.
            return token.encode("utf-8", "replace")


class SentencePieceTokenizer(Tokenizer):
    """SentencePiece BPE (`llama`): spaces are `▁`, unknown characters fall back to bytes.

    SentencePiece has no merges: it always joins the neighbours whose union has the best score,
    the leftmost of equals. Merges ranked by the score of their result do the same: if scores
    differ, a token always comes about by the same last merge, so the ranks among the ways to
    split one token never matter.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        scores: Sequence[float],
        *,
        add_space_prefix: bool,
        remove_extra_whitespaces: bool,
        prefixes_only_beginning: bool = False,
    ) -> None:
        """Args:
        scores: one a token.
        add_space_prefix: puts a space before the first word, and after each literal token.
        remove_extra_whitespaces: several spaces count as one, and those at the ends as none.
        prefixes_only_beginning: no space goes after literal tokens.
        """
        mergeable = vocabulary.mergeable(TokenType.NORMAL, TokenType.UNDEFINED)
        fallback = vocabulary.mergeable(TokenType.BYTE)
        unknown: str | None = None
        if len(fallback) < 256:
            unknown = next(
                (vocabulary.tokens[i] for i in vocabulary.ids_of(TokenType.UNKNOWN)), None
            )
            if unknown is not None:
                fallback[unknown] = vocabulary.ids[unknown]
        model = models.BPE(
            vocab={**mergeable, **fallback},
            merges=merges_from_scores(mergeable, scores),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
        super().__init__(vocabulary, tokenizers.Tokenizer(model))
        self.scores = tuple(scores)
        self.strips_leading_space = add_space_prefix
        self.removes_extra_whitespaces = remove_extra_whitespaces
        self.prefixes_only_beginning = prefixes_only_beginning

    def _prepare(self, text: str, is_first: bool, follows_token: bool, /) -> str:
        if self.removes_extra_whitespaces:
            text = re.sub(" +", " ", text).strip(" ")
        gets_prefix = is_first or (follows_token and not self.prefixes_only_beginning)
        if gets_prefix and text and self.strips_leading_space:
            text = " " + text
        return text.replace(" ", SPACE_SYMBOL)

    def _bytes_of(self, token: str) -> bytes:
        if match := BYTE_TOKEN.fullmatch(token):
            return bytes([int(match[1], 16)])
        return token.replace(SPACE_SYMBOL, " ").encode("utf-8", "replace")


def tokenizer_from_gguf(header: GGUFHeader) -> Tokenizer:
    """Builds the tokenizer of a checkpoint; raises as `tokenizer_from_metadata`."""
    try:
        return tokenizer_from_metadata(header.metadata)
    except CheckpointError as error:
        raise CheckpointError(
            f"{header.path.name}: {error.message}", hint=error.hint, path=header.path
        ) from error
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"{header.path.name}: {error.message}", hint=error.hint
        ) from error


def tokenizer_from_metadata(metadata: Mapping[str, Any]) -> Tokenizer:
    """Builds a tokenizer from the `tokenizer.ggml.*` keys of a GGUF file.

    A file that names no pre-tokenizer gets `default`, as in llama.cpp, with a warning in the log.

    Raises:
        UnsupportedModelError: a kind of vocabulary or pre-tokenizer Octavo does not know.
        CheckpointError: keys are missing or contradict each other.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        return _byte_level(metadata)
    if kind == "llama":
        return _sentence_piece(metadata)
    if kind is None:
        raise _damaged("it has no tokenizer (the key tokenizer.ggml.model is missing)")
    raise UnsupportedModelError(
        f"The tokenizer is of the kind {kind!r}; Octavo knows gpt2 (byte-level BPE) and llama"
        " (SentencePiece BPE).",
        hint="Use a model with one of these.",
    )


def _byte_level(metadata: Mapping[str, Any]) -> Tokenizer:
    name = metadata.get("tokenizer.ggml.pre")
    if not name:
        logger.warning("The model names no pre-tokenizer; 'default' is used as in llama.cpp")
        name = "default"
    pre_tokenizer = PRE_TOKENIZERS.get(name)
    if pre_tokenizer is None:
        raise UnsupportedModelError(
            f"The tokenizer cuts text by the rule {name!r}, which Octavo does not know; another"
            " rule would give wrong tokens.",
            hint=f"Use a model with one of: {', '.join(PRE_TOKENIZERS)}.",
        )
    vocabulary = _vocabulary(metadata, adds_bos=pre_tokenizer.adds_bos)
    return ByteLevelTokenizer(vocabulary, _merges(metadata, vocabulary), pre_tokenizer)


def _sentence_piece(metadata: Mapping[str, Any]) -> Tokenizer:
    if metadata.get("tokenizer.ggml.precompiled_charsmap"):
        raise UnsupportedModelError(
            "The tokenizer changes characters by a table (tokenizer.ggml.precompiled_charsmap) "
            "before it cuts text, which Octavo does not do.",
            hint="Use another file of this model.",
        )
    vocabulary = _vocabulary(metadata, adds_bos=True)
    scores = _array(metadata, "scores", float, int)
    if len(scores) != len(vocabulary.tokens):
        raise _damaged(f"it has {len(vocabulary.tokens)} tokens but {len(scores)} scores")
    return SentencePieceTokenizer(
        vocabulary,
        scores,
        add_space_prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
        remove_extra_whitespaces=bool(
            metadata.get("tokenizer.ggml.remove_extra_whitespaces", False)
        ),
    )


def _vocabulary(metadata: Mapping[str, Any], *, adds_bos: bool) -> Vocabulary:
    texts = _array(metadata, "tokens", str)
    # llama.cpp's name for a token without text, which could never be told from another.
    tokens = tuple(text or f"[EMPTY_{token_id}]" for token_id, text in enumerate(texts))
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise _damaged(f"{len(tokens) - len(ids)} of its {len(tokens)} tokens appear twice")
    types = [int(TokenType.NORMAL)] * len(tokens)
    if "tokenizer.ggml.token_type" in metadata:
        types = _array(metadata, "token_type", int)
        if len(types) != len(tokens):
            raise _damaged(f"it has {len(tokens)} tokens but {len(types)} token types")
    named = {name: _token_id(metadata, name, len(tokens)) for name in ("bos", "eos", "eot", "eom")}
    roles = {
        "bos_token": named["bos"],
        "eos_token": named["eos"],
        "unk_token": _token_id(metadata, "unknown", len(tokens)),
        "pad_token": _token_id(metadata, "padding", len(tokens)),
    }
    for token_id in named.values():
        if token_id is not None:
            types[token_id] = TokenType.CONTROL
    end_of_turn = [text for text in END_OF_TURN.split() if text in ids]
    markers = [text for text in MARKERS if text in ids] if is_harmony(ids) else []
    for text in (*end_of_turn, *markers):
        # Converters often call these user-defined; then the model's turn would never end.
        if types[ids[text]] == TokenType.USER_DEFINED:
            types[ids[text]] = TokenType.CONTROL
    stops = {named["eos"], named["eot"], named["eom"]}
    stops.update(ids[text] for text in end_of_turn if types[ids[text]] == TokenType.CONTROL)
    return Vocabulary(
        tokens=tokens,
        types=tuple(types),
        ids=ids,
        bos_token_id=named["bos"],
        eos_token_id=named["eos"],
        adds_bos=named["bos"] is not None
        and bool(metadata.get("tokenizer.ggml.add_bos_token", adds_bos)),
        stop_token_ids=frozenset(stop for stop in stops if stop is not None),
        role_tokens={
            role: tokens[token_id] for role, token_id in roles.items() if token_id is not None
        },
    )


def _token_id(metadata: Mapping[str, Any], name: str, vocab_size: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    token_id = metadata.get(key)
    if token_id is None:
        return None
    if not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
        # Some converters write -1 or the largest number for "none".
        logger.warning("%s is %r, outside the vocabulary of %d; ignored", key, token_id, vocab_size)
        return None
    return token_id


def _merges(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The merges between ordinary tokens; one that would make a control token is left out."""
    mergeable = vocabulary.mergeable(TokenType.NORMAL, TokenType.UNDEFINED)
    merges = []
    for rank, merge in enumerate(_array(metadata, "merges", str)):
        # A token may itself begin with a space, but never be empty.
        space = merge.find(" ", 1)
        left, right = merge[:space], merge[space + 1 :]
        # Spelled out: vocabularies have hundreds of thousands of merges.
        if left in mergeable and right in mergeable and left + right in mergeable:
            merges.append((left, right))
        elif space < 0 or not vocabulary.ids.keys() >= {left, right, left + right}:
            raise _damaged(f"merge {rank + 1} ({merge!r}) names tokens it does not have")
    return merges


def merges_from_scores(
    mergeable: Mapping[str, int], scores: Sequence[float]
) -> list[tuple[str, str]]:
    """The merges that join neighbours as SentencePiece does, which has scores instead."""
    ranked = []
    for token, token_id in mergeable.items():
        for cut in range(1, len(token) if len(token) <= _MAX_MERGED_CHARS else 1):
            left, right = token[:cut], token[cut:]
            if left in mergeable and right in mergeable:
                ranked.append((-scores[token_id], token_id, mergeable[left], left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _array(metadata: Mapping[str, Any], name: str, *types: type) -> list[Any]:
    key = f"tokenizer.ggml.{name}"
    values = metadata.get(key)
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise _damaged(f"its tokenizer is incomplete (the list {key} is missing)")
    if not all(map(types.__contains__, map(type, values))):
        raise _damaged(f"{key} holds values of the wrong type")
    return list(values)


def _damaged(problem: str) -> CheckpointError:
    return CheckpointError(
        f"The model file is damaged: {problem}.", hint="Download or convert it anew."
    )


def well_formed(text: str) -> str:
    """Joins surrogate pairs and replaces lone ones, which no UTF-8 can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def byte_alphabet() -> list[str]:
    """GPT-2's character for each byte: itself if printable, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
