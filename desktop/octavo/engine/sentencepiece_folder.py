"""The tokenizer of a model folder that has a SentencePiece `tokenizer.model` and nothing newer."""

import logging
from collections.abc import Mapping
from typing import Any, Final

from octavo.checkpoint.folder import FolderHeader
from octavo.engine.folder_roles import FolderRoles, damaged, manners_of
from octavo.engine.sentencepiece_model import (
    SentencePieceKind,
    SentencePieceModel,
    parse_sentencepiece,
)
from octavo.engine.tokenizer import (
    END_OF_TURN,
    SPACE_SYMBOL,
    SentencePieceTokenizer,
    Tokenizer,
    TokenType,
    Vocabulary,
)
from octavo.errors import UnsupportedModelError

logger = logging.getLogger(__name__)

SENTENCEPIECE_FILE: Final = "tokenizer.model"


def tokenizer_from_sentencepiece(header: FolderHeader, content: bytes) -> Tokenizer:
    """Builds the tokenizer from what the folder's `tokenizer.model` holds.

    Raises:
        UnsupportedModelError: it is no BPE, or changes characters before it cuts text.
        CheckpointError: a file is damaged or contradicts another.
    """
    model = parse_sentencepiece(content, header.path / SENTENCEPIECE_FILE)
    _check_kind(header, model)
    return _Builder(header, model).build()


def _check_kind(header: FolderHeader, model: SentencePieceModel) -> None:
    problem = ""
    if model.kind != SentencePieceKind.BPE:
        known = {kind.value: kind.name for kind in SentencePieceKind}
        problem = f"is of the kind {known.get(model.kind, model.kind)}; Octavo knows BPE"
    elif model.has_charsmap:
        problem = "changes characters by a table before it cuts text, which Octavo does not do"
    elif not model.escapes_whitespaces:
        problem = "writes spaces in a way that Octavo does not know"
    if problem:
        raise UnsupportedModelError(
            f"The tokenizer of {header.path.name} ({SENTENCEPIECE_FILE}) {problem}.",
            hint="Download tokenizer.json into the folder, or a GGUF of this model.",
        )


class _Builder:
    """Puts the pieces of the model and the tokens that were added later together."""

    def __init__(self, header: FolderHeader, model: SentencePieceModel) -> None:
        self._header = header
        self._model = model
        self._roles = FolderRoles(header)
        self._tokens = list(model.pieces)
        self._types = [int(kind) for kind in model.types]
        self._scores = list(model.scores)
        self._added = self._added_tokens()

    def build(self) -> Tokenizer:
        for token_id, (text, token) in self._added.items():
            self._add(token_id, text, is_special=bool(token.get("special")))
        num_rows = self._roles.vocab_size if self._header.tensors else len(self._tokens)
        if num_rows < len(self._tokens):
            logger.warning(
                "The last %d tokens have no row in the model; ignored", len(self._tokens) - num_rows
            )
        self._resize(num_rows)
        self._write_spaces()
        ids = self._ids()
        vocabulary = self._vocabulary(ids)
        legacy = self._roles.flag("legacy")
        prefix = self._roles.flag("add_prefix_space")
        return SentencePieceTokenizer(
            vocabulary,
            self._scores,
            add_space_prefix=self._model.adds_dummy_prefix if prefix is None else prefix,
            remove_extra_whitespaces=self._model.removes_extra_whitespaces,
            # Until it said otherwise, each stretch of text was a text of its own.
            prefixes_only_beginning=legacy is False,
        )

    def _added_tokens(self) -> dict[int, tuple[str, Mapping[str, Any]]]:
        added: dict[int, tuple[str, Mapping[str, Any]]] = {}
        for text, token_id in (self._header.read_json("added_tokens.json") or {}).items():
            if type(token_id) is not int or token_id < 0 or not text:
                raise damaged(
                    self._header.path / "added_tokens.json", f"{text[:60]!r} has no number as id"
                )
            added[token_id] = (text, {"special": text in END_OF_TURN.split()})
        added |= {token_id: (text, token) for token_id, text, token in self._roles.added_tokens()}
        return {
            token_id: token for token_id, token in added.items() if token_id < self._max_tokens()
        }

    def _max_tokens(self) -> int:
        """No folder can add more tokens than the model has rows, or than it lists."""
        return (
            self._roles.vocab_size if self._header.tensors else len(self._model.pieces) + (1 << 16)
        )

    def _add(self, token_id: int, text: str, *, is_special: bool) -> None:
        self._resize(max(token_id + 1, len(self._tokens)))
        is_same = self._tokens[token_id] == text
        self._tokens[token_id] = text
        if is_special:
            is_unknown = self._types[token_id] == TokenType.UNKNOWN
            self._types[token_id] = TokenType.UNKNOWN if is_unknown else TokenType.CONTROL
        elif not is_same or self._types[token_id] == TokenType.UNUSED:
            self._types[token_id] = TokenType.USER_DEFINED

    def _resize(self, size: int) -> None:
        missing = size - len(self._tokens)
        if missing < 0:
            del self._tokens[size:], self._types[size:], self._scores[size:]
        self._tokens += [""] * missing
        self._types += [TokenType.UNUSED] * missing
        self._scores += [0.0] * missing

    def _write_spaces(self) -> None:
        """Literal tokens are looked for in text as it is, where spaces are spaces."""
        for token_id, kind in enumerate(self._types):
            if kind == TokenType.USER_DEFINED:
                self._tokens[token_id] = self._tokens[token_id].replace(SPACE_SYMBOL, " ")

    def _ids(self) -> dict[str, int]:
        named = [(text, token_id) for token_id, text in enumerate(self._tokens) if text]
        ids = dict(named)
        if len(ids) != len(named):
            raise damaged(
                self._header.path / SENTENCEPIECE_FILE,
                f"{len(named) - len(ids)} of its tokens appear twice",
            )
        return ids

    def _vocabulary(self, ids: Mapping[str, int]) -> Vocabulary:
        bos, bos_id = self._role("bos_token", ids, self._model.bos_token_id)
        eos, eos_id = self._role("eos_token", ids, self._model.eos_token_id)
        stops = {*self._roles.stop_ids(), *([] if eos_id is None else [eos_id])}
        control = {ids[text] for text in self._roles.special_texts() if text in ids}
        # Roles may be given to ordinary text, like a line break for padding; these two never are.
        literal = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
        control = {token_id for token_id in control if self._types[token_id] in literal}
        control |= {token_id for token_id in (bos_id, eos_id, *stops) if token_id is not None}
        for token_id in control:
            if token_id < len(self._types) and self._types[token_id] != TokenType.UNKNOWN:
                self._types[token_id] = TokenType.CONTROL
        stops.update(ids[text] for text in END_OF_TURN.split() if ids.get(text) in control)
        adds_bos = self._roles.flag("add_bos_token")
        return Vocabulary(
            tokens=tuple(self._tokens),
            types=tuple(self._types),
            ids=ids,
            bos_token_id=bos_id,
            eos_token_id=eos_id,
            adds_bos=bos_id is not None and (True if adds_bos is None else adds_bos),
            stop_token_ids=frozenset(stop for stop in stops if stop < len(self._tokens)),
            role_tokens={
                **self._roles.texts(ids),
                **{role: text for role, text in (("bos_token", bos), ("eos_token", eos)) if text},
            },
            manners=manners_of(self._added.values()),
        )

    def _role(self, role: str, ids: Mapping[str, int], given: int) -> tuple[str, int | None]:
        text = self._roles.text(role, ids)
        if text in ids:
            return text, ids[text]
        # A tokenizer_config.json that says there is none counts; silence leaves it to the model.
        if role in self._roles.config or not 0 <= given < len(self._tokens):
            return "", None
        return self._tokens[given], given
