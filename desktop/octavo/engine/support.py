"""Which families run from which stored formats: the one table of it.

`octavo doctor` prints it, `octavo show` looks a model up in it, and `tests/engine/test_support.py`
compares it with the tests there are.
"""

from dataclasses import dataclass

from octavo.checkpoint.folder import FolderHeader
from octavo.checkpoint.gguf import BLOCK_LAYOUT
from octavo.checkpoint.header import CheckpointHeader
from octavo.checkpoint.weight_format import Layout
from octavo.engine.families import BY_MODEL_TYPE, FAMILIES, Family


@dataclass(frozen=True, slots=True)
class StoredFormat:
    """One way in which weights are stored, as far as the table tells them apart."""

    title: str
    layouts: frozenset[Layout] = frozenset()
    """Of quantised folders."""


PLAIN = StoredFormat("safetensors")
GGUF_PLAIN = StoredFormat("GGUF 16/32 bit")
GGUF_BLOCKS = StoredFormat("GGUF quantised")
"""Of any type: families are tested with one of them, each type with a Llama and bit for bit."""
GPTQ = StoredFormat("GPTQ", frozenset({Layout.GPTQ}))
AWQ = StoredFormat("AWQ", frozenset({Layout.AWQ}))
BITSANDBYTES = StoredFormat(
    "bitsandbytes", frozenset({Layout.BITSANDBYTES_4BIT, Layout.BITSANDBYTES_8BIT})
)
COMPRESSED = StoredFormat(
    "compressed-tensors", frozenset({Layout.PACKED_INTEGERS, Layout.INTEGERS})
)
FLOAT8 = StoredFormat("FP8", frozenset({Layout.FLOAT8}))
MXFP4 = StoredFormat("MXFP4", frozenset({Layout.MXFP4}))
FORMATS = (
    PLAIN,
    GGUF_PLAIN,
    GGUF_BLOCKS,
    GPTQ,
    AWQ,
    BITSANDBYTES,
    COMPRESSED,
    FLOAT8,
    MXFP4,
)
"""In the order of the table."""

TESTED = "logits"
"""How every pair that runs is tested: tiny random models of that family, stored in that format,
give the logits that transformers gives."""


def runs(family: Family, stored: StoredFormat) -> bool:
    """The table's entry: a family runs from a format only if the two are tested together."""
    return stored != MXFP4 or family.model_type == "gpt_oss"


def family_of(header: CheckpointHeader) -> Family | None:
    """The family of a checkpoint; None if it is none of ours."""
    if isinstance(header, FolderHeader):
        return BY_MODEL_TYPE.get(header.architecture)
    families = [item for item in FAMILIES if item.gguf_architecture == header.architecture]
    has_experts = header.metadata.get(f"{header.architecture}.expert_count", 0) != 0
    # Several families share an architecture of GGUF; those with experts can be told.
    suited = [family for family in families if (family.experts != "none") == has_experts]
    return next(iter(suited or families), None)


def format_of(header: CheckpointHeader) -> StoredFormat:
    """How most of a checkpoint's weights are stored.

    Raises:
        UnsupportedModelError: in a way that is not understood.
    """
    if not isinstance(header, FolderHeader):
        types = {tensor.ggml_type for tensor in header.tensors.values()}
        is_plain = all(BLOCK_LAYOUT[one][0] == 1 for one in types)
        return GGUF_PLAIN if is_plain else GGUF_BLOCKS
    weight_format = header.weight_format()
    if weight_format is None:
        return PLAIN
    formats = [weight_format.default, *(rule.format for rule in weight_format.rules)]
    layout = next(linear.layout for linear in formats if linear is not None)
    return next(stored for stored in FORMATS if layout in stored.layouts)
