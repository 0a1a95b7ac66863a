"""Configuration of a GGUF file: its metadata in Hugging Face's terms.

llama.cpp's converter writes q and k with their rows in Meta's order, and Llama 3.1's RoPE scaling as a tensor of
divisors, one for each pair. A file that computes something else than a Llama is refused by the key that says so.
Source: conversion/llama.py and conversion/base.py in llama.cpp's repository.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.checkpoint.encoded_tensor import StoredTensor, all_values
from workbench.checkpoint.gguf import open_gguf
from workbench.config import Llama3Scaling, ModelConfig
from workbench.config.hf_config import hf_scaling
from workbench.config.keys import short
from workbench.errors import ConfigError
from workbench.gguf_file import GgufHeader, read_header
from workbench.layers import rope

DIVISORS = "rope_freqs.weight"
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"

# What llama.cpp assumes if the key is absent.
_THETA, _CONTEXT = 10_000.0, 2_048

# Keys that change what a model computes, and the values with which they change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "use_parallel_residual": (False,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.temperature_scale": (0.0,),
    "attention.output_scale": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.alpha": (0.0, 1.0),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
}


def gguf_config(files: tuple[Path, ...]) -> ModelConfig:
    """The configuration of a GGUF file, or of all parts of one; the metadata stands in the first.

    Raises: ConfigError for another architecture, or missing, contradictory or unsupported metadata; CheckpointError for
        damaged files.
    """
    header = read_header(files[0])
    keys = _Metadata(header)
    keys.refuse_other_computations()
    tensors = {name: tensor for file in files for name, tensor in open_gguf(file).items()}
    n_heads = keys.whole("attention.head_count")
    dim = keys.whole("embedding_length")
    head_dim = keys.whole("attention.key_length", dim // max(n_heads, 1))
    for name in ("rope.dimension_count", "attention.value_length"):
        if keys.whole(name, head_dim) != head_dim:
            raise keys.error(f"{name} is {keys.whole(name)}, but a head has {head_dim} dimensions")
    theta = keys.number("rope.freq_base", _THETA)
    embedding = tensors.get(EMBEDDING)
    rows = embedding.shape[0] if embedding is not None and embedding.dim() == 2 else 0
    values: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": dim,
        "num_hidden_layers": keys.whole("block_count"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": keys.whole("attention.head_count_kv", n_heads),
        "head_dim": head_dim,
        "intermediate_size": keys.whole("feed_forward_length"),
        "vocab_size": keys.whole("vocab_size", rows or len(header.metadata.get("tokenizer.ggml.tokens", ()))),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(keys, head_dim, theta, tensors.get(DIVISORS)),
        "max_position_embeddings": keys.whole("context_length", _CONTEXT),
        "tie_word_embeddings": OUTPUT not in tensors,
    }
    if values["num_hidden_layers"] > len(tensors):  # before a table of all weights is made
        raise keys.error(
            f"block_count is {values['num_hidden_layers']:,}, but there are {len(tensors)} tensors: missing"
        )
    window = keys.whole("attention.sliding_window", 0)
    if 0 < window < values["max_position_embeddings"]:
        raise keys.error(f"attention.sliding_window is {window}; only full attention can be computed")
    return ModelConfig.from_hf(values, source=str(header.path))


class _Metadata:
    """Typed access to the keys of the architecture."""

    def __init__(self, header: GgufHeader) -> None:
        self.header = header
        kind = header.metadata.get("general.type", "model")
        if kind != "model":
            raise self.error(f"general.type is {short(kind)}; expected a complete model")
        architecture = header.metadata.get("general.architecture")
        if architecture != "llama":
            raise self.error(f"the architecture is {short(architecture)}; only 'llama' can be loaded")

    def refuse_other_computations(self) -> None:
        for name, neutral in _NEUTRAL.items():
            value = self.header.metadata.get(f"llama.{name}")
            if value is not None and value not in neutral:
                raise self.error(f"{name} is {short(value)}, which this model does not compute")

    def whole(self, name: str, default: int | None = None) -> int:
        value = self._value(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(f"{name} must be a whole number, found {short(value)}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._value(name, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise self.error(f"{name} must be a number, found {short(value)}")
        return _decimal(float(value))

    def _value(self, name: str, default: Any) -> Any:
        value = self.header.metadata.get(f"llama.{name}", default)
        if isinstance(value, list) and value and all(layer == value[0] for layer in value):
            value = value[0]  # the same for each layer
        if value is None:
            raise self.error(f"the metadata key llama.{name} is missing")
        return value

    def error(self, reason: str) -> ConfigError:
        return ConfigError(f"{self.header.path}: {reason}.")


def _decimal(value: float) -> float:
    """The shortest decimal number with the same float32: the file stores 1e-5 as 9.999999747378752e-06."""
    single = torch.tensor(value, dtype=torch.float32)
    short = float(f"{value:.7g}")
    return short if torch.tensor(short, dtype=torch.float32) == single else value


def _rope_scaling(keys: _Metadata, head_dim: int, theta: float, divisors: StoredTensor | None) -> dict[str, Any] | None:
    """RoPE scaling in Hugging Face's terms, from the metadata or from the divisors."""
    metadata = keys.header.metadata
    kind = metadata.get("llama.rope.scaling.type", "none")
    if kind == "none" and "llama.rope.scale_linear" in metadata:  # files of 2023
        kind = "linear"
        factor = keys.number("rope.scale_linear")
    else:
        factor = keys.number("rope.scaling.factor", 1.0)
    if divisors is not None and (scaling := _from_divisors(keys, head_dim, theta, divisors)):
        if kind != "none" and factor != 1:
            raise keys.error(f"rope.scaling.type is {short(kind)}, and {DIVISORS} scales too")
        return hf_scaling(scaling)
    if kind == "none" or (kind == "linear" and factor == 1):
        return None
    group: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        for name in ("yarn_beta_fast", "yarn_beta_slow"):
            if f"llama.rope.scaling.{name}" in metadata:
                group[name.removeprefix("yarn_")] = keys.number(f"rope.scaling.{name}")
        group["original_max_position_embeddings"] = keys.whole("rope.scaling.original_context_length")
    return group


def _from_divisors(keys: _Metadata, head_dim: int, theta: float, stored: StoredTensor) -> Llama3Scaling | None:
    """Llama 3.1's scaling with these divisors of the frequencies; None if all are 1.

    Raises: ConfigError if no scaling with the usual bounds, 1 and 4, has them.
    """
    divisors = all_values(stored).double().flatten()
    if len(divisors) != head_dim // 2 or not bool((divisors.isfinite() & (divisors > 0)).all()):
        raise keys.error(f"{DIVISORS} must have {head_dim // 2} positive numbers, found {list(stored.shape)}")
    if bool((divisors == 1).all()):
        return None
    plain = rope.frequencies(head_dim, theta, dtype=torch.float64)
    factor = _decimal(float(divisors.max()))
    if factor > 1:
        for context in _original_contexts(keys, plain, divisors, factor):
            scaling = Llama3Scaling(factor=factor, original_context=context)
            scaled = rope.frequencies(head_dim, theta, scaling, dtype=torch.float64)
            if torch.allclose(plain / scaled, divisors, rtol=1e-4, atol=0):
                return scaling
    raise keys.error(f"{DIVISORS} is not Llama 3.1's RoPE scaling with factor {factor:g}; only that can be computed")


def _original_contexts(keys: _Metadata, plain: Tensor, divisors: Tensor, factor: float) -> Iterator[int]:
    """Original contexts that may have given the divisors: solved from those on the ramp, then the usual ones."""
    scaling = Llama3Scaling()
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    for frequency, divisor in zip(plain.tolist(), divisors.tolist(), strict=True):
        if 1.001 < divisor < 0.999 * factor:
            smooth = (1 / divisor - 1 / factor) / (1 - 1 / factor)
            yield round(2 * math.pi / frequency * (low + smooth * (high - low)))
    yield scaling.original_context
    if "llama.rope.scaling.original_context_length" in keys.header.metadata:
        yield max(1, keys.whole("rope.scaling.original_context_length"))
    yield from (2**power for power in range(8, 21))
