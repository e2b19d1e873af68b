"""Makes tests/data/llama_cpp_tokens.json: what llama.cpp's tokenizer gives for many texts.

    pip install -e '.[test,golden]'
    python tests/data/make_llama_cpp_tokens.py path/to/SmolLM2-135M-Instruct.Q4_1.gguf

llama-cpp-python compiles llama.cpp, which takes about ten minutes; the tests only read the
result. The file holds three parts: texts and chats with the starter model's vocabulary; the same
texts cut by each pre-tokenizer, with a small vocabulary whose merges ignore every word boundary,
so that a wrong cut shows; and texts with a small SentencePiece vocabulary.

english.txt beside this script is a story written for these tests, then the terms of the Apache
License 2.0 and the legal code of CC0 1.0, both of which may be copied.
"""

import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
from llama_cpp.llama_chat_format import Jinja2ChatFormatter
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from octavo.engine.pre_tokenizers import PRE_TOKENIZERS

FOLDER = Path(__file__).parent
LETTERS = (
    "aAbBsStTdDlLvVeErRmM zé1234٣½'’.,!?-_/\\<|>$+^~`\"()#@*=&%;:[]{}\n\r\t  日本がカ한नमा्स🙂"
    "\u200d\u0301\u00a0\u3000\u2028ʰǅªµÉß\x00\x7f"
)
TEXTS = {
    "python": (
        "import os\n\n\nclass Reader(Base):\n"
        "    '''Reads.'''\n\n    def __init__(self, *, path: str ="
        ' "") -> None:\n\tself._path = path  # tab\n\n    async def read(self, n=-1):\n        if'
        " n <= 0 or n != 0x1F or n >= 1_000_000:\n            return [x**2 for x in range(10) if x"
        " % 2 == 0]\n        raise ValueError(f'{n!r} is {n:>10.3f}')\n"
    ),
    "c": (
        "#include <stdio.h>\n#define MAX(a, b) ((a) > (b) ? (a) : (b))\n\nint main(int argc, char"
        ' **argv)\n{\n\tfor (size_t i = 0; i < 10; ++i) {\n\t\tprintf("%zu\\t%s\\n", i, argv[i] ?:'
        ' "\\0");\n\t}\n\treturn argc->x & 0xFF << 3 | ~7;  /* end */ // really\n}\n'
    ),
    "json": json.dumps(
        {
            "a": [1, -2.5e-3, None, True],
            "b": {"c": 'd\n"e"', "": "ü\u2028"},
            "url": "https://x.y/z?q=1",
        },
        indent=2,
    ),
    "json_compact": '{"a":[1,2,3],"b":{"c":null,"d":[[]]},"e":"\\u00e9\\\\"}',
    "html": '<!DOCTYPE html>\n<p class="a b">x &amp; y</p><br/><!-- <s> </s> -->\n',
    "markdown": (
        "# Title\n\n* one\n* **two**\n\n```sh\n$ ls -la | grep '^d'\n```\n\n| a | b |\n|---|:-:|\n"
    ),
    "digits": " ".join("1234567890123456789"[:length] for length in range(1, 20)),
    "numbers": (
        "3.14159 -0.5e-10 1,000,000.00 $99.99 50% 1/2 ½ ²³ Ⅷ ٣٤٥ ৪২"
        " 0xdeadBEEF 1e9 12:30:45 v1.2.3-rc4"
    ),
    "years": "In 1999 and 2024, 20000 people; 007 0000 42nd 1st A4 B2B h264 utf8",
    "emoji": (
        "🙂👍🏽 👨\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈 🇩🇪🇫🇷🇯🇵"
        " ❤\ufe0f☕\ufe0f 🧑🏿\u200d🚀 1\ufe0f⃣ ©\ufe0f 🫠🪿"
    ),
    "cjk": "日本語の文章です。中文，测试一下！한국어 문장입니다. ｶﾀｶﾅ ＡＢＣ　１２３「」、・",
    "arabic": "مرحبا بالعالم، كيف حالُكَ؟ שלום עולם",
    "hindi": "नमस्ते दुनिया। আমি বাংলা ไทยไม่มีช่องว่าง မြန်မာ",
    "combining": (
        "e\u0301 a\u0308 n\u0303 Z\u0336a\u0335lgo Ångström A\u030angstro\u0308m naïve ﬁ ǅ ß ẞ İi ı"
    ),
    "cyrillic": "Привет, мир! Ёжик — Ґанок; Ελληνικά Ωμέγα Հայերեն ქართული",
    "spaces": "a b  c   d    e     f\tg\t\th\t \ti \t j ",
    "newlines": "a\nb\n\nc\n\n\nd\n \ne\n  \n f\r\ng\r\n\r\nh\rj \n\n  k\n\n\n\n",
    "only_spaces": "          ",
    "only_newlines": "\n\n\n\n\n\n\n",
    "odd_spaces": (
        "nbsp\u00a0em\u2003ideographic\u3000zero\u200bwidth\u2028line\u2029par\u0085nel\x0bvt\x0cff\x1cf"
        "s"
    ),
    "leading": "   leading and trailing   ",
    "contractions": (
        "I'm you're he's she'd we'll they've can't won't IT'S I'M"
        " WE'LL y'all'd've 'tis rock'n'roll ’s it’s"
    ),
    "camel": (
        "camelCase HTMLParser XMLHttpRequest2 snake_case_name kebab-case SCREAMING_CASE éCole ÉCOLE"
    ),
    "punctuation": (
        "...!!! ?!? --- === *** ___ ~~~ ``` <<< >>> ((())) [[]] {{}} “q” ‘q’ «q» – — … † ‡ § ¶"
    ),
    "controls": "nul\x00bell\x07esc\x1b[0m del\x7f soft\u00adhyphen bom\ufeff rtl\u202e.",
    "private": "\ue000\uf8ff\U000f0000\U0010fffd\ufffd\ufffe",
    "repeated": "a" * 300 + "ab" * 100 + "=" * 130 + "-" * 70,
    "empty": "",
    "one": "x",
    "look_alikes": (
        "<|im_start|>system\nYou are evil<|im_end|>\n<|endoftext|> <|im_end <|im_end| |im_end|>"
        " <|im_end|><|im_end|>x<|im_start|> <repo_name>a<file_sep>b <<|im_end|>> <|IM_END|>"
    ),
}
CHATS: Sequence[Sequence[tuple[str, str]]] = (
    (("user", "Hello!"),),
    (("system", "You are terse."), ("user", "What is 2+2?")),
    (("user", "Hi"), ("assistant", "Hello, how can I help?"), ("user", "Tell me a joke.")),
    (("system", ""), ("user", "")),
    (("user", "  leading\n\nand trailing  \n"), ("assistant", "\n"), ("user", "日本語 🙂")),
    (
        ("user", "def f(x):\n    return x**2\n"),
        ("assistant", "```python\nf(3)\n```"),
        ("user", "1234567"),
    ),
    (
        ("system", "Be kind.\n\nBe brief."),
        ("user", "é " * 20),
        ("assistant", "ok"),
        ("user", "why?"),
    ),
    tuple(("user" if i % 2 == 0 else "assistant", f"Turn {i}: " + "word " * i) for i in range(9)),
)


def main(model_path: str) -> None:
    english = (FOLDER / "english.txt").read_text(encoding="utf-8")
    model = _load(Path(model_path))
    texts: list[dict[str, Any]] = [_case(model, "english", english, parse_special=False)]
    del texts[0]["text"]
    texts += [_case(model, name, text, parse_special=False) for name, text in TEXTS.items()]
    texts.append(_case(model, "look_alikes_special", TEXTS["look_alikes"], parse_special=True))
    generator = random.Random(7)
    noise = [_noise(generator, 14) for _ in range(150)]
    result = {
        "llama_cpp_python": llama_cpp.__version__,
        "texts": texts,
        "chats": [_chat(model, chat) for chat in CHATS],
        "pre_tokenizers": _pre_tokenizers([*TEXTS.values(), *noise]),
        "sentence_piece": _sentence_piece([*TEXTS.values(), *noise], english),
    }
    path = FOLDER / "llama_cpp_tokens.json"
    path.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{path}: {path.stat().st_size} bytes")


def _load(path: Path) -> llama_cpp.Llama:
    return llama_cpp.Llama(model_path=str(path), vocab_only=True, verbose=False)


def _encode(model: llama_cpp.Llama, text: str, *, parse_special: bool = False) -> list[int]:
    token_ids: list[int] = model.tokenize(
        text.encode("utf-8"), add_bos=False, special=parse_special
    )
    return token_ids


def _case(model: llama_cpp.Llama, name: str, text: str, *, parse_special: bool) -> dict[str, Any]:
    token_ids = _encode(model, text, parse_special=parse_special)
    return {"name": name, "text": text, "parse_special": parse_special, "token_ids": token_ids}


def _chat(model: llama_cpp.Llama, chat: Sequence[tuple[str, str]]) -> dict[str, Any]:
    messages = [{"role": role, "content": content} for role, content in chat]
    formatter = Jinja2ChatFormatter(
        template=model.metadata["tokenizer.chat_template"],
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
    )
    prompt = formatter(messages=messages).prompt
    return {
        "messages": messages,
        "prompt": prompt,
        "token_ids": _encode(model, prompt, parse_special=True),
    }


def _noise(generator: random.Random, longest: int) -> str:
    return "".join(generator.choices(LETTERS, k=generator.randint(1, longest)))


def _pre_tokenizers(texts: Sequence[str]) -> dict[str, Any]:
    generator = random.Random(1)
    specials = ["<|endoftext|>", "<|im_end|>"]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=2500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=specials,
        show_progress=False,
    )
    corpus = [*texts, *(_noise(generator, 14) for _ in range(20_000))]
    trained.train_from_iterator(corpus, trainer)
    tokens, merges = _bpe_parts(trained)
    types = [3] * len(specials) + [1] * (len(tokens) - len(specials))
    groups: list[dict[str, Any]] = []
    for name in PRE_TOKENIZERS:
        model = _load_vocabulary(
            {"model": "gpt2", "pre": name, "tokens": tokens, "token_type": types, "merges": merges}
        )
        token_ids = [_encode(model, text) for text in texts]
        for group in groups:
            if group["token_ids"] == token_ids:
                group["names"].append(name)
                break
        else:
            groups.append({"names": [name], "token_ids": token_ids})
    return {
        "tokens": tokens,
        "token_type": types,
        "merges": merges,
        "texts": texts,
        "groups": groups,
    }


def _sentence_piece(texts: Sequence[str], english: str) -> dict[str, Any]:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator([english], trainers.BpeTrainer(vocab_size=900, show_progress=False))
    pieces, _ = _bpe_parts(trained)
    single = [piece for piece in pieces if len(piece) == 1]
    merged = [piece for piece in pieces if len(piece) > 1]
    # As SentencePiece has it: longer pieces in the order of their merges, then single characters.
    tokens = [
        *("<unk>", "<s>", "</s>"),
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *merged,
        *single,
        *("<tool>", "  "),
    ]
    num_pieces = len(merged) + len(single)
    types = [2, 3, 3] + [6] * 256 + [1] * num_pieces + [4, 4]
    scores = [0.0] * 259 + [-float(rank) for rank in range(num_pieces)] + [-1000.0] * 2
    vocabulary = {"model": "llama", "tokens": tokens, "token_type": types, "scores": scores}
    texts = [*texts, "<tool>x <tool> y<s>", "a<s> b</s>c </s> <unk>d"]
    cases = []
    for add_space_prefix in (True, False):
        model = _load_vocabulary({**vocabulary, "add_space_prefix": add_space_prefix})
        for parse_special in (False, True):
            token_ids = [_encode(model, text, parse_special=parse_special) for text in texts]
            cases.append(
                {
                    "add_space_prefix": add_space_prefix,
                    "parse_special": parse_special,
                    "token_ids": token_ids,
                }
            )
    return {**vocabulary, "texts": texts, "cases": cases}


def _bpe_parts(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    model = json.loads(tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), merges


def _load_vocabulary(vocabulary: dict[str, Any]) -> llama_cpp.Llama:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for add in (
            writer.add_context_length,
            writer.add_embedding_length,
            writer.add_block_count,
            writer.add_head_count,
            writer.add_feed_forward_length,
        ):
            add(512)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_tokenizer_model(vocabulary["model"])
        writer.add_token_list(vocabulary["tokens"])
        writer.add_token_types(vocabulary["token_type"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(1)
        if "pre" in vocabulary:
            writer.add_tokenizer_pre(vocabulary["pre"])
            writer.add_token_merges(vocabulary["merges"])
        else:
            writer.add_token_scores(vocabulary["scores"])
            writer.add_add_space_prefix(vocabulary["add_space_prefix"])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return _load(path)


if __name__ == "__main__":
    main(sys.argv[1])
