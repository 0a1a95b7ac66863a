"""Table of a Llama's weights: names in the three layouts, complete shapes, and the axis that is sharded.

All code that reads or writes a checkpoint uses this table. It knows nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from workbench.config import ModelConfig

Kind = Literal["meta", "hf"]  # those that can be written
StoredKind = Literal["meta", "hf", "gguf"]

# Frequencies in older files, which follow from the configuration.
FREQUENCIES = re.compile(r"(^|\.)(rope\.freqs|rotary_emb\.inv_freq)$")
# Cosines and sines, which follow from the frequencies; GGUF's tables, which its configuration reads.
HARMLESS = re.compile(r"(^|\.)(rotary_emb\.(cos|sin)_cached|rope_freqs\.weight|attn_rot_embd)$")

EMBEDDING, OUTPUT = "tok_embeddings.weight", "output.weight"


@dataclass(frozen=True)
class TensorSpec:
    """One weight of the model.

    `shape` is that of the complete tensor. `split` is the axis that tensor-parallel shards divide; None if each shard
    has a copy. `rotary_heads` is the number of heads for wq and wk, whose rows the two layouts order differently.
    `kv_heads` is the number of heads for wk and wv, which more shards than heads repeat.
    """

    name: str
    hf_name: str
    shape: tuple[int, ...]
    split: int | None
    rotary_heads: int = 0
    kv_heads: int = 0


def tensor_specs(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """Every weight of a model of this shape, without a tied output."""
    return tuple(_specs(config))


def _specs(c: ModelConfig) -> Iterator[TensorSpec]:
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    yield TensorSpec(EMBEDDING, "model.embed_tokens.weight", (c.vocab_size, c.dim), 0)
    for layer in range(c.n_layers):
        meta, hf = f"layers.{layer}.", f"model.layers.{layer}."
        yield TensorSpec(meta + "attention.wq.weight", hf + "self_attn.q_proj.weight", (q, c.dim), 0, c.n_heads)
        yield TensorSpec(
            meta + "attention.wk.weight", hf + "self_attn.k_proj.weight", (kv, c.dim), 0, c.n_kv_heads, c.n_kv_heads
        )
        yield TensorSpec(
            meta + "attention.wv.weight", hf + "self_attn.v_proj.weight", (kv, c.dim), 0, kv_heads=c.n_kv_heads
        )
        yield TensorSpec(meta + "attention.wo.weight", hf + "self_attn.o_proj.weight", (c.dim, q), 1)
        yield TensorSpec(meta + "feed_forward.w1.weight", hf + "mlp.gate_proj.weight", (c.ffn_dim, c.dim), 0)
        yield TensorSpec(meta + "feed_forward.w2.weight", hf + "mlp.down_proj.weight", (c.dim, c.ffn_dim), 1)
        yield TensorSpec(meta + "feed_forward.w3.weight", hf + "mlp.up_proj.weight", (c.ffn_dim, c.dim), 0)
        yield TensorSpec(meta + "attention_norm.weight", hf + "input_layernorm.weight", (c.dim,), None)
        yield TensorSpec(meta + "ffn_norm.weight", hf + "post_attention_layernorm.weight", (c.dim,), None)
    yield TensorSpec("norm.weight", "model.norm.weight", (c.dim,), None)
    if not c.tied_output:
        yield output_spec(c)


def output_spec(config: ModelConfig) -> TensorSpec:
    """The unembedding, which a tied checkpoint may also store."""
    return TensorSpec(OUTPUT, "lm_head.weight", (config.vocab_size, config.dim), 0)


def published_names(stored: Iterable[str]) -> dict[str, str]:
    """Hugging Face's published name, `model.layers.0...` or `lm_head.weight`, of each stored one.

    A base model that was saved alone has no `model.` before its names; wrappers put `module.` or `_orig_mod.` there.
    """
    names, landmark = list(stored), "layers.0.self_attn.q_proj.weight"
    prefix = next((name.removesuffix(landmark) for name in names if name.endswith(landmark)), "model.")
    outer = prefix.removesuffix("model.")

    def published(name: str) -> str:
        if name.startswith(prefix) and not name.startswith(f"{prefix}lm_head."):
            return f"model.{name.removeprefix(prefix)}"
        return name.removeprefix(outer)

    return {name: published(name) for name in names}


def meta_names(stored: Iterable[str]) -> dict[str, str]:
    """Meta's published name of each stored one, without a wrapper's `module.` or `_orig_mod.`."""
    names = list(stored)
    prefix = next((name.removesuffix(EMBEDDING) for name in names if name.endswith(EMBEDDING)), "")
    return {name: name.removeprefix(prefix) for name in names}


def stored_name(kind: StoredKind, spec: TensorSpec) -> str:
    """Name of this weight in a layout."""
    return spec.hf_name if kind == "hf" else spec.name if kind == "meta" else _gguf_name(spec)


# Meta's names and GGUF's.
_GGUF = {
    "tok_embeddings": "token_embd",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "norm": "output_norm",
    "output": "output",
}


def _gguf_name(spec: TensorSpec) -> str:
    layer = re.match(r"layers\.(\d+)\.", spec.name)
    name = spec.name[layer.end() :] if layer else spec.name
    return (f"blk.{layer[1]}." if layer else "") + _GGUF[name.removesuffix(".weight")] + ".weight"
