"""Small random checkpoints for tests, written by Hugging Face's code and torch.save where possible."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from workbench.config import ModelConfig
from workbench.model import Transformer

# Meta's rule, stated again on its own: rows for what spreads, columns for what gathers, a copy of the rest.
ROWS = ("wq", "wk", "wv", "w1", "w3", "output", "tok_embeddings")
COLUMNS = ("wo", "w2")


def make_config(**changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "dim": 64,
        "n_layers": 2,
        "n_heads": 8,
        "n_kv_heads": 2,
        "ffn_dim": 96,
        "vocab_size": 128,
        "rope_theta": 10_000.0,
        "max_seq_len": 256,
    }
    return ModelConfig(**values | changes)


def hf_model(config: ModelConfig) -> Any:
    """Hugging Face's model of this shape with random weights large enough to tell logits apart."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling:
        rope = {
            "rope_type": "llama3",
            "rope_theta": config.rope_theta,
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_context,
        }
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=config.dim,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.ffn_dim,
            vocab_size=config.vocab_size,
            rms_norm_eps=config.norm_eps,
            rope_parameters=rope,
            max_position_embeddings=config.max_seq_len,
            tie_word_embeddings=config.tied_output,
        )
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if parameter.dim() == 1 else noise * parameter.shape[-1] ** -0.5)
    return theirs.eval()


def write_meta(
    model: Transformer,
    path: Path,
    *,
    shards: int = 1,
    suffix: str = "pth",
    state: Mapping[str, Tensor] | None = None,
    embedding_axis: int = 0,
    leave_out: tuple[str, ...] = (),
) -> None:
    """A Meta directory of a model's weights, with Meta's shards."""
    path.mkdir(parents=True, exist_ok=True)
    params = {key: value for key, value in model.config.to_meta().items() if key not in leave_out}
    (path / "params.json").write_text(json.dumps(params))
    for number in range(shards):
        part = {}
        for name, tensor in (state or model.state_dict()).items():
            kind = name.split(".")[-2]
            axis = embedding_axis if kind == "tok_embeddings" else 0 if kind in ROWS else 1 if kind in COLUMNS else None
            whole = axis is None or shards == 1
            part[name] = (
                tensor.detach() if whole else tensor.detach().chunk(shards, dim=axis)[number].contiguous().clone()
            )
        file = path / f"consolidated.{number:02d}.{suffix}"
        if suffix == "pth":
            torch.save(part, file)
        else:
            save_file(part, file)
