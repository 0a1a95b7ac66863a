"""Checkpoint manifest: the stored pieces of every weight, verified against the configuration.

It opens files and compares names, dtypes and shapes; it reads no weights (`assemble.py` does).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from workbench.checkpoint.encoded_tensor import EncodedTensor, StoredTensor, all_values
from workbench.checkpoint.files import Layout, find_layout, weight_map
from workbench.checkpoint.float8 import Files, ScaledFloat8, float8_scaling, scaled
from workbench.checkpoint.gguf import Quantisation, open_gguf, quantisation
from workbench.checkpoint.read import open_tensors, read_json
from workbench.checkpoint.stated_config import stated_config
from workbench.checkpoint.tensors import (
    EMBEDDING,
    FREQUENCIES,
    HARMLESS,
    OUTPUT,
    TensorSpec,
    meta_names,
    output_spec,
    published_names,
    stored_name,
    tensor_specs,
)
from workbench.config import ModelConfig
from workbench.config.keys import short
from workbench.errors import CheckpointError
from workbench.layers import stored_frequencies
from workbench.published import tied_as_published

_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Piece:
    """A stored part of one weight, and its offset in the complete tensor."""

    file: Path
    tensor: StoredTensor
    offset: tuple[int, ...]


@dataclass(frozen=True)
class Weight:
    """One weight as stored: its pieces cover it completely; wq and wk of kind "hf" have rows in half-split order."""

    spec: TensorSpec
    stored_name: str
    pieces: tuple[Piece, ...]
    half_split: bool


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: it holds every weight of the configuration, in the right shape, and nothing else.

    `notes` are sentences that a user should read, for instance that a file in the folder was not used.
    """

    layout: Layout
    config: ModelConfig
    weights: tuple[Weight, ...]
    notes: tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of encoded weights if there are any, else that of the embedding."""
        stored = [piece.tensor for weight in self.weights for piece in weight.pieces]
        return next((tensor for tensor in stored if isinstance(tensor, EncodedTensor)), stored[0]).dtype

    @property
    def bytes_by_dtype(self) -> dict[str, int]:
        """Bytes of the stored weights by the name of their dtype, without reading them; GGUF's blocks are left out."""
        sizes: dict[str, int] = {}
        for piece in (piece for weight in self.weights for piece in weight.pieces):
            stored = piece.tensor.values if isinstance(piece.tensor, ScaledFloat8) else piece.tensor
            if not isinstance(stored, EncodedTensor):
                name = str(stored.dtype).removeprefix("torch.")
                sizes[name] = sizes.get(name, 0) + stored.nbytes
        return sizes


def read_config(path: str | Path) -> ModelConfig:
    """The configuration of a checkpoint directory; none of its weights are read.

    Raises: CheckpointError, or ConfigError for errors in the configuration file.
    """
    layout = find_layout(path)
    if layout.kind != "meta":
        return stated_config(layout)[0]
    files = _open(layout)
    return _infer_tied_output(stated_config(layout, files)[0], files)


def read_shape(path: str | Path) -> tuple[ModelConfig, bool]:
    """The configuration of a directory that may hold no weights, and whether it holds any.

    Raises: CheckpointError if there is no configuration, ConfigError for errors in it.
    """
    layout = find_layout(path, weights=False)
    if any(file.is_file() for file in layout.weight_files):
        return read_config(path), True
    config, _ = stated_config(layout)
    return tied_as_published(config) if layout.kind == "meta" else config, False


def quantisation_of(path: str | Path) -> Quantisation | None:
    """How the weights of a GGUF checkpoint are stored; None for another layout.

    Raises: CheckpointError as `open_checkpoint`.
    """
    layout = find_layout(path)
    return quantisation(layout.weight_files) if layout.kind == "gguf" else None


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Map a checkpoint's files and verify names, dtypes and shapes.

    Raises: CheckpointError naming file, tensor, expected and found; ConfigError for errors in the configuration.
    """
    layout = find_layout(path)
    files = _open(layout)
    config, notes = stated_config(layout, files)
    if layout.kind == "hf":
        _check_index(layout, files)
        files, about_scaling = scaled(files, float8_scaling(read_json(layout.config_file), str(layout.config_file)))
        notes += about_scaling
        files = _renamed(files, published_names)
    elif layout.kind == "meta":
        config = _infer_tied_output(config, files)
    if config.tied_output:
        files = _with_embedding(layout, config, files)
    specs = tensor_specs(config)
    _check_extra(layout, config, specs, files)
    weights = tuple(_find(layout, spec, files) for spec in specs)
    if config.tied_output:
        _check_tied(layout, config, weights[0], files)
    return Checkpoint(layout, config, weights, (*layout.notes, *notes))


def _open(layout: Layout) -> Files:
    """The tensors of each weight file, by their stored names."""
    if layout.kind == "gguf":
        return {file: open_gguf(file) for file in layout.weight_files}
    files: Files = {file: open_tensors(file) for file in layout.weight_files}
    return _renamed(files, meta_names) if layout.kind == "meta" else files


def _renamed(files: Files, published: Callable[[Iterable[str]], dict[str, str]]) -> Files:
    """The tensors under the names that `published` gives for those of all files."""
    names = published(name for tensors in files.values() for name in tensors)
    stored = {name: old for old, name in names.items()}
    for old, name in names.items():
        if stored[name] != old:
            both = f"{short(old)} and {short(stored[name])}"
            raise CheckpointError(f"{next(iter(files))}: tensors {both} are both {short(name)}; expected one.")
    return {path: {names[name]: tensor for name, tensor in tensors.items()} for path, tensors in files.items()}


def _with_embedding(layout: Layout, config: ModelConfig, files: Files) -> Files:
    """The tensors with the table of a tied model under the embedding's name, if it is stored as the output alone."""
    output = stored_name(layout.kind, output_spec(config))
    embedding = stored_name(layout.kind, tensor_specs(config)[0])
    if any(embedding in tensors for tensors in files.values()):
        return files
    return {
        path: {embedding if name == output else name: tensor for name, tensor in tensors.items()}
        for path, tensors in files.items()
    }


def _check_index(layout: Layout, files: Files) -> None:
    if layout.index is None:
        return
    listed = weight_map(layout.index)
    for name, file in listed.items():
        if name not in files[layout.root / file]:
            raise CheckpointError(
                f"{layout.root / file}: tensor {short(name)} is missing; {layout.index.name} lists it in this file."
            )
    for path, tensors in files.items():
        for name in tensors:
            if listed.get(name, path.name) != path.name:
                raise CheckpointError(
                    f"{path}: tensor {short(name)} is stored here, but {layout.index.name} lists it in {listed[name]}."
                )


def _check_extra(layout: Layout, config: ModelConfig, specs: Iterable[TensorSpec], files: Files) -> None:
    known = {stored_name(layout.kind, spec) for spec in (*specs, output_spec(config))}
    for path, tensors in files.items():
        # A tensor without an axis is a count of a training program, no weight.
        extra = [n for n, tensor in tensors.items() if n not in known and tensor.shape and not HARMLESS.search(n)]
        for name in filter(FREQUENCIES.search, extra):
            problem = stored_frequencies.contradiction(all_values(tensors[name]), config)
            if problem:
                raise CheckpointError(f"{path}: tensor {short(name)}: {problem}.")
        extra = [name for name in extra if not FREQUENCIES.search(name)]
        if extra:
            raise CheckpointError(
                f"{path}: tensor {short(extra[0])} {list(tensors[extra[0]].shape)} is not a weight of the Llama "
                f"with {config.n_layers} layers in {layout.config_file.name} ({len(extra)} such tensors)."
            )


def _find(layout: Layout, spec: TensorSpec, files: Files) -> Weight:
    name = stored_name(layout.kind, spec)
    if layout.kind == "meta":
        stored = [(path, tensors.get(name)) for path, tensors in files.items()]
    else:
        stored = [(path, tensors[name]) for path, tensors in files.items() if name in tensors]
    shards = [(path, tensor) for path, tensor in stored if tensor is not None]
    if not shards or len(shards) < len(stored):
        location = next((path for path, tensor in stored if tensor is None), layout.weight_files[0])
        if len(layout.weight_files) > 1 and layout.kind != "meta":
            location = layout.root
        expected = f"expected {list(spec.shape)} by {layout.config_file.name}"
        hint = "; if the output is tied to the embedding, set that in the configuration" if spec.name == OUTPUT else ""
        raise CheckpointError(f"{location}: tensor {short(name)} is missing; {expected}, found none{hint}.")
    if layout.kind != "meta" and len(shards) > 1:
        raise CheckpointError(f"{shards[1][0]}: tensor {short(name)} is also in {shards[0][0].name}; expected it once.")
    pieces = _pieces(layout, spec, name, shards)
    return Weight(spec, name, pieces, half_split=layout.kind == "hf" and spec.rotary_heads > 0)


def _pieces(layout: Layout, spec: TensorSpec, name: str, shards: list[tuple[Path, StoredTensor]]) -> tuple[Piece, ...]:
    shards = _without_copies(spec, name, shards)
    n = len(shards)
    axis = spec.split
    if spec.name == EMBEDDING and n > 1 and shards[0][1].shape[:1] == spec.shape[:1]:
        axis = 1  # Llama 2's shards divide the embedding's columns, Llama 3's its rows
    expected = list(spec.shape)
    if axis is not None:
        if spec.shape[axis] % n:
            raise CheckpointError(f"{shards[0][0]}: {short(name)} {expected} cannot be split into {n} equal shards.")
        expected[axis] //= n
    pieces = []
    for number, (path, tensor) in enumerate(shards):
        if list(tensor.shape) != expected:
            raise CheckpointError(
                f"{path}: tensor {short(name)} has the wrong shape; expected {expected} by {layout.config_file.name}"
                f"{f' in {n} shards' if n > 1 else ''}, found {list(tensor.shape)}{_shard_hint(tensor, expected)}."
            )
        if tensor.dtype not in _FLOATS or tensor.dtype != shards[0][1].dtype:
            required = (
                "a floating type" if tensor.dtype not in _FLOATS else f"{shards[0][1].dtype} as in the first shard"
            )
            raise CheckpointError(f"{path}: tensor {short(name)}: expected {required}, found {tensor.dtype}.")
        offset = [0] * tensor.dim()
        if axis is not None:
            offset[axis] = number * expected[axis]
        elif number and not torch.equal(all_values(tensor), all_values(shards[0][1])):
            raise CheckpointError(f"{path}: tensor {short(name)}: expected the same values as in {shards[0][0].name}.")
        pieces.append(Piece(path, tensor, tuple(offset)))
    return tuple(pieces[:1] if axis is None else pieces)


def _without_copies(
    spec: TensorSpec, name: str, shards: list[tuple[Path, StoredTensor]]
) -> list[tuple[Path, StoredTensor]]:
    """The shards that hold different key/value heads: more shards than heads repeat them, as in Meta's 405B in 16."""
    n, heads = len(shards), spec.kv_heads
    if not heads or n <= heads or n % heads or any(t.shape[0] != spec.shape[0] // heads for _, t in shards):
        return shards
    copies = n // heads
    neighbours = [shards[head * copies : (head + 1) * copies] for head in range(heads)]
    in_turn = [shards[head::heads] for head in range(heads)]
    for groups in (neighbours, in_turn):
        if all(torch.equal(all_values(first), all_values(t)) for (_, first), *rest in groups for _, t in rest):
            return [group[0] for group in groups]
    raise CheckpointError(
        f"{shards[1][0]}: tensor {short(name)}: {n} shards hold {heads} key/value heads; expected each {copies} times "
        "with the same values, found different ones."
    )


def _shard_hint(tensor: StoredTensor, expected: list[int]) -> str:
    if tensor.dim() != len(expected):
        return ""
    ratios = {want / actual for want, actual in zip(expected, tensor.shape, strict=True) if actual} - {1.0}
    if len(ratios) == 1 and (ratio := ratios.pop()) > 1 and ratio.is_integer():
        return f": this may be one of {int(ratio)} shards, with the others missing"
    return ""


def _infer_tied_output(config: ModelConfig, files: Files) -> ModelConfig:
    """Meta's params.json has no key for a tied output: its small 3.2 models store one table under two names."""
    pairs = [(tensors.get(EMBEDDING), tensors.get(OUTPUT)) for tensors in files.values()]
    return replace(config, tied_output=True) if all(_same_values(*pair) for pair in pairs) else config


def _same_values(first: StoredTensor | None, second: StoredTensor | None) -> bool:
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return False
    if first.shape != second.shape or first.dtype != second.dtype or not first.dim():
        return False
    # The first row is enough to tell two tables apart, so that untied ones are not read.
    return first.data_ptr() == second.data_ptr() or (torch.equal(first[:1], second[:1]) and torch.equal(first, second))


def _check_tied(layout: Layout, config: ModelConfig, embedding: Weight, files: Files) -> None:
    """A tied checkpoint may also store its output, with the same values."""
    spec = output_spec(config)
    name = stored_name(layout.kind, spec)
    if not any(name in tensors for tensors in files.values()):
        return
    output = _find(layout, spec, files)
    for table, copy in zip(embedding.pieces, output.pieces, strict=True):
        if table.tensor.shape != copy.tensor.shape or not torch.equal(
            all_values(table.tensor), all_values(copy.tensor)
        ):
            raise CheckpointError(
                f"{copy.file}: tensor {short(name)} differs from {embedding.stored_name!r}, but "
                f"{layout.config_file.name} says that they are tied; expected equal values. If the output is "
                "a table of its own, set that in the configuration."
            )
