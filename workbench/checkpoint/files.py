"""Files of a checkpoint directory: its layout, and its files in shard order.

It knows the file names of Meta and Hugging Face. It knows nothing of the meaning of the tensors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from workbench.checkpoint.float8 import QUANTISATION_KEYS, float8_scaling
from workbench.checkpoint.gguf import gguf_files
from workbench.checkpoint.gguf_config import gguf_config
from workbench.checkpoint.read import read_json
from workbench.checkpoint.sources.names import is_fetchable, resolve
from workbench.checkpoint.tensors import StoredKind
from workbench.config import ModelConfig
from workbench.errors import CheckpointError
from workbench.provenance import hub_repository

INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Layout:
    """Paths of a checkpoint's configuration and weights; files in shard order.

    `root` is the directory; of kind "gguf" it is the file, which holds the configuration and the tokenizer too.
    """

    kind: StoredKind
    root: Path
    config_file: Path
    weight_files: tuple[Path, ...]


def find_layout(path: str | Path, *, weights: bool = True) -> Layout:
    """The layout of a checkpoint directory or GGUF file; with `weights` false, of one whose weights may be absent.

    Raises: CheckpointError if there is no configuration or no weight file of that layout, or a shard is missing.
    """
    root = resolve(path)
    if files := gguf_files(root):
        return Layout("gguf", files[0], files[0], files)
    if root.is_file():
        raise CheckpointError(f"{root}: is a file; pass the directory that holds it and its configuration.")
    try:
        return _layout_in(root, weights=weights)
    except CheckpointError as error:
        if name := str(path) if is_fetchable(str(path)) else hub_repository(root):
            raise CheckpointError(f"{error} The rest of it: `workbench fetch {name}`.") from error
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
    if (root / ADAPTER).is_file():
        base = read_json(root / ADAPTER).get("base_model_name_or_path")
        named = f" of the base {str(base)[:120]!r}" if base else ""
        raise CheckpointError(
            f"{root}: a LoRA adapter{named}, not a model; pass the base model, and the adapter with --adapter {root} "
            "(or load_model(base, adapter=...))."
        )
    raise CheckpointError(f"{root}: neither params.json (Meta) nor config.json (Hugging Face) is in this directory.")


def stated_config(layout: Layout) -> ModelConfig:
    """The configuration in the file; for Meta's layout only the weights show whether the output is tied."""
    if layout.kind == "gguf":
        return gguf_config(layout.weight_files)
    values = read_json(layout.config_file)
    if layout.kind == "hf":
        float8_scaling(values, str(layout.config_file))  # refuses other quantisations
        values = {key: value for key, value in values.items() if key not in QUANTISATION_KEYS}
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
