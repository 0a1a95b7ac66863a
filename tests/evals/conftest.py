"""A small random model that reads and writes text, byte by byte."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from workbench.config import ModelConfig
from workbench.model import Transformer
from workbench.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def speaking_model() -> Transformer:
    """Two layers over 256 bytes and Llama 3's special tokens, with a context of 640 tokens."""
    tokenizer = Tokenizer.from_ranks({bytes([b]): b for b in range(256)})
    config = ModelConfig(
        dim=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        ffn_dim=64,
        vocab_size=tokenizer.vocab_size,
        norm_eps=1e-5,
        rope_theta=10_000.0,
        rope_scaling=None,
        max_seq_len=640,
        tied_output=True,
    )
    model = Transformer(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if parameter.ndim == 1 else 0.3 * noise)
    model.tokenizer = tokenizer
    return model


@pytest.fixture
def checkpoint(speaking_model: Transformer, tmp_path: Path) -> Path:
    """The speaking model as a folder in Meta's layout."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    assert speaking_model.tokenizer is not None
    (folder / "params.json").write_text(json.dumps(speaking_model.config.to_meta()))
    (folder / "tokenizer.model").write_bytes(speaking_model.tokenizer.to_tiktoken())
    save_file(speaking_model.state_dict(), folder / "consolidated.00.safetensors")
    return folder
