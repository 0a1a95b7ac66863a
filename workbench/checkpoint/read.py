"""Reads one file of a checkpoint: the tensors of a weight file, or a JSON object.

It knows the two containers, safetensors and PyTorch's zip (`torch_file.py`). Weight files are memory-mapped, and read
only when used. It knows nothing of the meaning of the tensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from workbench.checkpoint.torch_file import first_line, load_torch_file
from workbench.errors import CheckpointError
from workbench.file_problem import file_problem

# Real configurations and indexes have at most a few megabytes; Python needs up to 20 times the size of a JSON file.
JSON_LIMIT = 32 << 20


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
        raise CheckpointError(
            f"{path}: cannot be read; it is truncated, damaged or not a weight file "
            f"({path.stat().st_size:,} bytes; {first_line(error)})."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises: CheckpointError if it is missing, too large, damaged or not an object.
    """
    if problem := file_problem(path):
        raise CheckpointError(f"{path}: {problem}.")
    size = path.stat().st_size
    if size > JSON_LIMIT:
        raise CheckpointError(f"{path}: has {size:,} bytes; a file of this kind has at most {JSON_LIMIT:,}.")
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({_json_problem(error)}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value


def _json_problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8 text"
    if isinstance(error, (json.JSONDecodeError, OSError)):
        return str(error)
    return "a number has too many digits"
