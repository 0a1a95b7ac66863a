"""Data sets of the Hugging Face hub by their names there: from a local copy, or from the hub where that is allowed.

A copy is a folder `hub/<org>/<name>` in the data folder: the data set's files, and its README where that says which of
them are which split. It is found there and nowhere else. Knows nothing of tasks.
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


def network(allowed: bool) -> None:
    """Let the hub's libraries use the network or forbid it, for the whole process."""
    # They read the environment once, when they are first imported.
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[name] = "0" if allowed else "1"
    for module, names in _SWITCHES.items():
        if module in sys.modules:
            for name in names:
                setattr(sys.modules[module], name, not allowed)


def copy(root: Path | None, dataset: str) -> Path | None:
    """Where a data set's files lie below a data folder; None where they do not."""
    folder = None if root is None else root / "hub" / dataset
    return folder if folder is not None and folder.is_dir() else None


def load(folder: Path, name: str | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The splits of a local copy, as the `datasets` library reads them, in memory.

    name: the configuration; a folder of that name is one where no README says otherwise.
    Raises: DataError if there is no such configuration, or a file cannot be read.
    """
    import datasets

    given = {key: value for key, value in arguments.items() if key not in ("trust_remote_code", "revision")}
    if name is not None and (folder / name).is_dir() and not _configured(folder):
        given["data_dir"], name = name, None
    datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory() as cache:
            loaded = datasets.load_dataset(str(folder), name=name, cache_dir=cache, keep_in_memory=True, **given)
    except Exception as error:  # whatever the readers of its many formats raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{folder} cannot be read as configuration {name or 'default'!r}: {reason}") from error
    return dict(loaded)


def _configured(folder: Path) -> bool:
    readme = folder / "README.md"
    return readme.is_file() and "configs:" in readme.read_text(encoding="utf-8").partition("\n---")[0]
