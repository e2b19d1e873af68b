"""Turns a loaded decoder into programs for the CPU's kernels: one for the layers, one for logits.

The decoder's configuration decides which operations there are, so that an architecture needs no
function of its own. What the operations cannot do is said by `planning`, before anything is loaded.
"""

import dataclasses
from collections.abc import Sequence

import torch

from octavo.engine.cpu_buffers import Experts, FeedForward, Inputs
from octavo.engine.cpu_weights import Matrix
from octavo.engine.kernels.cpu import (
    attention,
    attention_prompt,
    attention_rows,
    embedding,
    moe,
    rotary,
    rows,
    sampling,
    step_words,
    truncation,
)
from octavo.engine.kernels.cpu.limits import ACTIVATIONS, BLOCK_SIZE
from octavo.engine.kernels.cpu.linear import compile_kernel
from octavo.engine.kernels.cpu.program import Program, Words, float_buffer
from octavo.engine.kernels.cpu.tiles_forms import GROUP
from octavo.engine.kv_groups import KVGroup
from octavo.engine.layers.linear import Linear
from octavo.engine.layers.mlp import GatedMLP
from octavo.engine.layers.moe import MoE
from octavo.engine.layers.rotary_embedding import RotaryEmbedding
from octavo.engine.model_config import ModelConfig
from octavo.engine.models.decoder import Decoder, DecoderLayer

_PORTIONS_PER_THREAD = 3
"""A matrix is cut into so many, so that who comes late or is put aside costs little; each part read
in one line."""
_SPLITS_PER_THREAD = 4
"""Parts of contexts, counted for each key head, so that few decodes keep all threads busy."""
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
        """Takes the decoder's matrices over; afterwards it has none.

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
        self._inputs = Inputs(max_tokens, size)
        self._projected = float_buffer(max_tokens, num_all_heads * head_dim)
        self._attended = Inputs(max_tokens, query_size)
        self.rounds_prompts = False
        """Whether prompts attend in 16 bits, in any layer."""
        self.max_split_tiles = max(1, _SPLITS_PER_THREAD * num_threads // config.num_kv_heads)
        """The most parts of contexts, of all decodes of a step together."""
        self._attended_parts = float_buffer(
            self.max_split_tiles, config.num_heads, head_dim + attention_rows.PART_NUMBERS
        )
        self._gates = float_buffer(max_tokens, 2 * config.intermediate_size)
        self._gated = Inputs(max_tokens, config.intermediate_size)
        self._output = float_buffer(max_tokens, size)
        self._experts = None if config.moe is None else Experts(config, max_tokens)
        self._angles = self._add_angles(decoder.model.rotary_emb, max_tokens)
        self._local_angles = self._angles
        if decoder.model.local_rotary_emb is not None:
            self._local_angles = self._add_angles(decoder.model.local_rotary_emb, max_tokens)
        places = {
            layer: (number, pages[number][index])
            for number, group in enumerate(groups)
            for index, layer in enumerate(group.layers)
        }
        matrices = Matrix.of_layers([decoder.model.embed_tokens])
        self._add_embedding(matrices[0], decoder.model.embed_tokens.scale)
        if decoder.lm_head is not None:
            matrices = Matrix.of_layers([decoder.lm_head])
            decoder.lm_head = None
        del decoder.model.embed_tokens
        part = None
        for index, layer in enumerate(decoder.model.layers):
            assert isinstance(layer, DecoderLayer)
            part = self._add_layer(layer, index, part, *places[index])
            # What its matrices were loaded as goes before the next layer's are packed.
            decoder.model.layers[index] = torch.nn.Identity()
        self._add_norm(part, decoder.model.norm.weight, output=self.hidden)
        words: Words = {
            rows.TAKEN_FROM: self.hidden,
            rows.TAKEN_SIZE: size,
            rows.TAKEN_ROWS: self.rows,
        }
        self.layers.add(rows.take_rows, words, extent=step_words.NUM_TAKEN)
        self._add_head(matrices, max_rows)
        self._add_choice(max_rows)

    def _add_embedding(self, matrix: Matrix, scale: float | None) -> None:
        packed = matrix.packed
        words: Words = {
            embedding.TILES: packed.tiles,
            embedding.TILE_BYTES: packed.tiles.shape[1],
            embedding.SIZE: self._config.hidden_size,
            embedding.ROWS: self.residual,
            embedding.ROW_SCALE: 1.0 if scale is None else scale,
            **embedding.form_words(packed.form, packed.group_size),
        }
        self.layers.add(embedding.embed_tokens, words, extent=step_words.NUM_TOKENS)

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
        bias = None
        if isinstance(layer.mlp, MoE):
            self._add_experts(layer.mlp, attended, feed_norm)
        else:
            self._add_mlp(layer.mlp, attended, feed_norm)
            bias = layer.mlp.down_proj.bias
        return _Part(self._output, bias, None if after_norm is None else after_norm.weight)

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
        output = Matrix.of_layers([module.o_proj])
        quantized = self._attended.quantized_for(output)
        self.rounds_prompts |= attention_prompt.IS_USED and quantized is not None
        # Heads that are no whole groups are quantised when all of a row is there.
        writes_groups = quantized is not None and head_dim % GROUP == 0
        words |= {
            attention_rows.OUTPUT: None if writes_groups else self._attended.floats,
            attention_rows.QUANTIZED: quantized if writes_groups else None,
            attention_rows.PARTS: self._attended_parts,
            attention_rows.SCALE: float(scale),
            attention_rows.WINDOW: window or 0,
            attention_rows.SOFTCAP: float(config.attention_softcap or 0.0),
            attention_rows.SINKS: None if module.sinks is None else _floats(module.sinks),
            # What reads it takes 8 bits.
            attention_rows.MAY_ROUND: int(quantized is not None),
        }
        self.layers.add(
            attention.attend_tiles, words, extent=step_words.NUM_TILES, factor=num_kv_heads
        )
        self.layers.add(
            attention.join_parts, words, extent=step_words.NUM_JOINED, factor=config.num_heads
        )
        if quantized is not None and not writes_groups:
            self._add_quantizing(self.layers, self._attended, step_words.NUM_TOKENS)
        self._add_products(output, self._attended, self._output, program=self.layers)

    def _add_mlp(self, mlp: GatedMLP, before: _Part, norm: torch.Tensor | None) -> None:
        matrices = Matrix.of_layers([mlp.gate_proj, mlp.up_proj])
        self._add_norm(before, norm, inputs=self._inputs, readers=matrices)
        feed = FeedForward(self._gates, self._gated, self._config.intermediate_size)
        self._add_gated(mlp, matrices, feed, self._output)

    def _add_gated(
        self,
        mlp: GatedMLP,
        matrices: Sequence[Matrix],
        feed: FeedForward,
        output: torch.Tensor,
    ) -> None:
        self._add_products(matrices, self._inputs, feed.gates, program=self.layers)
        down = Matrix.of_layers([mlp.down_proj])
        self._add_gate(feed, down, bias=_biases([mlp.gate_proj, mlp.up_proj]))
        self._add_products(down, feed.gated, output, program=self.layers)

    def _add_gate(
        self,
        feed: FeedForward,
        readers: Sequence[Matrix],
        *,
        bias: torch.Tensor | None = None,
        rows_per_token: int = 1,
    ) -> None:
        words: Words = {
            rows.GATES: feed.gates,
            rows.GATE_SIZE: feed.size,
            rows.ACTIVATION: ACTIVATIONS[self._config.activation],
            rows.GATE_BIAS: bias,
            rows.GATED: feed.gated.floats_for(readers),
            rows.GATED_QUANTIZED: feed.gated.quantized_for(readers),
        }
        self.layers.add(
            rows.gate,
            words,
            extent=step_words.NUM_TOKENS,
            factor=rows_per_token * feed.size // GROUP,
            grain=_GATE_GROUPS,
        )

    def _add_experts(self, module: MoE, before: _Part, norm: torch.Tensor | None) -> None:
        buffers = self._experts
        assert buffers is not None
        router = Matrix.of_layers([module.gate])
        gates = [
            Matrix.joined(module.experts, ("gate_proj", "up_proj"), expert)
            for expert in range(buffers.num_experts)
        ]
        downs = [
            Matrix.joined(module.experts, ("down_proj",), expert)
            for expert in range(buffers.num_experts)
        ]
        readers = [*router, gates[0]]
        shared: list[Matrix] = []
        shared_gate: list[Matrix] = []
        if module.shared_expert is not None and module.shared_expert_gate is not None:
            mlp = module.shared_expert
            shared = Matrix.of_layers([mlp.gate_proj, mlp.up_proj])
            shared_gate = Matrix.of_layers([module.shared_expert_gate])
        self._add_norm(before, norm, inputs=self._inputs, readers=[*readers, *shared, *shared_gate])
        self._add_products(router, self._inputs, buffers.routed, program=self.layers)
        words = buffers.words()
        self.layers.add(
            moe.pick_experts,
            words | {moe.ROUTED: buffers.routed, moe.RENORMALIZES: int(buffers.renormalizes)},
            extent=step_words.NUM_TOKENS,
        )
        self.layers.add(moe.sort_picks, words, extent=step_words.ONE)
        is_quantized = gates[0].packed.form.is_quantized
        source = self._inputs.quantized if is_quantized else self._inputs.floats
        target = buffers.inputs.quantized if is_quantized else buffers.inputs.floats
        row_bytes = self._inputs.quantized_bytes if is_quantized else 4 * self._inputs.size
        self.layers.add(
            moe.gather_rows,
            words | {moe.SOURCE: source, moe.SOURCE_BYTES: row_bytes, moe.SORTED: target},
            extent=step_words.NUM_TOKENS,
            factor=buffers.num_picks,
            grain=8,
        )
        self._add_expert_products(gates, buffers.inputs, buffers.feed.gates)
        self._add_gate(buffers.feed, [downs[0]], rows_per_token=buffers.num_picks)
        self._add_expert_products(downs, buffers.feed.gated, buffers.outputs)
        words |= {
            moe.EXPERT_OUTPUTS: buffers.outputs,
            moe.COMBINED_SIZE: self._config.hidden_size,
            moe.COMBINED: self._output,
        }
        if module.shared_expert is not None and buffers.shared is not None:
            self._add_gated(module.shared_expert, shared, buffers.shared, buffers.shared_output)
            self._add_products(
                shared_gate, self._inputs, buffers.shared_logits, program=self.layers
            )
            words |= {
                moe.SHARED: buffers.shared_output,
                moe.SHARED_GATE: buffers.shared_logits,
            }
        self.layers.add(moe.combine_experts, words, extent=step_words.NUM_TOKENS)

    def _add_expert_products(
        self, matrices: Sequence[Matrix], inputs: Inputs, output: torch.Tensor
    ) -> None:
        buffers, first = self._experts, matrices[0].packed
        assert buffers is not None
        tiles = [matrix.packed.tiles for matrix in matrices]
        is_quantized = first.form.is_quantized
        cuts = min(2 * self._num_threads, len(first.tiles))
        words = buffers.words() | {
            moe.FUNCTION: compile_kernel(first.form.name).address,
            moe.EXPERT_TILES: torch.tensor([one.data_ptr() for one in tiles]),
            moe.TILE_BYTES: first.tiles.shape[1],
            moe.NUM_TILES: len(first.tiles),
            moe.NUM_CUTS: cuts,
            moe.IN_FEATURES: first.padded_columns,
            moe.OUT_FEATURES: first.num_rows,
            moe.INPUTS: inputs.quantized if is_quantized else inputs.floats,
            moe.INPUT_BYTES: inputs.quantized_bytes if is_quantized else 4 * inputs.size,
            moe.PRODUCTS: output,
            moe.GROUP_SIZE: first.group_size,
        }
        self.layers.keep(tiles)
        self.layers.add(
            moe.multiply_experts,
            words,
            extent=step_words.ONE,
            factor=buffers.num_experts * cuts,
        )

    def _add_norm(
        self,
        part: _Part | None,
        weight: torch.Tensor | None,
        *,
        inputs: Inputs | None = None,
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

    def _add_quantizing(self, program: Program, inputs: Inputs, extent: int) -> None:
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
        inputs: Inputs,
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

    def _add_head(self, matrices: Sequence[Matrix], max_rows: int) -> None:
        config, program = self._config, self.logits_of_rows
        inputs = Inputs(max_rows, config.hidden_size, floats=self.rows)
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

    def _add_choice(self, max_rows: int) -> None:
        """Chooses tokens, in steps that want them chosen."""
        parts = -(-self._config.vocab_size // sampling.PART_SIZE)
        words: Words = {
            sampling.LOGITS: self.logits,
            sampling.VOCAB_SIZE: self._config.vocab_size,
            sampling.NUM_PARTS: parts,
            sampling.PART_SCORES: float_buffer(max_rows, parts),
            sampling.PART_TOKENS: torch.zeros(max_rows, parts, dtype=torch.int64),
            sampling.BEST_SCORES: float_buffer(max_rows),
            sampling.GROUP_SCORES: float_buffer(max_rows, parts * sampling.PART_GROUPS),
            sampling.PART_MASSES: float_buffer(max_rows, parts),
            sampling.LOWEST_SCORES: float_buffer(max_rows),
        }
        for kernel, extent, factor in (
            (sampling.find_likeliest, step_words.NUM_CHOICES, parts),
            (sampling.take_likeliest, step_words.NUM_CHOICES, 1),
            (truncation.weigh_parts, step_words.NUM_CUTS, parts),
            (truncation.find_lowest_scores, step_words.NUM_CUTS, 1),
            (sampling.draw_parts, step_words.NUM_DRAWS, parts),
            (sampling.take_drawn, step_words.NUM_DRAWS, 1),
        ):
            self.logits_of_rows.add(kernel, words, extent=extent, factor=factor)


def _floats(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().float().contiguous()


def _biases(layers: Sequence[Linear]) -> torch.Tensor | None:
    """What is added to the outputs of layers that lie side by side."""
    biases = [_floats(layer.bias) for layer in layers if layer.bias is not None]
    assert len(biases) in (0, len(layers))
    return torch.cat(biases) if biases else None
