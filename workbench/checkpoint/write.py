"""Writes weight files one tensor at a time, so that a shard of any size needs the memory of one tensor.

The safetensors files are byte for byte those of the safetensors package.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# dtype codes of safetensors, widest first: the order in which it stores tensors.
_CODES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ORDER = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class Entry:
    """A tensor to write: name, dtype, shape, and a function that makes it when it is needed."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_safetensors(path: Path, entries: Iterable[Entry]) -> None:
    """Write a safetensors file of these tensors."""
    ordered = sorted(entries, key=lambda e: (_ORDER.index(e.dtype), e.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in ordered:
        begin, end = end, end + entry.nbytes
        header[entry.name] = {
            "dtype": _CODES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for entry in ordered:
            tensor = entry.make()
            assert tensor.shape == entry.shape and tensor.dtype == entry.dtype, entry.name
            stream.write(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)


def write_pth(path: Path, entries: Iterable[Entry]) -> None:
    """Write a PyTorch file of these tensors; it needs the memory of all of them. One `make` is stored once."""
    entries = list(entries)
    # A clone, because torch saves the whole storage of a view.
    made = {make: make().detach().clone() for make in dict.fromkeys(entry.make for entry in entries)}
    torch.save({entry.name: made[entry.make] for entry in entries}, path)
