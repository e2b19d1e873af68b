"""Every family's folders say what transformers says, however the work is cut up."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from octavo.checkpoint.header import read_checkpoint
from octavo.engine.checkpoint_parts import read_model_config
from octavo.engine.families import FAMILIES
from octavo.engine.models.decoder import build_model
from octavo.engine.weights.load import load_weights
from octavo.jobs import JobControl
from tests.support.family_folders import (
    VARIANTS,
    VOCAB_SIZE,
    variant_ids,
    write_family_folder,
)
from tests.support.family_gguf import write_family_gguf
from tests.support.tiny_decoders import PagedForward, make_sequence, tiny_plan, transformers_logits

CUTS = ((0, 37), (37, 38), (38, 90), (90, 91), (91, 92), (92, 100))
"""A prefill in chunks, then decodes."""


def test_every_family_is_tested() -> None:
    assert {model_type for model_type, _ in VARIANTS} == {item.model_type for item in FAMILIES}


def assert_same_logits(path: Path, twin: PreTrainedModel) -> None:
    header = read_checkpoint(path)
    config = read_model_config(header)
    plan = tiny_plan(max_model_len=128)
    model = build_model(config, plan)
    load_weights(model, header, config, JobControl())
    token_ids = torch.randint(0, VOCAB_SIZE, (100,)).tolist()
    expected = transformers_logits(twin, token_ids)
    forward = PagedForward(model, config, plan)
    sequence = make_sequence(0, token_ids)
    for start, end in CUTS:
        actual = forward.step([(sequence, start, end - start)])[0]
        error = (actual - expected[start:end]).abs().max() / expected.abs().max()
        assert error <= 1e-4, f"tokens {start} to {end}"


@pytest.mark.parametrize(("model_type", "options"), VARIANTS, ids=variant_ids(VARIANTS))
def test_folders(tmp_path: Path, model_type: str, options: dict[str, Any]) -> None:
    twin = write_family_folder(tmp_path, model_type, **options)
    assert_same_logits(tmp_path, twin)


# GGUF has no keys for these.
NOT_IN_GGUF = ("rope_parameters-mlp_bias", "max_window_layers", "mlp_only", "decoder_sparse")
GGUF_VARIANTS = tuple(
    (model_type, options)
    for (model_type, options), name in zip(VARIANTS, variant_ids(VARIANTS), strict=True)
    if not any(words in name for words in NOT_IN_GGUF)
)


@pytest.mark.parametrize(("model_type", "options"), GGUF_VARIANTS, ids=variant_ids(GGUF_VARIANTS))
def test_gguf(tmp_path: Path, model_type: str, options: dict[str, Any]) -> None:
    twin = write_family_folder(tmp_path, model_type, **options)
    write_family_gguf(tmp_path / "tiny.gguf", twin)
    assert_same_logits(tmp_path / "tiny.gguf", twin)
