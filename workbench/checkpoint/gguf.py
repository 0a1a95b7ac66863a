"""GGUF weight files: which files a path names, their tensors, and what the quantisation costs.

A tensor of plain numbers is a view of the mapped file. Quantised blocks are read and decoded by the library `gguf`,
some rows at a time.
"""

from __future__ import annotations

import math
import mmap
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.checkpoint.encoded_tensor import EncodedTensor, Index, StoredTensor
from workbench.errors import CheckpointError, MissingExtraError
from workbench.gguf_file import ALIGNMENT, GgufTensor, read_header

# The format's numbers of types that are plain numbers.
_PLAIN = {0: torch.float32, 1: torch.float16, 28: torch.float64, 30: torch.bfloat16}
_PLAIN_NAMES = {0: "F32", 1: "F16", 28: "F64", 30: "BF16"}

_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class GgufBlocks(EncodedTensor):
    """Quantised blocks of one tensor, each of `block` values in `block_bytes` bytes of one row.

    `read` returns float32, as the library decodes the blocks.
    """

    file: Path
    offset: int
    type: int
    block: int
    block_bytes: int

    def read(self, index: Index) -> Tensor:
        n_columns = self.shape[-1]
        row_bytes = n_columns // self.block * self.block_bytes
        rows, columns = index if len(index) == 2 else (slice(0, 1), index[0])
        first, last, _ = rows.indices(self.shape[0] if len(index) == 2 else 1)
        left, right, _ = columns.indices(n_columns)
        n_bytes = (last - first) * row_bytes
        stored = np.fromfile(self.file, np.uint8, n_bytes, offset=self.offset + first * row_bytes)
        if len(stored) < n_bytes:
            raise CheckpointError(f"{self.file}: became shorter while it was read.")
        # Complete blocks that cover the columns.
        low, high = left // self.block, -(-right // self.block)
        blocks = stored.reshape(last - first, row_bytes)[:, low * self.block_bytes : high * self.block_bytes]
        with np.errstate(all="ignore"):  # infinite or NaN scales; the values are checked where they are used
            values = _library().quants.dequantize(np.ascontiguousarray(blocks), _quantisation(self.type))
        part = torch.from_numpy(values)[:, left - low * self.block : right - low * self.block]
        return part if len(index) == 2 else part[0]


def gguf_files(path: Path) -> tuple[Path, ...]:
    """The files of the GGUF checkpoint that a path names, in order; none if the path names another kind.

    A path is a file, or a folder that holds one GGUF checkpoint and neither config.json nor params.json.
    Raises: CheckpointError if the folder holds several, or a part of a split file is missing.
    """
    if path.is_file():
        return _parts(path) if path.suffix.lower() == ".gguf" else ()
    if not path.is_dir() or (path / "config.json").is_file() or (path / "params.json").is_file():
        return ()
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf" and file.is_file())
    whole = [file for file in files if not (match := _SHARD.fullmatch(file.name)) or int(match[2]) == 1]
    if len(whole) > 1:
        names = ", ".join(file.name for file in whole[:5]) + (", ..." if len(whole) > 5 else "")
        raise CheckpointError(f"{path}: holds {len(whole)} GGUF files; name one of them: {names}.")
    return _parts((whole or files)[0]) if files else ()


def _parts(path: Path) -> tuple[Path, ...]:
    """All parts of a split file (name-00001-of-00003.gguf), or the file alone."""
    match = _SHARD.fullmatch(path.name)
    if not match or int(match[3]) < 2:
        return (path,)
    count = int(match[3])
    names = (f"{match[1]}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1))
    parts = []
    for name in names:
        if not (path.parent / name).is_file():
            raise CheckpointError(f"{path.parent}: {name} is missing; {path.name} is one of {count} parts.")
        parts.append(path.parent / name)
    return tuple(parts)


def open_gguf(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a GGUF file by its name there.

    Raises: CheckpointError if the file is damaged, or a type of block is not supported; MissingExtraError if blocks
        are quantised and `gguf` is not installed.
    """
    header = read_header(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    tensors: dict[str, StoredTensor] = {}
    alignment = header.metadata.get("general.alignment", ALIGNMENT)
    end: int | None = None
    for name, tensor in header.tensors.items():
        block, block_bytes = _block(path, tensor)
        columns = tensor.shape[-1]
        if columns % block:
            raise CheckpointError(f"{path}: tensor {name[:80]!r}: {columns} columns are not whole blocks of {block}.")
        n_bytes = math.prod(tensor.shape) // block * block_bytes
        if tensor.offset + n_bytes > size:
            raise CheckpointError(
                f"{path}: truncated: tensor {name[:80]!r} ends at byte {tensor.offset + n_bytes:,} of {size:,}."
            )
        # As llama.cpp requires. There are no checksums: a changed offset or type would give a weight other values.
        if end is not None and tensor.offset != end:
            raise CheckpointError(
                f"{path}: damaged: tensor {name[:80]!r} begins at byte {tensor.offset:,}, expected {end:,}, the "
                "end of the one before."
            )
        end = -(-(tensor.offset + n_bytes) // alignment) * alignment
        if (dtype := _PLAIN.get(tensor.type)) is None:
            shape = torch.Size(tensor.shape)
            tensors[name] = GgufBlocks(shape, torch.bfloat16, path, tensor.offset, tensor.type, block, block_bytes)
        elif tensor.offset % dtype.itemsize:
            raise CheckpointError(f"{path}: damaged: tensor {name[:80]!r} begins at byte {tensor.offset:,}.")
        else:
            values = torch.frombuffer(data, dtype=dtype, count=math.prod(tensor.shape), offset=tensor.offset)
            tensors[name] = values.reshape(tensor.shape)
    if end is not None and size > end:
        raise CheckpointError(f"{path}: damaged: {size - end:,} bytes at its end belong to no tensor.")
    return tensors


@dataclass(frozen=True)
class Quantisation:
    """Number of tensors of each type, and the mean size of a weight in bits."""

    types: dict[str, int]
    bits_per_weight: float

    def __str__(self) -> str:
        types = ", ".join(f"{name} ({count} tensor{'s' if count > 1 else ''})" for name, count in self.types.items())
        return f"{types}; {self.bits_per_weight:.2f} bits per weight"


def quantisation(files: tuple[Path, ...]) -> Quantisation:
    """How the tensors of these GGUF files are stored, the most frequent type first.

    Raises: CheckpointError as `open_gguf`.
    """
    types, n_bytes, n_values = Counter[str](), 0, 0
    for file in files:
        for tensor in read_header(file).tensors.values():
            block, block_bytes = _block(file, tensor)
            types[_PLAIN_NAMES.get(tensor.type) or _quantisation(tensor.type).name] += 1
            n_values += math.prod(tensor.shape)
            n_bytes += math.prod(tensor.shape) // block * block_bytes
    return Quantisation(dict(types.most_common()), 8 * n_bytes / max(n_values, 1))


def _block(path: Path, tensor: GgufTensor) -> tuple[int, int]:
    """Number of values and of bytes in one block of a tensor's type."""
    if tensor.type in _PLAIN:
        return 1, _PLAIN[tensor.type].itemsize
    sizes = _decodable(tensor.type)
    if sizes is None:
        try:
            name = _quantisation(tensor.type).name
        except ValueError:
            name = f"number {tensor.type}"
        raise CheckpointError(
            f"{path}: tensor {tensor.name[:80]!r} has blocks of type {name}, which cannot be decoded; "
            "use a file of another type, such as Q8_0."
        )
    return sizes


@cache
def _decodable(kind: int) -> tuple[int, int] | None:
    """Values and bytes of a block, if the library decodes blocks of this type."""
    library = _library()
    try:
        block, n_bytes = library.GGML_QUANT_SIZES[_quantisation(kind)]
        library.quants.dequantize(np.zeros((1, n_bytes), np.uint8), _quantisation(kind))
    except (ValueError, KeyError, NotImplementedError):
        return None
    return block, n_bytes


def _quantisation(kind: int) -> Any:
    return _library().GGMLQuantizationType(kind)


def _library() -> Any:
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise MissingExtraError("gguf", "formats") from error
    return gguf
