"""Provenance of results: the model's files, whether its weights still match them, and the software versions."""

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

SAMPLED = 256  # sampled values per weight


@dataclass(frozen=True)
class ModelSource:
    """The directory that a model was loaded from; hashes are computed when they are first read.

    `hash_checkpoint` returns the SHA-256 of the directory's weights and configuration, hex. `files` are its weights and
    configuration as they were before loading: path, size, modification time. `adapter` is the folder of a LoRA adapter
    that was merged into the weights; `hash_checkpoint` and `files` cover it.
    """

    path: Path
    hash_checkpoint: Callable[[Path], str]
    tokenizer_sha256: str | None = None
    files: tuple[tuple[Path, int, int], ...] = ()
    adapter: Path | None = None

    @cached_property
    def checkpoint_sha256(self) -> str:
        """SHA-256 over the weights and the configuration, hex."""
        return self.hash_checkpoint(self.path)

    @property
    def intact(self) -> bool:
        """Whether the hash is known, or the loaded files are unchanged, so that it can be computed."""
        return "checkpoint_sha256" in self.__dict__ or file_stats(path for path, *_ in self.files) == self.files

    @property
    def name(self) -> str:
        name = display_name(self.path)
        return name if self.adapter is None else f"{name}+{self.adapter.name}"


def hub_repository(path: Path) -> str | None:
    """The hub's name of a model, `org/name`, whose snapshot in a Hugging Face cache holds this path; else None."""
    for folder in (path, *path.parents):
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
            return folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    return None


def display_name(path: Path) -> str:
    """The name of a checkpoint's folder; in a Hugging Face cache, where folders are called by commits, the model's."""
    return (hub_repository(path) or path.name).rpartition("/")[2]


def file_stats(files: Iterable[Path]) -> tuple[tuple[Path, int, int], ...]:
    """Path, size in bytes and modification time in ns of each file; -1 and -1 for a file that does not exist."""
    stats = [(path, path.stat() if path.exists() else None) for path in files]
    return tuple((path, stat.st_size, stat.st_mtime_ns) if stat else (path, -1, -1) for path, stat in stats)


def weight_fingerprint(model: nn.Module) -> tuple[Any, ...]:
    """Cheap fingerprint of the weights: data pointers, version counters and sampled values.

    It changes when weights are modified in memory. The sampled values detect writes that torch does not count, such as
    to `parameter.data`: about SAMPLED per weight at an odd stride, so that a changed row, column or head is seen.
    """
    weights = [weight.detach() for weight in model.parameters()]
    counts = [(weight.data_ptr(), -1 if weight.is_inference() else weight._version) for weight in model.parameters()]
    samples = [weight.flatten()[:: weight.numel() // SAMPLED | 1].double() for weight in weights]
    return tuple(counts), torch.cat(samples).cpu().numpy().tobytes() if samples else b""


@cache
def commit() -> str | None:
    """Git commit of the checkout that runs, with a `+` appended if files differ; None outside a checkout."""
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
    """Installed versions of Python, torch and these packages; a package that is not installed is left out."""
    installed = {"python": platform.python_version()}
    for package in ("torch", *packages):
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def describe(source: ModelSource | None) -> dict[str, Any]:
    """A model's provenance for JSON; the hashes are null for weights that were not loaded from files."""
    return {
        "path": None if source is None else source.name,
        "checkpoint_sha256": None if source is None else source.checkpoint_sha256,
        "tokenizer_sha256": None if source is None else source.tokenizer_sha256,
        "commit": commit(),
        "versions": versions(),
    }
