"""`ModelConfig` from the config.json of a model folder, as transformers 4 and 5 write it."""

import math
import reprlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from octavo.checkpoint.folder import CONFIG_FILE, FolderHeader
from octavo.engine.model_config import ModelConfig, RopeConfig
from octavo.errors import CheckpointError, UnsupportedModelError

SUPPORTED_MODEL_TYPES: Mapping[str, str] = MappingProxyType(
    {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
)
"""What `model_type` may be, and the one class of it that Octavo runs."""

SUPPORTED_DTYPES = frozenset({"F32", "F16", "BF16"})
"""Data types of weights that `weights` can read."""

EMBEDDING_TENSOR = "model.embed_tokens.weight"
OUTPUT_TENSOR = "lm_head.weight"

_MAX_CONTEXT = 1 << 28
_MAX_NUMBER = 1e18


def model_config_from_folder(header: FolderHeader) -> ModelConfig:
    """Reads the model's numbers and checks that Octavo can run it.

    Raises:
        UnsupportedModelError: an architecture, a variant of it or a storage type not run.
        CheckpointError: a number is missing, out of range or contradicts another.
    """
    reader = _ConfigReader(header)
    reader.refuse_what_does_not_run()
    return reader.read()


class _ConfigReader:
    """Reads the keys of one config.json."""

    def __init__(self, header: FolderHeader) -> None:
        self._header = header
        self._config = header.config

    def refuse_what_does_not_run(self) -> None:
        model_type = self._header.architecture
        if model_type not in SUPPORTED_MODEL_TYPES:
            raise self._unsupported(
                f"is of the architecture {_short(model_type)}, which Octavo does not run yet"
            )
        classes = self._config.get("architectures") or [SUPPORTED_MODEL_TYPES[model_type]]
        if classes != [SUPPORTED_MODEL_TYPES[model_type]]:
            raise self._unsupported(f"is a {_short(classes)}, not a causal language model")
        self._refuse_quantization()
        window = self._config.get("sliding_window")
        if model_type == "mistral" and window not in (None, 0):
            raise self._unsupported(
                f"looks back over a sliding window of {_short(window)} tokens, "
                "which Octavo does not run yet"
            )
        layer_types = self._config.get("layer_types") or []
        is_list = isinstance(layer_types, list)
        if not is_list or any(kind != "full_attention" for kind in layer_types):
            raise self._unsupported("has layers of different kinds")
        activation = self._config.get("hidden_act", "silu")
        if activation not in ("silu", "swish"):
            raise self._unsupported(f"uses the activation {_short(activation)}")
        if self._flag("mlp_bias"):
            raise self._unsupported("adds biases in its feed-forward layers")
        for tensor in self._header.tensors.values():
            if tensor.dtype not in SUPPORTED_DTYPES:
                raise UnsupportedModelError(
                    f"The tensor {tensor.name!r} in {tensor.path.name} of "
                    f"{self._header.path.name} has the data type {tensor.dtype}, "
                    "which Octavo cannot read yet.",
                    hint="Choose a version of this model in BF16, F16 or F32, or a GGUF of it.",
                )

    def read(self) -> ModelConfig:
        hidden_size = self._integer("hidden_size", 1, 1 << 17)
        num_heads = self._integer("num_attention_heads", 1, 4096)
        num_kv_heads = self._integer("num_key_value_heads", 1, 4096, default=num_heads)
        if num_heads % num_kv_heads:
            raise self._contradiction(
                f"{num_heads} query heads cannot share {num_kv_heads} key-value heads evenly"
            )
        head_dim = self._head_dim(hidden_size, num_heads)
        context_length = self._integer("max_position_embeddings", 1, _MAX_CONTEXT)
        has_bias = self._header.architecture == "llama" and self._flag("attention_bias")
        return ModelConfig(
            architecture=self._header.architecture,
            name=self._header.title,
            num_layers=self._integer("num_hidden_layers", 1, 1024),
            hidden_size=hidden_size,
            intermediate_size=self._integer("intermediate_size", 1, 1 << 20),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=self._vocab_size(hidden_size),
            max_position_embeddings=context_length,
            rms_norm_eps=self._positive(self._config, "rms_norm_eps", default=1e-6, below=1.0),
            rope=self._rope(head_dim, context_length),
            # A folder that claims to tie but brings both matrices means the second one.
            tie_word_embeddings=self._flag("tie_word_embeddings")
            and OUTPUT_TENSOR not in self._header.tensors,
            num_parameters=self._header.num_parameters,
            checkpoint_bytes=self._header.tensor_bytes,
            quantization=self._header.quantization,
            attention_bias=has_bias,
            attention_output_bias=has_bias,
        )

    def _refuse_quantization(self) -> None:
        for key in ("quantization_config", "compression_config"):
            packed = self._config.get(key)
            if packed is None:
                continue
            method = packed.get("quant_method") if isinstance(packed, dict) else None
            raise UnsupportedModelError(
                f"{self._header.path.name} is quantised by {_short(method or 'an unnamed method')},"
                " which Octavo cannot unpack yet.",
                hint="Choose the original model in BF16 or F16, or a GGUF of it.",
            )

    def _head_dim(self, hidden_size: int, num_heads: int) -> int:
        if self._config.get("head_dim") is not None:
            head_dim = self._integer("head_dim", 2, 1024)
        elif hidden_size % num_heads:
            raise self._contradiction(
                f"its width {hidden_size} cannot be divided among {num_heads} heads"
            )
        else:
            head_dim = hidden_size // num_heads
        if head_dim % 2:
            raise self._contradiction(f"its heads have the odd size {head_dim}")
        return head_dim

    def _vocab_size(self, hidden_size: int) -> int:
        embedding = self._header.tensors.get(EMBEDDING_TENSOR)
        if embedding is None:
            raise CheckpointError(
                f"{self._header.path.name} has no tensor {EMBEDDING_TENSOR!r}: "
                "it holds no complete model.",
                path=self._header.path,
                tensor=EMBEDDING_TENSOR,
                hint="Download the whole folder of the model, not an adapter for it.",
            )
        vocab_size = self._integer("vocab_size", 1, 1 << 24)
        if embedding.shape != (vocab_size, hidden_size):
            raise self._contradiction(
                f"the tensor {EMBEDDING_TENSOR!r} in {embedding.path.name} has the shape "
                f"{list(embedding.shape)} instead of {[vocab_size, hidden_size]}",
                tensor=EMBEDDING_TENSOR,
            )
        return vocab_size

    def _rope(self, head_dim: int, context_length: int) -> RopeConfig:
        """Merges `rope_theta` and `rope_scaling` (transformers 4) into `rope_parameters` (5)."""
        rope: dict[str, Any] = {}
        if self._config.get("rope_theta") is not None:
            rope["rope_theta"] = self._config["rope_theta"]
        for key in ("rope_scaling", "rope_parameters"):
            given = self._config.get(key)
            if given is None:
                continue
            if not isinstance(given, dict):
                raise self._contradiction(f"{key} is {_short(given)}, not an object")
            rope.update({name: value for name, value in given.items() if value is not None})
        if any(isinstance(value, dict) for value in rope.values()):
            raise self._unsupported_rope("a rule for each kind of layer")
        key = "partial_rotary_factor"
        if rope.get(key, self._config.get(key)) not in (1.0, None):
            raise self._unsupported("turns only a part of each head")
        theta = self._positive(rope, "rope_theta", default=10000.0)
        scaling = rope.get("rope_type", rope.get("type", "default"))
        if scaling == "default":
            return RopeConfig(head_dim, theta)
        if scaling not in ("linear", "llama3", "yarn"):
            raise self._unsupported_rope(_short(scaling))
        if scaling == "linear":
            factor = self._positive(rope, "factor")
            return RopeConfig(head_dim, theta, "none" if factor == 1.0 else "linear", factor)
        original = self._original_context(rope, context_length)
        if scaling == "llama3":
            low = self._positive(rope, "low_freq_factor")
            high = self._positive(rope, "high_freq_factor")
            if low >= high:
                raise self._contradiction(
                    f"low_freq_factor is {low:g}, not less than high_freq_factor, {high:g}"
                )
            return RopeConfig(
                head_dim,
                theta,
                "llama3",
                self._positive(rope, "factor"),
                original_max_position=original,
                low_freq_factor=low,
                high_freq_factor=high,
            )
        if rope.get("truncate", True) is not True:
            raise self._unsupported_rope("yarn without truncation")
        factor = self._positive(rope, "factor", default=context_length / original)
        return RopeConfig(
            head_dim,
            theta,
            "yarn",
            factor,
            original_max_position=original,
            beta_fast=self._positive(rope, "beta_fast", default=32.0),
            beta_slow=self._positive(rope, "beta_slow", default=1.0),
            attn_factor=self._yarn_magnitude(rope, factor),
        )

    def _original_context(self, rope: Mapping[str, Any], context_length: int) -> int:
        key = "original_max_position_embeddings"
        original = rope.get(key, self._config.get(key) or context_length)
        if type(original) is not int or not 1 <= original <= _MAX_CONTEXT:
            raise self._contradiction(f"{key} is {_short(original)}")
        return original

    def _yarn_magnitude(self, rope: Mapping[str, Any], factor: float) -> float:
        """Source: Peng et al. 2023, arXiv:2309.00071, section 3.4."""

        def magnitude(scale: float) -> float:
            return 0.1 * scale * math.log(factor) + 1.0 if factor > 1.0 else 1.0

        if "attention_factor" in rope:
            return self._positive(rope, "attention_factor")
        if rope.get("mscale") and rope.get("mscale_all_dim"):
            return magnitude(self._positive(rope, "mscale")) / magnitude(
                self._positive(rope, "mscale_all_dim")
            )
        return magnitude(1.0)

    def _flag(self, key: str) -> bool:
        value = self._config.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._contradiction(f"{key} is {_short(value)}, neither true nor false")
        return bool(value)

    def _integer(self, key: str, least: int, most: int, *, default: int | None = None) -> int:
        value = self._config.get(key)
        value = default if value is None else value
        if value is None:
            raise self._missing(key)
        if type(value) is not int or not least <= value <= most:
            raise self._contradiction(
                f"{key} is {_short(value)}; it must be a whole number from {least:,} to {most:,}"
            )
        return value

    def _positive(
        self,
        section: Mapping[str, Any],
        key: str,
        *,
        default: float | None = None,
        below: float = _MAX_NUMBER,
    ) -> float:
        value = section.get(key, default)
        if value is None:
            raise self._missing(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < below:
            raise self._contradiction(f"{key} is {_short(value)}, which is out of range")
        return float(value)

    def _missing(self, key: str) -> CheckpointError:
        return CheckpointError(
            f"{CONFIG_FILE} in {self._header.path.name} does not say its {key}.",
            path=self._header.path / CONFIG_FILE,
            hint="Download the file again.",
        )

    def _contradiction(self, problem: str, *, tensor: str | None = None) -> CheckpointError:
        return CheckpointError(
            f"{CONFIG_FILE} in {self._header.path.name} is inconsistent: {problem}.",
            path=self._header.path / CONFIG_FILE,
            tensor=tensor,
            hint="Download the files of this model again.",
        )

    def _unsupported_rope(self, scaling: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self._header.path.name} scales its positions by {scaling}, "
            "which Octavo does not run yet.",
            hint="Octavo runs none, linear, yarn and Llama 3's scaling.",
        )

    def _unsupported(self, problem: str) -> UnsupportedModelError:
        runs = " and ".join(SUPPORTED_MODEL_TYPES)
        return UnsupportedModelError(
            f"{self._header.path.name} {problem}.",
            hint=f"Octavo runs today: folders of the model types {runs}"
            " (without a sliding window), and GGUF files of them.",
        )


def _short(value: object) -> str:
    """The value as Python writes it, cut to a readable length: files may claim anything."""
    return reprlib.repr(value)
