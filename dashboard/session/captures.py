"""Captures kept on disk: a folder of the files that `Capture.save` writes, `workbench capture`'s among them.

Draws nothing. A name from an address never leads out of the folder.
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
"""What the pages ask of a prompt: a capture of these answers them all."""

SUFFIX = ".safetensors"
_NAME = re.compile(r"[\w][\w .-]{0,80}")


@dataclass(frozen=True)
class StoredCapture:
    """A file of the folder, as its head describes it; nothing else of it was read. Units: bytes of the file.

    `checkpoint` is the hash of the weights, None where the file does not say. `problem` says why it cannot be read.
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
    """Every capture of the folder, newest first, damaged ones among them."""
    found = []
    for path in folder().glob(f"*{SUFFIX}"):
        try:
            found.append(_read_header(path))
        except OSError:  # gone since it was listed
            continue
    return sorted(found, key=lambda one: one.modified, reverse=True)


def find(name: str) -> StoredCapture:
    """Raises: DataError if there is no such capture, or it is damaged."""
    path = path_of(name)
    if not path.is_file():
        raise DataError(f"There is no capture {name!r} in {folder()}. Choose one on Overview.")
    found = _read_header(path)
    if found.problem is not None:
        raise DataError(f"The capture {name!r} is damaged: {found.problem} Delete it, and capture the prompt again.")
    return found


def path_of(name: str) -> Path:
    """Where a capture of this name stands. Raises: DataError for what is no name of a file."""
    if not _NAME.fullmatch(name):
        raise DataError(
            "A capture's name has letters, digits, spaces, dots, - and _, and begins with one of the first."
        )
    return folder() / f"{name}{SUFFIX}"


def save(capture: Capture, name: str, *, checkpoint: str) -> StoredCapture:
    """Write a capture, with its checkpoint's hash.

    Raises: DataError for a name that is taken or is none, CaptureError where the file cannot be written.
    """
    path = path_of(name)
    if path.exists():
        raise DataError(f"There is a capture {name!r} already. Choose another name, or delete that one.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CaptureError(f"{path.parent} cannot be made: {error.strerror}.") from error
    about = MappingProxyType({**capture.provenance, "checkpoint_sha256": checkpoint})
    replace(capture, provenance=about).save(path)
    return _read_header(path)


def delete(name: str) -> None:
    """Raises: DataError if it cannot be deleted."""
    try:
        path_of(name).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"The capture {name!r} cannot be deleted: {error.strerror}.") from error


def capture_command(model: str, prompt: str) -> str:
    """What keeps a capture of a prompt that answers every page, in a terminal."""
    hooks = [word for hook in HOOKS for word in ("--hooks", hook)]
    words = ["workbench", "capture", model, prompt, *hooks, "--output", str(folder() / f"mine{SUFFIX}")]
    make = [] if folder().is_dir() else [shlex.join(["mkdir", "-p", str(folder())])]
    return " && ".join([*make, shlex.join(words)])


def load(found: StoredCapture, device: torch.device) -> Capture:
    """The whole capture on a device, read once for each state of its file.

    Raises: CaptureError for a damaged file; DataError for one that pages cannot look at.
    """
    return _load(str(found.path), found.path.stat().st_mtime_ns, str(device))


def covers(capture: Capture, hooks: tuple[str, ...]) -> bool:
    """Whether it holds all of these hooks."""
    return not missing_hooks(capture, hooks)


def missing_hooks(capture: Capture, hooks: tuple[str, ...]) -> list[str]:
    """What it does not hold of these hooks: `blocks.*.hook_mlp_out`, or `blocks.{0,2}.hook_mlp_out` of some layers."""
    missing = set(expand(list(hooks), capture.config)) - set(capture.names)
    layers: dict[str, list[str]] = {}
    for name in expand(list(hooks), capture.config):
        if name in missing:
            layers.setdefault(point_of(name).name, []).append(str(layer_of(name)))
    whole = capture.config.n_layers
    return [
        point.replace("{l}", "*" if len(found) == whole else f"{{{','.join(found)}}}")
        for point, found in layers.items()
    ]


@process_cache("Reading the capture …", max_entries=3)
def _load(path: str, stamp: int, device: str) -> Capture:
    capture = Capture.load(path, device=device)
    if capture.tokens.shape[0] != 1 or capture.start or capture.heads is not None or capture.positions is not None:
        raise DataError(
            "This capture holds several prompts, or only some positions or heads. Open it in a notebook with "
            "workbench.Capture.load."
        )
    return capture


def _read_header(path: Path) -> StoredCapture:
    about = path.stat()
    plain = StoredCapture(path.name.removesuffix(SUFFIX), path, about.st_size, datetime.fromtimestamp(about.st_mtime))
    try:
        with safe_open(str(path), framework="pt") as file:
            said = json.loads((file.metadata() or {})["about"])
            length = file.get_slice("tokens").get_shape()[-1]
        origin = said["provenance"]
        return replace(
            plain, tokens=int(length), hooks=len(said["request"]["names"]), model=str(origin.get("model")),
            dtype=str(origin.get("dtype")), checkpoint=origin.get("checkpoint_sha256"),
            interventions=tuple(json.dumps(one) for one in origin.get("interventions", [])),
        )  # fmt: skip
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        return replace(plain, problem=f"{type(error).__name__}: {error}.")
