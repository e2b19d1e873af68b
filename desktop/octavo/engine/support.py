"""Which families run from which stored formats, and how each pair is tested: the one table of it.

`octavo doctor` prints it, `octavo show` looks a model up in it, and `tests/engine/test_support.py`
compares it with the tests there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from octavo.checkpoint.folder import FolderHeader
from octavo.checkpoint.gguf import BLOCK_LAYOUT
from octavo.checkpoint.header import CheckpointHeader
from octavo.checkpoint.weight_format import Layout
from octavo.engine.families import BY_MODEL_TYPE, FAMILIES, Family


class Evidence(StrEnum):
    """How it is tested that a family runs right from a format."""

    LOGITS = "logits"
    """Logits of tiny random models, family and format together, equal transformers'."""
    PARTS = "parts"
    """The family in 16 and 32 bits, and the format with others; the two together are not."""
    NONE = "–"
    """It does not run, or there is no such thing."""

    @property
    def sentence(self) -> str:
        return _SENTENCES[self]


_SENTENCES: Mapping[Evidence, str] = MappingProxyType(
    {
        Evidence.LOGITS: "runs; tested together, by logits equal to transformers'",
        Evidence.PARTS: "runs; family and format are tested, but not the two together",
        Evidence.NONE: "does not run",
    }
)


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

_TESTED_WITH_LLAMA = frozenset({GPTQ, AWQ, BITSANDBYTES, COMPRESSED, FLOAT8})
_TESTED_WITH_GPT_OSS = frozenset({MXFP4})
_OF_GPT_OSS = frozenset({PLAIN, GGUF_PLAIN, GGUF_BLOCKS, MXFP4})
"""Other writers have no agreed way to store its experts."""


def evidence(family: Family, stored: StoredFormat) -> Evidence:
    """The table's entry."""
    is_gpt_oss = family.model_type == "gpt_oss"
    if (stored not in _OF_GPT_OSS) if is_gpt_oss else (stored in _TESTED_WITH_GPT_OSS):
        return Evidence.NONE
    is_tested = (
        stored in (PLAIN, GGUF_PLAIN, GGUF_BLOCKS)
        or (family.model_type == "llama" and stored in _TESTED_WITH_LLAMA)
        or (is_gpt_oss and stored in _TESTED_WITH_GPT_OSS)
    )
    return Evidence.LOGITS if is_tested else Evidence.PARTS


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
