"""Cost of a model: parameters, FLOPs and key/value cache by part, from its configuration alone.

It only counts: it loads no weights and knows nothing of files or tensors. A part is a name in `PARTS`; a part without
parameters, or without counted FLOPs, is left out of that table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from workbench.config import ModelConfig

PARTS = ("Embedding", "Attention", "Scores and values", "MLP", "Norms", "Output")


@dataclass(frozen=True)
class Variant:
    """A shape with one number of key/value heads, and its cost at one context length.

    `kinds` are its names: MHA has a key/value head for every query head, MQA one for all, GQA a number in between.
    """

    kinds: tuple[str, ...]
    kv_heads: int
    this_model: bool
    parameters: int
    flops: int  # of one token that attends to `context` positions
    cache_bytes_per_token: int
    context: int

    @property
    def cache_bytes(self) -> int:
        """Bytes of one sequence of `context` tokens."""
        return self.cache_bytes_per_token * self.context


def flops(config: ModelConfig, *, context: int) -> dict[str, int]:
    """FLOPs of one token's forward pass that attends to `context` positions, including its own.

    Two for each multiply-add of a matrix product: 2 * weights for every matrix, and for the scores and the weighted
    sum of the values 4 * n_layers * n_heads * head_dim * context, for any number of key/value heads. The embedding
    look-up is free; norms, softmax, rotation and activations are left out (they grow with dim, not with dim^2).
    A whole prompt of T tokens costs T times this at the mean context (T + 1) / 2.
    Source: arXiv 2204.02311, appendix B, whose 6 N + 12 L H Q T counts the backward pass too: three times this.
    """
    weights = config.parameters_by_part
    return {
        "Attention": 2 * weights["Attention"],
        "Scores and values": 4 * config.n_layers * config.n_heads * config.head_dim * context,
        "MLP": 2 * weights["MLP"],
        "Output": 2 * config.vocab_size * config.dim,
    }


def cache_bytes_per_token(config: ModelConfig, *, itemsize: int = 2) -> int:
    """Bytes of keys and values in the cache per token; `itemsize` 2 is bfloat16.

    Source: arXiv 2305.13245; 2 * n_layers * n_kv_heads * head_dim * itemsize.
    """
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * itemsize


def variants(config: ModelConfig, *, context: int | None = None, itemsize: int = 2) -> tuple[Variant, ...]:
    """The model with its own, with multi-head and with multi-query attention; most key/value heads first.

    Only the number of key/value heads differs, and with it the size of wk and wv. `context` defaults to the model's
    context length.
    """
    context = config.max_seq_len if context is None else context
    named: dict[int, list[str]] = {}
    for kind, kv_heads in (("MHA", config.n_heads), ("GQA", config.n_kv_heads), ("MQA", 1)):
        named.setdefault(kv_heads, []).append(kind)
    costs = []
    for kv_heads, kinds in named.items():
        shape = replace(config, n_kv_heads=kv_heads)
        if len(kinds) > 1:  # one key/value head per query head, or one for all, is not called grouped
            kinds = [kind for kind in kinds if kind != "GQA"]
        costs.append(
            Variant(
                tuple(kinds),
                kv_heads,
                kv_heads == config.n_kv_heads,
                shape.n_params,
                sum(flops(shape, context=context).values()),
                cache_bytes_per_token(shape, itemsize=itemsize),
                context,
            )
        )
    return tuple(costs)


def readable_bytes(count: float) -> str:
    """`16.0 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def readable_count(count: int) -> str:
    """`8.03 B`, `2.81 M`, `562`."""
    for size, unit in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "K")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
