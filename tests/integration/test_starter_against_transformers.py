"""The starter model computes what `transformers` computes from the same dequantised weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from octavo.checkpoint.gguf import read_gguf_header
from octavo.engine.chat_template import chat_template_from_gguf
from octavo.engine.engine import Engine
from octavo.engine.tokenizer import Tokenizer, tokenizer_from_gguf
from tests.support.engines import make_engine, mean_nll, request, run_all

pytestmark = [pytest.mark.starter, pytest.mark.timeout(600)]

NUM_CONTINUATION_TOKENS = 64
CLEAR_MARGIN = 0.5
CHUNK_TOKENS = 1024
ENGLISH = Path(__file__).parent.parent / "data" / "english.txt"
CHATS = (
    "Why is the sky blue?",
    "Write a Python function that reverses a list.",
    "What is 17 times 23? Explain step by step.",
    "Translate 'good morning' into French, German and Spanish.",
    "Tell me a short story about a lighthouse keeper.",
    "List five uses of a paper clip.",
    "Explain photosynthesis to a child.",
    "Who wrote 'Pride and Prejudice', and when?",
)


@pytest.fixture(scope="module")
def engine(starter_model: Path) -> Engine:
    return make_engine(starter_model, max_num_batched_tokens=512)


@pytest.fixture(scope="module")
def tokenizer(starter_model: Path) -> Tokenizer:
    return tokenizer_from_gguf(read_gguf_header(starter_model))


@pytest.fixture(scope="module")
def reference(starter_model: Path) -> Iterator[Any]:
    """A `LlamaForCausalLM` filled from the file by the gguf package, not by our own reader."""
    from transformers import LlamaConfig, LlamaForCausalLM

    reader = gguf.GGUFReader(starter_model)
    fields = {name: item.contents() for name, item in reader.fields.items() if "token" not in name}
    heads, kv_heads = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    config = LlamaConfig(
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        vocab_size=len(reader.fields["tokenizer.ggml.tokens"].data),
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    weights = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(
            np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        )
        name = tensor.name
        if name.endswith("attn_q.weight"):
            values = unpermute(values, heads)
        elif name.endswith("attn_k.weight"):
            values = unpermute(values, kv_heads)
        weights[huggingface_name(name)] = values
    model = LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["lm_head.weight"]
    assert not unexpected
    model.tie_weights()
    with torch.inference_mode():
        yield model


def unpermute(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """llama.cpp stores q and k with the two halves of each head interleaved."""
    rows, columns = weight.shape
    pairs = weight.view(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


def huggingface_name(name: str) -> str:
    for old, new in (
        ("token_embd", "model.embed_tokens"),
        ("output_norm", "model.norm"),
        ("blk.", "model.layers."),
        ("attn_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ):
        name = name.replace(old, new)
    return name


def test_greedy_continuations(
    starter_model: Path, engine: Engine, tokenizer: Tokenizer, reference: Any
) -> None:
    """Teacher-forced on our own continuation: equal at every step means equal greedy runs."""
    template = chat_template_from_gguf(read_gguf_header(starter_model), tokenizer)
    assert template is not None
    prompts = {
        str(index): template.encode(tokenizer, [{"role": "user", "content": text}])
        for index, text in enumerate(CHATS)
    }
    results = run_all(
        engine,
        [
            request(name, prompt, max_tokens=NUM_CONTINUATION_TOKENS, ignore_eos=True)
            for name, prompt in prompts.items()
        ],
    )
    num_equal, num_steps, margins = 0, 0, []
    for name, prompt in prompts.items():
        ours = results[name, 0].token_ids
        assert len(ours) == NUM_CONTINUATION_TOKENS
        logits = reference(torch.tensor([prompt + ours])).logits[0, len(prompt) - 1 : -1]
        top = logits.topk(2).values
        for step, token_id in enumerate(ours):
            num_steps += 1
            if int(logits[step].argmax()) == token_id:
                num_equal += 1
                continue
            margin = float(top[step, 0] - top[step, 1])
            margins.append(margin)
            assert margin <= CLEAR_MARGIN, f"prompt {name}, step {step}: margin {margin:.3f}"
    print(f"{num_equal} of {num_steps} greedy tokens equal; margins where not: {margins}")
    assert num_equal >= 0.98 * num_steps


@pytest.mark.parametrize("num_chunks", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_mean_nll_of_english(
    engine: Engine, tokenizer: Tokenizer, reference: Any, num_chunks: int
) -> None:
    token_ids = tokenizer.encode(ENGLISH.read_text(encoding="utf-8"))[: num_chunks * CHUNK_TOKENS]
    assert len(token_ids) > (num_chunks - 1) * CHUNK_TOKENS
    chunks = [token_ids[i : i + CHUNK_TOKENS] for i in range(0, len(token_ids), CHUNK_TOKENS)]
    ours, theirs = [], []
    for index, chunk in enumerate(chunks):
        result = run_all(
            engine, [request(f"nll-{num_chunks}-{index}", chunk, max_tokens=1, prompt_logprobs=0)]
        )[f"nll-{num_chunks}-{index}", 0]
        assert len(result.prompt_logprobs) == len(chunk)
        ours.append(mean_nll(result.prompt_logprobs))
        logits = reference(torch.tensor([chunk])).logits[0, :-1]
        theirs.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor(chunk[1:]))))
    mean_ours, mean_theirs = float(np.mean(ours)), float(np.mean(theirs))
    print(f"mean NLL {mean_ours:.5f} (ours) and {mean_theirs:.5f} (transformers)")
    assert mean_ours == pytest.approx(mean_theirs, rel=0.005)
