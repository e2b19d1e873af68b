"""`JsonTokenizer`: the tokenizer of a model folder, from tokenizer.json and its companions.

Control tokens are taken out of the file's added tokens, vocabulary and merges before the backend
is built, so text that reads like one cannot become it; `Tokenizer.split_special` finds them where
they are meant.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final

import tokenizers

from octavo.checkpoint.folder import FolderHeader
from octavo.engine.tokenizer import (
    BYTE_TOKEN,
    END_OF_TURN,
    SPACE_SYMBOL,
    Tokenizer,
    TokenType,
    Vocabulary,
    byte_alphabet,
    well_formed,
)
from octavo.errors import CheckpointError, UnsupportedModelError

logger = logging.getLogger(__name__)

TOKENIZER_FILE: Final = "tokenizer.json"
_CONFIG_FILE: Final = "tokenizer_config.json"
_EMBEDDING: Final = "model.embed_tokens.weight"
_NAMED: Final = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token")
_MAX_VOCABULARY: Final = 1 << 24


class JsonTokenizer(Tokenizer):
    """BPE as a tokenizer.json describes it, byte-level or with `▁` for spaces."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        first: tokenizers.Tokenizer,
        later: tokenizers.Tokenizer,
        *,
        is_byte_level: bool,
        strips_leading_space: bool,
        strips: Mapping[str, tuple[bool, bool]],
    ) -> None:
        """Args:
        first: encodes text at the very beginning.
        later: encodes text after a control token; differs where only the beginning gets a space.
        strips: control tokens that swallow the blanks on their left or right.
        """
        super().__init__(vocabulary, first)
        self._later = later
        self._byte_of = {symbol: byte for byte, symbol in enumerate(byte_alphabet())}
        self._is_byte_level = is_byte_level
        self.strips_leading_space = strips_leading_space
        self._strips = strips

    def split_special(self, text: str) -> list[str | int]:
        """As `Tokenizer`; tokens that say so swallow the blanks around them."""
        pieces = super().split_special(text)
        if not self._strips:
            return pieces
        for index, piece in enumerate(pieces):
            if not isinstance(piece, str):
                continue
            stripped = piece
            if index and self._strips_side(pieces[index - 1], 1):
                stripped = stripped.lstrip()
            if index + 1 < len(pieces) and self._strips_side(pieces[index + 1], 0):
                stripped = stripped.rstrip()
            pieces[index] = stripped
        return [piece for piece in pieces if piece != ""]

    def encode_stretches(self, stretches: Iterable[str | int]) -> list[int]:
        """As `Tokenizer`; the backend itself knows the added tokens that are no control tokens."""
        pieces = list(stretches)
        beginning = [well_formed(piece) for piece in pieces[:1] if isinstance(piece, str)]
        rest = [well_formed(piece) for piece in pieces[1:] if isinstance(piece, str)]
        # The batch call lets go of the GIL, which a long prompt would hold for tenths of a second.
        encodings = iter(
            [
                *self.backend.encode_batch_fast(beginning, add_special_tokens=False),
                *self._later.encode_batch_fast(rest, add_special_tokens=False),
            ]
        )
        token_ids: list[int] = []
        for piece in pieces:
            token_ids += [piece] if isinstance(piece, int) else next(encodings).ids
        return token_ids

    def _strips_side(self, token_id: str | int, side: int) -> bool:
        if isinstance(token_id, str):
            return False
        return self._strips.get(self._vocabulary.tokens[token_id], (False, False))[side]

    def _prepare(self, text: str, _follows_token: bool, /) -> str:
        return text

    def _bytes_of(self, token: str) -> bytes:
        if self._is_byte_level:
            if all(symbol in self._byte_of for symbol in token):
                return bytes([self._byte_of[symbol] for symbol in token])
            return token.encode("utf-8", "replace")
        if match := BYTE_TOKEN.fullmatch(token):
            return bytes([int(match[1], 16)])
        return token.replace(SPACE_SYMBOL, " ").encode("utf-8", "replace")


def tokenizer_from_folder(header: FolderHeader) -> Tokenizer:
    """Builds the tokenizer of a model folder.

    Raises:
        UnsupportedModelError: a kind of tokenizer that Octavo does not run.
        CheckpointError: a file is missing, damaged or contradicts another.
    """
    content = header.read_json(TOKENIZER_FILE)
    if content is None:
        raise UnsupportedModelError(
            f"{header.path.name} has no {TOKENIZER_FILE}, the one form of tokenizer that Octavo "
            "reads beside those inside GGUF files.",
            hint=f"Download {TOKENIZER_FILE} into the folder, or a GGUF of this model.",
        )
    return _Builder(header, content).build()


class _Builder:
    """Takes one tokenizer.json apart and puts the backend together."""

    def __init__(self, header: FolderHeader, content: dict[str, Any]) -> None:
        self._header = header
        self._content = content
        self._config = header.read_json(_CONFIG_FILE) or {}
        self._fallback = header.read_json("special_tokens_map.json") or {}
        model = content.get("model")
        if not isinstance(model, dict):
            raise self._damaged("it has no model")
        self._model: dict[str, Any] = model
        kind = self._model.get("type", "BPE" if "merges" in self._model else None)
        if kind != "BPE":
            raise UnsupportedModelError(
                f"The tokenizer of {header.path.name} is of the kind {str(kind)[:60]!r}; "
                "Octavo knows BPE.",
                hint="Use another model, or a GGUF of this one.",
            )
        embedding = header.tensors.get(_EMBEDDING)
        self._vocab_size = embedding.shape[0] if embedding is not None else _MAX_VOCABULARY
        self._ids = self._ordinary_ids()
        self._added = self._added_tokens()

    def build(self) -> Tokenizer:
        ids = {**self._ids, **{text: token["id"] for text, token in self._added.items()}}
        bos, eos = self._named("bos_token"), self._named("eos_token")
        eos_id = ids.get(eos) if eos else self._first_eos()
        stops = {*self._stop_ids(), *([] if eos_id is None else [eos_id])}
        control = self._control_tokens(ids, stops)
        stops.update(ids[text] for text in END_OF_TURN.split() if text in control)
        vocabulary = self._vocabulary(ids, control, bos, eos_id, stops)
        first, later = self._backends(control)
        return JsonTokenizer(
            vocabulary,
            first,
            later,
            is_byte_level=self._is_byte_level(),
            strips_leading_space=self._strips_leading_space(),
            strips={
                text: (bool(token.get("lstrip")), bool(token.get("rstrip")))
                for text, token in self._added.items()
                if text in control and (token.get("lstrip") or token.get("rstrip"))
            },
        )

    def _ordinary_ids(self) -> dict[str, int]:
        vocab = self._model.get("vocab")
        if not isinstance(vocab, dict) or not vocab:
            raise self._damaged("it has no vocabulary")
        for text, token_id in vocab.items():
            if type(token_id) is not int or not 0 <= token_id < self._vocab_size:
                raise self._damaged(
                    f"the token {text[:60]!r} has the id {str(token_id)[:60]}, but the model has "
                    f"{self._vocab_size:,} tokens"
                )
        if len(set(vocab.values())) != len(vocab):
            raise self._damaged("two of its tokens have the same id")
        return vocab

    def _added_tokens(self) -> dict[str, dict[str, Any]]:
        """By text; those for which the model has no row are left out."""
        listed: Any = self._content.get("added_tokens") or []
        token: Any
        added: dict[str, dict[str, Any]] = {}
        taken = {token_id: text for text, token_id in self._ids.items()}
        for token in listed if isinstance(listed, list) else [None]:
            is_token = isinstance(token, dict) and isinstance(token.get("content"), str)
            if not is_token or not token["content"] or type(token.get("id")) is not int:
                raise self._damaged("its added tokens are no list of tokens")
            text, token_id = token["content"], token["id"]
            if not 0 <= token_id < self._vocab_size:
                logger.warning("The added token %r has no row in the model; ignored", text)
                continue
            if taken.get(token_id, text) != text or self._ids.get(text, token_id) != token_id:
                raise self._damaged(f"the added token {text[:60]!r} has the id of another")
            if token.get("single_word"):
                raise UnsupportedModelError(
                    f"The added token {text[:60]!r} of {self._header.path.name} counts only as a "
                    "whole word, which Octavo does not run yet.",
                    hint="Use another model, or a GGUF of this one.",
                )
            taken[token_id] = text
            added[text] = token
        return added

    def _control_tokens(self, ids: Mapping[str, int], stops: Iterable[int]) -> set[str]:
        """Added tokens marked special, those with a role, and whatever ends a turn."""
        named = {self._named(key) for key in _NAMED}
        for key in ("additional_special_tokens", "extra_special_tokens"):
            listed = self._config.get(key) or self._fallback.get(key) or []
            listed = list(listed.values()) if isinstance(listed, dict) else listed
            named.update(map(_text_of, listed if isinstance(listed, list) else []))
        decoder = self._config.get("added_tokens_decoder")
        for token in decoder.values() if isinstance(decoder, dict) else ():
            if isinstance(token, dict) and token.get("special"):
                named.add(_text_of(token))
        named.update(END_OF_TURN.split())
        control = {text for text, token in self._added.items() if token.get("special")}
        control |= {text for text in named if text in self._added}
        texts = {token_id: text for text, token_id in ids.items()}
        control |= {texts[token_id] for token_id in stops if token_id in texts}
        return control | {
            text for key in ("bos_token", "eos_token") if (text := self._named(key)) in ids
        }

    def _vocabulary(
        self,
        ids: Mapping[str, int],
        control: set[str],
        bos: str,
        eos_id: int | None,
        stops: Iterable[int],
    ) -> Vocabulary:
        size = max(self._vocab_size if self._header.tensors else 0, *(i + 1 for i in ids.values()))
        # Rows of the matrix that no token belongs to, which is padded to a round number, say "".
        tokens, types = [""] * size, [int(TokenType.UNUSED)] * size
        for text, token_id in ids.items():
            tokens[token_id] = text
            types[token_id] = TokenType.NORMAL
            if text in control:
                types[token_id] = TokenType.CONTROL
            elif text in self._added:
                types[token_id] = TokenType.USER_DEFINED
        return Vocabulary(
            tokens=tuple(tokens),
            types=tuple(types),
            ids=ids,
            bos_token_id=ids.get(bos),
            eos_token_id=eos_id,
            adds_bos=bos in ids and self._adds_bos(bos),
            stop_token_ids=frozenset(stops),
        )

    def _backends(self, control: set[str]) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
        content = {
            **self._content,
            "added_tokens": [token for text, token in self._added.items() if text not in control],
            "model": self._model_without(control),
            "post_processor": None,
            "truncation": None,
            "padding": None,
        }
        pre_tokenizer = self._content.get("pre_tokenizer")
        first = self._backend(content)
        later_pre_tokenizer = _with_prefix(pre_tokenizer)
        if later_pre_tokenizer == pre_tokenizer:
            return first, first
        return first, self._backend({**content, "pre_tokenizer": later_pre_tokenizer})

    def _backend(self, content: Mapping[str, Any]) -> tokenizers.Tokenizer:
        with _Translation(self._damaged):
            return tokenizers.Tokenizer.from_str(json.dumps(content))

    def _model_without(self, control: set[str]) -> dict[str, Any]:
        """The vocabulary and merges of ordinary text."""
        vocab = {text: token_id for text, token_id in self._ids.items() if text not in control}
        merges = []
        listed = self._model.get("merges")
        for merge in listed if isinstance(listed, list) else []:
            pair = merge.split(" ", 1) if isinstance(merge, str) else merge
            is_pair = isinstance(pair, list) and len(pair) == 2
            if not is_pair or not all(isinstance(text, str) for text in pair):
                raise self._damaged(f"the merge {str(merge)[:60]!r} is no pair")
            if not control.intersection((*pair, "".join(pair))):
                merges.append(pair)
        # The backend numbers added tokens anew, unless the vocabulary knows them.
        vocab |= {text: token["id"] for text, token in self._added.items() if text not in control}
        unknown = self._model.get("unk_token")
        if isinstance(unknown, str) and unknown in control:
            fallback = sum(bool(BYTE_TOKEN.fullmatch(text)) for text in vocab)
            is_needed = not self._is_byte_level() and fallback < 256 and unknown in self._ids
            # Under a name that no text spells by accident; spelling it gives the unknown token.
            unknown, name = None, f"\uffff{unknown}\uffff"
            if is_needed:
                unknown = name
                vocab[name] = self._ids[self._model["unk_token"]]
        return {
            **self._model,
            "type": "BPE",
            "vocab": vocab,
            "merges": merges,
            "unk_token": unknown,
            # For training: it would cut the same text differently each time.
            "dropout": None,
        }

    def _is_byte_level(self) -> bool:
        for key in ("decoder", "pre_tokenizer"):
            if any(part.get("type") == "ByteLevel" for part in _parts(self._content.get(key))):
                return True
        texts = json.dumps([self._content.get("decoder")], ensure_ascii=False)
        if SPACE_SYMBOL in texts:
            return False
        raise UnsupportedModelError(
            f"The tokenizer of {self._header.path.name} writes spaces in a way that Octavo "
            "does not know.",
            hint="Use another model, or a GGUF of this one.",
        )

    def _strips_leading_space(self) -> bool:
        for part in _parts(self._content.get("decoder")):
            if part.get("type") == "Strip" and part.get("content") == " " and part.get("start"):
                return True
            if part.get("type") == "Metaspace":
                scheme = part.get("prepend_scheme", "always")
                return scheme != "never" and bool(part.get("add_prefix_space", True))
        return False

    def _adds_bos(self, bos: str) -> bool:
        given = self._config.get("add_bos_token")
        if isinstance(given, bool):
            return given
        for part in _parts(self._content.get("post_processor")):
            single = part.get("single")
            if part.get("type") == "TemplateProcessing" and isinstance(single, list) and single:
                special = single[0].get("SpecialToken") if isinstance(single[0], dict) else None
                return isinstance(special, dict) and special.get("id") == bos
        return False

    def _named(self, key: str) -> str:
        return _text_of(self._config.get(key) or self._fallback.get(key))

    def _stop_ids(self) -> Iterator[int]:
        for section in (self._header.generation_config, self._header.config):
            given = section.get("eos_token_id")
            for token_id in given if isinstance(given, list) else [given]:
                if type(token_id) is int and 0 <= token_id < self._vocab_size:
                    yield token_id

    def _first_eos(self) -> int | None:
        return next(self._stop_ids(), None)

    def _damaged(self, problem: str) -> CheckpointError:
        return CheckpointError(
            f"{TOKENIZER_FILE} in {self._header.path.name} is damaged: {problem}.",
            path=self._header.path / TOKENIZER_FILE,
            hint="Download the file again.",
        )


class _Translation:
    """Turns the plain `Exception` that the tokenizers library raises, and no other, into ours."""

    def __init__(self, damaged: Any) -> None:
        self._damaged = damaged

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if kind is Exception:
            raise self._damaged(str(error)[:200].rstrip(".")) from error


def _parts(section: Any) -> list[dict[str, Any]]:
    """A step of the pipeline as a list: sequences taken apart."""
    if not isinstance(section, dict):
        return []
    for key in ("pretokenizers", "decoders", "processors", "normalizers"):
        if isinstance(section.get(key), list):
            return [part for part in section[key] if isinstance(part, dict)]
    return [section]


def _with_prefix(pre_tokenizer: Any) -> Any:
    """The pre-tokenizer of text that is not the beginning: `first` prepends nothing there."""
    if isinstance(pre_tokenizer, dict) and isinstance(pre_tokenizer.get("pretokenizers"), list):
        parts = [_with_prefix(part) for part in pre_tokenizer["pretokenizers"]]
        return {**pre_tokenizer, "pretokenizers": parts}
    is_first_only = isinstance(pre_tokenizer, dict) and (
        pre_tokenizer.get("type") == "Metaspace" and pre_tokenizer.get("prepend_scheme") == "first"
    )
    return {**pre_tokenizer, "prepend_scheme": "never"} if is_first_only else pre_tokenizer


def _text_of(token: Any) -> str:
    """A token is written as its text, or as an object with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
