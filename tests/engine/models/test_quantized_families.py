"""Every family in every format of quantised folders says what its unpacked weights say."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.engine.models.test_families import BLOCK_VARIANTS, assert_same_logits
from tests.support.family_folders import write_family_folder
from tests.support.model_folders import change_json
from tests.support.quantized_folders import kind_named

KINDS_OF_FORMATS = {
    "GPTQ": "gptq 4 bit v1",
    "AWQ": "awq",
    "bitsandbytes": "bnb nf4 nested",
    "compressed-tensors": "ct int4 zero points",
    "FP8": "fp8 blocks",
}
"""Of each format one kind."""
FAMILY_NAMES = [model_type for model_type, _ in BLOCK_VARIANTS]
CASES = [
    # Each family and each format come up by default; all pairs take a quarter of a minute.
    pytest.param(
        model_type,
        stored,
        marks=() if (i + j) % len(KINDS_OF_FORMATS) == 0 else pytest.mark.slow,
    )
    for i, model_type in enumerate(FAMILY_NAMES)
    for j, stored in enumerate(KINDS_OF_FORMATS)
]
_LEFT_AS_IT_IS = re.compile(
    r".*(embed_tokens|lm_head|norm|\.gate|router|shared_expert_gate)\.weight"
)


def write_quantized_family(
    folder: Path, model_type: str, options: dict[str, Any], kind_name: str
) -> PreTrainedModel:
    """The matrices of all layers quantised, experts one by one; returns what they stand for.

    Those of gpt-oss, which lie in one tensor, stay as they are.
    """
    kind = kind_named(kind_name)
    write_family_folder(folder, model_type, **options)
    path = folder / "model.safetensors"
    packed, plain = {}, {}
    for seed, (name, weight) in enumerate(sorted(load_file(path).items())):
        if weight.ndim != 2 or "_bias" in name or _LEFT_AS_IT_IS.fullmatch(name):
            packed[name] = plain[name] = weight
            continue
        roles, values = kind.packed(*weight.shape, seed=seed)
        module = name.removesuffix(".weight")
        packed |= {f"{module}.{role}": tensor for role, tensor in roles.items()}
        plain[name] = values.contiguous()
    assert len(packed) > len(plain)
    save_file(plain, path, {"format": "pt"})
    twin: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    save_file(packed, path, {"format": "pt"})
    change_json(folder / "config.json", quantization_config=dict(kind.config))
    return twin.eval()


@pytest.mark.parametrize(("model_type", "stored"), CASES)
def test_folders(tmp_path: Path, model_type: str, stored: str) -> None:
    options = dict(BLOCK_VARIANTS)[model_type]
    twin = write_quantized_family(tmp_path, model_type, options, KINDS_OF_FORMATS[stored])
    assert_same_logits(tmp_path, twin)
