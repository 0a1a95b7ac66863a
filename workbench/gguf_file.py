"""Header of a GGUF file: its metadata, and where each tensor lies.

Only the header is read, from the mapped file. Every count and length in it is checked against the bytes that follow
before memory is used for it, so that a damaged file is an error at once. The values of the tensors are read elsewhere.
Source: docs/gguf.md in ggml's repository.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import CheckpointError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32  # of the tensors' data, if general.alignment is absent

_MOST_KEYS, _MOST_TENSORS = 1 << 16, 1 << 20
_MOST_ELEMENTS = 1 << 22  # of all lists together; the largest vocabularies have fewer than 2^20 tokens and merges
_MOST_BYTES = 1 << 30  # of the header
_MOST_DIMENSIONS = 4
_LARGEST_SIZE = 1 << 40

# The format's numbers of value types, as numpy's types.
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file: `shape` with rows first, `type` the format's number, `offset` in bytes from the start."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata by key, and the tensors by name."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def gguf_metadata(path: str | Path) -> dict[str, Any]:
    """Metadata of a GGUF file: numbers, flags, strings, and lists of them.

    Bytes that are not UTF-8 become lone surrogates (`surrogateescape`), so that no token is lost.
    Raises: CheckpointError as `read_header`.
    """
    return read_header(path).metadata


def read_header(path: str | Path) -> GgufHeader:
    """The header of a GGUF file.

    It is read again only if the file's size or modification time changed.
    Raises: CheckpointError if the file is not GGUF, of another version or byte order, truncated or damaged.
    """
    path = Path(path)
    try:
        stat = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path}: not readable ({error.strerror}).") from error
    return _header(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)
def _header(path: Path, size: int, changed_ns: int) -> GgufHeader:
    try:
        with path.open("rb") as file:
            start = file.read(8)
            _check_start(path, start)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).header()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as a GGUF file ({error}).") from error


def _check_start(path: Path, start: bytes) -> None:
    if start[:4] != MAGIC or len(start) < 8:
        raise CheckpointError(f"{path}: not a GGUF file, or truncated; expected it to begin with 'GGUF' and a version.")
    version = int.from_bytes(start[4:], "little")
    if version in _VERSIONS:
        return
    if int.from_bytes(start[4:], "big") in (1, *_VERSIONS):
        raise CheckpointError(f"{path}: a big-endian GGUF file; convert it with gguf-convert-endian (package gguf).")
    raise CheckpointError(f"{path}: GGUF version {version}; versions 2 and 3 can be read. Download a newer file.")


class _Reader:
    """Reads values one after the other, and never beyond the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size = path, data, len(data)
        self.place = 8
        self.elements = 0

    def header(self) -> GgufHeader:
        n_tensors, n_keys = self.integer("Q"), self.integer("Q")
        if n_keys > _MOST_KEYS or n_tensors > _MOST_TENSORS:
            raise self.damaged(f"it states {n_tensors:,} tensors and {n_keys:,} metadata keys")
        metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self.name()
            if key in metadata:
                raise self.damaged(f"the key {key[:80]!r} occurs twice")
            metadata[key] = self.value(key, self.integer("I"))
        tensors: dict[str, GgufTensor] = {}
        for _ in range(n_tensors):
            tensor = self.tensor()
            if tensor.name in tensors:
                raise self.damaged(f"the tensor {tensor.name[:80]!r} occurs twice")
            tensors[tensor.name] = tensor
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1) or alignment > _MOST_BYTES:
            raise self.damaged(f"general.alignment is {alignment!r}, not a power of two")
        start = -(-self.place // alignment) * alignment
        placed = {
            name: GgufTensor(name, tensor.shape, tensor.type, start + tensor.offset) for name, tensor in tensors.items()
        }
        return GgufHeader(self.path, metadata, placed)

    def tensor(self) -> GgufTensor:
        name, n_dimensions = self.name(), self.integer("I")
        if not 1 <= n_dimensions <= _MOST_DIMENSIONS:
            raise self.damaged(f"the tensor {name[:80]!r} states {n_dimensions:,} dimensions")
        sizes = [self.integer("Q") for _ in range(n_dimensions)]
        if not 0 < math.prod(sizes) <= _LARGEST_SIZE:
            raise self.damaged(f"the tensor {name[:80]!r} states the shape {sizes[::-1]}")
        kind, offset = self.integer("I"), self.integer("Q")
        return GgufTensor(name, tuple(reversed(sizes)), kind, offset)

    def value(self, key: str, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.numbers(_SCALARS[kind], 1)[0]
        if kind != _ARRAY:
            raise self.damaged(f"the key {key[:80]!r} has the unknown type {kind}")
        element, count = self.integer("I"), self.integer("Q")
        smallest = 8 if element == _STRING else _SCALARS[element].itemsize if element in _SCALARS else 0
        if not smallest:
            raise self.damaged(f"the key {key[:80]!r} is a list of the unsupported type {element}")
        self.elements += count
        if self.elements > _MOST_ELEMENTS or count * smallest > self.size - self.place:
            raise self.damaged(f"the key {key[:80]!r} states {count:,} elements")
        return [self.string() for _ in range(count)] if element == _STRING else self.numbers(_SCALARS[element], count)

    def name(self) -> str:
        text = self.string()
        if len(text) > 1 << 16:
            raise self.damaged(f"it states a name of {len(text):,} characters")
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

    def string(self) -> str:
        return self.take(self.integer("Q")).decode("utf-8", "surrogateescape")

    def numbers(self, dtype: np.dtype[Any], count: int) -> list[Any]:
        values: list[Any] = np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
        return values

    def integer(self, code: str) -> int:
        value: int = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]
        return value

    def take(self, count: int) -> bytes:
        end = self.place + count
        if end > self.size or end > _MOST_BYTES:
            raise self.damaged(f"byte {self.place:,} states {count:,} bytes more, of {self.size:,}")
        taken = self.data[self.place : end]
        self.place = end
        return taken

    def damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: a truncated or damaged GGUF file: {reason}.")
