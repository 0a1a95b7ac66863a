"""`workbench fetch` and `--online`: download a model by its name."""

from __future__ import annotations

import sys
from pathlib import Path

from workbench.checkpoint.sources import hub
from workbench.checkpoint.sources.names import REAL_MODEL, is_fetchable
from workbench.checkpoint.sources.real_model import fetch_real_model
from workbench.errors import CheckpointError


def fetch(name: str) -> Path:
    """The folder of "smollm2" or of a model on the hub, downloaded if it is not complete; progress goes to stderr.

    Raises: CheckpointError if the name is of no such kind, or the download fails.
    """
    if name == REAL_MODEL:
        return fetch_real_model(_report)
    model = hub.HubName.parse(name)
    if model is None:
        raise CheckpointError(
            f"{name!r} cannot be fetched; expected {REAL_MODEL} or a name on the Hugging Face hub, ORG/NAME or "
            "ORG/NAME@REVISION."
        )
    return hub.download(model, _report)


def fetch_if(online: bool, *models: str) -> None:
    """With `online`, fetch those of the models that are names; paths that exist and "demo" stay as they are."""
    for model in models:
        if online and is_fetchable(model):
            fetch(model)


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
