"""How text is cut into words before byte-level BPE, by the names `tokenizer.ggml.pre` uses.

A vocabulary only gives the right token ids together with the pattern it was trained with. GGUF
files name that pattern instead of holding it; the patterns below are those of the models' own
`tokenizer.json`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from tokenizers import Regex, pre_tokenizers

_CONTRACTIONS: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPACES: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD: Final = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LLAMA3: Final = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN2: Final = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN: Final = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_GPT4O: Final = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DEEPSEEK3_WORD: Final = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_DEEPSEEK3: Final = (r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3_WORD)
_DEEPSEEK_CODER: Final = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")
# Letters with upper and lower case, but for those of Georgian, which had none when it was trained.
_CASED: Final = r"(?:(?![ა-ჿ])[\p{Lu}\p{Ll}\p{Lt}])"
_DEEPSEEK_LLM: Final = (
    r"[\r\n]",
    rf"\s?{_CASED}+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    r"[一-龥ࠀ-一가-퟿]+",
    r"\p{N}+",
)
_BLOOM: Final = r" ?[^(\s|.,!?…。，、।۔،)]+"
_SEED_CODER: Final = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_DEFAULT: Final = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")
_FALCON: Final = (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")
_DIGITS_GPT2: Final = (r"\p{N}", _GPT2)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How one family of vocabularies cuts text, and two habits that come with it."""

    patterns: tuple[str, ...]
    """Each cuts the pieces the one before has left; what no pattern matches is a piece, too."""
    ignore_merges: bool = False
    """A word that is a token as a whole is that token, whatever the merges say."""
    adds_bos: bool = False
    """Whether prompts begin with BOS if the file does not say."""
    composes: bool = False
    """Letters and their marks become one character first, where there is one (NFC)."""

    def build(self) -> pre_tokenizers.PreTokenizer:
        """Makes the `tokenizers` object; bytes become GPT-2's printable alphabet."""
        splits = [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns
        ]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*splits, byte_level])


def _by_name() -> Mapping[str, PreTokenizer]:
    gpt2 = PreTokenizer((_GPT2,))
    digits_gpt2 = PreTokenizer(_DIGITS_GPT2)
    qwen2 = PreTokenizer((_QWEN2,), composes=True)
    llama3 = PreTokenizer((_LLAMA3,))
    bloom = PreTokenizer((_BLOOM,))
    gpt4o = PreTokenizer((_GPT4O,))
    families = {
        PreTokenizer(_DEFAULT): "default",
        gpt2: "gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat mellum a.x-4.0",
        digits_gpt2: "smollm starcoder refact command-r codeshell exaone minerva-7b",
        # Only Qwen's own vocabularies are known to compose; GGUF files do not say it.
        qwen2: "qwen2 f2llmv2",
        PreTokenizer((_QWEN2,)): "deepseek-r1-qwen kormo stablelm2 megrez hunyuan",
        llama3: "dbrx smaug-bpe glm4 chatglm-bpe",
        PreTokenizer((_LLAMA3,), ignore_merges=True, adds_bos=True): (
            "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2"
        ),
        PreTokenizer((_TEKKEN,), ignore_merges=True, adds_bos=True): "tekken",
        gpt4o: "gpt-4o llama4 kanana2 talkie",
        PreTokenizer(_DEEPSEEK3): "deepseek-v3 hunyuan-dense",
        PreTokenizer(_DEEPSEEK_CODER): "deepseek-coder",
        PreTokenizer(_DEEPSEEK_LLM): "deepseek-llm",
        PreTokenizer(_FALCON): "falcon",
        bloom: "bloom poro-chat gpt3-finnish",
        PreTokenizer((_BLOOM, r"\p{N}")): "viking",
        PreTokenizer((_SEED_CODER,)): "seed-coder",
    }
    return MappingProxyType(
        {name: family for family, names in families.items() for name in names.split()}
    )


PRE_TOKENIZERS: Final = _by_name()
"""Every name of `tokenizer.ggml.pre` that Octavo knows."""
