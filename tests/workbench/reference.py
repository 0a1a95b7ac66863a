"""Hugging Face's Llama with random weights, and the same weights in our model."""

import re
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import workbench as wb
from tests.workbench.checkpoint.checkpoints import META_NAMES
from workbench.layers.rope import to_adjacent

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_NAMES = {"model.layers": "layers", **META_NAMES}


def hugging_face(
    *, heads: int = 4, kv_heads: int = 2, tied: bool = False, scaled: bool = False, **shape: Any
) -> LlamaForCausalLM:
    """A small random LlamaForCausalLM in float32 whose weights are large enough to make peaked patterns."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **{
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "intermediate_size": 160,
            "vocab_size": 120,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "initializer_range": 0.15,
            **shape,
        },
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tied,
        rope_parameters={"rope_theta": 10_000.0, **(LLAMA3_ROPE if scaled else {"rope_type": "default"})},
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # gains of exactly one would hide a missing multiplication
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.2 * torch.randn_like(weight))
    return model


def ours(reference: LlamaForCausalLM) -> wb.Transformer:
    """Our model with the same weights: names as Meta's, rows of wq and wk in adjacent pairs."""
    config = wb.ModelConfig.from_hf(reference.config.to_dict())
    weights = {}
    for name, weight in reference.state_dict().items():
        for theirs, mine in _NAMES.items():
            name = name.replace(theirs, mine)
        if name == "output.weight" and config.tied_output:
            continue
        heads = re.search(r"attention\.(wq|wk)", name)
        if heads:
            weight = to_adjacent(weight, config.n_heads if heads.group(1) == "wq" else config.n_kv_heads)
        weights[name] = weight
    model = wb.Transformer(config)
    model.load_state_dict(weights)
    return model.eval()
