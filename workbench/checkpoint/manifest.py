"""Checkpoint manifest: the stored pieces of every weight, verified against the configuration.

It opens files and compares names; `pieces.py` compares dtypes and shapes, `assemble.py` reads the weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from workbench.checkpoint.encoded_tensor import EncodedTensor, StoredTensor, TensorsByFile, all_values
from workbench.checkpoint.files import Layout, find_layout, weight_map
from workbench.checkpoint.float8 import ScaledFloat8, float8_scaling, scaled
from workbench.checkpoint.gguf import Quantisation, open_gguf, quantisation
from workbench.checkpoint.pieces import Weight, find_weight
from workbench.checkpoint.stated_config import stated_config
from workbench.checkpoint.tensors import (
    EMBEDDING,
    FREQUENCIES,
    HARMLESS,
    OUTPUT,
    TensorSpec,
    output_spec,
    published_names,
    stored_name,
    tensor_specs,
)
from workbench.checkpoint.weight_file import open_tensors
from workbench.config import ModelConfig
from workbench.config.keys import short
from workbench.errors import CheckpointError
from workbench.layers import stored_frequencies
from workbench.published import tied_as_published
from workbench.small_files import read_json


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
        names = published_names(name for tensors in files.values() for name in tensors)
        files = {path: {names[name]: tensor for name, tensor in tensors.items()} for path, tensors in files.items()}
    elif layout.kind == "meta":
        config = _infer_tied_output(config, files)
    if config.tied_output:
        files = _with_embedding(layout, config, files)
    specs = tensor_specs(config)
    _check_extra(layout, config, specs, files)
    weights = tuple(find_weight(layout, spec, files) for spec in specs)
    if config.tied_output:
        _check_tied(layout, config, weights[0], files)
    return Checkpoint(layout, config, weights, (*layout.notes, *notes))


def _open(layout: Layout) -> TensorsByFile:
    """The tensors of each weight file, by their stored names."""
    read = open_gguf if layout.kind == "gguf" else open_tensors
    return {file: read(file) for file in layout.weight_files}


def _with_embedding(layout: Layout, config: ModelConfig, files: TensorsByFile) -> TensorsByFile:
    """The tensors with the table of a tied model under the embedding's name, if it is stored as the output alone."""
    output = stored_name(layout.kind, output_spec(config))
    embedding = stored_name(layout.kind, tensor_specs(config)[0])
    if any(embedding in tensors for tensors in files.values()):
        return files
    return {
        path: {embedding if name == output else name: tensor for name, tensor in tensors.items()}
        for path, tensors in files.items()
    }


def _check_index(layout: Layout, files: TensorsByFile) -> None:
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


def _check_extra(layout: Layout, config: ModelConfig, specs: Iterable[TensorSpec], files: TensorsByFile) -> None:
    known = {stored_name(layout.kind, spec) for spec in (*specs, output_spec(config))}
    for path, tensors in files.items():
        extra = [name for name in tensors if name not in known and not HARMLESS.search(name)]
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


def _infer_tied_output(config: ModelConfig, files: TensorsByFile) -> ModelConfig:
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


def _check_tied(layout: Layout, config: ModelConfig, embedding: Weight, files: TensorsByFile) -> None:
    """A tied checkpoint may also store its output, with the same values."""
    spec = output_spec(config)
    name = stored_name(layout.kind, spec)
    if not any(name in tensors for tensors in files.values()):
        return
    output = find_weight(layout, spec, files)
    for table, copy in zip(embedding.pieces, output.pieces, strict=True):
        if table.tensor.shape != copy.tensor.shape or not torch.equal(
            all_values(table.tensor), all_values(copy.tensor)
        ):
            raise CheckpointError(
                f"{copy.file}: tensor {short(name)} differs from {embedding.stored_name!r}, but "
                f"{layout.config_file.name} says that they are tied; expected equal values."
            )
