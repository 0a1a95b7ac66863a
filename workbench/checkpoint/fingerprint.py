"""SHA-256 of a checkpoint: its configuration and its weight files, by content."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from workbench.checkpoint.adapter import adapter_files
from workbench.checkpoint.files import find_layout
from workbench.errors import CheckpointError


def fingerprint(path: str | Path, *, adapter: str | Path | None = None) -> str:
    """SHA-256, hex, over the names and contents of a checkpoint's configuration and weight files, and an adapter's.

    A file is read again only if its path, size or one of its times changed. The tokenizer is not included.
    Raises: CheckpointError if there is no checkpoint at the path, or a file cannot be read.
    """
    layout = find_layout(path)
    files = tuple(dict.fromkeys((layout.config_file, *layout.weight_files)))  # a GGUF file is both
    if adapter is not None:
        files += adapter_files(adapter)
    with ThreadPoolExecutor() as pool:  # hashing releases Python's lock, so shards are hashed in parallel
        digests = list(pool.map(_digest, files))
    combined = hashlib.sha256()
    for file, digest in zip(files, digests, strict=True):
        combined.update(f"{file.name} {digest}\n".encode())
    return combined.hexdigest()


def _digest(file: Path) -> str:
    try:
        stat = file.stat()
        return _digest_of(file.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}).") from error


@lru_cache(maxsize=4096)
def _digest_of(file: Path, size: int, modified_ns: int, status_ns: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
