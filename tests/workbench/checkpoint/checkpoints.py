"""Small random checkpoints for tests, written by Hugging Face's code and torch.save where possible."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from workbench.config import ModelConfig
from workbench.model import Transformer

# Meta's rule, stated again on its own: rows for what spreads, columns for what gathers, a copy of the rest.
ROWS = ("wq", "wk", "wv", "w1", "w3", "output", "tok_embeddings")
COLUMNS = ("wo", "w2")


def make_config(**changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "dim": 64,
        "n_layers": 2,
        "n_heads": 8,
        "n_kv_heads": 2,
        "ffn_dim": 96,
        "vocab_size": 128,
        "rope_theta": 10_000.0,
        "max_seq_len": 256,
    }
    return ModelConfig(**values | changes)


def hf_model(config: ModelConfig) -> Any:
    """Hugging Face's model of this shape with random weights large enough to tell logits apart."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling:
        rope = {
            "rope_type": "llama3",
            "rope_theta": config.rope_theta,
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_context,
        }
    return hf_llama(
        hidden_size=config.dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.ffn_dim,
        vocab_size=config.vocab_size,
        rms_norm_eps=config.norm_eps,
        rope_parameters=rope,
        max_position_embeddings=config.max_seq_len,
        tie_word_embeddings=config.tied_output,
    )


SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}


def hf_llama(*, seed: int = 0, **changes: Any) -> Any:
    """Hugging Face's model of `SMALL` with these changes, and random weights large enough to tell logits apart."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL | changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in theirs.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if parameter.dim() == 1 else noise * parameter.shape[-1] ** -0.5)
    return theirs.eval()


# Meta's names, by the last two parts of Hugging Face's.
META_NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def meta_state(theirs: Any) -> dict[str, Tensor]:
    """The weights of Hugging Face's model under Meta's names.

    The rows of wq and wk are put back from the order that transformers' conversion gave them: its rule was
    `w.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)`.
    """
    state = {}
    heads = {"q_proj": theirs.config.num_attention_heads, "k_proj": theirs.config.num_key_value_heads}
    for name, tensor in theirs.state_dict().items():
        *_, first, last = ["", *name.removesuffix(".weight").split(".")]
        layer = name.split(".")[2] if ".layers." in name else None
        if last in heads:
            rows, columns = tensor.shape
            tensor = tensor.view(heads[last], 2, rows // heads[last] // 2, columns).transpose(1, 2)
            tensor = tensor.reshape(rows, columns)
        short = META_NAMES.get(f"{first}.{last}", META_NAMES.get(last))
        state[f"{short}.weight" if layer is None else f"layers.{layer}.{short}.weight"] = tensor.contiguous().clone()
    return state


def meta_shards(state: Mapping[str, Tensor], count: int, *, embedding_axis: int = 0) -> list[dict[str, Tensor]]:
    """Meta's tensor-parallel shards of a state."""
    shards: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for name, tensor in state.items():
        kind = name.split(".")[-2]
        axis = embedding_axis if kind == "tok_embeddings" else 0 if kind in ROWS else 1 if kind in COLUMNS else None
        for number, shard in enumerate(shards):
            part = tensor if axis is None or count == 1 else tensor.chunk(count, dim=axis)[number]
            shard[name] = part.detach().contiguous().clone()
    return shards


def write_meta(
    model: Transformer,
    path: Path,
    *,
    shards: int = 1,
    suffix: str = "pth",
    state: Mapping[str, Tensor] | None = None,
    embedding_axis: int = 0,
    leave_out: tuple[str, ...] = (),
) -> None:
    """A Meta directory of a model's weights, with Meta's shards."""
    path.mkdir(parents=True, exist_ok=True)
    params = {key: value for key, value in model.config.to_meta().items() if key not in leave_out}
    (path / "params.json").write_text(json.dumps(params))
    for number, part in enumerate(meta_shards(state or model.state_dict(), shards, embedding_axis=embedding_axis)):
        file = path / f"consolidated.{number:02d}.{suffix}"
        if suffix == "pth":
            torch.save(part, file)
        else:
            save_file(part, file)


# Hugging Face's names of weights and GGUF's, stated again on their own.
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    is_layer = name.startswith("model.layers.")
    stem = (rest if is_layer else name).removesuffix(".weight")
    return (f"blk.{layer}." if is_layer else "") + GGUF_NAMES[stem] + ".weight"


def write_gguf(
    theirs: Any,
    path: Path,
    *,
    kind: str = "F32",
    metadata: Mapping[str, Any] | None = None,
    extra: Mapping[str, Tensor] | None = None,
    blocks: Mapping[str, Any] | None = None,
) -> Path:
    """A GGUF file of Hugging Face's model, as llama.cpp's converter writes it; matrices are of type `kind`.

    `metadata` replaces keys below "llama." (None removes one), `extra` adds float32 tensors, and `blocks` replaces
    matrices, by GGUF's name, with raw rows of `kind`.
    """
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    config = theirs.config
    writer = gguf.GGUFWriter(path, "llama")
    keys: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "rope.dimension_count": config.head_dim,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "vocab_size": config.vocab_size,
    } | dict(metadata or {})
    for key, value in keys.items():
        if value is None:
            continue
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(f"llama.{key}", value)
    state = theirs.state_dict()
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in state.items():
        values = tensor.float()
        for projection, count in heads.items():
            if projection in name:  # the converter's rule: halves of each head's rows become adjacent
                values = values.reshape(count, 2, -1, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        stored, rows = gguf_name(name), values.contiguous().numpy()
        number = gguf.GGMLQuantizationType[kind]
        if blocks and stored in blocks:
            writer.add_tensor(stored, blocks[stored], raw_dtype=number)
        elif values.dim() == 1 or kind == "F32":
            writer.add_tensor(stored, rows)
        elif kind == "F16":
            writer.add_tensor(stored, rows.astype("float16"))
        else:
            writer.add_tensor(stored, gguf.quants.quantize(rows, number), raw_dtype=number)
    for stored, tensor in (extra or {}).items():
        writer.add_tensor(stored, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
