"""Turns a loaded decoder into programs for the CPU's kernels: one for the layers, one for logits.

The decoder's configuration decides which operations there are, so that an architecture needs no
function of its own. What the operations cannot do is said by `planning`, before anything is loaded.
"""

import dataclasses
from collections.abc import Sequence

import torch

from octavo.engine.cpu_weights import Matrix
from octavo.engine.kernels.cpu import attention, rotary, rows, step_words
from octavo.engine.kernels.cpu.limits import ACTIVATIONS, BLOCK_SIZE
from octavo.engine.kernels.cpu.linear import compile_kernel
from octavo.engine.kernels.cpu.program import Program, Words, byte_buffer, float_buffer
from octavo.engine.kernels.cpu.quantize_activations import quantized_row_bytes
from octavo.engine.kernels.cpu.tiles_forms import GROUP
from octavo.engine.kv_groups import KVGroup
from octavo.engine.layers.linear import Linear
from octavo.engine.layers.mlp import GatedMLP
from octavo.engine.layers.rotary_embedding import RotaryEmbedding
from octavo.engine.model_config import ModelConfig
from octavo.engine.models.decoder import Decoder, DecoderLayer

_PORTIONS_PER_THREAD = 6
"""A matrix is cut into so many, so that who comes late or is put aside costs little."""
_GATE_GROUPS = 64
"""Groups of 32 channels that are gated at a time."""


@dataclasses.dataclass(slots=True)
class _Part:
    """What a part of a layer puts out, until it is added to the residual stream."""

    output: torch.Tensor
    bias: torch.Tensor | None
    norm: torch.Tensor | None


class DecoderProgram:
    """The programs of one decoder and the buffers that they work in."""

    def __init__(
        self,
        decoder: Decoder,
        config: ModelConfig,
        groups: Sequence[KVGroup],
        pages: Sequence[torch.Tensor],
        *,
        max_tokens: int,
        max_rows: int,
        num_threads: int,
    ) -> None:
        """Takes the decoder's matrices over; their packed forms are gone from it afterwards.

        Args:
            decoder: loaded.
            config: that `planning` plans kernels for.
            groups: the model's KV groups.
            pages: of each group, [num_layers, 2, num_blocks, num_kv_heads, 16 * head_dim],
                float16.
            max_tokens: the most tokens of a step.
            max_rows: the most rows that logits are wanted of at a time.
            num_threads: that run the programs.
        """
        self._config = config
        self._num_threads = num_threads
        self.layers = Program()
        self.logits_of_rows = Program()
        size, head_dim = config.hidden_size, config.head_dim
        num_all_heads = config.num_heads + 2 * config.num_kv_heads
        query_size = config.num_heads * head_dim
        self.residual = float_buffer(max_tokens, size)
        """[max_tokens, hidden_size]: starts as the embedding of the step's tokens."""
        self.hidden = float_buffer(max_tokens, size)
        """[max_tokens, hidden_size]: what the layers end with, normalised."""
        self.rows = float_buffer(max_rows, size)
        """[max_rows, hidden_size]: rows of `hidden` that logits are wanted of."""
        self.logits = float_buffer(max_rows, config.vocab_size)
        self._inputs = _Inputs(max_tokens, size)
        self._projected = float_buffer(max_tokens, num_all_heads * head_dim)
        self._attended = _Inputs(max_tokens, query_size)
        self._gates = float_buffer(max_tokens, 2 * config.intermediate_size)
        self._gated = _Inputs(max_tokens, config.intermediate_size)
        self._output = float_buffer(max_tokens, size)
        self._angles = self._add_angles(decoder.model.rotary_emb, max_tokens)
        self._local_angles = self._angles
        if decoder.model.local_rotary_emb is not None:
            self._local_angles = self._add_angles(decoder.model.local_rotary_emb, max_tokens)
        places = {
            layer: (number, pages[number][index])
            for number, group in enumerate(groups)
            for index, layer in enumerate(group.layers)
        }
        part = None
        for index, layer in enumerate(decoder.model.layers):
            assert isinstance(layer, DecoderLayer)
            part = self._add_layer(layer, index, part, *places[index])
        self._add_norm(part, decoder.model.norm.weight, output=self.hidden)
        self._add_head(decoder, max_rows)

    def _add_layer(
        self,
        layer: DecoderLayer,
        index: int,
        before: _Part | None,
        group: int,
        pages: torch.Tensor,
    ) -> _Part:
        placement = self._config.norm_placement
        input_norm = None if layer.input_layernorm is None else layer.input_layernorm.weight
        self._add_attention(layer, index, before, input_norm, group, pages)
        after_attention = layer.post_attention_layernorm.weight
        attended = _Part(
            self._output,
            layer.self_attn.o_proj.bias,
            None if placement == "before" else after_attention,
        )
        feed_norm = None
        if placement == "before":
            feed_norm = after_attention
        elif layer.pre_feedforward_layernorm is not None:
            feed_norm = layer.pre_feedforward_layernorm.weight
        after_norm = layer.post_feedforward_layernorm
        assert isinstance(layer.mlp, GatedMLP)
        self._add_mlp(layer.mlp, attended, feed_norm)
        return _Part(
            self._output,
            layer.mlp.down_proj.bias,
            None if after_norm is None else after_norm.weight,
        )

    def _add_attention(
        self,
        layer: DecoderLayer,
        index: int,
        before: _Part | None,
        norm: torch.Tensor | None,
        group: int,
        pages: torch.Tensor,
    ) -> None:
        config, module = self._config, layer.self_attn
        matrices = Matrix.of_layers([module.q_proj, module.k_proj, module.v_proj])
        self._add_norm(before, norm, inputs=self._inputs, readers=matrices)
        self._add_products(matrices, self._inputs, self._projected, program=self.layers)
        head_dim, num_kv_heads = config.head_dim, config.num_kv_heads
        window = config.window(index)
        cosines, sines, half = self._angles if window is None else self._local_angles
        if index in config.unrotated_layers:
            half = 0
        query_norm = key_norm = None
        if module.q_norm is not None and module.k_norm is not None:
            query_norm, key_norm = (
                self._norm_weights(norm.weight) for norm in (module.q_norm, module.k_norm)
            )
        if config.qk_norm == "all":
            sizes = (config.num_heads * head_dim, num_kv_heads * head_dim)
            for weights, size, first in zip(
                (query_norm, key_norm), sizes, (0, sizes[0]), strict=True
            ):
                span: Words = {
                    rows.SPAN: self._projected.view(-1)[first:],
                    rows.SPAN_BYTES: 4 * self._projected.shape[1],
                    rows.SPAN_SIZE: size,
                    rows.SPAN_NORM: weights,
                    rows.SPAN_EPS: config.rms_norm_eps,
                }
                self.layers.add(rows.normalise_spans, span, extent=step_words.NUM_TOKENS)
            query_norm = key_norm = None
        bias = _biases([module.q_proj, module.k_proj, module.v_proj])
        scale = head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        words: Words = {
            rotary.PROJECTED: self._projected,
            rotary.ROW_BYTES: 4 * self._projected.shape[1],
            rotary.NUM_KV_HEADS: num_kv_heads,
            rotary.GROUP_SIZE: config.num_heads // num_kv_heads,
            rotary.HEAD_DIM: head_dim,
            rotary.KEYS: pages[0],
            rotary.VALUES: pages[1],
            rotary.BLOCK_BYTES: 2 * BLOCK_SIZE * num_kv_heads * head_dim,
            rotary.KV_GROUP: step_words.FIRST_GROUP + step_words.GROUP_WORDS * group,
            rotary.HALF: half,
            rotary.COSINES: cosines,
            rotary.SINES: sines,
            rotary.QUERY_NORM: query_norm,
            rotary.KEY_NORM: key_norm,
            rotary.EPS: config.rms_norm_eps,
            rotary.BIAS: bias,
        }
        self.layers.add(
            rotary.turn_prompts,
            words,
            extent=step_words.NUM_PREFILL_TOKENS,
            factor=num_kv_heads,
            grain=4,
        )
        words |= {
            attention.OUTPUT: self._attended.floats,
            attention.SCALE: float(scale),
            attention.WINDOW: window or 0,
            attention.SOFTCAP: float(config.attention_softcap or 0.0),
            attention.SINKS: None if module.sinks is None else _floats(module.sinks),
        }
        self.layers.add(
            attention.attend_tiles, words, extent=step_words.NUM_TILES, factor=num_kv_heads
        )
        output = Matrix.of_layers([module.o_proj])
        if self._attended.quantized_for(output) is not None:
            self._add_quantizing(self.layers, self._attended, step_words.NUM_TOKENS)
        self._add_products(output, self._attended, self._output, program=self.layers)

    def _add_mlp(self, mlp: GatedMLP, before: _Part, norm: torch.Tensor | None) -> None:
        matrices = Matrix.of_layers([mlp.gate_proj, mlp.up_proj])
        self._add_norm(before, norm, inputs=self._inputs, readers=matrices)
        self._add_products(matrices, self._inputs, self._gates, program=self.layers)
        down = Matrix.of_layers([mlp.down_proj])
        bias = _biases([mlp.gate_proj, mlp.up_proj])
        size = self._config.intermediate_size
        words: Words = {
            rows.GATES: self._gates,
            rows.GATE_SIZE: size,
            rows.ACTIVATION: ACTIVATIONS[self._config.activation],
            rows.GATE_BIAS: bias,
            rows.GATED: self._gated.floats_for(down),
            rows.GATED_QUANTIZED: self._gated.quantized_for(down),
        }
        self.layers.add(
            rows.gate,
            words,
            extent=step_words.NUM_TOKENS,
            factor=size // GROUP,
            grain=_GATE_GROUPS,
        )
        self._add_products(down, self._gated, self._output, program=self.layers)

    def _add_norm(
        self,
        part: _Part | None,
        weight: torch.Tensor | None,
        *,
        inputs: "_Inputs | None" = None,
        readers: Sequence[Matrix] = (),
        output: torch.Tensor | None = None,
    ) -> None:
        """Adds a part's output to the residual stream; normalises the sum for who reads it."""
        config = self._config
        if inputs is not None:
            output = inputs.floats_for(readers)
        words: Words = {
            rows.RESIDUAL: self.residual,
            rows.SIZE: config.hidden_size,
            rows.ADDED_SCALE: float(config.residual_scale),
            rows.NORM: None if weight is None else self._norm_weights(weight),
            rows.EPS: float(config.rms_norm_eps),
            rows.OUTPUT: output,
        }
        if inputs is not None:
            words[rows.QUANTIZED] = inputs.quantized_for(readers)
            words[rows.QUANTIZED_BYTES] = inputs.quantized_bytes
        if part is not None:
            words[rows.ADDED] = part.output
            words[rows.ADDED_BIAS] = None if part.bias is None else _floats(part.bias)
            words[rows.ADDED_NORM] = None if part.norm is None else self._norm_weights(part.norm)
        self.layers.add(rows.add_and_normalise, words, extent=step_words.NUM_TOKENS)

    def _norm_weights(self, weight: torch.Tensor) -> torch.Tensor:
        return _floats(weight) + self._config.norm_offset

    def _add_quantizing(self, program: Program, inputs: "_Inputs", extent: int) -> None:
        words: Words = {
            rows.INPUT: inputs.floats,
            rows.INPUT_BYTES: 4 * inputs.size,
            rows.COLUMNS: inputs.size,
            rows.TARGET: inputs.quantized,
            rows.TARGET_BYTES: inputs.quantized_bytes,
        }
        program.add(rows.quantize_rows, words, extent=extent)

    def _add_products(
        self,
        matrices: Sequence[Matrix],
        inputs: "_Inputs",
        output: torch.Tensor,
        *,
        program: Program,
        rows_word: int = step_words.NUM_TOKENS,
    ) -> None:
        """Multiplies by matrices whose outputs lie side by side."""
        column = 0
        for matrix in matrices:
            packed = matrix.packed
            num_tiles, tile_bytes = packed.tiles.shape
            is_quantized = packed.form.is_quantized
            words: Words = {
                rows.FUNCTION: compile_kernel(packed.form.name).address,
                rows.TILES: packed.tiles,
                rows.TILE_BYTES: tile_bytes,
                rows.IN_FEATURES: packed.padded_columns,
                rows.OUT_FEATURES: packed.num_rows,
                rows.ACTIVATIONS_IN: inputs.quantized if is_quantized else inputs.floats,
                rows.ACTIVATIONS_IN_BYTES: (
                    inputs.quantized_bytes if is_quantized else 4 * inputs.size
                ),
                rows.PRODUCTS: output.view(-1)[column:],
                rows.PRODUCTS_BYTES: 4 * output.shape[1],
                rows.GROUP_SIZE: packed.group_size,
                rows.ROWS_WORD: rows_word,
            }
            portions = self._num_threads * _PORTIONS_PER_THREAD
            program.add(
                rows.multiply,
                words,
                extent=step_words.ONE,
                factor=num_tiles,
                grain=-(-num_tiles // portions),
            )
            column += packed.num_rows

    def _add_angles(
        self, module: RotaryEmbedding, max_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Cosines, sines and half of the channels that they turn."""
        frequencies = module.frequencies().contiguous()
        half = len(frequencies)
        cosines, sines = float_buffer(max_tokens, half), float_buffer(max_tokens, half)
        words: Words = {
            rotary.FREQUENCIES: frequencies,
            rotary.MAGNITUDE: float(module.magnitude),
            rotary.ANGLES_HALF: half,
            rotary.ANGLES_COSINES: cosines,
            rotary.ANGLES_SINES: sines,
        }
        self.layers.add(rotary.compute_angles, words, extent=step_words.NUM_TOKENS, grain=8)
        return cosines, sines, half

    def _add_head(self, decoder: Decoder, max_rows: int) -> None:
        config, program = self._config, self.logits_of_rows
        head = decoder.model.embed_tokens if decoder.lm_head is None else decoder.lm_head
        matrices = Matrix.of_layers([head])
        inputs = _Inputs(max_rows, config.hidden_size, floats=self.rows)
        if inputs.quantized_for(matrices) is not None:
            self._add_quantizing(program, inputs, step_words.NUM_ROWS)
        self._add_products(
            matrices, inputs, self.logits, program=program, rows_word=step_words.NUM_ROWS
        )
        if config.logits_scale != 1.0 or config.final_softcap is not None:
            words: Words = {
                rows.LOGITS: self.logits,
                rows.VOCAB_SIZE: config.vocab_size,
                rows.LOGITS_SCALE: float(config.logits_scale),
                rows.LOGITS_SOFTCAP: float(config.final_softcap or 0.0),
            }
            program.add(rows.finish_logits, words, extent=step_words.NUM_ROWS)


class _Inputs:
    """Activations that matrices multiply: as float32, as 8-bit integers, or both."""

    def __init__(self, num_rows: int, size: int, *, floats: torch.Tensor | None = None) -> None:
        self.size = size
        self.floats = float_buffer(num_rows, size) if floats is None else floats
        self.quantized_bytes = quantized_row_bytes(size)
        self.quantized = byte_buffer(num_rows * self.quantized_bytes)

    def floats_for(self, readers: Sequence[Matrix]) -> torch.Tensor | None:
        """The float32 if anybody reads them."""
        is_read = any(not matrix.packed.form.is_quantized for matrix in readers)
        return self.floats if is_read else None

    def quantized_for(self, readers: Sequence[Matrix]) -> torch.Tensor | None:
        """The 8-bit integers if anybody reads them."""
        is_read = any(matrix.packed.form.is_quantized for matrix in readers)
        return self.quantized if is_read else None


def _floats(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().float().contiguous()


def _biases(layers: Sequence[Linear]) -> torch.Tensor | None:
    """What is added to the outputs of layers that lie side by side."""
    biases = [_floats(layer.bias) for layer in layers if layer.bias is not None]
    assert len(biases) in (0, len(layers))
    return torch.cat(biases) if biases else None
