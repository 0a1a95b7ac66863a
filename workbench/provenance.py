"""Where numbers come from: the model's files, and the versions that computed them."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ModelSource:
    """The directory a model was loaded from; hashes are computed when somebody asks."""

    path: Path
    tokenizer_sha256: str | None = None

    @cached_property
    def checkpoint_sha256(self) -> str:
        """SHA-256 over the weights and the configuration, hex."""
        from workbench.checkpoint import fingerprint

        return str(fingerprint(self.path))

    @property
    def name(self) -> str:
        return self.path.name


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
