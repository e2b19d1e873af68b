"""Writes tiny but complete model folders with transformers, as hubs hold large ones."""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)
from tokenizers import processors as post_processors
from tokenizers.trainers import BpeTrainer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
CORPUS = (
    "The quick brown fox jumps over the lazy dog. Hello world, hello again!",
    "for i in range(10):\n    print(f'{i}: {i ** 2}')\n\treturn {'a': [1, 2, 3]}\n",
    "In 1984 there were 123456789 of 3.14159 and 1,000,000 more.",
    "日本語のテキストと漢字。中文文本也在这里。한국어도 있습니다.",
    "Emoji 😀👩‍👩‍👧 and 🇩🇪 flags; naïve café — “quotes” … ½ ﬁ",
    "  leading,   many    spaces, trailing  \n\n\n and\r\nlines\t\ttabs  ",
    "the then there these they them are is was were of to and in a it you",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@cache
def trained_tokenizer(kind: str = "byte-level") -> str:
    """A tokenizer.json trained on `CORPUS`.

    Kinds: `byte-level` and `llama3` as in SmolLM and Llama 3; `metaspace` and `prepend` as in
    Mistral and Llama 2.
    """
    is_byte_level = kind in ("byte-level", "llama3")
    trainer = BpeTrainer(
        vocab_size=500,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if is_byte_level else [],
    )
    if is_byte_level:
        backend = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
        digits = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.Split(Regex(_LLAMA3_WORDS), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                words if kind == "llama3" else digits,
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind != "llama3"),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        backend.train_from_iterator(CORPUS, trainer)
    else:
        backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        backend.train_from_iterator(CORPUS[:3], trainer)
        content = json.loads(backend.to_str())
        vocab = content["model"]["vocab"]
        vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
        backend = Tokenizer.from_str(json.dumps(content))
        backend.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(content=" ", left=1),
            ]
        )
        if kind == "prepend":
            backend.normalizer = normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            )
            backend.pre_tokenizer = None
    backend.add_special_tokens([AddedToken("<|pad|>", special=True, rstrip=True)])
    backend.add_tokens([AddedToken("<tool>", normalized=False, special=False)])
    bos = backend.token_to_id("<s>")
    template = post_processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
    )
    backend.post_processor = (
        post_processors.Sequence([post_processors.ByteLevel(trim_offsets=True), template])
        if kind == "llama3"
        else template
    )
    return backend.to_str()


def write_tokenizer(folder: Path, kind: str = "byte-level") -> None:
    """The tokenizer's files, as transformers writes them."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained_tokenizer(kind)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def vocab_size(kind: str = "byte-level") -> int:
    return int(Tokenizer.from_str(trained_tokenizer(kind)).get_vocab_size())


def write_model_folder(
    folder: Path,
    *,
    max_shard_size: str = "5GB",
    dtype: torch.dtype = torch.float32,
    tokenizer: str = "byte-level",
    mistral: bool = False,
    **config: Any,
) -> LlamaForCausalLM:
    """Writes a random model with its tokenizer, and returns it."""
    values = {
        # Padded to a round number, as large models are.
        "vocab_size": -(-vocab_size(tokenizer) // 64) * 64,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **config,
    }
    torch.manual_seed(0)
    model: LlamaForCausalLM = (
        MistralForCausalLM(MistralConfig(sliding_window=None, **values))
        if mistral
        else LlamaForCausalLM(LlamaConfig(**values))
    )
    model.requires_grad_(False)
    for weight in model.parameters():
        # Spread widely enough that the greedy choice is clear.
        noise = torch.randn(weight.shape)
        spread = 1 + 0.1 * noise if weight.ndim == 1 else noise * 1.5 * weight.shape[1] ** -0.5
        weight.copy_(spread.to(dtype))
    model.eval()
    model.generation_config.eos_token_id = [2, 4]
    # A copy, because changing the type and back would round the rotary frequencies, too.
    copy.deepcopy(model).to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    write_tokenizer(folder, tokenizer)
    return model


def change_json(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    kept = {key: value for key, value in content.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")
