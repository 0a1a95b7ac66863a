"""Provenance of results: the model's files, whether its weights still match them, and the software versions."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from workbench.errors import CheckpointError

SAMPLED = 256  # sampled values per weight


class FileState(NamedTuple):
    """A file's identity and times, which show whether it was written to or replaced; -1 if it does not exist.

    Units: size in bytes, `modified` and `status` (st_mtime, st_ctime) in ns since 1970
    """

    path: Path
    size: int
    modified: int
    status: int
    device: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        try:
            stat = path.stat()
        except OSError:
            return cls(path, -1, -1, -1, -1, -1)
        return cls(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_dev, stat.st_ino)


@dataclass(frozen=True)
class ModelSource:
    """The directory that a model was loaded from; hashes are computed when they are first read.

    `hash_checkpoint` returns the SHA-256 of the directory's weights and configuration, hex. `files` are its weights and
    configuration as they were before loading. `adapter` is the folder of a LoRA adapter
    that was merged into the weights; `hash_checkpoint` and `files` cover it.
    """

    path: Path
    hash_checkpoint: Callable[[Path], str]
    tokenizer_sha256: str | None = None
    files: tuple[FileState, ...] = ()
    adapter: Path | None = None

    @cached_property
    def checkpoint_sha256(self) -> str:
        """SHA-256 over the weights and the configuration, hex.

        Raises: CheckpointError if the files changed while they were read.
        """
        sha256 = self.hash_checkpoint(self.path)
        if not self._unchanged:
            raise CheckpointError(f"{self.path} was changed while it was read; load the model again.")
        return sha256

    @property
    def _unchanged(self) -> bool:
        return file_states(file.path for file in self.files) == self.files

    @property
    def intact(self) -> bool:
        """Whether the hash is known, or the loaded files are unchanged, so that it can be computed."""
        return "checkpoint_sha256" in self.__dict__ or self._unchanged

    @property
    def overwritten(self) -> Path | None:
        """A file of the model that was written to in place since loading, as `overwritten` says; None if none was."""
        return overwritten(self.files, lambda: self.hash_checkpoint(self.path) == self.checkpoint_sha256)

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


def file_states(files: Iterable[Path]) -> tuple[FileState, ...]:
    return tuple(map(FileState.of, files))


def overwritten(files: Iterable[FileState], same_content: Callable[[], bool]) -> Path | None:
    """A file that was written to in place since these states were taken; None if none was.

    Weights that are mapped from such a file have changed with it. A file that was deleted or replaced by another one
    does not change what was mapped. `same_content` is called only if nothing but st_ctime differs, which a change of
    permissions also does: it reads the files again.
    """
    touched = None
    for before in files:
        now = FileState.of(before.path)
        if now == before or (now.device, now.inode) != (before.device, before.inode):
            continue
        if (now.size, now.modified) != (before.size, before.modified):
            return before.path
        touched = before.path
    return None if touched is None or same_content() else touched


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
