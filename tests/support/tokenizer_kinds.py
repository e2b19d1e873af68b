"""Small tokenizers in the shape in which each family of models ships its own."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.trainers import BpeTrainer

from tests.support.model_folders import CORPUS

_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
_CASES = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    rf"|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
)
_SPLITS = {
    "llama3": (_WORDS % r"\p{N}{1,3}", False),
    "qwen": (_WORDS % r"\p{N}", False),
    "tekken": (_CASES % ("", "", r"\p{N}"), False),
    # o200k, as Phi 4 mini has it: what matches is kept, and nothing lies between.
    "gpt4o": (_CASES % (f"{_CONTRACTIONS}?", f"{_CONTRACTIONS}?", r"\p{N}{1,3}"), True),
}
FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "llama3": "Llama 3, SmolLM3",
        "qwen": "Qwen 2, 2.5, 3",
        "tekken": "Mistral Nemo, Small",
        "gpt4o": "Phi 4 mini, gpt-oss",
        "granite": "Granite 3, SmolLM2",
        "gpt2": "OLMo",
        "gemma": "Gemma 1, 2, 3",
        "llama2": "Llama 2, Mistral 7B v0.1, Mixtral, TinyLlama",
        "mistral3": "Mistral 7B v0.3",
        "phi3": "Phi 3, 3.5",
    }
)
HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")
BYTE_LEVEL = ("llama3", "qwen", "tekken", "gpt4o", "granite", "gpt2")
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]")
FLAGGED = (
    AddedToken("<|left|>", special=True, lstrip=True, normalized=False),
    AddedToken("<|right|>", special=True, rstrip=True, normalized=False),
    AddedToken("<|both|>", special=True, lstrip=True, rstrip=True, normalized=False),
    AddedToken("WORD", special=True, single_word=True, normalized=False),
    AddedToken("<tool_call>", special=False, normalized=False),
    AddedToken("<think>", special=False, normalized=True),
    AddedToken("<squeeze>", special=False, lstrip=True, rstrip=True, normalized=False),
    AddedToken("lone", special=False, single_word=True, normalized=False),
)
"""Added tokens with every manner there is."""


@cache
def family_tokenizer(kind: str, *, has_manners: bool = True) -> str:
    """The tokenizer.json of a kind of `FAMILIES`, or `harmony`, trained on `CORPUS`.

    Without manners no token does anything to the text beside it.
    """
    if kind == "harmony":
        backend = Tokenizer.from_str(family_tokenizer("gpt4o", has_manners=has_manners))
        backend.add_special_tokens([AddedToken(text, special=True) for text in HARMONY])
        return backend.to_str()
    backend = _byte_level(kind) if kind in BYTE_LEVEL else _sentence_piece(kind)
    flags = {"rstrip": True} if kind == "phi3" else {}
    backend.add_special_tokens([AddedToken(text, special=True, **flags) for text in SPECIAL])
    for token in FLAGGED if has_manners else ():
        # Where the normaliser puts a space in front, the library shows a token that it normalises
        # with that space; no model of these families has one.
        is_plain = kind in ("llama2", "phi3") and token.content == "<think>"
        added = AddedToken("<think>", special=False, normalized=False) if is_plain else token
        (backend.add_special_tokens if token.special else backend.add_tokens)([added])
    bos = backend.token_to_id("<s>")
    template = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", bos)]
    )
    byte_level = processors.ByteLevel(trim_offsets=False)
    if kind in ("qwen", "granite", "gpt4o", "gpt2"):
        backend.post_processor = byte_level
    elif kind in BYTE_LEVEL:
        backend.post_processor = processors.Sequence([byte_level, template])
    else:
        backend.post_processor = template
    return backend.to_str()


def _byte_level(kind: str) -> Tokenizer:
    backend = Tokenizer(models.BPE(ignore_merges=kind in ("llama3", "tekken")))
    if kind == "qwen":
        backend.normalizer = normalizers.NFC()
    if kind in _SPLITS:
        pattern, keeps_matches = _SPLITS[kind]
        behavior = "removed" if keeps_matches else "isolated"
        cuts: list[Any] = [pre_tokenizers.Split(Regex(pattern), behavior, invert=keeps_matches)]
    else:
        cuts = [pre_tokenizers.Digits(individual_digits=True)] if kind == "granite" else []
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind not in _SPLITS)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, last]) if cuts else last
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        CORPUS,
        BpeTrainer(
            vocab_size=600,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=list(SPECIAL),
        ),
    )
    return backend


def _sentence_piece(kind: str) -> Tokenizer:
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    trained.train_from_iterator(
        CORPUS[:3], BpeTrainer(vocab_size=450, show_progress=False, special_tokens=list(SPECIAL))
    )
    model = json.loads(trained.to_str())["model"]
    vocab = model["vocab"]
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    backend = Tokenizer(
        models.BPE(
            vocab,
            [tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    after: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "gemma":
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        backend.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("▁▁▁")])
    else:
        after.append(decoders.Strip(content=" ", left=1))
        if kind == "mistral3":
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:
            backend.normalizer = normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            )
    backend.decoder = decoders.Sequence(after)
    return backend


def write_family_tokenizer(
    folder: Path, kind: str, *, has_manners: bool = True, **config: Any
) -> None:
    """tokenizer.json, with sections for training, and tokenizer_config.json with `config`."""
    content = json.loads(family_tokenizer(kind, has_manners=has_manners))
    content["truncation"] = {
        "direction": "Right",
        "max_length": 8,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    content["padding"] = {
        "strategy": {"Fixed": 12},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "</s>",
        "clean_up_tokenization_spaces": False,
        **config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")
