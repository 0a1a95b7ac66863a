"""Reads Hugging Face's `config.json` (transformers 4 and 5) as the fields of a `ModelConfig`.

What would change the computation is refused by name; keys that nobody knows are ignored, and `ignored_keys` lists them.
"""

from __future__ import annotations

import re
from typing import Any

from workbench.config.deviations import is_harmless, unknown_keys
from workbench.config.keys import Keys, short
from workbench.config.rope_scaling import (
    PLAIN_CONTEXT,
    SCALED_CONTEXT,
    LinearScaling,
    Llama3Scaling,
    Scaling,
    YarnScaling,
    yarn_attention_factor,
)
from workbench.errors import ConfigError

_KNOWN_MODELS = {
    "mllama": "Llama 3.2 Vision",
    "mllama_text_model": "the text part of Llama 3.2 Vision",
    "llama4": "Llama 4",
    "llama4_text": "Llama 4",
}
_SWITCHES = ("use_sliding_window", "use_window", "use_local_attention")
_WINDOWS = ("sliding_window", "sliding_window_size", "attention_window", "attention_window_size", "window_size",
            "interleaved_sliding_window", "local_attention_window", "local_window_size")  # fmt: skip
_ROPE_UNUSED = ("attn_factor", "attention_factor", "original_max_position_embeddings", "factor", "beta_fast",
                "beta_slow", "mscale", "mscale_all_dim", "truncate", "finetuned")  # fmt: skip


def read_hf(config: dict[str, Any], source: str) -> dict[str, Any]:
    """The fields of a ModelConfig. Raises: ConfigError."""
    return _read(config, source)[0]


def ignored_keys(config: dict[str, Any], source: str) -> tuple[str, ...]:
    """Keys of a `config.json` that are ignored: nobody knows whether they change the computation.

    Raises: ConfigError.
    """
    return _read(config, source)[1]


def _read(config: dict[str, Any], source: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    keys = Keys(config, source)
    model_type = keys.take("model_type", "llama")
    if model_type != "llama":
        name = _KNOWN_MODELS.get(model_type) if isinstance(model_type, str) else None
        raise ConfigError(
            f"{source}: model_type is {short(model_type)}{f', {name}' if name else ''}; only 'llama' text models "
            "can be loaded."
        )
    _check_head(keys)
    context = 0
    if keys.take("max_position_embeddings") is not None:
        context = keys.size("max_seq_len", "max_position_embeddings", integral_float=True)
    theta, scaling, unknown = _rope(keys, context)
    context = context or (SCALED_CONTEXT if isinstance(scaling, Llama3Scaling) else PLAIN_CONTEXT)
    n_heads = keys.size("n_heads", "num_attention_heads")
    fields = {
        "dim": keys.size("dim", "hidden_size"),
        "n_layers": keys.size("n_layers", "num_hidden_layers"),
        "n_heads": n_heads,
        "n_kv_heads": keys.size("n_kv_heads", "num_key_value_heads", n_heads),
        "head_dim": keys.size("head_dim", "head_dim", 0),
        "ffn_dim": keys.size("ffn_dim", "intermediate_size"),
        "vocab_size": keys.size("vocab_size", "vocab_size"),
        "norm_eps": keys.number("rms_norm_eps", 1e-6),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "max_seq_len": context,
        "tied_output": keys.flag("tie_word_embeddings", False),
    }
    _check_window(keys, context)
    stated = {name: value for name, value in keys.unread().items() if not is_harmless(name)}
    unknown += unknown_keys(stated, fields, source)
    return fields, tuple(unknown)


def _check_head(keys: Keys) -> None:
    """Refuse a model whose output layer is another one than the unembedding."""
    architectures = keys.take("architectures", [])
    for name in architectures if isinstance(architectures, list) else [architectures]:
        task = re.search(r"For(?!CausalLM)(\w{1,40})$", name) if isinstance(name, str) else None
        if task:
            kind = " (a reward model or a classifier)" if task[1].endswith("Classification") else ""
            raise ConfigError(
                f"{keys.source}: architectures is {short(name)}{kind}: it has another output layer; only "
                "'LlamaForCausalLM' can be loaded."
            )


def _check_window(keys: Keys, context: int) -> None:
    """Refuse a sliding window that is in use: switched on, and shorter than the context."""
    switches = [keys.take(name) for name in _SWITCHES]
    for name in _WINDOWS:
        size = keys.take(name)
        numbers = isinstance(size, (int, float)) and not isinstance(size, bool)
        unused = size in (None, False, []) or (numbers and (size <= 0 or size >= context))
        if not unused and False not in switches:
            raise ConfigError(
                f"{keys.source}: {name} is {short(size)}, shorter than the context of {context}: attention has a "
                "sliding window. Only full attention is supported."
            )


def _rope(keys: Keys, context: int) -> tuple[float, Scaling | None, list[str]]:
    """Theta, scaling and unknown keys, from `rope_theta` + `rope_scaling` (transformers 4) or `rope_parameters` (5)."""
    stated = keys.take("rope_theta")
    original = keys.take("original_max_position_embeddings")
    if original is not None:
        original = keys.size("max_seq_len", "original_max_position_embeddings", integral_float=True)
    settings, unknown = [], []
    for name in ("rope_scaling", "rope_parameters"):
        group = keys.group(name)
        if not group:
            continue
        if set(group) == {"full_attention"} and isinstance(group["full_attention"], dict):
            group = group["full_attention"]  # one entry per type of layer
        theta = stated if group.get("rope_theta") is None else group["rope_theta"]
        inner = Keys({**group, "rope_theta": theta}, f"{keys.source}, {name}")
        settings.append((inner.number("rope_theta", 10_000.0), _scaling(inner, context, original)))
        if stated is not None and theta != stated:
            raise ConfigError(f"{keys.source}: rope_theta is {short(stated)} but {name} says {short(theta)}.")
        unknown += [f"{name}.{key}" for key in inner.unread()]
    if not settings:
        return keys.number("rope_theta", 10_000.0), None, unknown
    if settings[0] != settings[-1]:
        raise ConfigError(f"{keys.source}: rope_scaling and rope_parameters contradict each other.")
    return *settings[0], unknown


def _scaling(keys: Keys, context: int, original: int | None) -> Scaling | None:
    """The scaling that one group states; `original` is the context before scaling, stated outside of the group."""
    kind = keys.take("rope_type", keys.take("type", "default"))  # "type" in early files
    keys.ignore("type", "rope_theta")
    part = keys.number("partial_rotary_factor", 1.0)
    if part != 1:
        raise ConfigError(f"{keys.source}: partial_rotary_factor is {part}: only a part of each head is rotated.")
    if kind not in ("default", "llama3", "linear", "yarn"):
        raise ConfigError(
            f"{keys.source}: RoPE type {short(kind)} is not supported; use default, llama3, linear or yarn."
        )
    per_layer = next((name for name, value in keys.values.items() if isinstance(value, (dict, list)) and value), None)
    if per_layer is not None:
        raise ConfigError(f"{keys.source}: {short(per_layer)} is {short(keys.values[per_layer])}: not supported.")

    def original_context() -> int:
        value = keys.size("max_seq_len", "original_max_position_embeddings", context, integral_float=True)
        return value if original is None else original

    scaling: Scaling | None = None
    if kind == "linear":
        factor = keys.number("factor")
        scaling = None if factor == 1 else LinearScaling(factor)
    elif kind == "llama3":
        scaling = Llama3Scaling(
            keys.number("factor"),
            keys.number("low_freq_factor"),
            keys.number("high_freq_factor"),
            original_context(),
        )
    elif kind == "yarn":
        scaling = _yarn(keys, context, original_context())
    keys.ignore(*_ROPE_UNUSED)
    return scaling


def _yarn(keys: Keys, context: int, original: int) -> YarnScaling:
    factor = keys.number("factor", context / original if original > 0 else None)
    mscale, mscale_all_dim = keys.number("mscale", 0.0), keys.number("mscale_all_dim", 0.0)
    attention_factor = keys.take("attention_factor")
    if attention_factor is not None:
        attention_factor = keys.number("attention_factor")
    elif mscale and mscale_all_dim:
        attention_factor = yarn_attention_factor(factor, mscale) / yarn_attention_factor(factor, mscale_all_dim)
    return YarnScaling(
        factor,
        original,
        beta_fast=keys.number("beta_fast", 0.0) or 32.0,
        beta_slow=keys.number("beta_slow", 0.0) or 1.0,
        attention_factor=attention_factor,
        truncate=keys.flag("truncate", True),
    )


def hf_scaling(scaling: Scaling | None) -> dict[str, Any] | None:
    """A scaling as `rope_scaling` in a `config.json`."""
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    if isinstance(scaling, YarnScaling):
        return {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_context,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "attention_factor": scaling.attention_factor,
            "truncate": scaling.truncate,
        }
    return None
