"""Makes tests/data/sentencepiece_tokens.json: small models and what SentencePiece makes of text.

    pip install -e '.[test,golden]'
    python tests/data/make_sentencepiece_tokens.py

The tests only read the result. The models are trained on english.txt beside this script: one as
Llama 2 and Mistral have it, one as Gemma has it, and a Unigram, which Octavo refuses.
"""

import base64
import io
import json
from pathlib import Path
from typing import Any

import sentencepiece

FOLDER = Path(__file__).parent
TEXTS = (
    "Hello world, hello again!",
    "",
    " ",
    "   leading,   many    spaces, trailing  ",
    "tabs\t\tand\nlines\n\n\nand\r\nmore\r",
    "12345678901234567890 3.14159 x1y22 ½ Ⅷ ٣٤٥",
    "日本語の文章。中文，测试。한국어 مرحبا بالعالم नमस्ते",
    "😀👩\u200d👩\u200d👧 🇩🇪 e\u0301 n\u0303 \x01\x7f\u200b\ufeff",
    "def f(x):\n    return {'a': [1, 2]}  # ok?!//\n",
    "<table> <td>a</td><table>  <tabl <mask>x",
    "▁ ▁▁ a▁b",
    "the " * 40 + "e" * 90,
)
LIKE_LLAMA: dict[str, Any] = {
    "model_type": "bpe",
    "vocab_size": 700,
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
}


def main() -> None:
    """Trains the models and writes the file."""
    gemma = {
        **LIKE_LLAMA,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["<mask>", "<table>", "</td>", "\n\n", "▁▁", "▁▁▁"],
        "pad_id": 0,
        "eos_id": 1,
        "bos_id": 2,
        "unk_id": 3,
    }
    unigram = {**LIKE_LLAMA, "model_type": "unigram", "vocab_size": 400}
    result = {
        "llama": _model(LIKE_LLAMA),
        "gemma": _model(gemma),
        "squeezing": _model({**LIKE_LLAMA, "remove_extra_whitespaces": True, "vocab_size": 500}),
        "unigram": _model(unigram),
    }
    path = FOLDER / "sentencepiece_tokens.json"
    path.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{path}: {path.stat().st_size} bytes")


def _model(options: dict[str, Any]) -> dict[str, Any]:
    lines = (FOLDER / "english.txt").read_text(encoding="utf-8").splitlines()
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=writer, minloglevel=2, **options
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=writer.getvalue())
    cases = []
    for text in TEXTS if options["model_type"] == "bpe" else ():
        token_ids = processor.encode(text)
        cases.append({"text": text, "token_ids": token_ids, "decoded": processor.decode(token_ids)})
    return {"model": base64.b64encode(writer.getvalue()).decode(), "cases": cases}


if __name__ == "__main__":
    main()
