"""Files of a checkpoint directory: its layout, its files in shard order, and the tensors in one file.

It knows the file names of Meta and Hugging Face, and the two containers (safetensors and PyTorch's zip). Weight files
are memory-mapped, and read only when used. It knows nothing of the meaning of the tensors.
"""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from workbench.checkpoint.sources.names import resolve
from workbench.checkpoint.tensors import Kind
from workbench.config import ModelConfig
from workbench.errors import CheckpointError
from workbench.provenance import hub_repository


def open_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor in a `.safetensors` or `.pth` file, as views of the mapped file.

    Writing to one changes this process's copy of the page, never the file.
    Raises: CheckpointError if the file is missing, truncated, or holds anything but tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file.")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        content: Any = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{path}: cannot be read; it is truncated, damaged or not a weight file "
            f"({path.stat().st_size:,} bytes; {reason[0] if reason else type(error).__name__})."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, found {type(content).__name__}.")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: expected tensors only, found {name!r} of {type(value).__name__}.")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises: CheckpointError if it is missing, damaged or not an object.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value


INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Layout:
    """Paths of a checkpoint's configuration and weights; files in shard order."""

    kind: Kind
    root: Path
    config_file: Path
    weight_files: tuple[Path, ...]


def find_layout(path: str | Path, *, weights: bool = True) -> Layout:
    """The layout of a checkpoint directory; with `weights` false, of one whose weights may be absent.

    Raises: CheckpointError if there is no configuration or no weight file of that layout, or a shard is missing.
    """
    root = resolve(path)
    if root.is_file():
        raise CheckpointError(f"{root}: is a file; pass the directory that holds it and its configuration.")
    try:
        return _layout_in(root, weights=weights)
    except CheckpointError as error:
        if repository := hub_repository(root):
            raise CheckpointError(f"{error} The rest of it: `workbench fetch {repository}`.") from error
        raise


def _layout_in(root: Path, *, weights: bool) -> Layout:
    meta, hf = root / "params.json", root / "config.json"
    shards = _meta_files(root)
    if meta.is_file() and (shards or not hf.is_file()):
        if hf.is_file() and _hf_files(root, required=False):
            raise CheckpointError(
                f"{root}: holds both Meta's and Hugging Face's weights; put each in a directory of its own."
            )
        if weights and not shards:
            raise CheckpointError(f"{root}: holds params.json, but no consolidated.NN.pth or .safetensors.")
        return Layout("meta", root, meta, shards)
    if hf.is_file():
        return Layout("hf", root, hf, _hf_files(root, required=weights))
    raise CheckpointError(f"{root}: neither params.json (Meta) nor config.json (Hugging Face) is in this directory.")


def stated_config(layout: Layout) -> ModelConfig:
    """The configuration in the file; for Meta's layout only the weights show whether the output is tied."""
    values = read_json(layout.config_file)
    read = ModelConfig.from_meta if layout.kind == "meta" else ModelConfig.from_hf
    return read(values, source=str(layout.config_file))


def _meta_files(root: Path) -> tuple[Path, ...]:
    for suffix in ("safetensors", "pth"):
        shards = {}
        for path in root.glob(f"consolidated*.{suffix}"):
            match = re.fullmatch(r"consolidated(?:\.(\d+))?", path.stem)
            if match:
                shards[int(match[1] or 0)] = path
        absent = sorted(set(range(max(shards, default=-1) + 1)) - set(shards))
        if absent:
            raise CheckpointError(
                f"{root}: consolidated.{absent[0]:02d}.{suffix} is missing; "
                f"found {', '.join(path.name for _, path in sorted(shards.items()))}."
            )
        if shards:
            return tuple(path for _, path in sorted(shards.items()))
    return ()


def _hf_files(root: Path, *, required: bool) -> tuple[Path, ...]:
    index = root / INDEX
    if index.is_file():
        names = sorted(set(weight_map(index).values()))
        absent = [name for name in names if not (root / name).is_file()]
        if absent and required:
            raise CheckpointError(
                f"{index}: lists {absent[0]}, which does not exist ({len(absent)} of {len(names)} missing)."
            )
        return tuple(root / name for name in names)
    single = root / "model.safetensors"
    if single.is_file():
        return (single,)
    if required:
        others = sorted(path.name for path in (*root.glob("*.safetensors"), *root.glob("pytorch_model*.bin")))
        hint = f"; found {', '.join(others[:3])}, which cannot be used alone" if others else ""
        raise CheckpointError(f"{root}: holds config.json, but neither model.safetensors nor {INDEX}{hint}.")
    return ()


def weight_map(index: Path) -> dict[str, str]:
    """File name of every tensor in a Hugging Face index."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise CheckpointError(f"{index}: has no weight_map from tensor names to files.")
    outside = [name for name in files.values() if Path(name).name != name]
    if outside:
        raise CheckpointError(f"{index}: lists {outside[0]!r}, which is not in this directory.")
    return files
