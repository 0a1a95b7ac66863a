"""Append-only record files: compressed frames, each with a checksum and the keys of its values.

A frame is complete or it is ignored: a truncated file, or one with a damaged frame, still gives its other frames.
Does not know what the values mean.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from workbench.errors import DataError

HEAD = struct.Struct("<II")  # length and CRC-32 of a frame's compressed bytes


def append(file: FileIO, values: Mapping[bytes, Any]) -> int:
    """Write a frame of these values and sync it to the disk; returns its offset.

    Raises: OSError if it could not be written completely.
    """
    content = {"keys": [key.hex() for key in values], "values": list(values.values())}
    data = zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 6)
    offset = file.seek(0, os.SEEK_END)
    frame = HEAD.pack(len(data), zlib.crc32(data)) + data
    if file.write(frame) != len(frame):
        raise OSError(errno.ENOSPC, "a frame was only partly written")
    os.fsync(file.fileno())
    return offset


def read(path: Path, offset: int) -> list[Any]:
    """The values of the frame at an offset of a file.

    Raises: DataError if the file cannot be read, or the frame is not complete.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            frame = _next(file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path} cannot be read ({reason}); its answers will be computed again.") from error
    if frame is None:
        raise DataError(f"{path}: the frame at byte {offset} is damaged; its answers will be computed again.")
    # The first version's frames were lists of values without keys.
    values: list[Any] = frame if isinstance(frame, list) else frame["values"]
    return values


def scan(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """The offset of each complete frame of a file, and the keys of its values in order; frames without keys are
    left out."""
    size = path.stat().st_size
    with path.open("rb") as file:
        while (offset := file.tell()) + HEAD.size <= size:
            length, _ = HEAD.unpack(file.read(HEAD.size))
            file.seek(offset)
            frame = _next(file)
            if isinstance(frame, dict):
                yield offset, [bytes.fromhex(key) for key in frame["keys"]]
            file.seek(offset + HEAD.size + length)


def _next(file: Any) -> Any:
    """The frame at the file's position; None if it is not complete, or not a frame that `append` writes."""
    head = file.read(HEAD.size)
    if len(head) != HEAD.size:
        return None
    length, check = HEAD.unpack(head)
    data = file.read(length)
    if len(data) != length or zlib.crc32(data) != check:
        return None
    try:
        frame = json.loads(zlib.decompress(data))
        if isinstance(frame, dict) and not (
            isinstance(frame["values"], list) and [bytes.fromhex(key) for key in frame["keys"]]
        ):
            return None
    except (zlib.error, ValueError, LookupError, TypeError, RecursionError):
        return None
    return frame if isinstance(frame, dict | list) else None
