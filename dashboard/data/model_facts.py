"""Facts of a model for the Overview page: parameters by part, and the size of its key/value cache."""

import pandas as pd

from workbench import model_cost
from workbench.config import ModelConfig


def parameters_by_part(config: ModelConfig) -> pd.DataFrame:
    """One row per part of the model: part, parameters, share. Each parameter is counted once."""
    counts = config.parameters_by_part
    table = pd.DataFrame({"part": list(counts), "parameters": list(counts.values())})
    table["share"] = table["parameters"] / table["parameters"].sum()
    return table.sort_values("parameters", ascending=False, ignore_index=True)


def cache_bytes(config: ModelConfig, *, itemsize: int) -> pd.DataFrame:
    """Bytes of the key/value cache, for this model and for other numbers of key/value heads.

    One row per kind: kind, kv_heads, bytes_per_token, bytes_at_context, this_model.
    """
    rows = [
        ("/".join(kind.kinds), kind.kv_heads, kind.cache_bytes_per_token, kind.cache_bytes, kind.this_model)
        for kind in model_cost.variants(config, itemsize=itemsize)
    ]
    return pd.DataFrame(rows, columns=["kind", "kv_heads", "bytes_per_token", "bytes_at_context", "this_model"])


def attention_kind(config: ModelConfig) -> str:
    """Name of the attention type: multi-head, grouped-query or multi-query."""
    if config.n_kv_heads == config.n_heads:
        return "multi-head"
    return "multi-query" if config.n_kv_heads == 1 else "grouped-query"
