"""Numbers of a model's shape for the Overview: parameters by part, and what its key/value cache costs."""

import pandas as pd

from workbench.config import ModelConfig
from workbench.model import Transformer

_PARTS = {
    "tok_embeddings": "Embedding",
    "attention": "Attention",
    "feed_forward": "MLP",
    "attention_norm": "Norms",
    "ffn_norm": "Norms",
    "norm": "Norms",
    "output": "Output",
}


def parameters_by_part(model: Transformer) -> pd.DataFrame:
    """One row per part of the model: part, parameters, share. The parts hold every parameter once."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        words = name.split(".")
        part = _PARTS[words[2] if words[0] == "layers" else words[0]]
        counts[part] = counts.get(part, 0) + parameter.numel()
    table = pd.DataFrame({"part": list(counts), "parameters": list(counts.values())})
    table["share"] = table["parameters"] / table["parameters"].sum()
    return table.sort_values("parameters", ascending=False, ignore_index=True)


def cache_bytes(config: ModelConfig, *, itemsize: int) -> pd.DataFrame:
    """Bytes of the key/value cache, as the model is and with other numbers of key/value heads.

    One row per kind: kind, kv_heads, bytes_per_token, bytes_at_context.
    Source: arXiv 2305.13245; 2 n_layers n_kv_heads head_dim bytes for each token.
    """
    kinds = {"MHA": config.n_heads, "GQA": config.n_kv_heads, "MQA": 1}
    rows = []
    for kind, kv_heads in kinds.items():
        a_token = 2 * config.n_layers * kv_heads * config.head_dim * itemsize
        rows.append((kind, kv_heads, a_token, a_token * config.max_seq_len, kv_heads == config.n_kv_heads))
    names = ["kind", "kv_heads", "bytes_per_token", "bytes_at_context", "this_model"]
    return pd.DataFrame(rows, columns=names).drop_duplicates("kv_heads", keep="last", ignore_index=True)


def attention_kind(config: ModelConfig) -> str:
    """What the ratio of query to key/value heads is called."""
    if config.n_kv_heads == config.n_heads:
        return "multi-head"
    return "multi-query" if config.n_kv_heads == 1 else "grouped-query"


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
