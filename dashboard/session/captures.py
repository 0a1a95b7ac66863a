"""Saved captures: the files of the captures folder, written here or by `workbench capture`.

Draws nothing. A name from a URL never leads out of the folder.
"""

import json
import re
import shlex
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open

from dashboard.session.settings import Settings
from dashboard.session.shared_cache import process_cache
from probes.attention import head_metrics
from probes.logits import logit_attribution, logit_lens
from probes.mlp import neurons
from probes.norms import rms_norms
from probes.rope import head_scores
from workbench.errors import CaptureError, DataError
from workbench.hooks.capture import Capture
from workbench.hooks.hook_points import expand, layer_of, point_of

HOOKS = tuple(
    dict.fromkeys(
        (*head_metrics.HOOKS, *head_scores.HOOKS, *rms_norms.HOOKS, *logit_lens.HOOKS, *logit_attribution.HOOKS,
         *neurons.HOOKS,
         "blocks.*.attn.hook_z", "blocks.*.hook_attn_out", "ln_final.hook_out", "hook_logits")
    )
)  # fmt: skip
"""The hooks that the pages need: a capture of these serves every page."""

SUFFIX = ".safetensors"
_NAME = re.compile(r"[\w][\w .-]{0,80}")


@dataclass(frozen=True)
class StoredCapture:
    """A capture file, described by its header; the tensors are not read. Units: bytes of the file.

    `checkpoint` is the hash of the weights, None if the file does not contain it. `problem` says why the file cannot be
    read, None if it can.
    """

    name: str
    path: Path
    bytes: int
    modified: datetime
    tokens: int = 0
    hooks: int = 0
    model: str = ""
    dtype: str = ""
    checkpoint: str | None = None
    interventions: tuple[str, ...] = ()
    problem: str | None = None


def folder() -> Path:
    return Settings.from_env().captures_folder


def list_captures() -> list[StoredCapture]:
    """Every capture of the folder, including damaged ones, newest first."""
    stored = []
    for path in folder().glob(f"*{SUFFIX}"):
        try:
            stored.append(_read_header(path))
        except OSError:  # deleted since it was listed
            continue
    return sorted(stored, key=lambda capture: capture.modified, reverse=True)


def find(name: str) -> StoredCapture:
    """Raises: DataError if there is no such capture, or it is damaged."""
    path = path_of(name)
    if not path.is_file():
        raise DataError(f"There is no capture {name!r} in {folder()}. Choose one on Overview.")
    stored = _read_header(path)
    if stored.problem is not None:
        raise DataError(f"The capture {name!r} is damaged: {stored.problem} Delete it and capture the prompt again.")
    return stored


def path_of(name: str) -> Path:
    """The path of the capture with this name. Raises: DataError for an invalid name."""
    if not _NAME.fullmatch(name):
        raise DataError(
            "A capture's name may contain letters, digits, spaces, dots, - and _. It must begin with a letter, a digit "
            "or _."
        )
    return folder() / f"{name}{SUFFIX}"


def save(capture: Capture, name: str, *, checkpoint: str) -> StoredCapture:
    """Write a capture, with the hash of its checkpoint.

    Raises: DataError if the name is taken or invalid, CaptureError if the file cannot be written.
    """
    path = path_of(name)
    if path.exists():
        raise DataError(f"There is already a capture {name!r}. Choose another name, or delete that one.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CaptureError(f"The folder {path.parent} cannot be created: {error.strerror}.") from error
    provenance = MappingProxyType({**capture.provenance, "checkpoint_sha256": checkpoint})
    replace(capture, provenance=provenance).save(path)
    return _read_header(path)


def delete(name: str) -> None:
    """Raises: DataError if it cannot be deleted."""
    try:
        path_of(name).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"The capture {name!r} cannot be deleted: {error.strerror}.") from error


def capture_command(model: str, prompt: str) -> str:
    """The shell command that saves a capture of a prompt with the hooks of every page."""
    hooks = [word for hook in HOOKS for word in ("--hooks", hook)]
    words = ["workbench", "capture", model, prompt, *hooks, "--output", str(folder() / f"mine{SUFFIX}")]
    make_folder = [] if folder().is_dir() else [shlex.join(["mkdir", "-p", str(folder())])]
    return " && ".join([*make_folder, shlex.join(words)])


def load(stored: StoredCapture, device: torch.device) -> Capture:
    """The whole capture on a device. Cached until the file changes.

    Raises: CaptureError for a damaged file; DataError for a capture that the pages cannot show.
    """
    return _load(str(stored.path), stored.path.stat().st_mtime_ns, str(device))


def covers(capture: Capture, hooks: tuple[str, ...]) -> bool:
    """Whether the capture contains all of these hooks."""
    return not missing_hooks(capture, hooks)


def missing_hooks(capture: Capture, hooks: tuple[str, ...]) -> list[str]:
    """The hooks that the capture lacks: `blocks.*.hook_mlp_out`, or `blocks.{0,2}.hook_mlp_out` for some layers."""
    missing = set(expand(list(hooks), capture.config)) - set(capture.names)
    layers: dict[str, list[str]] = {}
    for name in expand(list(hooks), capture.config):
        if name in missing:
            layers.setdefault(point_of(name).name, []).append(str(layer_of(name)))
    n_layers = capture.config.n_layers
    return [
        point.replace("{l}", "*" if len(numbers) == n_layers else f"{{{','.join(numbers)}}}")
        for point, numbers in layers.items()
    ]


@process_cache("Reading the capture …", max_entries=3)
def _load(path: str, stamp: int, device: str) -> Capture:
    capture = Capture.load(path, device=device)
    if capture.tokens.shape[0] != 1 or capture.start or capture.heads is not None or capture.positions is not None:
        raise DataError(
            "This capture has several prompts, or only some positions or heads. Open it in a notebook with "
            "workbench.Capture.load."
        )
    return capture


def _read_header(path: Path) -> StoredCapture:
    status = path.stat()
    stored = StoredCapture(
        path.name.removesuffix(SUFFIX), path, status.st_size, datetime.fromtimestamp(status.st_mtime)
    )
    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            length = file.get_slice("tokens").get_shape()[-1]
        provenance = about["provenance"]
        return replace(
            stored, tokens=int(length), hooks=len(about["request"]["names"]), model=str(provenance.get("model")),
            dtype=str(provenance.get("dtype")), checkpoint=provenance.get("checkpoint_sha256"),
            interventions=tuple(json.dumps(change) for change in provenance.get("interventions", [])),
        )  # fmt: skip
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        return replace(stored, problem=f"{type(error).__name__}: {error}.")
