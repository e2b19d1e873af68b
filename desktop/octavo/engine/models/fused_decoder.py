"""A `Decoder`'s forward pass out of fused kernels: the same weights, the same numbers.

For NVIDIA cards. What it computes is defined by the modules; where roundings differ from theirs, it
is because a kernel keeps in float32 what the modules write out between two operations.
"""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from octavo.engine.attention.base import AttentionRule, LayerCache
from octavo.engine.attention.triton_attention import TritonAttentionStep
from octavo.engine.kernels.triton.decode_inputs import RotationRule
from octavo.engine.kernels.triton.gated_activation import gated_activation
from octavo.engine.kernels.triton.gemv import InputNorm
from octavo.engine.kernels.triton.heads import HeadNorms, HeadRotation
from octavo.engine.kernels.triton.matrices import Matrix, StackedMatrix, TiledMatrix
from octavo.engine.kernels.triton.rms_norm import add_rms_norm
from octavo.engine.layers.mlp import GatedMLP
from octavo.engine.layers.moe import MoE
from octavo.engine.model_config import ModelConfig
from octavo.engine.models.decoder import Decoder, DecoderLayer
from octavo.engine.models.gpu_experts import GpuExperts, take_experts
from octavo.engine.models.gpu_matrices import (
    MakeMatrix,
    ModuleMatrix,
    make_gpu_embedding,
    make_gpu_matrix,
)

_MOST_PRODUCT_ROWS = 512
"""From here on a packed matrix is unpacked, for however many rows."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's weights and rules, taken from its modules."""

    qkv: Matrix
    output: Matrix
    gate_up: Matrix | None
    """None: a feed-forward part of experts."""
    down: Matrix | None
    experts: GpuExperts | MoE | None
    """As a module where kernels do not know how its matrices are stored."""
    rule: AttentionRule
    sinks: torch.Tensor | None
    rotation: int | None
    """Which of the step's rotations; None: nothing turns."""
    head_norms: HeadNorms | None
    joint_norms: tuple[torch.Tensor, torch.Tensor] | None
    """Of all query heads together, and of all key heads."""
    norm_before_attention: torch.Tensor | None
    norm_after_attention: torch.Tensor | None
    norm_before_mlp: torch.Tensor | None
    norm_after_mlp: torch.Tensor | None

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Those that every token is multiplied by."""
        own = [self.qkv, self.output, self.gate_up, self.down]
        routed = self.experts.matrices if isinstance(self.experts, GpuExperts) else ()
        return *(matrix for matrix in own if matrix is not None), *routed

    @property
    def kind(self) -> Hashable:
        """Equal where the same kernels compute them."""
        experts = self.experts.kind if isinstance(self.experts, GpuExperts) else None
        matrices = tuple(matrix.kind for matrix in self.matrices)
        return matrices, experts, self.rule, self.rotation is None, self.sinks is None


@dataclass(slots=True)
class _Stream:
    """The residual stream, and what has yet to be added to it."""

    hidden: torch.Tensor
    delta: torch.Tensor | None = None
    delta_norm: torch.Tensor | None = None


class FusedDecoder:
    """Runs the layers of a decoder on an NVIDIA card."""

    def __init__(
        self,
        model: Decoder,
        config: ModelConfig,
        *,
        overlap: bool = False,
    ) -> None:
        """Takes over a loaded model's weights without copying them.

        Args:
            model: loaded.
            config: its numbers.
            overlap: whether kernels may overlap with those before them.
        """
        self._config = config
        self._overlap = overlap
        self._model = model
        dtype = model.model.norm.weight.dtype
        make = partial(make_gpu_matrix, dtype=dtype, overlap=overlap)
        self._layers = [
            self._take_layer(model.model.layers[index], index, make)  # type: ignore[arg-type]
            for index in range(config.num_layers)
        ]
        # The last of each kind, so the last of all is among them: it computes what is wanted alone.
        kinds = {layer.kind: index for index, layer in enumerate(self._layers)}
        self._one_of_each = frozenset(kinds.values())
        self._is_brief = False
        self._final_norm = model.model.norm.weight
        head = model.lm_head
        self.embedding, tied_head = make_gpu_embedding(
            model.model.embed_tokens, dtype, overlap=overlap
        )
        self._head = tied_head if head is None else make(head)
        self.rotation_rules = tuple(
            RotationRule(rotary.frequencies(), rotary.magnitude) for rotary in model.model.rotations
        )

    @property
    def can_be_captured(self) -> bool:
        """Whether nothing in a step waits for the device or asks it anything.

        Modules do, with formats that no kernel knows and that are unpacked at each product.
        """
        if self._head is None or any(isinstance(layer.experts, MoE) for layer in self._layers):
            return False
        if not self.embedding.can_be_captured:
            return False
        matrices = [self._head, *(one for layer in self._layers for one in layer.matrices)]
        return not any(isinstance(matrix, ModuleMatrix) for matrix in matrices)

    def run(
        self,
        hidden: torch.Tensor,
        rotations: Sequence[HeadRotation],
        caches: Sequence[LayerCache],
        step: TritonAttentionStep,
        *,
        rows: torch.Tensor | None = None,
        output: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """All layers and the last norm.

        Args:
            hidden: [num_tokens, hidden_size], embedded; is overwritten.
            rotations: of the step's tokens, one for each of `rotation_rules`.
            caches: of each layer.
            step: the attention's preparation for these tokens.
            rows: [num_rows], int64: tokens whose hidden states are wanted; the last layer spares
                the others all but their keys and values. None: all tokens.
            output: as what is returned; None: a new one.

        Returns:
            [num_tokens or num_rows, hidden_size], normalised.
        """
        stream = _Stream(hidden)
        is_alone = len(hidden) == 1 and self._config.norm_placement == "before"
        last = self._layers[-1]
        for index, (layer, cache) in enumerate(zip(self._layers, caches, strict=True)):
            if self._is_brief and index not in self._one_of_each:
                continue
            rotation = None if layer.rotation is None else rotations[layer.rotation]
            if is_alone and not isinstance(layer.experts, MoE):
                self._run_layer_for_one(layer, stream, rotation, cache, step)
            else:
                wanted = rows if layer is last else None
                self._run_layer(layer, stream, rotation, cache, step, wanted)
        return self._add_norm(stream, self._final_norm, output=output)

    @contextmanager
    def one_layer_of_each_kind(self) -> Iterator[None]:
        """`run` leaves out the others: for whoever wants kernels to be compiled, and no result."""
        was_brief, self._is_brief = self._is_brief, True
        try:
            yield
        finally:
            self._is_brief = was_brief

    def warm_up_products(self, most_rows: int) -> None:
        """Multiplies padding in every power of two of rows: it goes by these which kernels do it.

        Args:
            most_rows: of a step.
        """
        dtype, device = self._final_norm.dtype, self._final_norm.device
        for index in self._one_of_each:
            layer = self._layers[index]
            packed = [one for one in layer.matrices if isinstance(one, TiledMatrix | StackedMatrix)]
            num_rows = 2
            while num_rows <= most_rows:
                for matrix in packed if num_rows <= _MOST_PRODUCT_ROWS else ():
                    size = num_rows, matrix.in_features
                    matrix.multiply(torch.zeros(size, dtype=dtype, device=device))
                if isinstance(layer.experts, GpuExperts):
                    size = num_rows, self._config.hidden_size
                    layer.experts.multiply(torch.zeros(size, dtype=dtype, device=device))
                num_rows *= 2

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[num_tokens], int64, to [num_tokens, hidden_size]."""
        dtype = self._final_norm.dtype
        hidden = token_ids.new_empty(len(token_ids), self._config.hidden_size, dtype=dtype)
        self.embedding.look_up(token_ids, hidden)
        return hidden

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size] to logits as they leave the last matrix: [.., vocab_size]."""
        if self._head is None:  # tied to a packed embedding
            return self._model.model.embed_tokens.project(hidden)
        return self._head.multiply(hidden)

    def _run_layer(
        self,
        layer: _Layer,
        stream: _Stream,
        rotation: HeadRotation | None,
        cache: LayerCache,
        step: TritonAttentionStep,
        rows: torch.Tensor | None = None,
    ) -> None:
        normed = self._add_norm(stream, layer.norm_before_attention)
        projected = self._split_heads(layer, layer.qkv.multiply(normed))
        attended = step.attend_projected(
            projected, cache, layer.rule, layer.sinks, rotation=rotation, norms=layer.head_norms
        )
        attended = attended.reshape(len(normed), -1)
        if rows is not None:
            attended, stream.hidden = attended[rows], stream.hidden[rows]
        stream.delta = layer.output.multiply(attended)
        stream.delta_norm = layer.norm_after_attention
        normed = self._add_norm(stream, layer.norm_before_mlp)
        if isinstance(layer.experts, GpuExperts):
            stream.delta = layer.experts.multiply(normed)
        elif layer.experts is not None:
            stream.delta = layer.experts(normed)
        else:
            assert layer.gate_up is not None
            assert layer.down is not None
            activated = gated_activation(
                layer.gate_up.multiply(normed),
                activation=self._config.activation,
                overlap=self._overlap,
            )
            stream.delta = layer.down.multiply(activated)
        stream.delta_norm = layer.norm_after_mlp

    def _run_layer_for_one(
        self,
        layer: _Layer,
        stream: _Stream,
        rotation: HeadRotation | None,
        cache: LayerCache,
        step: TritonAttentionStep,
    ) -> None:
        """For a single token: norms, additions and activations ride on the products."""
        assert layer.norm_before_attention is not None
        assert layer.norm_before_mlp is not None
        hidden, scale = stream.hidden, self._config.residual_scale
        qkv = layer.qkv.multiply_normed(hidden, self._input_norm(layer.norm_before_attention))
        attended = step.attend_projected(
            self._split_heads(layer, qkv),
            cache,
            layer.rule,
            layer.sinks,
            rotation=rotation,
            norms=layer.head_norms,
        )
        layer.output.multiply_add(attended.view(1, -1), hidden, scale)
        norm = self._input_norm(layer.norm_before_mlp)
        if isinstance(layer.experts, GpuExperts):
            layer.experts.add_for_one(hidden, norm, scale)
            return
        assert layer.gate_up is not None
        assert layer.down is not None
        activated = layer.gate_up.multiply_gated(hidden, norm, self._config.activation)
        layer.down.multiply_add(activated, hidden, scale)

    def _split_heads(self, layer: _Layer, qkv: torch.Tensor) -> torch.Tensor:
        """[num_tokens, num_heads + 2 * num_kv_heads, head_dim]; joint norms are applied here."""
        config = self._config
        if layer.joint_norms is not None:
            first = 0
            for weight in layer.joint_norms:
                heads = qkv[:, first : first + len(weight)]
                first += len(weight)
                self._norm(heads, weight, output=heads)
        return qkv.view(len(qkv), -1, config.head_dim)

    def _add_norm(
        self,
        stream: _Stream,
        weight: torch.Tensor | None,
        *,
        output: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Adds what is due to the stream and normalises it; without a weight, the stream itself."""
        delta, stream.delta = stream.delta, None
        if delta is None and weight is None:
            return stream.hidden
        return self._norm(
            stream.hidden, weight, delta=delta, delta_weight=stream.delta_norm, output=output
        )

    def _norm(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor | None,
        *,
        delta: torch.Tensor | None = None,
        delta_weight: torch.Tensor | None = None,
        output: torch.Tensor | None = None,
    ) -> torch.Tensor:
        config = self._config
        return add_rms_norm(
            hidden,
            weight,
            eps=config.rms_norm_eps,
            delta=delta,
            delta_weight=delta_weight if delta is not None else None,
            residual_scale=config.residual_scale,
            offset=config.norm_offset,
            in_float32=config.norm_in_float32,
            output=output,
            overlap=self._overlap,
        )

    def _input_norm(self, weight: torch.Tensor) -> InputNorm:
        config = self._config
        return InputNorm(weight, config.rms_norm_eps, config.norm_offset, config.norm_in_float32)

    def _take_layer(self, layer: DecoderLayer, index: int, make: MakeMatrix) -> _Layer:
        config = self._config
        attention, mlp = layer.self_attn, layer.mlp
        head_norms = joint_norms = None
        if attention.q_norm is not None and attention.k_norm is not None:
            weights = attention.q_norm.weight, attention.k_norm.weight
            if config.qk_norm == "head":
                head_norms = HeadNorms(
                    *weights, config.rms_norm_eps, config.norm_offset, config.norm_in_float32
                )
            else:
                joint_norms = weights
        rotation: int | None = None
        if index not in config.unrotated_layers:
            has_own = config.local_rope is not None and config.window(index) is not None
            rotation = 1 if has_own else 0
        placement = config.norm_placement
        after_attention: torch.Tensor | None = layer.post_attention_layernorm.weight
        before_mlp: torch.Tensor | None = None
        if placement == "before":
            before_mlp, after_attention = after_attention, None
        elif layer.pre_feedforward_layernorm is not None:
            before_mlp = layer.pre_feedforward_layernorm.weight
        experts: GpuExperts | MoE | None = None
        if isinstance(mlp, MoE):
            experts = self._take_experts(mlp, make)
        return _Layer(
            qkv=make(attention.qkv),
            output=make(attention.o_proj),
            gate_up=make(mlp.gate_up) if isinstance(mlp, GatedMLP) else None,
            down=make(mlp.down_proj) if isinstance(mlp, GatedMLP) else None,
            experts=experts,
            rule=attention.rule,
            sinks=attention.sinks,
            rotation=rotation,
            head_norms=head_norms,
            joint_norms=joint_norms,
            norm_before_attention=_weight(layer.input_layernorm),
            norm_after_attention=after_attention,
            norm_before_mlp=before_mlp,
            norm_after_mlp=_weight(layer.post_feedforward_layernorm),
        )

    def _take_experts(self, module: MoE, make: MakeMatrix) -> GpuExperts | MoE:
        config, dtype = self._config, self._model.model.norm.weight.dtype
        stack = take_experts(
            module.experts, dtype, activation=config.activation, overlap=self._overlap
        )
        if stack is None:
            return module
        return GpuExperts(module, stack, config, make, overlap=self._overlap)


def _weight(norm: nn.Module | None) -> torch.Tensor | None:
    if norm is None:
        return None
    weight = norm.weight
    assert isinstance(weight, torch.Tensor)
    return weight
