"""Files of a checkpoint directory: its layout, and its files in shard order.

It knows the file names of Meta and Hugging Face. It knows nothing of the meaning of the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.checkpoint.gguf import gguf_files
from workbench.checkpoint.sources.names import is_fetchable, resolve
from workbench.checkpoint.tensors import StoredKind
from workbench.errors import CheckpointError
from workbench.file_problem import file_problem
from workbench.provenance import hub_repository
from workbench.small_files import read_json

INDEX = "model.safetensors.index.json"
_BIN_INDEX = "pytorch_model.bin.index.json"
ADAPTER = "adapter_config.json"
_LONGEST_NAME = 200  # characters of a file's name; most systems have a limit of 255 bytes
_META_NAME = re.compile(r"consolidated(?:\.(\d+)|-(\d+)-of-(\d+))?")
_NUMBERED = re.compile(r"(.*)-(\d{1,6})-of-(\d{1,6})")
# Weight files that are not a model: they belong to an adapter, an optimiser, or another program's format.
_NOT_A_MODEL = re.compile(r"adapter|optimizer|scheduler|training_args|rng_state|consolidated|lora|projector")


@dataclass(frozen=True)
class Layout:
    """Paths of a checkpoint's configuration and weights; files in shard order.

    `root` is the directory; of kind "gguf" it is the file, which holds the configuration and the tokenizer too.
    `index` is the file that says which tensor is in which weight file, if there is one. `notes` are sentences for the
    user about files that were passed over.
    """

    kind: StoredKind
    root: Path
    config_file: Path
    weight_files: tuple[Path, ...]
    index: Path | None = None
    notes: tuple[str, ...] = ()


def find_layout(path: str | Path, *, weights: bool = True) -> Layout:
    """The layout of a checkpoint directory or GGUF file; with `weights` false, of one whose weights may be absent.

    A directory of the Hugging Face cache stands for its snapshot, and Meta's files may be in `original/`.
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
    hf_config = root / "config.json"
    folder = root if (root / "params.json").is_file() else root / "original"
    meta_config = folder / "params.json"
    shards = _meta_files(folder) if meta_config.is_file() else ()
    hf = _hf_layout(root) if hf_config.is_file() else None
    if hf and hf.weight_files and (folder != root or not shards):
        if weights:
            _check_complete(hf)
        return replace(hf, notes=(*hf.notes, *_adapter_note(root)))
    if hf and hf.weight_files:
        raise CheckpointError(
            f"{root}: holds both Meta's and Hugging Face's weights; put each in a directory of its own."
        )
    if meta_config.is_file() and (shards or not hf):
        if weights and not shards:
            raise CheckpointError(f"{folder}: holds params.json, but no consolidated.NN.pth or .safetensors.")
        return Layout("meta", root, meta_config, shards, notes=_adapter_note(root))
    if hf:
        if weights:
            raise CheckpointError(_no_weights(root))
        return hf
    raise CheckpointError(_no_configuration(root))


def weight_map(index: Path) -> dict[str, str]:
    """File name of every tensor in a Hugging Face index."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise CheckpointError(f"{index}: has no weight_map from tensor names to files.")
    outside = [name for name in files.values() if Path(name).name != name or len(name) > _LONGEST_NAME]
    if outside:
        raise CheckpointError(f"{index}: lists {outside[0][:80]!r}, which is not in this directory.")
    return files


def _meta_files(folder: Path) -> tuple[Path, ...]:
    for suffix in ("safetensors", "pth"):
        shards: dict[int, Path] = {}
        for path in sorted(folder.glob(f"consolidated*.{suffix}")):
            if match := _META_NAME.fullmatch(path.stem):
                number = int(match[2]) - 1 if match[2] else int(match[1] or 0)
                if number in shards:
                    raise CheckpointError(
                        f"{folder}: {shards[number].name} and {path.name} are the same shard; remove one."
                    )
                shards[number] = path
        absent = next((number for number in range(len(shards)) if number not in shards), None)
        if absent is not None:
            raise CheckpointError(
                f"{folder}: consolidated.{absent:02d}.{suffix} is missing; found {_names(shards.values())}."
            )
        if shards:
            files = tuple(path for _, path in sorted(shards.items()))
            counts = {int(match[3]) for path in files if (match := _META_NAME.fullmatch(path.stem)) and match[3]}
            if counts - {len(files)}:
                raise CheckpointError(f"{folder}: holds {len(files)} of {max(counts)} shards, {_names(files)}.")
            return files
    return ()


def _hf_layout(root: Path) -> Layout:
    """The layout of a directory with `config.json`, in transformers' order: one file first, then an index."""
    layout = Layout("hf", root, root / "config.json", ())
    for single, index in ((root / "model.safetensors", root / INDEX), (root / "pytorch_model.bin", root / _BIN_INDEX)):
        if single.is_file():
            if index.is_file() and _lists_others(index, single.name):
                note = f"{single}: is loaded; {index.name} next to it lists other files and is not used."
                return replace(layout, weight_files=(single,), notes=(note,))
            return replace(layout, weight_files=(single,))
        if index.is_file():
            names = sorted(set(weight_map(index).values()))
            return replace(layout, weight_files=tuple(root / name for name in names), index=index)
    return replace(layout, weight_files=_other_files(root))


def _lists_others(index: Path, single: str) -> bool:
    try:
        return set(weight_map(index).values()) != {single}
    except CheckpointError:  # nobody needs it
        return True


def _other_files(root: Path) -> tuple[Path, ...]:
    """The only weight file of a directory, under any name, or a complete numbered set without its index."""
    for pattern in ("*.safetensors", "*.bin", "*.pt", "*.pth"):
        files = sorted(path for path in root.glob(pattern) if not _NOT_A_MODEL.search(path.name) and path.is_file())
        numbered = [match for path in files if (match := _NUMBERED.fullmatch(path.stem))]
        if len(files) == 1 and not numbered:
            return tuple(files)
        if files and len(numbered) == len(files):
            kinds = {(match[1], int(match[3])) for match in numbered}
            complete = sorted(int(match[2]) for match in numbered) == list(range(1, len(files) + 1))
            if len(kinds) == 1 and complete and kinds.pop()[1] == len(files):
                return tuple(files)
    return ()


def _check_complete(layout: Layout) -> None:
    """Raises: CheckpointError if a file that the index lists does not exist."""
    absent = [file.name for file in layout.weight_files if not file.is_file()]
    if absent and layout.index:
        raise CheckpointError(
            f"{layout.index}: lists {absent[0]}, which does not exist ({len(absent)} of {len(layout.weight_files)} "
            "missing)."
        )


def _no_weights(root: Path) -> str:
    links = [path.name for path in root.iterdir() if path.is_symlink() and not path.exists()]
    if links:
        return f"{root}: {links[0]} is a link to a file that does not exist; download the model again."
    files = [path for pattern in ("*.safetensors", "*.bin", "*.pth", "*.pt") for path in root.glob(pattern)]
    weights = [path for path in files if not _NOT_A_MODEL.search(path.name)]
    numbered = [match for path in weights if (match := _NUMBERED.fullmatch(path.stem))]
    if numbered:
        return f"{root}: holds {len(numbered)} of the {int(numbered[0][3])} weight files, {_names(weights)}."
    if len(weights) > 1:
        return f"{root}: holds several weight files, {_names(weights)}; name the one to load model.safetensors."
    if (root / ADAPTER).is_file():
        return _adapter_alone(root)
    if any(_META_NAME.fullmatch(path.stem) for path in files):
        return f"{root}: holds Meta's weights, {_names(files)}, but Meta's params.json is missing."
    others = [path for pattern in ("*.gguf", "*.h5", "*.msgpack", "*.onnx") for path in root.glob(pattern)]
    other_files = f"; found {_names(others)}" if others else ""
    return f"{root}: holds config.json, but neither model.safetensors nor pytorch_model.bin nor an index{other_files}."


def _no_configuration(root: Path) -> str:
    for file in (root / "params.json", root / "config.json"):
        if file.exists() or file.is_symlink():
            return f"{file}: {file_problem(file)}."
    if (root / ADAPTER).is_file():
        return _adapter_alone(root)
    problem = f"{root}: neither params.json (Meta) nor config.json (Hugging Face) is in this directory."
    inner = [path.parent for pattern in ("*/config.json", "*/params.json") for path in sorted(root.glob(pattern))]
    inner += sorted(root.glob("models--*"))  # the root of the whole Hugging Face cache
    return f"{problem} Pass one of its directories: {_names(inner)}." if inner else problem


def _adapter_alone(root: Path) -> str:
    base = read_json(root / ADAPTER).get("base_model_name_or_path")
    named = f" of the base {str(base)[:120]!r}" if base else ""
    return (
        f"{root}: a LoRA adapter{named}, not a model; pass the base model, and the adapter with --adapter {root} "
        "(or load_model(base, adapter=...))."
    )


def _adapter_note(root: Path) -> tuple[str, ...]:
    if not (root / ADAPTER).is_file():
        return ()
    return (f"{root}: the adapter next to the weights is not applied; to apply it, use --adapter {root}.",)


def _names(paths: Iterable[Path]) -> str:
    names = [path.name[:80] for path in paths]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
