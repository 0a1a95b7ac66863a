"""Reads the small files of a checkpoint, text and JSON: bounded in size, and every problem is one error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.errors import CheckpointError, WorkbenchError
from workbench.file_problem import file_problem

# Real configurations and indexes have at most a few megabytes; Python needs up to 20 times the size of a JSON file.
LARGEST = 32 << 20  # bytes


def read_bytes(path: Path, error: type[WorkbenchError], *, largest: int = LARGEST) -> bytes:
    """The content of a file.

    Units:  `largest` in bytes
    Raises: `error` if the file is missing, empty, too large, not readable or not a regular file.
    """
    if problem := file_problem(path):
        raise error(f"{path}: {problem}.")
    try:
        size = path.stat().st_size
        if size > largest:
            raise error(f"{path}: has {size:,} bytes; a file of this kind has at most {largest:,}.")
        return path.read_bytes()
    except OSError as failure:
        raise error(f"{path}: cannot be read ({failure.strerror}).") from failure


def read_text(path: Path, error: type[WorkbenchError]) -> str:
    """The text of a file in UTF-8, with line feeds between lines; a file may be empty.

    Raises: `error` as `read_bytes`, and if it is not UTF-8.
    """
    if path.is_file() and not path.stat().st_size:
        return ""
    try:
        return read_bytes(path, error).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as failure:
        raise error(f"{path}: byte {failure.start} is not UTF-8 text; download or copy it again.") from None


def read_json(path: Path, error: type[WorkbenchError] = CheckpointError) -> dict[str, Any]:
    """The JSON object in a file.

    Raises: `error` as `read_bytes`, and if it is damaged or not an object.
    """
    try:
        value = json.loads(read_bytes(path, error))
    except (ValueError, RecursionError) as failure:
        raise error(f"{path}: not readable as JSON ({_json_problem(failure)}).") from failure
    if not isinstance(value, dict):
        raise error(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value


def _json_problem(failure: Exception) -> str:
    if isinstance(failure, RecursionError):
        return "it is nested too deep"
    if isinstance(failure, UnicodeDecodeError):
        return f"byte {failure.start} is not UTF-8 text"
    return str(failure) if isinstance(failure, json.JSONDecodeError) else "a number has too many digits"
