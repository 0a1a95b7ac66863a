"""SHA-256 of a checkpoint: its configuration and its weight files, by content."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from workbench.checkpoint.files import find_layout


def fingerprint(path: str | Path) -> str:
    """SHA-256, hex, over the names and contents of a checkpoint's configuration and weight files.

    A file is read again only when its path, size or time of change is another. The tokenizer is not part of it.
    Raises: CheckpointError if there is no checkpoint at the path.
    """
    layout = find_layout(path)
    files = (layout.config_file, *layout.weight_files)
    with ThreadPoolExecutor() as pool:  # hashing leaves Python's lock, so shards are hashed side by side
        digests = list(pool.map(_digest, files))
    whole = hashlib.sha256()
    for file, digest in zip(files, digests, strict=True):
        whole.update(f"{file.name} {digest}\n".encode())
    return whole.hexdigest()


def _digest(file: Path) -> str:
    stat = file.stat()
    return _digest_of(file.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest_of(file: Path, size: int, changed_ns: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
