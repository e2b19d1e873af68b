"""Reads a SentencePiece `tokenizer.model`: a protocol buffer, of which a few fields matter here.

The reader walks over the file's bytes once; a length that leaves its message, a number that does
not end and a file of endless small pieces are errors.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from octavo.errors import CheckpointError

_MAX_PIECES: Final = 1 << 20
_MAX_PIECE_BYTES: Final = 4096
# Numbers of the fields in sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_MODEL_TYPE, _UNK_ID, _BOS_ID, _EOS_ID = 3, 40, 41, 42
_CHARSMAP, _ADD_DUMMY_PREFIX, _REMOVE_WHITESPACES, _ESCAPE_WHITESPACES = 2, 3, 4, 5

_Value = int | memoryview


class SentencePieceKind(IntEnum):
    """How a SentencePiece model cuts text, as its trainer numbers it."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What a `tokenizer.model` says."""

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    """Numbers that `TokenType` has, too."""
    kind: int
    unk_token_id: int
    bos_token_id: int
    """Negative where there is none; so is `eos_token_id`."""
    eos_token_id: int
    has_charsmap: bool
    """Whether it changes characters before it cuts."""
    adds_dummy_prefix: bool
    removes_extra_whitespaces: bool
    escapes_whitespaces: bool


def parse_sentencepiece(content: bytes, path: Path) -> SentencePieceModel:
    """Parses the content of `path`.

    Raises:
        CheckpointError: it is no SentencePiece model, or a damaged one.
    """
    return _Parser(path).parse(memoryview(content))


class _Parser:
    def __init__(self, path: Path) -> None:
        self._path = path

    def parse(self, content: memoryview) -> SentencePieceModel:
        pieces: list[str] = []
        scores: list[float] = []
        types: list[int] = []
        trainer: dict[int, _Value] = {}
        normalizer: dict[int, _Value] = {}
        for field, value in self._fields(content):
            if field == _PIECES:
                if len(pieces) == _MAX_PIECES:
                    raise self._damaged(f"it has more than {_MAX_PIECES:,} pieces")
                text, score, kind = self._piece(self._message(value, "pieces"), len(pieces))
                pieces.append(text)
                scores.append(score)
                types.append(kind)
            elif field == _TRAINER:
                trainer |= dict(self._fields(self._message(value, "trainer_spec")))
            elif field == _NORMALIZER:
                normalizer |= dict(self._fields(self._message(value, "normalizer_spec")))
        if not pieces:
            raise self._damaged("it has no pieces")
        charsmap = normalizer.get(_CHARSMAP, 0)
        return SentencePieceModel(
            pieces=tuple(pieces),
            scores=tuple(scores),
            types=tuple(types),
            kind=self._number(trainer, _MODEL_TYPE, SentencePieceKind.UNIGRAM, "model_type"),
            unk_token_id=self._number(trainer, _UNK_ID, 0, "unk_id"),
            bos_token_id=self._number(trainer, _BOS_ID, 1, "bos_id"),
            eos_token_id=self._number(trainer, _EOS_ID, 2, "eos_id"),
            has_charsmap=len(self._message(charsmap, "precompiled_charsmap")) > 0
            if charsmap != 0
            else False,
            adds_dummy_prefix=bool(
                self._number(normalizer, _ADD_DUMMY_PREFIX, 1, "add_dummy_prefix")
            ),
            removes_extra_whitespaces=bool(
                self._number(normalizer, _REMOVE_WHITESPACES, 1, "remove_extra_whitespaces")
            ),
            escapes_whitespaces=bool(
                self._number(normalizer, _ESCAPE_WHITESPACES, 1, "escape_whitespaces")
            ),
        )

    def _piece(self, message: memoryview, index: int) -> tuple[str, float, int]:
        text, score, kind = "", 0.0, 1
        for field, value in self._fields(message):
            if field == _PIECE_TEXT:
                encoded = self._message(value, "piece")
                if len(encoded) > _MAX_PIECE_BYTES:
                    raise self._damaged(f"piece {index} has {len(encoded):,} bytes")
                try:
                    text = str(encoded, "utf-8")
                except UnicodeDecodeError as error:
                    raise self._damaged(f"piece {index} is no text") from error
            elif field == _PIECE_SCORE:
                encoded = self._message(value, "score")
                if len(encoded) != 4:
                    raise self._damaged(f"the score of piece {index} is no number")
                (score,) = struct.unpack("<f", encoded)
            elif field == _PIECE_TYPE:
                if not isinstance(value, int) or not 1 <= value <= 6:
                    raise self._damaged(f"piece {index} is of an unknown type")
                kind = value
        if score != score:
            raise self._damaged(f"the score of piece {index} is no number")
        return text, score, kind

    def _fields(self, message: memoryview) -> Iterator[tuple[int, _Value]]:
        """Numbers and values of a message's fields; fixed-width numbers stay bytes."""
        at = 0
        while at < len(message):
            tag, at = self._varint(message, at)
            field, wire = tag >> 3, tag & 7
            if wire == 0:
                number, at = self._varint(message, at)
                yield field, number
                continue
            if wire == 2:
                length, at = self._varint(message, at)
            elif wire in (1, 5):
                length = 8 if wire == 1 else 4
            else:
                raise self._damaged(f"its field {field} is of the unknown kind {wire}")
            if length > len(message) - at:
                raise self._damaged(
                    f"its field {field} claims {length:,} bytes, of which {len(message) - at:,} "
                    "are there"
                )
            yield field, message[at : at + length]
            at += length

    def _varint(self, message: memoryview, at: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= len(message):
                raise self._damaged("it ends in the middle of a number")
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise self._damaged("it has a number without end")

    def _message(self, value: _Value, name: str) -> memoryview:
        if isinstance(value, int):
            raise self._damaged(f"its {name} is a number")
        return value

    def _number(self, message: dict[int, _Value], field: int, default: int, name: str) -> int:
        value = message.get(field, default)
        if not isinstance(value, int):
            raise self._damaged(f"its {name} is no number")
        # Negative numbers are written as if they had 64 bits.
        return value - (1 << 64) if value >= 1 << 63 else value

    def _damaged(self, problem: str) -> CheckpointError:
        return CheckpointError(
            f"{self._path.name} in {self._path.parent.name} is damaged: {problem}.",
            path=self._path,
            hint="Download the file again.",
        )
