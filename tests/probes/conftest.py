"""Captures of the tiny model with everything that the probes read, and Hugging Face's Llama with the same weights."""

from typing import Any

import pytest
import torch

from probes.attention import head_metrics
from probes.norms import rms_norms
from probes.rope import head_scores
from workbench.hooks.capture import Capture
from workbench.layers.rope import to_half_split
from workbench.model import Transformer


@pytest.fixture
def tokens() -> torch.Tensor:
    """Two rows of 24 tokens out of 12, so that tokens repeat."""
    return torch.randint(12, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def captured(tiny_model: Transformer, tokens: torch.Tensor) -> Capture:
    with torch.no_grad():
        _, cap = tiny_model.run_with_capture(tokens, {*head_metrics.HOOKS, *head_scores.HOOKS, *rms_norms.HOOKS})
    return cap


@pytest.fixture
def reference_model(tiny_model: Transformer) -> Any:
    """Hugging Face's Llama with the same weights."""
    transformers = pytest.importorskip("transformers", reason="transformers is a test dependency")
    config = tiny_model.config
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**config.to_hf(), attn_implementation="eager")
    ).eval()
    names = {
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "tok_embeddings": "model.embed_tokens",
        "output": "lm_head",
    }
    weights = {}
    for name, weight in tiny_model.state_dict().items():
        if name.endswith("wq.weight"):
            weight = to_half_split(weight, config.n_heads)
        elif name.endswith("wk.weight"):
            weight = to_half_split(weight, config.n_kv_heads)
        parts = name.removesuffix(".weight")
        if parts == "norm":
            parts = "model.norm"
        for ours, hf in names.items():
            parts = parts.replace(ours, hf)
        weights[("model." if parts.startswith("layers.") else "") + parts + ".weight"] = weight
    theirs.load_state_dict(weights, strict=True)
    return theirs


@pytest.fixture
def reference(reference_model: Any, tokens: torch.Tensor) -> Any:
    """Its output on the same tokens, attentions and hidden states included."""
    with torch.no_grad():
        return reference_model(tokens, output_attentions=True, output_hidden_states=True)
