"""The stored pieces of one weight: found in the files of a checkpoint, and verified against its shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from workbench.checkpoint.encoded_tensor import StoredTensor, TensorsByFile, all_values
from workbench.checkpoint.files import Layout
from workbench.checkpoint.tensors import EMBEDDING, OUTPUT, TensorSpec, stored_name
from workbench.config.keys import short
from workbench.errors import CheckpointError

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


def find_weight(layout: Layout, spec: TensorSpec, files: TensorsByFile) -> Weight:
    """The pieces of one weight in the tensors of all files.

    Raises: CheckpointError if a piece is missing, stored twice, or has another shape, dtype or values than expected.
    """
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
            is_float8 = tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1
            hint = "; float8 weights load only from Hugging Face's layout, with their scales" if is_float8 else ""
            raise CheckpointError(f"{path}: tensor {short(name)}: expected {required}, found {tensor.dtype}{hint}.")
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
