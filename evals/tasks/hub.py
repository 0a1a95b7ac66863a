"""Datasets of the Hugging Face hub by name: from a local copy, or from the hub if that is allowed.

A local copy is a folder `hub/<org>/<name>` in the data folder: the dataset's files, and its README if that assigns them
to splits. No other place is searched. Knows nothing of tasks.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import DataError

_SWITCHES = {
    "huggingface_hub.constants": ("HF_HUB_OFFLINE",),
    "datasets.config": ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
}


def allow_network(allowed: bool) -> None:
    """Allow or forbid network access of the hub's libraries, for the whole process."""
    # They read the environment once, at their first import.
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[name] = "0" if allowed else "1"
    for module, names in _SWITCHES.items():
        if module in sys.modules:
            for name in names:
                setattr(sys.modules[module], name, not allowed)


def local_copy(root: Path | None, dataset: str) -> Path | None:
    """The folder of a dataset's local copy below a data folder; None if there is none."""
    folder = None if root is None else root / "hub" / dataset
    return folder if folder is not None and folder.is_dir() else None


def load(folder: Path, name: str | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The splits of a local copy, read into memory by the `datasets` library.

    name: the configuration; without one in the README, the folder of that name.
    Raises: DataError if there is no such configuration, or a file cannot be read.
    """
    import datasets

    options = {key: value for key, value in arguments.items() if key not in ("trust_remote_code", "revision")}
    if name is not None and (folder / name).is_dir() and not _configured(folder):
        options["data_dir"], name = name, None
    datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory() as cache:
            loaded = datasets.load_dataset(str(folder), name=name, cache_dir=cache, keep_in_memory=True, **options)
    except Exception as error:  # its readers for many formats raise many types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{folder} cannot be read as configuration {name or 'default'!r}: {reason}") from error
    return dict(loaded)


def _configured(folder: Path) -> bool:
    readme = folder / "README.md"
    return readme.is_file() and "configs:" in readme.read_text(encoding="utf-8").partition("\n---")[0]
