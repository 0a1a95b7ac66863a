"""Reads a weight file: safetensors, or PyTorch's zip (`torch_file.py`).

Files are memory-mapped, and read only when used. Nothing here knows the meaning of the tensors.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from workbench.checkpoint.torch_file import load_torch_file, unreadable
from workbench.errors import CheckpointError
from workbench.file_problem import file_problem


def open_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor in a `.safetensors` file, or in a `.pth` or `.bin` file of PyTorch, as views of the mapped file.

    Writing to one changes this process's copy of the page, never the file.
    Raises: CheckpointError if the file is missing, truncated or damaged, or holds code or tensors of another kind.
    """
    if problem := file_problem(path):
        raise CheckpointError(f"{path}: {problem}.")
    if path.suffix != ".safetensors":
        return load_torch_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # SafetensorError, and what torch says of a dtype that it does not have
        raise unreadable(path, error) from error
