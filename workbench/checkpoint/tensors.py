"""The table of a Llama 3's weights: names in both layouts, whole shapes, and the axis that shards divide.

Everything that reads or writes a checkpoint goes by this table. Knows nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from workbench.config import ModelConfig

Kind = Literal["meta", "hf"]

# Tables that older files store although they follow from the configuration.
HARMLESS = re.compile(r"(^|\.)(rope\.freqs|rotary_emb\.inv_freq)$")

EMBEDDING, OUTPUT = "tok_embeddings.weight", "output.weight"


@dataclass(frozen=True)
class TensorSpec:
    """One weight of the model.

    `shape` is that of the whole tensor. `split` is the axis that tensor-parallel shards divide, None where each holds a
    copy. `rotary_heads` counts the heads whose rows RoPE pairs up (wq and wk), which the two layouts order otherwise.
    """

    name: str
    hf_name: str
    shape: tuple[int, ...]
    split: int | None
    rotary_heads: int = 0


def tensor_specs(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """Every weight of a model of this shape; a tied output is not one of them."""
    return tuple(_specs(config))


def _specs(c: ModelConfig) -> Iterator[TensorSpec]:
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    yield TensorSpec(EMBEDDING, "model.embed_tokens.weight", (c.vocab_size, c.dim), 0)
    for layer in range(c.n_layers):
        ours, theirs = f"layers.{layer}.", f"model.layers.{layer}."
        yield TensorSpec(ours + "attention.wq.weight", theirs + "self_attn.q_proj.weight", (q, c.dim), 0, c.n_heads)
        yield TensorSpec(ours + "attention.wk.weight", theirs + "self_attn.k_proj.weight", (kv, c.dim), 0, c.n_kv_heads)
        yield TensorSpec(ours + "attention.wv.weight", theirs + "self_attn.v_proj.weight", (kv, c.dim), 0)
        yield TensorSpec(ours + "attention.wo.weight", theirs + "self_attn.o_proj.weight", (c.dim, q), 1)
        yield TensorSpec(ours + "feed_forward.w1.weight", theirs + "mlp.gate_proj.weight", (c.ffn_dim, c.dim), 0)
        yield TensorSpec(ours + "feed_forward.w2.weight", theirs + "mlp.down_proj.weight", (c.dim, c.ffn_dim), 1)
        yield TensorSpec(ours + "feed_forward.w3.weight", theirs + "mlp.up_proj.weight", (c.ffn_dim, c.dim), 0)
        yield TensorSpec(ours + "attention_norm.weight", theirs + "input_layernorm.weight", (c.dim,), None)
        yield TensorSpec(ours + "ffn_norm.weight", theirs + "post_attention_layernorm.weight", (c.dim,), None)
    yield TensorSpec("norm.weight", "model.norm.weight", (c.dim,), None)
    if not c.tied_output:
        yield output_spec(c)


def output_spec(config: ModelConfig) -> TensorSpec:
    """The unembedding, which a tied checkpoint may store as well."""
    return TensorSpec(OUTPUT, "lm_head.weight", (config.vocab_size, config.dim), 0)


def stored_name(kind: Kind, spec: TensorSpec) -> str:
    """What a layout calls this weight."""
    return spec.name if kind == "meta" else spec.hf_name
