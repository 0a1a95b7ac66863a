"""`params.json` for Meta's own code, which knows only its own keys.

Meta's llama3 builds `ModelArgs(max_seq_len=..., max_batch_size=..., **params)`, where an unknown key is an error and a
repeated one too; llama-models ignores unknown keys. Neither has a key for the MLP's size, the context or a tied output.
"""

from __future__ import annotations

from typing import Any

from workbench.config.meta_params import FACTOR_32_SHAPES, swiglu_size
from workbench.config.model_config import ModelConfig
from workbench.config.rope_scaling import Llama3Scaling
from workbench.errors import CheckpointError

_MULTIPLE_OF = 256  # Meta's default


def params_for_meta(config: ModelConfig) -> dict[str, Any]:
    """The keys of Meta's `ModelArgs` that give this model.

    Raises: CheckpointError or ConfigError if Meta's code cannot compute it.
    Source: `ModelArgs` and `apply_scaling` of meta-llama/llama3 and meta-llama/llama-models.
    """
    if config.head_dim * config.n_heads != config.dim:
        raise CheckpointError(
            f"Meta's code computes head_dim as dim / n_heads, {config.dim} / {config.n_heads}, but this model has "
            f"{config.head_dim}; write the safetensors container instead."
        )
    config.to_meta()  # raises for RoPE that no code of Meta's has
    scaling = config.rope_scaling
    # Meta publishes factor 32 without a key for it; see FACTOR_32_SHAPES.
    known = Llama3Scaling(factor=32.0 if (config.dim, config.n_layers) in FACTOR_32_SHAPES else 8.0)
    if scaling is not None and scaling != known:
        raise CheckpointError(
            f"Meta's code knows only the RoPE scaling {known}, but this model has {scaling}; "
            "write the safetensors container instead."
        )
    multiple_of, multiplier = mlp_keys(config.dim, config.ffn_dim)
    params: dict[str, Any] = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        "multiple_of": multiple_of,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
    }
    if multiplier is not None:
        params["ffn_dim_multiplier"] = multiplier
    if scaling is not None:  # the first Llama 3's code does not know this key
        params["use_scaled_rope"] = True
    return params


def mlp_keys(dim: int, ffn_dim: int) -> tuple[int, float | None]:
    """`multiple_of` and the shortest `ffn_dim_multiplier` (None if not needed) that give the MLP's size exactly.

    There always is one: a multiplier of 16 digits hits every size. `multiple_of` is a power of two up to Meta's 256.
    """
    multiple_of = next(m for m in (_MULTIPLE_OF >> shift for shift in range(9)) if ffn_dim % m == 0)
    if swiglu_size(dim, multiple_of=multiple_of, multiplier=None) == ffn_dim:
        return multiple_of, None
    plain = int(2 * (4 * dim) / 3)
    middle = (ffn_dim - multiple_of / 2 + 1) / plain  # of the multipliers that are rounded up to this size
    candidates = [round(middle, digits) for digits in range(17)]
    return multiple_of, next(
        m for m in candidates if swiglu_size(dim, multiple_of=multiple_of, multiplier=m) == ffn_dim
    )
