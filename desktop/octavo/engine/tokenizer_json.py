"""`JsonTokenizer`: the tokenizer of a model folder, from tokenizer.json and its companions.

Control tokens are taken out of the file's added tokens, vocabulary and merges before the backend
is built, so text that reads like one cannot become it; `Tokenizer.split_special` finds them where
they are meant.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Final

import tokenizers

from octavo.checkpoint.folder import FolderHeader
from octavo.engine.folder_roles import FolderRoles, damaged, manners_of
from octavo.engine.sentencepiece_folder import SENTENCEPIECE_FILE, tokenizer_from_sentencepiece
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

_ADDED: Final[Mapping[str, Any]] = MappingProxyType(
    {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
)
"""What an added token is where its object leaves it open."""
TOKENIZER_FILE: Final = "tokenizer.json"


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
        damaged: Callable[[str], CheckpointError],
    ) -> None:
        """Args:
        first: encodes text at the very beginning.
        later: encodes text after a control token; differs where only the beginning gets a space.
        damaged: makes the error for a file whose patterns fail on a text.
        """
        super().__init__(vocabulary, first)
        self._later = later
        self._byte_of = {symbol: byte for byte, symbol in enumerate(byte_alphabet())}
        self._is_byte_level = is_byte_level
        self.strips_leading_space = strips_leading_space
        self._damaged = damaged

    def encode_stretches(self, stretches: Iterable[str | int]) -> list[int]:
        """As `Tokenizer`; the backend itself knows the added tokens that are no control tokens."""
        pieces = list(stretches)
        beginning = [well_formed(piece) for piece in pieces[:1] if isinstance(piece, str)]
        rest = [well_formed(piece) for piece in pieces[1:] if isinstance(piece, str)]
        # The batch call lets go of the GIL, which a long prompt would hold for tenths of a second.
        with _Translation(self._damaged):
            first = self.backend.encode_batch_fast(beginning, add_special_tokens=False)
            later = self._later.encode_batch_fast(rest, add_special_tokens=False)
        encodings = iter([*first, *later])
        token_ids: list[int] = []
        for piece in pieces:
            token_ids += [piece] if isinstance(piece, int) else next(encodings).ids
        return token_ids

    def token_bytes(self, token_id: int) -> bytes:
        """As `Tokenizer`; added tokens, too, may be written with `▁` for spaces."""
        if not self._is_byte_level and token_id not in self.special_token_ids:
            return self._bytes_of(self.vocabulary.tokens[token_id])
        return super().token_bytes(token_id)

    def _prepare(self, text: str, _is_first: bool, _follows_token: bool, /) -> str:
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
    """Builds the tokenizer of a model folder: tokenizer.json counts, else tokenizer.model.

    Raises:
        UnsupportedModelError: a kind of tokenizer that Octavo does not run.
        CheckpointError: a file is missing, damaged or contradicts another.
    """
    content = header.read_json(TOKENIZER_FILE)
    if content is not None:
        return _Builder(header, content).build()
    pieces = header.read_bytes(SENTENCEPIECE_FILE)
    if pieces is not None:
        return tokenizer_from_sentencepiece(header, pieces)
    raise UnsupportedModelError(
        f"{header.path.name} has neither {TOKENIZER_FILE} nor {SENTENCEPIECE_FILE}, the forms of "
        "tokenizer that Octavo reads beside those inside GGUF files.",
        hint=f"Download {TOKENIZER_FILE} into the folder, or a GGUF of this model.",
    )


class _Builder:
    """Takes one tokenizer.json apart and puts the backend together."""

    def __init__(self, header: FolderHeader, content: dict[str, Any]) -> None:
        self._header = header
        self._content = content
        self._roles = FolderRoles(header)
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
        self._vocab_size = self._roles.vocab_size
        self._ids = self._ordinary_ids()
        self._added = self._added_tokens()

    def build(self) -> Tokenizer:
        ids = {**self._ids, **{text: token["id"] for text, token in self._added.items()}}
        bos, eos = self._roles.text("bos_token", ids), self._roles.text("eos_token", ids)
        if not bos and "bos_token" not in self._roles.config:
            bos = self._first_of_prompts()
        stops = list(self._roles.stop_ids())
        eos_id = ids.get(eos) if eos else next(iter(stops), None)
        stops += [] if eos_id is None else [eos_id]
        control = self._control_tokens(ids, bos, stops)
        stops += [ids[text] for text in END_OF_TURN.split() if text in control]
        vocabulary = self._vocabulary(ids, control, bos, eos_id, stops)
        first, later = self._backends(control)
        return JsonTokenizer(
            vocabulary,
            first,
            later,
            is_byte_level=self._is_byte_level(),
            strips_leading_space=self._strips_leading_space(),
            damaged=self._damaged,
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
            taken[token_id] = text
            added[text] = token
        # Tokens added later than tokenizer.json was written; that it lists counts otherwise.
        for token_id, text, token in self._roles.added_tokens():
            is_new = text not in added and taken.get(token_id, text) == text
            if is_new and self._ids.get(text, token_id) == token_id < self._vocab_size:
                taken[token_id] = text
                added[text] = {**_ADDED, **token, "id": token_id, "content": text}
        return added

    def _control_tokens(self, ids: Mapping[str, int], bos: str, stops: Iterable[int]) -> set[str]:
        """Added tokens marked special, those with a role, and whatever ends a turn."""
        control = {text for text, token in self._added.items() if token.get("special")}
        control |= self._roles.special_texts().intersection(self._added)
        texts = {token_id: text for text, token_id in ids.items()}
        control |= {texts[token_id] for token_id in stops if token_id in texts}
        control |= {bos, self._roles.text("eos_token", ids)}.intersection(ids)
        unknown = self._model.get("unk_token")
        if unknown == self._roles.text("unk_token", ids) and unknown in ids:
            control.add(unknown)
        return control

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
            role_tokens=self._roles.texts(ids) | ({"bos_token": bos} if bos in ids else {}),
            manners=manners_of((text, self._added[text]) for text in control & set(self._added)),
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
            if any(
                part.get("type") == "ByteLevel" for part in pipeline_steps(self._content.get(key))
            ):
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
        for part in pipeline_steps(self._content.get("decoder")):
            if part.get("type") == "Strip" and part.get("content") == " " and part.get("start"):
                return True
            if part.get("type") == "Metaspace":
                scheme = part.get("prepend_scheme", "always")
                return scheme != "never" and bool(part.get("add_prefix_space", True))
        return False

    def _adds_bos(self, bos: str) -> bool:
        given = self._roles.flag("add_bos_token")
        return self._first_of_prompts() == bos if given is None else given

    def _first_of_prompts(self) -> str:
        """The token that the file itself puts before text, if any."""
        for part in pipeline_steps(self._content.get("post_processor")):
            single = part.get("single")
            if part.get("type") == "TemplateProcessing" and isinstance(single, list) and single:
                special = single[0].get("SpecialToken") if isinstance(single[0], dict) else None
                text = special.get("id") if isinstance(special, dict) else None
                return text if isinstance(text, str) else ""
        return ""

    def _damaged(self, problem: str) -> CheckpointError:
        return damaged(self._header.path / TOKENIZER_FILE, problem)


class _Translation:
    """Turns the plain `Exception` that the tokenizers library raises, and no other, into ours.

    And its panic, which is no `Exception`: a pattern that tries millions of ways ends in one.
    """

    def __init__(self, damaged: Callable[[str], CheckpointError]) -> None:
        self._damaged = damaged

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if kind is Exception or (kind is not None and kind.__name__ == "PanicException"):
            raise self._damaged(str(error)[:200].rstrip(".")) from error


def pipeline_steps(section: Any) -> list[dict[str, Any]]:
    """A part of the pipeline of a tokenizer.json as a list: sequences taken apart."""
    steps: list[dict[str, Any]] = []
    waiting = [section]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, dict):
            continue
        keys = ("pretokenizers", "decoders", "processors", "normalizers")
        inner = next((part[key] for key in keys if isinstance(part.get(key), list)), None)
        if inner is None:
            steps.append(part)
        else:
            waiting += reversed(inner)
    return steps


def _with_prefix(pre_tokenizer: Any) -> Any:
    """The pre-tokenizer of text that is not the beginning: `first` prepends nothing there."""
    if isinstance(pre_tokenizer, dict) and isinstance(pre_tokenizer.get("pretokenizers"), list):
        parts = [_with_prefix(part) for part in pre_tokenizer["pretokenizers"]]
        return {**pre_tokenizer, "pretokenizers": parts}
    is_first_only = isinstance(pre_tokenizer, dict) and (
        pre_tokenizer.get("type") == "Metaspace" and pre_tokenizer.get("prepend_scheme") == "first"
    )
    return {**pre_tokenizer, "prepend_scheme": "never"} if is_first_only else pre_tokenizer
