"""`EncodedTensor`: a stored tensor whose values are computed when they are read, such as quantised blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

Index = tuple[slice, ...]


@dataclass(frozen=True)
class EncodedTensor(ABC):
    """Shape and dtype of the values, and how to read a part of them.

    `dtype` is the one in which a model keeps the values by default; `read` may return a wider one.
    """

    shape: torch.Size
    dtype: torch.dtype

    @abstractmethod
    def read(self, index: Index) -> Tensor:
        """The values at one slice per dimension, each with step 1."""

    def __getitem__(self, index: Index) -> Tensor:
        return self.read(index)

    def dim(self) -> int:
        return len(self.shape)

    def numel(self) -> int:
        return self.shape.numel()


StoredTensor = Tensor | EncodedTensor
"""A tensor of a weight file: a view of the mapped file, or an encoded tensor. Both take an `Index` in brackets."""

TensorsByFile = Mapping[Path, Mapping[str, StoredTensor]]
"""The tensors of each weight file, by their names there."""


def all_values(tensor: StoredTensor) -> Tensor:
    """The complete tensor."""
    return tensor.read(tuple(slice(0, size) for size in tensor.shape)) if isinstance(tensor, EncodedTensor) else tensor
