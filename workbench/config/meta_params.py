"""Reads Meta's `params.json` (Llama 1, 2 and 3, Code Llama) as the fields of a `ModelConfig`.

A key that nobody knows is an error: Meta's own files hold only keys that change the model.
"""

from __future__ import annotations

from typing import Any

from workbench.config.deviations import unknown_keys
from workbench.config.keys import Keys, short
from workbench.config.rope_scaling import PLAIN_CONTEXT, SCALED_CONTEXT, Llama3Scaling
from workbench.errors import ConfigError

# Meta's params.json says only `use_scaled_rope`. Its 3.2 text models (1B and 3B) were trained with factor 32,
# every other scaled model with 8, so the shape gives the factor if the file does not state it.
FACTOR_32_SHAPES = {(2048, 16), (3072, 28)}

# Theta of Llama 3, and of Llama 1 and 2, whose files do not state it. Code Llama states 1,000,000.
LLAMA3_THETA, LLAMA2_THETA, CODE_LLAMA_THETA = 500_000.0, 10_000.0, 1_000_000.0
LLAMA3_VOCABULARY = 128_256
CODE_LLAMA_CONTEXT, LLAMA2_CONTEXT, LLAMA1_CONTEXT = 16_384, 4_096, 2_048
# Llama 1's 65B has the norm_eps of Llama 2, and no key that tells them apart.
LLAMA1_65B = (8192, 80)

_SCALING = ("rope_scaling_factor", "rope_low_freq_factor", "rope_high_freq_factor", "rope_original_context")


def read_meta(params: dict[str, Any], source: str, *, vocab_size: int | None, llama3: bool) -> dict[str, Any]:
    """The fields of a ModelConfig; see `ModelConfig.from_meta`. Raises: ConfigError."""
    keys = Keys(params, source)
    dim, n_heads = keys.size("dim", "dim"), keys.size("n_heads", "n_heads")
    n_layers = keys.size("n_layers", "n_layers")
    scaling = _scaling(keys, (dim, n_layers))
    stated = keys.whole("vocab_size", -1)
    if stated < 1:
        if stated != -1 or vocab_size is None:
            raise ConfigError(f"{source}: vocab_size is {short(stated)}; set it to the size of the tokenizer.")
        stated = vocab_size
    llama3 = llama3 or scaling is not None or stated == LLAMA3_VOCABULARY
    norm_eps = keys.number("norm_eps", 1e-5)
    theta = keys.number("rope_theta", LLAMA3_THETA if llama3 else LLAMA2_THETA)
    context = _context(theta, norm_eps, scaled=scaling is not None, llama3=llama3)
    fields = {
        "dim": dim,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": keys.size("n_kv_heads", "n_kv_heads", n_heads),
        "head_dim": keys.size("head_dim", "head_dim", 0),
        "ffn_dim": _ffn_dim(keys, dim),
        "vocab_size": stated,
        "norm_eps": norm_eps,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "max_seq_len": keys.size("max_seq_len", "max_seq_len", context),
        "tied_output": keys.flag("tied_output", False),
    }
    keys.ignore("max_batch_size", "model_parallel_size")
    if unknown := unknown_keys(keys.unread(), fields, source):
        raise ConfigError(f"{source}: unknown key {short(unknown[0])}; ignoring it could give a wrong model.")
    return fields


def is_llama1_65b(params: dict[str, Any]) -> bool:
    """Whether this may be Llama 1's 65B, whose file is that of a Llama 2 and whose context is 2,048."""
    shape = (params.get("dim"), params.get("n_layers"))
    return shape == LLAMA1_65B and not {"n_kv_heads", "rope_theta", "max_seq_len"} & params.keys()


def _context(theta: float, norm_eps: float, *, scaled: bool, llama3: bool) -> int:
    if scaled:
        return SCALED_CONTEXT
    if theta == CODE_LLAMA_THETA:
        return CODE_LLAMA_CONTEXT
    if llama3 or theta != LLAMA2_THETA:
        return PLAIN_CONTEXT
    return LLAMA1_CONTEXT if norm_eps == 1e-6 else LLAMA2_CONTEXT


def _scaling(keys: Keys, shape: tuple[int, int]) -> Llama3Scaling | None:
    stated = [name for name in _SCALING if keys.values.get(name) is not None]
    if not keys.flag("use_scaled_rope", False):
        if stated:
            value = short(keys.values[stated[0]])
            raise ConfigError(f"{keys.source}: {stated[0]} is {value} but use_scaled_rope is not true.")
        return None
    return Llama3Scaling(
        factor=keys.number("rope_scaling_factor", 32.0 if shape in FACTOR_32_SHAPES else 8.0),
        low_freq_factor=keys.number("rope_low_freq_factor", 1.0),
        high_freq_factor=keys.number("rope_high_freq_factor", 4.0),
        original_context=keys.size("max_seq_len", "rope_original_context", PLAIN_CONTEXT),
    )


def _ffn_dim(keys: Keys, dim: int) -> int:
    multiple_of = keys.whole("multiple_of", 256)
    multiplier = None
    if keys.take("ffn_dim_multiplier") is not None:
        multiplier = keys.number("ffn_dim_multiplier")
    if multiple_of < 1 or not 0 < (1 if multiplier is None else multiplier) < 1000:
        raise ConfigError(
            f"{keys.source}: multiple_of and ffn_dim_multiplier must be positive, found {multiple_of} and {multiplier}."
        )
    computed = swiglu_size(dim, multiple_of=multiple_of, multiplier=multiplier)
    stated = keys.size("ffn_dim", "ffn_dim", computed)
    if stated != computed and ("multiple_of" in keys.values or multiplier is not None):
        raise ConfigError(
            f"{keys.source}: ffn_dim is {stated} but multiple_of and ffn_dim_multiplier give {computed}; remove one."
        )
    return stated


def swiglu_size(dim: int, *, multiple_of: int, multiplier: float | None) -> int:
    """Meta's rule for the MLP's size: two thirds of 4 dim, times the multiplier, rounded up to `multiple_of`."""
    size = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        size = int(multiplier * size)
    return multiple_of * ((size + multiple_of - 1) // multiple_of)
