"""Builders of small checkpoints, one for each kind: each writes a folder and returns transformers' model of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.workbench.checkpoint.checkpoints import SMALL, hf_llama, meta_shards, meta_state, write_gguf
from workbench.text.tokenizer import Tokenizer

LLAMA2: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
LLAMA2_PARAMS = {"dim": 64, "multiple_of": 32, "n_heads": 8, "n_layers": 2, "norm_eps": 1e-5, "vocab_size": -1}


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
    theirs = shards(folder)
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


def damaged_branch(folder: Path) -> None:
    cached(folder, snapshots=2)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_bytes(b"\xff" * 5000)


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


def float8_of_meta(folder: Path) -> None:
    meta(folder, LLAMA2_PARAMS | {"n_kv_heads": 2}, **LLAMA2)
    state = torch.load(folder / "consolidated.00.pth", weights_only=True)
    state["layers.0.feed_forward.w1.weight"] = state["layers.0.feed_forward.w1.weight"].to(torch.float8_e4m3fn)
    torch.save(state, folder / "consolidated.00.pth")


def stray_shard(folder: Path) -> None:
    meta(folder, LLAMA2_PARAMS, **LLAMA2)
    shutil.copy(folder / "consolidated.00.pth", folder / "consolidated.99999999.pth")


def reward_model(folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**SMALL, num_labels=1)).save_pretrained(folder)


def shards(folder: Path) -> Any:
    theirs = hf_llama()
    theirs.save_pretrained(folder, max_shard_size=100_000)
    return theirs


def gguf(folder: Path, **metadata: Any) -> Any:
    """One GGUF file; `metadata` replaces keys below "llama."."""
    theirs = hf_llama()
    folder.mkdir()
    write_gguf(theirs, folder / "model.gguf", metadata=metadata)
    return theirs


def quantised(folder: Path, **settings: Any) -> Any:
    return hf(folder, {"quantization_config": settings})


def unreadable_tokenizer(folder: Path) -> Any:
    theirs = hf(folder)
    (folder / "tokenizer.json").write_text("{}")
    return theirs
