"""Every kind of Llama checkpoint: it loads with the logits of transformers, or one sentence refuses it.

`KINDS` is the table: each row names the kind, an example and the result in words, builds a small one, and says what
is checked. docs/checkpoints.md can be made from its first three columns.
"""

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.workbench.checkpoint.checkpoints import SMALL, hf_llama, meta_shards, meta_state
from workbench.checkpoint import convert, load_model, read_config, read_shape
from workbench.checkpoint.files import Layout
from workbench.checkpoint.stated_config import stated_config
from workbench.errors import ConfigError, WorkbenchError
from workbench.text.tokenizer import Tokenizer

LLAMA2: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
LLAMA2_PARAMS = {"dim": 64, "multiple_of": 32, "n_heads": 8, "n_layers": 2, "norm_eps": 1e-5, "vocab_size": -1}


@dataclass(frozen=True)
class Kind:
    """A row of the table: `build` writes a checkpoint and returns transformers' model, None if it is refused.

    `says` is a pattern of the one warning, or of the refusal; None: nothing is said. `config` are expected values.
    """

    kind: str
    example: str
    result: str
    build: Callable[[Path], Any]
    says: str | None = None
    config: tuple[tuple[str, Any], ...] = ()
    context: int = 70  # tokens that are compared


def hf(folder: Path, changes: dict[str, Any] | None = None, *, without: tuple[str, ...] = (), **shape: Any) -> Any:
    """Transformers' own files, with other values in `config.json`."""
    theirs = hf_llama(**shape)
    theirs.save_pretrained(folder)
    edit(folder / "config.json", changes or {}, without)
    return theirs


def edit(file: Path, changes: dict[str, Any], without: tuple[str, ...] = ()) -> None:
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if key not in without}))


def rename_tensors(file: Path, rename: Callable[[str], str | None]) -> None:
    """Other names of tensors; None leaves one out."""
    state = {rename(name): tensor for name, tensor in load_file(file).items()}
    save_file({name: tensor for name, tensor in state.items() if name}, file, metadata={"format": "pt"})


def meta(
    folder: Path,
    params: dict[str, Any],
    *,
    shards: int = 1,
    suffix: str = "pth",
    more: dict[str, Tensor] | None = None,
    embedding_axis: int = 0,
    **shape: Any,
) -> Any:
    """Meta's files for transformers' weights, whose rows of wq and wk are permuted by the published rule."""
    theirs = hf_llama(**{"intermediate_size": 192, **shape})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params))
    for number, part in enumerate(meta_shards(meta_state(theirs), shards, embedding_axis=embedding_axis)):
        file = folder / f"consolidated.{number:02d}.{suffix}"
        part |= more or {}
        torch.save(part, file) if suffix == "pth" else save_file(part, file)
    return theirs


def freqs(theta: float, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return (1 / theta ** (torch.arange(0, 8, 2) / 8)).to(dtype)


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **values}}


def llama3_vocabulary(folder: Path) -> None:
    """A tiktoken file of 512 tokens."""
    ranks = Tokenizer.from_ranks({bytes([byte]): byte for byte in range(256)})
    (folder / "tokenizer.model").write_bytes(ranks.to_tiktoken())


# --- builders ----------------------------------------------------------------------------------------------------


def llama3_without_theta(folder: Path) -> Any:
    theirs = meta(
        folder, LLAMA2_PARAMS | {"vocab_size": 512, "n_kv_heads": 2}, vocab_size=512,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    )  # fmt: skip
    llama3_vocabulary(folder)
    return theirs


def more_shards_than_kv_heads(folder: Path, *, differ: bool = False) -> Any:
    theirs = meta(folder, LLAMA2_PARAMS | {"n_kv_heads": 2}, shards=4, **LLAMA2)
    state = meta_state(theirs)
    for number in range(4):
        file = folder / f"consolidated.{number:02d}.pth"
        shard = torch.load(file, weights_only=True)
        for name in shard:
            if name.endswith(("wk.weight", "wv.weight")):
                shard[name] = state[name].chunk(2)[number // 2].clone()
                if differ and number == 3:
                    shard[name] += 1
        torch.save(shard, file)
    return theirs


def new_beside_old(folder: Path) -> Any:
    hf_llama(seed=1).save_pretrained(folder, max_shard_size=100_000)
    hf_llama().save_pretrained(folder / "new")
    shutil.move(folder / "new" / "model.safetensors", folder)
    return hf_llama()


def old_index_left(folder: Path) -> Any:
    theirs = new_beside_old(folder)
    for file in folder.glob("model-*"):
        file.unlink()
    return theirs


def damaged_index(folder: Path) -> Any:
    theirs = hf(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    return theirs


def pytorch_bin(folder: Path, *, shards: int = 1, nested: bool = False) -> Any:
    theirs = hf(folder)
    (folder / "model.safetensors").unlink()
    items = list(theirs.state_dict().items())
    size, listed = -(-len(items) // shards), {}
    for number in range(shards):
        part = dict(items[number * size : (number + 1) * size])
        name = "pytorch_model.bin" if shards == 1 else f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        torch.save({"model": part, "step": 3} if nested else part, folder / name)
        listed |= dict.fromkeys(part, name)
    if shards > 1:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": listed}))
    return theirs


def renamed_file(folder: Path, name: str) -> Any:
    theirs = hf(folder)
    (folder / "model.safetensors").rename(folder / name)
    return theirs


def shards_without_index(folder: Path, *, missing: bool = False) -> Any:
    theirs = hf_llama()
    theirs.save_pretrained(folder, max_shard_size=100_000)
    (folder / "model.safetensors.index.json").unlink()
    if missing:
        sorted(folder.glob("model-*"))[0].unlink()
    return theirs


def other_names(folder: Path, rename: Callable[[str], str | None], **shape: Any) -> Any:
    theirs = hf(folder, **shape)
    rename_tensors(folder / "model.safetensors", rename)
    return theirs


def tied_as_output(folder: Path) -> Any:
    return other_names(
        folder, lambda name: "lm_head.weight" if "embed_tokens" in name else name, tie_word_embeddings=True
    )


def with_frequencies(folder: Path, theta: float, dtype: torch.dtype = torch.float32) -> Any:
    theirs = hf(folder)
    state = load_file(folder / "model.safetensors")
    for layer in range(2):
        state[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = freqs(theta, dtype)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return theirs


def cached(folder: Path, *, snapshots: int = 1, main: bool = False) -> Any:
    names = [f"{number:040x}" for number in range(snapshots)]
    theirs = None
    for number, name in enumerate(names):
        (folder / "snapshots" / name).mkdir(parents=True)
        theirs = hf(folder / "snapshots" / name, seed=number)
    if main:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(names[-1])
    return theirs


def in_original(folder: Path, *, config: bool = False) -> Any:
    theirs = meta(folder / "original", LLAMA2_PARAMS | {"n_kv_heads": 2}, **LLAMA2)
    if config:
        theirs.config.save_pretrained(folder)
    return theirs


def adapter(folder: Path, *, weights: bool) -> Any:
    folder.mkdir(exist_ok=True)
    theirs = hf(folder) if weights else None
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "org/base", "peft_type": "LORA"})
    )
    save_file({"base_model.model.x": torch.zeros(1)}, folder / "adapter_model.safetensors")
    return theirs


def rows_and_tokens(folder: Path, rows: int) -> Any:
    theirs = hf(folder, vocab_size=rows)
    tokenizer = Tokenizer.from_ranks({bytes([byte]): byte for byte in range(256)})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer.to_hf_json()))
    return theirs


def stray_shard(folder: Path) -> Any:
    meta(folder, LLAMA2_PARAMS, **LLAMA2)
    shutil.copy(folder / "consolidated.00.pth", folder / "consolidated.99999999.pth")


def reward_model(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**SMALL, num_labels=1)).save_pretrained(folder)


# Keys that change nothing, as published files have them.
HARMLESS_KEYS: dict[str, Any] = {
    "unk_token_id": 0, "is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"},
    "max_sequence_length": 2048, "attn_implementation": "sdpa", "model_max_length": 4096, "pad_token": "<pad>",
    "tokenizer_padding_side": "right", "num_labels": 2, "neftune_noise_alpha": 5, "use_sliding_window": False,
    "layer_types": ["full_attention", "full_attention"], "partial_rotary_factor": 1.0, "embd_pdrop": 0.0,
    "resid_pdrop": 0.0, "attn_pdrop": 0.1, "residual_multiplier": 1.0, "name_or_path": "x", "mup": False, "bias": False,
    "sliding_window": None, "embedding_multiplier": 1, "logits_scaling": 1.0, "attention_dropout": 0.1, "alibi": False,
    "qk_layernorm": False, "use_qk_norm": False, "num_local_experts": 0, "final_logit_softcapping": None,
    "parallel_attn": False, "hidden_act": "swish", "original_max_position_embeddings": 256.0, "max_window_layers": 28,
    "rope_scaling": {"type": "linear", "factor": 1.0}, "n_layers": 2, "query_pre_attn_scalar": 8, "clip_qkv": None,
}  # fmt: skip

# One key at a time that makes another model, by the family that has it.
OTHER_MODELS: dict[str, dict[str, Any]] = {
    "attention biases (Qwen)": {"attention_bias": True},
    "MLP biases (Granite)": {"mlp_bias": True},
    "biases (InternLM)": {"bias": True},
    "query biases (StableLM)": {"use_qkv_bias": True},
    "output biases (Phi)": {"lm_head_bias": True},
    "GELU (Gemma)": {"hidden_act": "gelu_pytorch_tanh"},
    "GELU under another key (Gemma 2)": {"hidden_activation": "gelu_pytorch_tanh"},
    "sliding window (Mistral)": {"sliding_window": 128},
    "sliding window, switched on (Qwen)": {"sliding_window": 128, "use_sliding_window": True},
    "mixed layers (Gemma 3)": {"layer_types": ["full_attention", "sliding_attention"]},
    "partial rotation (Phi)": {"partial_rotary_factor": 0.5},
    "partial rotation (GPT-NeoX)": {"rotary_pct": 0.25},
    "interleaved pairs (DeepSeek)": {"rope_interleaved": True},
    "layers without RoPE (SmolLM3)": {"no_rope_layers": [1, 0]},
    "residual multiplier (Granite)": {"residual_multiplier": 0.22},
    "attention multiplier (Granite)": {"attention_multiplier": 0.5},
    "embedding multiplier (Granite)": {"embedding_multiplier": 12},
    "logits scaling (Granite)": {"logits_scaling": 8.0},
    "logit scale (Cohere)": {"logit_scale": 0.0625},
    "depth scaling (MiniCPM)": {"scale_depth": 1.4},
    "embedding scale (MiniCPM)": {"scale_emb": 12},
    "softcapping (Gemma 2)": {"attn_logit_softcapping": 50.0},
    "softcapped logits (Gemma 2)": {"final_logit_softcapping": 30.0},
    "query scale (Gemma)": {"query_pre_attn_scalar": 256},
    "q/k norm (Cohere)": {"use_qk_norm": True},
    "q/k norm (StableLM)": {"qk_layernorm": True},
    "clipped projections (OLMo)": {"clip_qkv": 8.0},
    "experts (Mixtral)": {"num_local_experts": 8},
    "experts (Qwen)": {"num_experts": 60},
    "experts (DeepSeek)": {"n_routed_experts": 64},
    "parallel blocks (Falcon)": {"parallel_attn": True},
    "parallel blocks (GPT-NeoX)": {"use_parallel_residual": True},
    "ALiBi (Falcon)": {"alibi": True},
    "low-rank attention (DeepSeek)": {"kv_lora_rank": 512},
    "chunked attention (Llama 4)": {"attention_chunk_size": 8192},
    "no causal mask": {"is_causal": False},
    "dynamic NTK (Qwen)": {"use_dynamic_ntk": True},
    "log-n attention (Qwen)": {"use_logn_attn": True},
    "sandwich norms (GLM)": {"use_sandwich_norm": True},
    "LayerNorm": {"norm_type": "layernorm"},
    "hybrid (Jamba)": {"mamba_d_state": 16},
    "multi-query (Falcon)": {"multi_query": True},
    "learned positions": {"position_embedding_type": "learned"},
    "another base of RoPE": {"rotary_base": 20_000},
    "decoder with an encoder": {"is_encoder_decoder": True},
    "cross-attention": {"add_cross_attention": True},
    "attention sinks": {"use_attention_sinks": True},
    "MuP (MiniCPM)": {"mup": True},
    "tied under another name": {"tie_embeddings": True},
    "vision tower": {"vision_config": {"hidden_size": 64}},
    "another size": {"num_kv_heads": 8},
}

# RoPE of other types, in `rope_scaling` or `rope_parameters`, and what is said.
OTHER_ROPE: dict[str, tuple[dict[str, Any], str]] = {
    "dynamic RoPE": ({"type": "dynamic", "factor": 2.0}, "RoPE type 'dynamic' is not supported"),
    "LongRoPE (Phi)": ({"type": "longrope", "short_factor": [1], "long_factor": [1]}, "RoPE type 'longrope' is not"),
    "LongRoPE, early name": ({"type": "su", "short_factor": [1], "long_factor": [1]}, "RoPE type 'su' is not"),
    "proportional RoPE": ({"rope_type": "proportional"}, "RoPE type 'proportional' is not supported"),
    "multimodal RoPE (Qwen)": ({"rope_type": "default", "mrope_section": [1, 1, 2]}, "'mrope_section' is"),
    "RoPE by layer type (Gemma 3)": (
        {"full_attention": {"type": "default"}, "sliding_attention": {"type": "default"}}, "'full_attention' is"
    ),
    "partial rotation": ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
}  # fmt: skip


KINDS = [
    Kind("Llama 2, Meta", "params.json without rope_theta, vocab_size -1", "loads: theta 10,000, context 4,096",
         lambda f: meta(f, LLAMA2_PARAMS, more={"rope.freqs": freqs(10_000)}, **LLAMA2, num_key_value_heads=8),
         config=(("rope_theta", 10_000.0), ("max_seq_len", 4096), ("vocab_size", 128))),
    Kind("Llama 2, Meta, several shards", "consolidated.00.pth, consolidated.01.pth; the embedding split by columns",
         "loads", lambda f: meta(f, LLAMA2_PARAMS | {"n_kv_heads": 2}, shards=2, embedding_axis=1, **LLAMA2),
         config=(("vocab_size", 128), ("n_kv_heads", 2))),
    Kind("Llama 2, Meta, rows split", "as Llama 3's shards", "loads",
         lambda f: meta(f, LLAMA2_PARAMS | {"n_kv_heads": 2}, shards=2, suffix="safetensors", **LLAMA2),
         config=(("vocab_size", 128),)),
    Kind("Llama 1, Meta", "norm_eps 1e-6", "loads: theta 10,000, context 2,048",
         lambda f: meta(f, LLAMA2_PARAMS | {"norm_eps": 1e-6}, **LLAMA2, num_key_value_heads=8, rms_norm_eps=1e-6),
         config=(("rope_theta", 10_000.0), ("max_seq_len", 2048))),
    Kind("Code Llama, Meta", "rope_theta 1,000,000", "loads: context 16,384",
         lambda f: meta(f, LLAMA2_PARAMS | {"rope_theta": 1e6}, num_key_value_heads=8,
                        rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
         config=(("rope_theta", 1e6), ("max_seq_len", 16_384))),
    Kind("Llama 3 without rope_theta", "a tiktoken tokenizer shows it", "loads: theta 500,000", llama3_without_theta,
         config=(("rope_theta", 500_000.0), ("max_seq_len", 8192))),
    Kind("stored frequencies, Meta", "rope.freqs of another theta than params.json", "refused, with both thetas",
         lambda f: (meta(f, LLAMA2_PARAMS, more={"rope.freqs": freqs(500_000)}, num_key_value_heads=8), None)[1],
         says="have theta 500,000, the configuration theta 10,000; set rope_theta"),
    Kind("stored frequencies, Hugging Face", "inv_freq of config.json's theta, in half precision", "loads",
         lambda f: with_frequencies(f, 10_000, torch.float16)),
    Kind("stored frequencies, Hugging Face", "inv_freq of another theta", "refused, with both thetas",
         lambda f: (with_frequencies(f, 26_000), None)[1], says="theta 26,000, the configuration theta 10,000"),
    Kind("more shards than key/value heads", "Meta's 405B in 16 files", "loads", more_shards_than_kv_heads),
    Kind("more shards than key/value heads", "the copies differ", "refused",
         lambda f: (more_shards_than_kv_heads(f, differ=True), None)[1], says="expected each 2 times with the same"),
    Kind("a gap in the shards", "consolidated.99999999.pth next to consolidated.00.pth", "refused", stray_shard,
         says="consolidated.01.pth is missing"),
    Kind("linear RoPE", 'rope_scaling {"type": "linear", "factor": 4}', "loads", context=256,
         build=lambda f: hf(f, **rope("linear", factor=4.0))),
    Kind("YaRN", 'rope_scaling {"rope_type": "yarn", ...}', "loads", context=256,
         build=lambda f: hf(f, **rope("yarn", factor=8.0, original_max_position_embeddings=32))),
    Kind("YaRN, ramp not rounded", '"truncate": false', "loads", context=256,
         build=lambda f: hf(f, **rope("yarn", factor=8.0, original_max_position_embeddings=32, truncate=False))),
    Kind("YaRN, own attention factor", '"attention_factor": 1.3, "beta_fast": 16, "beta_slow": 2', "loads", context=256,
         build=lambda f: hf(f, **rope("yarn", factor=8.0, original_max_position_embeddings=32, attention_factor=1.3,
                                      beta_fast=16.0, beta_slow=2.0))),
    Kind("YaRN, mscale", '"mscale": 0.7, "mscale_all_dim": 1.0', "loads", context=256,
         build=lambda f: hf(f, **rope("yarn", factor=8.0, original_max_position_embeddings=32, mscale=0.7,
                                      mscale_all_dim=1.0))),
    Kind("Llama 3.1's RoPE", 'rope_parameters {"rope_type": "llama3", ...}', "loads", context=256,
         build=lambda f: hf(f, **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                      original_max_position_embeddings=32))),
    Kind("keys that change nothing", "unk_token_id, is_llama_config, residual_multiplier 1.0, ...", "loads, silently",
         lambda f: hf(f, HARMLESS_KEYS, without=("rope_parameters",))),
    Kind("unknown keys", "a key of somebody's own", "loads, with one warning that names it",
         lambda f: hf(f, {"own_key": 1, "other_key": {"a": [1]}}), says="unknown keys are ignored: other_key, own_key"),
    Kind("Llama 3.2 Vision", "model_type mllama", "refused by name",
         lambda f: (hf(f, {"model_type": "mllama"}), None)[1], says="'mllama', Llama 3.2 Vision; only 'llama'"),
    Kind("Llama 4", "model_type llama4", "refused by name",
         lambda f: (hf(f, {"model_type": "llama4"}), None)[1], says="'llama4', Llama 4; only 'llama'"),
    Kind("another architecture", "model_type mistral", "refused by name",
         lambda f: (hf(f, {"model_type": "mistral"}), None)[1], says="model_type is 'mistral'"),
    Kind("q/k norm, Meta", "qk_norm true in params.json", "refused by name",
         lambda f: (meta(f, LLAMA2_PARAMS | {"qk_norm": True}), None)[1], says="qk_norm is True"),
    Kind("no q/k norm, Meta", "qk_norm false in params.json", "loads",
         lambda f: meta(f, LLAMA2_PARAMS | {"qk_norm": False}, num_key_value_heads=8)),
    *(Kind("another model relabelled llama", kind, "refused, naming the key",
           lambda f, changes=changes: (hf(f, changes), None)[1], says=f"{next(iter(changes))} is")
      for kind, changes in OTHER_MODELS.items()),
    *(Kind("RoPE of another type", kind, "refused by name", says=says,
           build=lambda f, group=group: (hf(f, {"rope_scaling": group}, without=("rope_parameters",)), None)[1])
      for kind, (group, says) in OTHER_ROPE.items()),
    Kind("reward model", "LlamaForSequenceClassification", "refused by name", reward_model,
         says="'LlamaForSequenceClassification' .a reward model or a classifier.: it has another output layer"),
    Kind("quantised", "GPTQ's quantization_config", "refused by name",
         lambda f: (hf(f, {"quantization_config": {"quant_method": "gptq", "bits": 4}}), None)[1],
         says="quantised with gptq cannot be loaded"),
    Kind("a new file next to an old index", "model.safetensors and model.safetensors.index.json",
         "loads the single file, as transformers, with a warning", new_beside_old,
         says="model.safetensors: is loaded; model.safetensors.index.json next to it"),
    Kind("an index whose shards are gone", "save_pretrained into the same folder", "loads the single file",
         old_index_left, says="index.json next to it lists other files and is not used"),
    Kind("a damaged index", "an empty weight_map next to model.safetensors", "loads the single file", damaged_index,
         says="index.json next to it lists other files and is not used"),
    Kind("pytorch_model.bin", "Vicuna 1.5", "loads", pytorch_bin),
    Kind("pytorch_model.bin, sharded", "pytorch_model.bin.index.json", "loads", lambda f: pytorch_bin(f, shards=3)),
    Kind("nested weights", '{"model": {...}, "step": 3}', "loads", lambda f: pytorch_bin(f, nested=True)),
    Kind("one file under another name", "model-00001-of-00001.safetensors", "loads",
         lambda f: renamed_file(f, "model-00001-of-00001.safetensors")),
    Kind("one file under any name", "merged.safetensors", "loads", lambda f: renamed_file(f, "merged.safetensors")),
    Kind("all shards, no index", "model-0000N-of-0000M.safetensors", "loads", shards_without_index),
    Kind("not all shards, no index", "the first is missing", "refused",
         lambda f: (shards_without_index(f, missing=True), None)[1], says=r"holds \d of the \d weight files"),
    Kind("base model's names", "layers.0... without the prefix model.", "loads",
         lambda f: other_names(f, lambda name: name.removeprefix("model."))),
    Kind("a wrapper's names", "_orig_mod.model.layers.0...", "loads",
         lambda f: other_names(f, lambda name: f"_orig_mod.{name}")),
    Kind("tied output under its own name", "lm_head.weight alone", "loads", tied_as_output),
    Kind("tied output", "model.embed_tokens.weight alone", "loads", lambda f: hf(f, tie_word_embeddings=True)),
    Kind("a root of the Hugging Face cache", "models--org--name with one snapshot", "loads", cached),
    Kind("a root of the Hugging Face cache", "several snapshots, refs/main", "loads the main one",
         lambda f: cached(f, snapshots=3, main=True)),
    Kind("a root of the Hugging Face cache", "several snapshots", "refused",
         lambda f: (cached(f, snapshots=2), None)[1], says="holds 2 snapshots and no branch main"),
    Kind("only original/", "Meta's files in a Hugging Face repository", "loads", in_original),
    Kind("weights in original/", "config.json without weights", "loads",
         lambda f: in_original(f, config=True)),
    Kind("LoRA adapter alone", "adapter_config.json", "refused, naming its base",
         lambda f: adapter(f, weights=False), says="a LoRA adapter of the base 'org/base', not a model; .* --adapter"),
    Kind("LoRA adapter next to weights", "adapter_config.json and model.safetensors", "loads without it, with a note",
         lambda f: adapter(f, weights=True), says="the adapter next to the weights is not applied"),
    Kind("rows padded", "512 tokens, 1,024 rows", "loads", lambda f: rows_and_tokens(f, 1024)),
    Kind("an added token without a row", "513 tokens, 512 rows", "loads", lambda f: rows_and_tokens(f, 511)),
    Kind("another model's tokenizer", "512 tokens, 128 rows", "loads, with a note",
         lambda f: rows_and_tokens(f, 128), says="this vocabulary has 512 tokens, but the model has 128"),
]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("row", KINDS, ids=lambda row: f"{row.kind}: {row.example}"[:70])
def test_kind(tmp_path: Path, row: Kind) -> None:
    folder = tmp_path / "model"
    theirs = row.build(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if theirs is None:
            assert row.says and "refused" in row.result
            with pytest.raises(WorkbenchError, match=row.says) as refusal:
                load_model(folder, device="cpu")
            text = str(refusal.value)
            assert str(folder) in text and len(text) < 600 and text.count("\n") <= 1
            return
        ours = load_model(folder, device="cpu")
    assert row.result.startswith("loads")
    assert len(ours.notes) == len(caught) == (row.says is not None), ours.notes
    if row.says:
        with pytest.warns(UserWarning, match=row.says):
            warnings.warn(ours.notes[0], UserWarning, stacklevel=1)
    assert {name: getattr(ours.config, name) for name, _ in row.config} == dict(row.config)
    assert read_config(folder) == ours.config
    tokens = torch.randint(theirs.config.vocab_size, (2, row.context), generator=torch.Generator().manual_seed(1))
    expected = theirs(tokens).logits
    assert expected.std() > 0.3
    assert (ours(tokens) - expected).abs().max() <= 2e-5


def test_kinds_are_told_apart() -> None:
    assert len({(row.kind, row.example) for row in KINDS}) == len(KINDS) > 80


def test_llama_1_of_65b_has_a_note(tmp_path: Path) -> None:
    """Its file is that of a Llama 2 without grouped heads; the shape alone is needed to see it."""
    params = {"dim": 8192, "multiple_of": 256, "n_heads": 64, "n_layers": 80, "norm_eps": 1e-5, "vocab_size": -1}
    (tmp_path / "params.json").write_text(json.dumps(params))
    file = tmp_path / "consolidated.00.pth"
    layout = Layout("meta", tmp_path, tmp_path / "params.json", (file,))
    config, notes = stated_config(layout, {file: {"tok_embeddings.weight": torch.empty(32_000, 8192, device="meta")}})
    assert (config.vocab_size, config.max_seq_len, config.rope_theta, config.ffn_dim) == (32_000, 4096, 10_000.0, 22016)
    assert len(notes) == 1 and 'Llama 1\'s 65B, add "max_seq_len": 2048' in notes[0]
    (tmp_path / "params.json").write_text(json.dumps(params | {"max_seq_len": 2048}))
    assert stated_config(layout, {file: {"tok_embeddings.weight": torch.empty(32_000, 8192, device="meta")}})[1] == ()


@pytest.mark.parametrize(
    ("rows", "columns", "shards", "size"),
    [(32_000, 512, 2, 32_000), (16_000, 1024, 2, 32_000), (32_000, 1024, 1, 32_000)],
)
def test_vocabulary_of_minus_one(tmp_path: Path, rows: int, columns: int, shards: int, size: int) -> None:
    """The embedding's rows, whether its shards divide columns (Llama 2) or rows (Llama 3)."""
    (tmp_path / "params.json").write_text(json.dumps({"dim": 1024, "n_heads": 8, "n_layers": 2, "vocab_size": -1}))
    files = tuple(tmp_path / f"consolidated.{number:02d}.pth" for number in range(shards))
    table = {"tok_embeddings.weight": torch.empty(rows, columns, device="meta")}
    config, _ = stated_config(Layout("meta", tmp_path, tmp_path / "params.json", files), dict.fromkeys(files, table))
    assert config.vocab_size == size


def test_vocabulary_of_a_folder_without_weights(tmp_path: Path) -> None:
    params = {"dim": 64, "n_heads": 8, "n_layers": 2, "vocab_size": -1}
    (tmp_path / "params.json").write_text(json.dumps(params))
    with pytest.raises(ConfigError, match="vocab_size is -1; set it to the size of the tokenizer"):
        read_shape(tmp_path)
    llama3_vocabulary(tmp_path)
    config, weights = read_shape(tmp_path)
    assert (config.vocab_size, config.rope_theta, weights) == (512, 500_000.0, False)


@pytest.mark.parametrize("scaling", ["linear", "yarn"])
def test_converting_another_rope(tmp_path: Path, scaling: str) -> None:
    """Hugging Face's layout states it, and transformers reads the same logits; Meta's cannot."""
    from transformers import LlamaForCausalLM

    values = (
        {} if scaling == "linear" else {"original_max_position_embeddings": 32, "mscale": 0.7, "mscale_all_dim": 1.0}
    )
    theirs = hf(tmp_path / "hf", **rope(scaling, factor=8.0, **values))
    again = convert(tmp_path / "hf", tmp_path / "again", layout="hf")
    tokens = torch.randint(128, (1, 256), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(LlamaForCausalLM.from_pretrained(again)(tokens).logits, theirs(tokens).logits)
    assert read_config(again) == read_config(tmp_path / "hf")
    with pytest.raises(ConfigError, match=f"cannot state RoPE of type {scaling}; use Hugging Face's layout"):
        convert(tmp_path / "hf", tmp_path / "meta", layout="meta")
    assert not (tmp_path / "meta").exists()


def test_converting_padded_rows(tmp_path: Path) -> None:
    rows_and_tokens(tmp_path / "hf", 640)
    meta_folder = convert(tmp_path / "hf", tmp_path / "meta", layout="meta")
    model = load_model(meta_folder, device="cpu")
    assert model.config.vocab_size == 640 and model.tokenizer and model.tokenizer.vocab_size == 512
