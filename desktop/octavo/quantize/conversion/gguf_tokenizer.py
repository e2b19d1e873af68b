"""The keys `tokenizer.*` of a GGUF file from a folder's tokenizer.json and its companions."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.checkpoint.folder import FolderHeader
from octavo.engine.chat_template import templates_in_folder
from octavo.engine.folder_roles import text_of_token
from octavo.engine.pre_tokenizers import PRE_TOKENIZERS
from octavo.engine.tokenizer import (
    BYTE_TOKEN,
    END_OF_TURN,
    SPACE_SYMBOL,
    TokenType,
    Vocabulary,
    merges_from_scores,
    tokenizer_from_metadata,
)
from octavo.engine.tokenizer_json import (
    TOKENIZER_FILE,
    pipeline_steps,
    tokenizer_from_folder,
)
from octavo.errors import UnsupportedModelError
from octavo.quantize.conversion.chat_templates import gguf_chat_templates
from octavo.quantize.conversion.gguf_values import (
    GGUFValue,
    GGUFValueType,
    array,
    boolean,
    string,
    uint32,
)
from octavo.quantize.conversion.same_tokens import check_same_tokens

_GPT2_WORDS = PRE_TOKENIZERS["gpt-2"].patterns
_PREFIX = {"type": "Prepend", "prepend": SPACE_SYMBOL}
_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_SYMBOL}
_HINT = "Choose a method that writes a folder, which keeps the tokenizer as it is."


def tokenizer_values(header: FolderHeader) -> dict[str, GGUFValue]:
    """Translates the tokenizer, and checks on difficult text that it gives the same ids.

    Raises:
        UnsupportedModelError: GGUF cannot say how this tokenizer works.
        CheckpointError: a file is damaged.
    """
    return _Translation(header).values()


class _Translation:
    """The tokenizer of one folder: what the engine makes of it, and what the file says beside."""

    def __init__(self, header: FolderHeader) -> None:
        self._header = header
        self._tokenizer = tokenizer_from_folder(header)
        file = header.read_json(TOKENIZER_FILE)
        if file is None:
            raise self._no_place("is a tokenizer.model without a tokenizer.json")
        self._file = file
        self._config = header.read_json("tokenizer_config.json") or {}
        self._named = header.read_json("special_tokens_map.json") or {}
        # Without control tokens and all that is for other purposes.
        self._content: dict[str, Any] = json.loads(self._tokenizer.backend.to_str())
        self._model: dict[str, Any] = self._content["model"]

    def values(self) -> dict[str, GGUFValue]:
        self._refuse_what_has_no_place()
        vocabulary = self._tokenizer.vocabulary
        patterns = _byte_level_patterns(self._content["pre_tokenizer"])
        kind = self._sentence_piece() if patterns is None else self._byte_level(patterns)
        tokens = [text or f"[PAD{token_id}]" for token_id, text in enumerate(vocabulary.tokens)]
        types = self._types(is_byte_level=patterns is not None)
        keys = {
            **kind,
            "tokens": array(GGUFValueType.STRING, tokens),
            "token_type": array(GGUFValueType.INT32, types),
            **self._roles(),
        }
        values = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
        plain = {key: value.plain for key, value in values.items()}
        check_same_tokens(self._tokenizer, tokenizer_from_metadata(plain), self._header, "GGUF")
        return values | gguf_chat_templates(templates_in_folder(self._header))

    def _refuse_what_has_no_place(self) -> None:
        for key in ("continuing_subword_prefix", "end_of_word_suffix"):
            if self._model.get(key):
                raise self._no_place(f"marks parts of words with {self._model[key]!r}")
        special = self._tokenizer.special_tokens
        for token in self._file.get("added_tokens") or []:
            text = token["content"]
            if token.get("lstrip") or token.get("rstrip"):
                raise self._no_place(f"has the token {text!r}, which swallows blanks beside it")
            if token.get("single_word"):
                raise self._no_place(f"has the token {text!r}, which counts only as a whole word")
            is_normalized = token.get("normalized") and self._content["normalizer"]
            if is_normalized and text not in special:
                raise self._no_place(f"looks for the token {text!r} in normalised text")

    def _byte_level(self, patterns: Sequence[str]) -> dict[str, GGUFValue]:
        changes = [part.get("type") for part in pipeline_steps(self._content["normalizer"])]
        if changes not in ([], ["NFC"]):
            raise self._no_place(f"normalises text by {changes[-1]} before it cuts it")
        does_ignore = bool(self._model.get("ignore_merges"))
        name = next(
            (
                name
                for name, known in PRE_TOKENIZERS.items()
                if known.patterns == tuple(patterns)
                and known.ignore_merges == does_ignore
                and known.composes == bool(changes)
            ),
            None,
        )
        if name is None and changes:
            raise self._no_place("normalises text by NFC before it cuts it")
        if name is None:
            raise self._no_place("cuts text into words by a rule that has no name there")
        merges = []
        for left, right in self._model["merges"]:
            if " " in left + right:
                raise self._no_place(f"merges the tokens {left!r} and {right!r}, with blanks")
            merges.append(f"{left} {right}")
        return {
            "model": string("gpt2"),
            "pre": string(name),
            "merges": array(GGUFValueType.STRING, merges),
            "add_space_prefix": boolean(False),
        }

    def _sentence_piece(self) -> dict[str, GGUFValue]:
        if not self._model.get("byte_fallback") or self._model.get("ignore_merges"):
            raise self._no_place("is neither byte-level BPE nor SentencePiece's")
        return {
            "model": string("llama"),
            "pre": string("default"),
            "scores": array(GGUFValueType.FLOAT32, self._scores()),
            "add_space_prefix": boolean(self._adds_space_prefix()),
        }

    def _adds_space_prefix(self) -> bool:
        normalizers = pipeline_steps(self._content["normalizer"])
        cuts = pipeline_steps(self._content["pre_tokenizer"])
        if not cuts and normalizers == [_PREFIX, _SPACES]:
            return True
        if not cuts and normalizers == [_SPACES]:
            return False
        is_replacement = not normalizers and len(cuts) == 1 and cuts[0]["type"] == "Metaspace"
        if is_replacement and cuts[0].get("replacement") == SPACE_SYMBOL:
            if cuts[0].get("split", True) is not False:
                raise self._no_place("cuts text at blanks before it merges")
            if cuts[0].get("prepend_scheme") == "never":
                return False
            raise self._no_place(
                "puts a blank before text at the very beginning only, not after control tokens"
                if cuts[0].get("prepend_scheme") == "first"
                else "puts a blank before text unless one stands there"
            )
        raise self._no_place("writes blanks in a way of its own")

    def _scores(self) -> list[float]:
        """Scores in whose order SentencePiece merges just as the file's list of merges says.

        Scores allow every way to join two tokens to a third; the file lists one at least. Those
        it does not list never happen if merging the third token's own text gives that token: the
        text is in two pieces only once on the way, and then they are a pair of the list.
        """
        vocabulary = self._tokenizer.vocabulary
        merges = [(left, right) for left, right in self._model["merges"]]
        merged = list(dict.fromkeys(left + right for left, right in merges))
        scores = [-float(len(merged) + token_id) for token_id in range(len(vocabulary.tokens))]
        for rank, text in enumerate(merged):
            scores[vocabulary.ids[text]] = -float(rank)
        by_score = set(merges_from_scores(_ordinary(vocabulary), scores))
        grouped = [text for text, _ in itertools.groupby(left + right for left, right in merges)]
        model = self._tokenizer.backend.model
        is_whole = all(
            len(model.tokenize(left + right)) == 1 for left, right in by_score.difference(merges)
        )
        if grouped != merged or not by_score.issuperset(merges) or not is_whole:
            raise self._no_place("merges in an order that no scores of its tokens give")
        return scores

    def _types(self, *, is_byte_level: bool) -> list[int]:
        types = [int(kind) for kind in self._tokenizer.vocabulary.types]
        if is_byte_level:
            return types
        for text, token_id in self._tokenizer.vocabulary.ids.items():
            if types[token_id] == TokenType.NORMAL and BYTE_TOKEN.fullmatch(text):
                types[token_id] = int(TokenType.BYTE)
        unknown = self._id_of("unk_token")
        if unknown is not None and types[unknown] == TokenType.CONTROL:
            types[unknown] = int(TokenType.UNKNOWN)
        return types

    def _roles(self) -> dict[str, GGUFValue]:
        vocabulary = self._tokenizer.vocabulary
        ids = {
            "bos_token_id": vocabulary.bos_token_id,
            "eos_token_id": vocabulary.eos_token_id,
            "unknown_token_id": self._id_of("unk_token"),
            "padding_token_id": self._id_of("pad_token"),
        }
        implied = {vocabulary.ids[text] for text in END_OF_TURN.split() if text in vocabulary.ids}
        others = sorted(vocabulary.stop_token_ids - implied - {vocabulary.eos_token_id})
        if len(others) > 2:
            names = ", ".join(repr(vocabulary.tokens[token_id]) for token_id in others)
            raise self._no_place(f"ends a turn at {len(others)} tokens beside EOS ({names})")
        ids |= dict(zip(("eot_token_id", "eom_token_id"), others, strict=False))
        roles = {key: uint32(token_id) for key, token_id in ids.items() if token_id is not None}
        roles["add_bos_token"] = boolean(vocabulary.adds_bos)
        roles["add_eos_token"] = boolean(self._adds_eos())
        return roles

    def _adds_eos(self) -> bool:
        given = self._config.get("add_eos_token")
        if isinstance(given, bool):
            return given
        eos = self._tokenizer.eos_token
        for part in pipeline_steps(self._file.get("post_processor")):
            single = part.get("single")
            if part.get("type") == "TemplateProcessing" and isinstance(single, list) and single:
                special = single[-1].get("SpecialToken") if isinstance(single[-1], dict) else None
                return isinstance(special, dict) and special.get("id") == eos
        return False

    def _id_of(self, role: str) -> int | None:
        token = self._config.get(role) or self._named.get(role)
        if role == "unk_token" and not token:
            token = self._file["model"].get("unk_token")
        return self._tokenizer.vocabulary.ids.get(text_of_token(token))

    def _no_place(self, problem: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"The tokenizer of {self._header.path.name} {problem}, which no GGUF file can say.",
            hint=_HINT,
        )


def _ordinary(vocabulary: Vocabulary) -> dict[str, int]:
    """Tokens that merges may make; a folder does not tell byte tokens from them."""
    return {
        text: token_id
        for text, token_id in vocabulary.mergeable(TokenType.NORMAL).items()
        if not BYTE_TOKEN.fullmatch(text)
    }


def _byte_level_patterns(pre_tokenizer: Any) -> list[str] | None:
    """The patterns by which text is cut, as `PreTokenizer` has them; None: it is not byte-level.

    A step of another kind gives a pattern that no known rule has.
    """
    steps = pipeline_steps(pre_tokenizer)
    if not steps or steps[-1].get("type") != "ByteLevel":
        return None
    patterns = [_pattern_of(step) for step in steps[:-1]]
    if steps[-1].get("add_prefix_space"):
        patterns.append("a blank before the first word")
    if steps[-1].get("use_regex", True):
        patterns += _GPT2_WORDS
    return patterns


def _pattern_of(step: Mapping[str, Any]) -> str:
    pattern = step.get("pattern")
    behavior, is_inverted = step.get("behavior"), step.get("invert", False)
    if step.get("type") == "Split" and isinstance(pattern, dict):
        # What lies between the matches of these patterns is nothing.
        if (behavior, is_inverted) in (("Isolated", False), ("Removed", True)):
            return str(pattern["Regex"]) if "Regex" in pattern else re.escape(pattern["String"])
    elif step.get("type") == "Digits":
        return r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
    return json.dumps(step)
