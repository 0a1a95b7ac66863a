"""Converts checkpoints between Meta's and Hugging Face's layout, in any number of shards, without loss."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from workbench.checkpoint.adapter import with_adapter
from workbench.checkpoint.assemble import MappedPages, Target, assemble, assemble_half_split
from workbench.checkpoint.files import INDEX
from workbench.checkpoint.load import fitting_tokenizer
from workbench.checkpoint.manifest import Checkpoint, open_checkpoint, read_config
from workbench.checkpoint.pieces import Weight
from workbench.checkpoint.tensors import OUTPUT, Kind, stored_name
from workbench.checkpoint.write import Entry, write_pth, write_safetensors
from workbench.config import ModelConfig
from workbench.config.meta_code import params_for_meta
from workbench.errors import CheckpointError, WorkbenchWarning
from workbench.text.tokenizer import Tokenizer

# Files that are copied unchanged.
_COMPANIONS = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "LICENSE",
    "LICENSE.txt",
    "USE_POLICY.md",
    "USE_POLICY.txt",
)


def convert(
    source: str | Path,
    target: str | Path,
    *,
    layout: Kind,
    shards: int = 1,
    container: Literal["safetensors", "pth"] = "safetensors",
    adapter: str | Path | None = None,
) -> Path:
    """Write a checkpoint in another layout, and return its directory.

    `adapter` is the folder of a LoRA adapter, which is merged into the weights. `shards` is Meta's tensor-parallel
    size, or the number of files in Hugging Face's layout. `container` "pth" is for Meta's own code: its params.json has
    only Meta's keys, and a tied output is written too. A WorkbenchWarning names what that code would take otherwise.
    Values and dtypes are not changed, except that quantised and merged weights are rounded to the dtype in which they
    load. The tokenizer is copied. Files get their final names when all of them are complete.

    Raises: CheckpointError if the source does not load, the target holds a checkpoint or cannot be written, `shards`
        does not fit, or Meta's code cannot compute the model.
    """
    if layout not in ("meta", "hf"):
        raise CheckpointError(f"unknown layout {layout!r}; use 'meta' or 'hf'.")
    if container not in ("safetensors", "pth") or (layout == "hf" and container == "pth"):
        raise CheckpointError(f"the {layout} layout cannot be written as {container!r}; use safetensors.")
    if shards < 1:
        raise CheckpointError(f"shards must be at least 1, found {shards}.")
    checkpoint = open_checkpoint(source)
    if adapter is not None:
        checkpoint = with_adapter(checkpoint, adapter)
    target = Path(target).expanduser()
    existing = [name for name in ("params.json", "config.json") if (target / name).exists()]
    if existing or (target.exists() and not target.is_dir()):
        raise CheckpointError(
            f"{target}: holds {existing[0] if existing else 'a file'} already; choose an empty directory."
        )
    tokenizer, _ = fitting_tokenizer(checkpoint.layout, checkpoint.config)
    config = _config(checkpoint, tokenizer, layout, container)
    if layout == "meta":
        _check_divides(checkpoint.config, shards)
    partial_target = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial_target.mkdir(parents=True)
        if layout == "meta":
            _write_meta(checkpoint, partial_target, shards, container)
        else:
            _write_hf(checkpoint, partial_target, shards)
        _write_companions(checkpoint, tokenizer, layout, partial_target)
        # The configuration is last: a directory without it is not a checkpoint.
        _write_json(partial_target / ("params.json" if layout == "meta" else "config.json"), config)
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(partial_target.iterdir(), key=lambda file: file.stat().st_mtime_ns):
            os.replace(file, target / file.name)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(partial_target, ignore_errors=True)
    context, rows = read_config(target).max_seq_len, checkpoint.config.vocab_size
    if context != checkpoint.config.max_seq_len:
        text = (
            f"{target}: Meta's params.json has no key for the context of {checkpoint.config.max_seq_len:,} tokens; "
            f"loaded from there, the model has {context:,}."
        )
        warnings.warn(text, WorkbenchWarning, stacklevel=2)
    if container == "pth" and tokenizer and tokenizer.vocab_size != rows:
        text = (
            f"{target}: Meta's code needs a tokenizer of exactly vocab_size tokens; this one has "
            f"{tokenizer.vocab_size:,}, but the model has {rows:,} rows."
        )
        warnings.warn(text, WorkbenchWarning, stacklevel=2)
    return target


def _config(checkpoint: Checkpoint, tokenizer: Tokenizer | None, layout: Kind, container: str) -> dict[str, Any]:
    if layout == "meta":
        return params_for_meta(checkpoint.config) if container == "pth" else checkpoint.config.to_meta()
    config = checkpoint.config.to_hf() | {"torch_dtype": str(checkpoint.dtype).removeprefix("torch.")}
    if tokenizer:
        config |= {} if tokenizer.bos_id is None else {"bos_token_id": tokenizer.bos_id}
        config |= {"eos_token_id": sorted(tokenizer.stop_ids)} if tokenizer.stop_ids else {}
    return config


def _check_divides(config: ModelConfig, shards: int) -> None:
    for name in ("n_heads", "n_kv_heads", "ffn_dim", "vocab_size"):
        count = getattr(config, name)
        if count % shards:
            raise CheckpointError(f"{name} {count} cannot be split into {shards} shards; use a number that divides it.")


def _write_meta(checkpoint: Checkpoint, target: Path, shards: int, container: str) -> None:
    pages = MappedPages(checkpoint.layout.weight_files)
    write = write_pth if container == "pth" else write_safetensors
    for rank in range(shards):
        entries = []
        for weight in checkpoint.weights:
            shape = list(weight.spec.shape)
            if weight.spec.split is not None:
                shape[weight.spec.split] //= shards
            make = partial(_shard, weight, pages, rank=rank, size=shards)
            entries.append(Entry(weight.spec.name, _dtype(weight), tuple(shape), make))
        if container == "pth" and checkpoint.config.tied_output:
            entries.append(replace(entries[0], name=OUTPUT))  # the embedding is the first weight
        write(target / f"consolidated.{rank:02d}.{container}", entries)


def _write_hf(checkpoint: Checkpoint, target: Path, shards: int) -> None:
    pages = MappedPages(checkpoint.layout.weight_files)
    entries = [
        Entry(stored_name("hf", w.spec), _dtype(w), w.spec.shape, partial(assemble_half_split, w, pages, _dtype(w)))
        for w in checkpoint.weights
    ]
    total = sum(entry.nbytes for entry in entries)
    files = list(_split_into_files(entries, shards))
    if len(files) == 1:
        write_safetensors(target / "model.safetensors", entries)
        return
    weight_map: dict[str, str] = {}
    for number, group in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        write_safetensors(target / name, group)
        weight_map |= {entry.name: name for entry in group}
    _write_json(target / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


def _split_into_files(entries: list[Entry], files: int) -> Iterator[list[Entry]]:
    """The entries in order, in at most `files` groups of about equal size."""
    total, n_bytes, group = sum(entry.nbytes for entry in entries), 0, list[Entry]()
    n_groups = 0
    for entry in entries:
        group.append(entry)
        n_bytes += entry.nbytes
        if n_bytes * files >= total * (n_groups + 1):
            yield group
            n_groups, group = n_groups + 1, []
    if group:
        yield group


def _dtype(weight: Weight) -> torch.dtype:
    return weight.pieces[0].tensor.dtype


def _shard(weight: Weight, pages: MappedPages, *, rank: int, size: int) -> Tensor:
    return assemble(weight, pages, Target(_dtype(weight), torch.device("cpu"), rank, size))


def _write_companions(checkpoint: Checkpoint, tokenizer: Tokenizer | None, layout: Kind, target: Path) -> None:
    root = checkpoint.layout.root
    for name in _COMPANIONS:
        if (root / name).is_file():
            shutil.copyfile(root / name, target / name)
    if tokenizer is None or tokenizer.source is None:
        return
    if checkpoint.layout.kind == "gguf":  # the tokenizer is in the file of the weights
        _write_hf_tokenizer(tokenizer, target)
        return
    if not (target / tokenizer.source.name).exists():  # it was in a subfolder
        shutil.copyfile(tokenizer.source, target / tokenizer.source.name)
    if layout == "meta" and not (target / "tokenizer.model").exists() and tokenizer.has_meta_specials:
        (target / "tokenizer.model").write_bytes(tokenizer.to_tiktoken())
    if layout == "hf" and not (target / "tokenizer.json").exists():
        _write_hf_tokenizer(tokenizer, target)


def _write_hf_tokenizer(tokenizer: Tokenizer, target: Path) -> None:
    """Write the tokenizer, and `tokenizer_config.json` with what its tokens are for."""
    if tokenizer.is_sentencepiece:
        (target / "tokenizer.model").write_bytes(tokenizer.to_sentencepiece())
        kind = "LlamaTokenizer"
    else:
        _write_json(target / "tokenizer.json", tokenizer.to_hf_json())
        kind = "PreTrainedTokenizerFast"
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    ids |= {"unk_token": tokenizer.unk_id, "pad_token": tokenizer.pad_id}
    config: dict[str, Any] = {"tokenizer_class": kind, "add_bos_token": tokenizer.adds_bos}
    config |= {role: tokenizer.name(token) for role, token in ids.items() if token is not None}
    templates = tokenizer.chat_templates
    if templates:
        named = [{"name": name, "template": template} for name, template in templates.items()]
        config["chat_template"] = templates["default"] if set(templates) == {"default"} else named
    if not (target / "tokenizer_config.json").exists():
        _write_json(target / "tokenizer_config.json", config)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
