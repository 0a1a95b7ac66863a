"""Reads one file of a checkpoint: the tensors of a weight file, or a JSON object.

It knows the two containers (safetensors and PyTorch's zip). Weight files are memory-mapped, and read only when used.
It knows nothing of the meaning of the tensors.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from workbench.errors import CheckpointError


def open_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor in a `.safetensors` or `.pth` file, as views of the mapped file.

    Writing to one changes this process's copy of the page, never the file.
    Raises: CheckpointError if the file is missing, truncated, or holds anything but tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file.")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        content: Any = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{path}: cannot be read; it is truncated, damaged or not a weight file "
            f"({path.stat().st_size:,} bytes; {reason[0] if reason else type(error).__name__})."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, found {type(content).__name__}.")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: expected tensors only, found {name!r} of {type(value).__name__}.")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises: CheckpointError if it is missing, damaged or not an object.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value
