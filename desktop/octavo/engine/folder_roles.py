"""`FolderRoles`: which tokens of a folder have a meaning, by the files beside the tokenizer."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from octavo.checkpoint.folder import FolderHeader
from octavo.engine.literal_tokens import Manners
from octavo.engine.tokenizer import END_OF_TURN
from octavo.errors import CheckpointError

TOKENIZER_CONFIG_FILE: Final = "tokenizer_config.json"
EMBEDDING_WEIGHT: Final = "model.embed_tokens.weight"

_MAX_VOCABULARY: Final = 1 << 24
_NAMED: Final = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "cls_token",
    "sep_token",
    "mask_token",
)


class FolderRoles:
    """What tokenizer_config.json, special_tokens_map.json and the configurations say of tokens."""

    def __init__(self, header: FolderHeader) -> None:
        self._header = header
        config = header.read_json(TOKENIZER_CONFIG_FILE)
        self.config: Mapping[str, Any] = config or {}
        self._is_silent = config is None
        self._fallback = header.read_json("special_tokens_map.json") or {}
        embedding = header.tensors.get(EMBEDDING_WEIGHT)
        self.vocab_size = embedding.shape[0] if embedding is not None else _MAX_VOCABULARY
        """Rows of the model's matrix; many more than any has if that is not known."""

    def text(self, role: str, ids: Mapping[str, int]) -> str:
        """The token of a role (`bos_token`, …), empty if there is none.

        Only where no tokenizer_config.json exists, the id in config.json counts.
        """
        given = text_of_token(self.config.get(role) or self._fallback.get(role))
        if given or not self._is_silent:
            return given
        token_id = self._header.config.get(f"{role}_id")
        if type(token_id) is not int:
            return ""
        return next((text for text, known in ids.items() if known == token_id), "")

    def texts(self, ids: Mapping[str, int]) -> dict[str, str]:
        """Of all roles that tokens of the vocabulary have."""
        named = {role: self.text(role, ids) for role in _NAMED}
        return {role: text for role, text in named.items() if text in ids}

    def special_texts(self) -> set[str]:
        """Texts of control tokens, of which some may not be in the vocabulary."""
        named = {
            text_of_token(self.config.get(role) or self._fallback.get(role)) for role in _NAMED
        }
        for key in ("additional_special_tokens", "extra_special_tokens"):
            listed = self.config.get(key) or self._fallback.get(key) or []
            listed = list(listed.values()) if isinstance(listed, dict) else listed
            named.update(map(text_of_token, listed if isinstance(listed, list) else []))
        named.update(text for _, text, token in self.added_tokens() if token.get("special"))
        return {*named, *END_OF_TURN.split()} - {""}

    def added_tokens(self) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
        """Id, text and manners of what `added_tokens_decoder` of tokenizer_config.json lists.

        Raises:
            CheckpointError: it is no list of tokens.
        """
        decoder = self.config.get("added_tokens_decoder")
        if decoder is None:
            return
        if not isinstance(decoder, dict):
            raise self._damaged("its added_tokens_decoder is no list of tokens")
        for key, token in decoder.items():
            text = text_of_token(token)
            if not (key.isascii() and key.isdigit() and len(key) < 12 and text):
                raise self._damaged(f"{key[:40]!r} in its added_tokens_decoder is no token")
            yield int(key), text, token if isinstance(token, dict) else {}

    def stop_ids(self) -> Iterator[int]:
        """Ids that end a turn by generation_config.json and config.json."""
        for section in (self._header.generation_config, self._header.config):
            given = section.get("eos_token_id")
            for token_id in given if isinstance(given, list) else [given]:
                if type(token_id) is int and 0 <= token_id < self.vocab_size:
                    yield token_id

    def flag(self, key: str) -> bool | None:
        """A switch of tokenizer_config.json; None if it is not given."""
        given = self.config.get(key)
        return given if isinstance(given, bool) else None

    def _damaged(self, problem: str) -> CheckpointError:
        return damaged(self._header.path / TOKENIZER_CONFIG_FILE, problem)


def manners_of(tokens: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Manners]:
    """What tokens do to the text beside them, from the objects that list them."""
    return {
        text: Manners(
            strips_left=bool(token.get("lstrip")),
            strips_right=bool(token.get("rstrip")),
            is_whole_word=bool(token.get("single_word")),
        )
        for text, token in tokens
    }


def text_of_token(token: Any) -> str:
    """A token is written as its text, or as an object with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def damaged(path: Path, problem: str) -> CheckpointError:
    """A file of the tokenizer that cannot be used, and why."""
    return CheckpointError(
        f"{path.name} in {path.parent.name} is damaged: {problem}.",
        path=path,
        hint="Download the file again.",
    )
