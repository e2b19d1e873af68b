"""The keys `tokenizer.*` of a GGUF file from a folder's tokenizer.json and its companions.

GGUF names rules and has no words for others. A tokenizer with such a rule is carried as the files
that it is (`embedded_files`), from which Octavo reads it. Beside them stand the keys that come
nearest, as other converters write them, or none that another program could mistake for the rule.
"""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.checkpoint.folder import FolderHeader
from octavo.engine.chat_template import templates_in_folder
from octavo.engine.embedded_tokenizer import NOTE_KEY, embedded_folder
from octavo.engine.folder_roles import text_of_token
from octavo.engine.pre_tokenizers import PRE_TOKENIZERS
from octavo.engine.tokenizer import (
    BYTE_TOKEN,
    END_OF_TURN,
    SPACE_SYMBOL,
    SentencePieceTokenizer,
    Tokenizer,
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
from octavo.quantize.conversion.embedded_files import embedded_files
from octavo.quantize.conversion.gguf_values import (
    GGUFValue,
    GGUFValueType,
    array,
    boolean,
    plain_values,
    string,
    uint32,
)
from octavo.quantize.conversion.same_tokens import check_same_tokens

_GPT2_WORDS = PRE_TOKENIZERS["gpt-2"].patterns
_PREFIX = {"type": "Prepend", "prepend": SPACE_SYMBOL}
_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_SYMBOL}
_ONLY_BEGINNING = "puts a blank before text at the very beginning only, not after control tokens"
_MODEL_KEY = "tokenizer.ggml.model"
_UNNAMED = "huggingface"
"""As the kind of tokenizer: no other program takes it for a rule of its own."""
_HINT = "Choose a method that writes a folder, which keeps the tokenizer as it is."


def tokenizer_values(header: FolderHeader) -> dict[str, GGUFValue]:
    """Translates the tokenizer, and checks on difficult text that it gives the same ids.

    Raises:
        UnsupportedModelError: a kind of tokenizer that Octavo does not run.
        CheckpointError: a file is damaged.
    """
    tokenizer = tokenizer_from_folder(header)
    differences: list[str] = []
    try:
        keys, has_blanks = _keys(header, tokenizer, differences)
        values = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
        if not differences:
            translated = tokenizer_from_metadata(plain_values(values))
            check_same_tokens(
                tokenizer, translated, header, "GGUF", knows_space_symbol=not has_blanks
            )
    except UnsupportedModelError as error:
        differences = [error.message]
        values = _lists_alone(header, tokenizer)
    if differences:
        values |= embedded_files(header, " ".join(differences))
        check_same_tokens(tokenizer, _embedded(header, values), header, "GGUF")
    return values | gguf_chat_templates(templates_in_folder(header))


def tokenizer_remark(values: Mapping[str, GGUFValue]) -> str:
    """What somebody should know who gives the file to other programs; empty: nothing."""
    if NOTE_KEY not in values:
        return ""
    others = (
        "will not open it"
        if values[_MODEL_KEY].value == _UNNAMED
        else "read the nearest that GGUF can say"
    )
    return (
        f"{values[NOTE_KEY].value} Octavo reads the tokenizer's own files, which the result "
        f"carries; programs that do not know them {others}."
    )


def _keys(
    header: FolderHeader, tokenizer: Tokenizer, differences: list[str]
) -> tuple[dict[str, GGUFValue], bool]:
    """The keys of `tokenizer.ggml`, and whether a typed `▁` counts as a blank."""
    file = header.read_json(TOKENIZER_FILE)
    if file is not None:
        return _Translation(header, tokenizer, file, differences).keys()
    assert isinstance(tokenizer, SentencePieceTokenizer), "the only other kind there is"
    return _pieces_keys(header, tokenizer, differences), False


def _lists_alone(header: FolderHeader, tokenizer: Tokenizer) -> dict[str, GGUFValue]:
    """Tokens and what they are for, but no rule that makes them of text."""
    vocabulary = tokenizer.vocabulary
    keys = {
        "model": string(_UNNAMED),
        **_token_lists(vocabulary.tokens, vocabulary.types),
        **_roles(header, vocabulary, [], unknown=None, padding=None, adds_eos=False),
    }
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def _embedded(header: FolderHeader, values: Mapping[str, GGUFValue]) -> Tokenizer:
    folder = embedded_folder(plain_values(values), header.path, header.tensors)
    assert folder is not None
    return tokenizer_from_folder(folder)


class _Translation:
    """The tokenizer of one folder: what the engine makes of it, and what the file says beside."""

    def __init__(
        self,
        header: FolderHeader,
        tokenizer: Tokenizer,
        file: dict[str, Any],
        differences: list[str],
    ) -> None:
        """Args:
        header: the folder.
        tokenizer: made of it.
        file: its tokenizer.json.
        differences: gets a sentence for each thing that the keys come near to, but do not say.
        """
        self._differences = differences
        self._header = header
        self._tokenizer = tokenizer
        self._file = file
        self._config = header.read_json("tokenizer_config.json") or {}
        self._named = header.read_json("special_tokens_map.json") or {}
        # Without control tokens and all that is for other purposes.
        self._content: dict[str, Any] = json.loads(self._tokenizer.backend.to_str())
        self._model: dict[str, Any] = self._content["model"]
        self._tokens = list(tokenizer.vocabulary.tokens)
        self._types = [int(kind) for kind in tokenizer.vocabulary.types]

    def keys(self) -> tuple[dict[str, GGUFValue], bool]:
        """As `_keys`.

        Raises:
            UnsupportedModelError: no keys come near to what this tokenizer does.
        """
        self._note_what_has_no_place()
        patterns = _byte_level_patterns(self._content["pre_tokenizer"])
        has_blanks = patterns is None and self._write_blanks()
        kind = self._sentence_piece() if patterns is None else self._byte_level(patterns)
        if patterns is None:
            self._name_fallback()
        unknown = self._id_of("unk_token")
        roles = _roles(
            self._header,
            self._tokenizer.vocabulary,
            self._differences,
            unknown=unknown,
            padding=self._id_of("pad_token"),
            adds_eos=self._adds_eos(),
        )
        return {**kind, **_token_lists(self._tokens, self._types), **roles}, has_blanks

    def _note_what_has_no_place(self) -> None:
        for key in ("continuing_subword_prefix", "end_of_word_suffix"):
            if self._model.get(key):
                raise self._no_place(f"marks parts of words with {self._model[key]!r}")
        special = self._tokenizer.special_tokens
        for token in self._file.get("added_tokens") or []:
            text = token["content"]
            if token.get("lstrip") or token.get("rstrip"):
                self._note(f"has the token {text!r}, which swallows blanks beside it")
            if token.get("single_word"):
                self._note(f"has the token {text!r}, which counts only as a whole word")
            is_normalized = token.get("normalized") and self._content["normalizer"]
            # Of blanks alone it is known what becomes of them.
            if is_normalized and text not in special and self._content["normalizer"] != _SPACES:
                self._note(f"looks for the token {text!r} in normalised text")

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

    def _write_blanks(self) -> bool:
        """Says of tokens with blanks how text becomes them; whether there are any.

        Written with `▁`, they are either looked for after blanks were written so (and stand in GGUF
        with blanks), or come about by merging (and are ordinary tokens). Only a `▁` that somebody
        types makes a difference then: SentencePiece takes it for a blank, too.
        """
        found = False
        for token in self._file.get("added_tokens") or []:
            token_id, text = token["id"], token["content"]
            is_literal = (
                token_id < len(self._types) and self._types[token_id] == TokenType.USER_DEFINED
            )
            if is_literal and SPACE_SYMBOL in text:
                found = True
                if token.get("normalized"):
                    self._tokens[token_id] = text.replace(SPACE_SYMBOL, " ")
                else:
                    self._types[token_id] = int(TokenType.NORMAL)
        return found

    def _name_fallback(self) -> None:
        """Byte tokens and the unknown one have types of their own."""
        for token_id, text in enumerate(self._tokens):
            if self._types[token_id] == TokenType.NORMAL and BYTE_TOKEN.fullmatch(text):
                self._types[token_id] = int(TokenType.BYTE)
        unknown = self._id_of("unk_token")
        if unknown is not None and self._types[unknown] == TokenType.CONTROL:
            self._types[unknown] = int(TokenType.UNKNOWN)

    def _sentence_piece(self) -> dict[str, GGUFValue]:
        if not self._model.get("byte_fallback") or self._model.get("ignore_merges"):
            raise self._no_place("is neither byte-level BPE nor SentencePiece's")
        return _sentence_piece_keys(self._scores(), adds_space_prefix=self._adds_space_prefix())

    def _adds_space_prefix(self) -> bool:
        normalizers = pipeline_steps(self._content["normalizer"])
        cuts = pipeline_steps(self._content["pre_tokenizer"])
        if normalizers[-1:] == [_SPACES]:
            # No blanks are left to be cut at.
            cuts = [cut for cut in cuts if not _cuts_at_blanks(cut)]
        if not cuts and normalizers == [_PREFIX, _SPACES]:
            return True
        if not cuts and normalizers == [_SPACES]:
            return False
        is_replacement = not normalizers and len(cuts) == 1 and cuts[0]["type"] == "Metaspace"
        if is_replacement and cuts[0].get("replacement") == SPACE_SYMBOL:
            if cuts[0].get("split", True) is not False and self._joins_words():
                raise self._no_place("cuts text at blanks before it merges")
            if cuts[0].get("prepend_scheme") == "never":
                return False
            self._note(
                _ONLY_BEGINNING
                if cuts[0].get("prepend_scheme") == "first"
                else "puts a blank before text unless one stands there"
            )
            return True
        raise self._no_place("writes blanks in a way of its own")

    def _joins_words(self) -> bool:
        """Whether a token goes on after a blank, so that cutting there makes a difference."""
        return any(SPACE_SYMBOL in text[1:] for text in self._ordinary())

    def _ordinary(self) -> dict[str, int]:
        """Tokens that merges may make; a folder does not tell byte tokens from them."""
        return {
            text: token_id
            for token_id, text in enumerate(self._tokens)
            if self._types[token_id] == TokenType.NORMAL and not BYTE_TOKEN.fullmatch(text)
        }

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
        by_score = set(merges_from_scores(self._ordinary(), scores))
        grouped = [text for text, _ in itertools.groupby(left + right for left, right in merges)]
        model = self._tokenizer.backend.model
        is_whole = all(
            len(model.tokenize(left + right)) == 1 for left, right in by_score.difference(merges)
        )
        if grouped != merged or not by_score.issuperset(merges) or not is_whole:
            raise self._no_place("merges in an order that no scores of its tokens give")
        return scores

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

    def _note(self, problem: str) -> None:
        self._differences.append(_sentence(self._header, problem))

    def _no_place(self, problem: str) -> UnsupportedModelError:
        return UnsupportedModelError(_sentence(self._header, problem), hint=_HINT)


def _pieces_keys(
    header: FolderHeader, tokenizer: SentencePieceTokenizer, differences: list[str]
) -> dict[str, GGUFValue]:
    """Of a tokenizer.model alone: GGUF says nearly the same things."""
    vocabulary = tokenizer.vocabulary
    problems = [
        f"has the token {text!r}, which swallows blanks beside it"
        for text, manners in vocabulary.manners.items()
        if manners.strips_left or manners.strips_right or manners.is_whole_word
    ]
    if tokenizer.strips_leading_space and tokenizer.prefixes_only_beginning:
        problems.append(_ONLY_BEGINNING)
    differences += [_sentence(header, problem) for problem in problems]
    unknown = next(iter(vocabulary.ids_of(TokenType.UNKNOWN)), None)
    return {
        **_sentence_piece_keys(tokenizer.scores, adds_space_prefix=tokenizer.strips_leading_space),
        "remove_extra_whitespaces": boolean(tokenizer.removes_extra_whitespaces),
        **_token_lists(vocabulary.tokens, vocabulary.types),
        **_roles(
            header,
            vocabulary,
            differences,
            unknown=unknown,
            padding=vocabulary.ids.get(vocabulary.role_tokens.get("pad_token", "")),
            adds_eos=bool((header.read_json("tokenizer_config.json") or {}).get("add_eos_token")),
        ),
    }


def _sentence_piece_keys(
    scores: Sequence[float], *, adds_space_prefix: bool
) -> dict[str, GGUFValue]:
    return {
        "model": string("llama"),
        "pre": string("default"),
        "scores": array(GGUFValueType.FLOAT32, scores),
        "add_space_prefix": boolean(adds_space_prefix),
    }


def _token_lists(tokens: Sequence[str], types: Sequence[int]) -> dict[str, GGUFValue]:
    texts = [text or f"[PAD{token_id}]" for token_id, text in enumerate(tokens)]
    return {
        "tokens": array(GGUFValueType.STRING, texts),
        "token_type": array(GGUFValueType.INT32, map(int, types)),
    }


def _roles(
    header: FolderHeader,
    vocabulary: Vocabulary,
    differences: list[str],
    *,
    unknown: int | None,
    padding: int | None,
    adds_eos: bool,
) -> dict[str, GGUFValue]:
    ids = {
        "bos_token_id": vocabulary.bos_token_id,
        "eos_token_id": vocabulary.eos_token_id,
        "unknown_token_id": unknown,
        "padding_token_id": padding,
    }
    implied = {vocabulary.ids[text] for text in END_OF_TURN.split() if text in vocabulary.ids}
    others = sorted(vocabulary.stop_token_ids - implied - {vocabulary.eos_token_id})
    if len(others) > 2:
        names = ", ".join(repr(vocabulary.tokens[token_id]) for token_id in others)
        problem = f"ends a turn at {len(others)} tokens beside EOS ({names})"
        differences.append(_sentence(header, problem))
    ids |= dict(zip(("eot_token_id", "eom_token_id"), others, strict=False))
    roles = {key: uint32(token_id) for key, token_id in ids.items() if token_id is not None}
    roles["add_bos_token"] = boolean(vocabulary.adds_bos)
    roles["add_eos_token"] = boolean(adds_eos)
    return roles


def _sentence(header: FolderHeader, problem: str) -> str:
    return f"The tokenizer of {header.path.name} {problem}, for which GGUF has no key."


def _cuts_at_blanks(step: Mapping[str, Any]) -> bool:
    return step.get("type") == "Split" and step.get("pattern") == {"String": " "}


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
