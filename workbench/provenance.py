"""Where numbers come from: the model's files, whether its weights are theirs still, and the versions that computed."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

SAMPLED = 256  # values looked at of each weight


@dataclass(frozen=True)
class ModelSource:
    """The directory a model was loaded from; hashes are computed when they are read.

    `hash_checkpoint` gives the SHA-256 of the directory's weights and configuration, hex. `files` are its weights and
    configuration as they were before loading: path, size, time of change.
    """

    path: Path
    hash_checkpoint: Callable[[Path], str]
    tokenizer_sha256: str | None = None
    files: tuple[tuple[Path, int, int], ...] = ()

    @cached_property
    def checkpoint_sha256(self) -> str:
        """SHA-256 over the weights and the configuration, hex."""
        return self.hash_checkpoint(self.path)

    @property
    def intact(self) -> bool:
        """Whether the hash is known, or can still be had of the files that were loaded."""
        return "checkpoint_sha256" in self.__dict__ or file_stats(path for path, *_ in self.files) == self.files

    @property
    def name(self) -> str:
        return self.path.name


def file_stats(files: Iterable[Path]) -> tuple[tuple[Path, int, int], ...]:
    """Path, size in bytes and time of change in ns of each file; of one that is gone, -1 and -1."""
    found = [(path, path.stat() if path.exists() else None) for path in files]
    return tuple((path, stat.st_size, stat.st_mtime_ns) if stat else (path, -1, -1) for path, stat in found)


def weight_fingerprint(model: nn.Module) -> tuple[Any, ...]:
    """What is another after weights were changed: where each lies, how often torch wrote to it, and some values.

    The values are for what torch does not count, as writing to `parameter.data`; of each weight SAMPLED are looked at,
    in steps of an odd number, so that a change of a row, a column or a head is seen.
    """
    weights = [weight.detach() for weight in model.parameters()]
    counts = [(weight.data_ptr(), -1 if weight.is_inference() else weight._version) for weight in model.parameters()]
    some = [weight.flatten()[:: weight.numel() // SAMPLED | 1].double() for weight in weights]
    return tuple(counts), torch.cat(some).cpu().numpy().tobytes() if some else b""


@cache
def commit() -> str | None:
    """The commit of the checkout this runs from, with `+` behind it when files differ; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of Python, torch and the packages named; a package that is absent is left out."""
    found = {"python": platform.python_version()}
    for package in ("torch", *packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe(source: ModelSource | None) -> dict[str, Any]:
    """A JSON-ready account of a model's origin; null hashes for weights that came from no file."""
    return {
        "path": None if source is None else source.name,
        "checkpoint_sha256": None if source is None else source.checkpoint_sha256,
        "tokenizer_sha256": None if source is None else source.tokenizer_sha256,
        "commit": commit(),
        "versions": versions(),
    }
