"""The user's data folder, which holds benchmark data and fetched models. Creates nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def home() -> Path:
    """The data folder: $WORKBENCH_DATA, else the platform's folder for user data.

    That is ~/Library/Application Support/llama-workbench on macOS, %LOCALAPPDATA%\\llama-workbench on Windows, and
    $XDG_DATA_HOME/llama-workbench (~/.local/share/llama-workbench) elsewhere.
    """
    if named := os.environ.get("WORKBENCH_DATA"):
        return Path(named).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "llama-workbench"


def model_folder(name: str) -> Path:
    """The Hugging Face folder of a model that `workbench fetch NAME` made, whether it exists or not."""
    return home() / "models" / name
