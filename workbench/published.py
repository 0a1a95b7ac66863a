"""Shapes of Meta's published Llama 3 text models, by name: no weights, nothing is downloaded."""

from __future__ import annotations

from dataclasses import replace

from workbench.config import SCALED_CONTEXT, Llama3Scaling, ModelConfig

_8B = ModelConfig(dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, ffn_dim=14336, vocab_size=128256)
_70B = ModelConfig(dim=8192, n_layers=80, n_heads=64, n_kv_heads=8, ffn_dim=28672, vocab_size=128256)
_405B = ModelConfig(dim=16384, n_layers=126, n_heads=128, n_kv_heads=8, ffn_dim=53248, vocab_size=128256)
_1B = ModelConfig(dim=2048, n_layers=16, n_heads=32, n_kv_heads=8, ffn_dim=8192, vocab_size=128256, tied_output=True)
_3B = ModelConfig(dim=3072, n_layers=28, n_heads=24, n_kv_heads=8, ffn_dim=8192, vocab_size=128256, tied_output=True)


def _scaled(config: ModelConfig, factor: float) -> ModelConfig:
    return replace(config, rope_scaling=Llama3Scaling(factor=factor), max_seq_len=SCALED_CONTEXT)


PUBLISHED: dict[str, ModelConfig] = {
    "llama-3-8b": _8B,
    "llama-3-70b": _70B,
    "llama-3.1-8b": _scaled(_8B, 8.0),
    "llama-3.1-70b": _scaled(_70B, 8.0),
    "llama-3.1-405b": _scaled(_405B, 8.0),
    "llama-3.2-1b": _scaled(_1B, 32.0),
    "llama-3.2-3b": _scaled(_3B, 32.0),
    "llama-3.3-70b": _scaled(_70B, 8.0),
}


def published(name: str) -> ModelConfig | None:
    """The shape of a published model: "llama-3.1-8b", or "Meta-Llama-3.1-8B-Instruct" as on the hub; else None."""
    return PUBLISHED.get(name.lower().removeprefix("meta-llama/").removeprefix("meta-").removesuffix("-instruct"))


def tied_as_published(config: ModelConfig) -> ModelConfig:
    """The configuration, with a tied output if a published model of this shape has one.

    Meta's params.json has no key for a tied output. The weights show it; without them only the shape can.
    """
    tied = replace(config, tied_output=True)
    return tied if tied in PUBLISHED.values() else config
