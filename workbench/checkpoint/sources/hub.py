"""Models of the Hugging Face hub by name: found in the local cache, or downloaded into it when that is asked for.

The cache, its location ($HF_HOME, $HF_HUB_CACHE), tokens and downloads are those of the `huggingface_hub` library. Only
`download` uses the network.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from workbench import model_cost
from workbench.errors import CheckpointError
from workbench.file_problem import file_problem

_NAME = re.compile(r"([a-z0-9][\w.-]*/[a-z0-9][\w.-]*)(?:@([a-z0-9][\w./-]*))?", re.IGNORECASE | re.ASCII)
# Files that a checkpoint may need next to its weights; other JSON files are few and small.
_COMPANIONS = ("*.json", "*.jinja", "additional_chat_templates/*.jinja", "tokenizer.*", "LICENSE*", "USE_POLICY*")
# The weights are the first row of which a repository has files: one copy of them, safetensors rather than pickles.
_WEIGHTS: tuple[tuple[str, ...], ...] = (
    ("model.safetensors", "model-?????-of-?????.safetensors"),
    ("adapter_model.safetensors",),
    ("consolidated*.safetensors",),
    ("*.safetensors",),
    ("pytorch_model.bin", "pytorch_model-?????-of-?????.bin"),
    ("adapter_model.bin",),
    ("consolidated*.pth",),
    ("original/consolidated*.safetensors",),
    ("original/consolidated*.pth",),
    ("*.gguf",),
)


@dataclass(frozen=True)
class HubName:
    """A model on the hub: `org/name`, and the branch, tag or commit after `@`."""

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """The name in a text; None for a path or anything else that cannot be a name on the hub."""
        match = _NAME.fullmatch(text)
        if match is None or len(match[1]) > 96 or "--" in match[1] or ".." in text or match[1].endswith(".git"):
            return None
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def cached(name: HubName) -> Path | None:
    """The snapshot of a model in the local cache, complete or not; None if there is none. Uses no network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # Without patterns the library would ask for every file that the repository has.
        folder = snapshot_download(name.repo, revision=name.revision, local_files_only=True, allow_patterns=[])
    except LocalEntryNotFoundError:
        return None
    return Path(folder)


def cache_folder() -> Path:
    """The local cache, whether it exists or not."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def snapshot_in(folder: Path) -> Path | None:
    """The snapshot of a model's folder in a cache (`models--org--name`); None for any other folder.

    That is the one of the branch main, else the only one.
    Raises: CheckpointError if several snapshots are there, or several models.
    """
    if (folder / "snapshots").is_dir():
        snapshots = {path.name: path for path in (folder / "snapshots").iterdir() if path.is_dir()}
        if main := snapshots.get(_commit(folder / "refs" / "main")):
            return main
        if len(snapshots) == 1:
            return next(iter(snapshots.values()))
        raise CheckpointError(
            f"{folder}: holds {len(snapshots)} snapshots and no branch main; pass the path of one of them."
        )
    for cache in (folder, folder / "hub"):  # the folder itself may be HF_HOME
        models = sorted(path.name.removeprefix("models--").replace("--", "/", 1) for path in cache.glob("models--*"))
        if models:
            count = f"{len(models)} models" if len(models) > 1 else "one model"
            raise CheckpointError(f"{folder}: is a cache of {count}; pass a name, for example {models[0]}.")
    return None


def _commit(branch: Path) -> str:
    """The commit that a branch's file names; empty if there is no readable file."""
    if file_problem(branch):
        return ""
    with branch.open("rb") as stream:
        return stream.read(100).decode("ascii", "replace").strip()


def needed_files(files: Iterable[str]) -> list[str]:
    """The files of a repository that a checkpoint is read from: one copy of its weights, and what is next to them.

    Raises: CheckpointError if the repository holds no weights, or several GGUF files.
    """
    names = sorted(files)
    weights = next(filter(None, (_match(names, row) for row in _WEIGHTS)), [])
    if not weights:
        raise CheckpointError("holds no weights in safetensors, PyTorch's or GGUF format")
    if weights[0].endswith(".gguf") and len(weights) > 1:
        raise CheckpointError(
            f"holds {len(weights)} GGUF files; download one with `hf download` and pass its path, for example "
            f"{weights[0]}"
        )
    companions = _match(names, _COMPANIONS)
    if weights[0].startswith("original/"):
        companions += _match(names, ("original/*.json", "original/tokenizer.*"))
    if not weights[0].startswith("pytorch_model"):
        companions = [name for name in companions if name != "pytorch_model.bin.index.json"]
    return sorted({*weights, *companions})


def download(name: HubName, report: Callable[[str], None]) -> Path:
    """The snapshot of a model in the local cache, after downloading the files that it lacks.

    A connection that breaks off is resumed within the file. After a process that was killed, complete files stay.
    `report` is called with a sentence before the download; the library's progress goes to stderr.
    Raises: CheckpointError, in one sentence, for everything that the hub, the network or the disk refuse.
    """
    from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache

    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        info = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        try:
            files = needed_files(sizes)
        except CheckpointError as error:
            raise CheckpointError(f"{name} {error}.") from error
        absent = [f for f in files if not isinstance(try_to_load_from_cache(name.repo, f, revision=info.sha), str)]
        n_bytes = sum(sizes[file] for file in absent)
        _check_space(name, n_bytes)
        if absent:
            size = model_cost.readable_bytes(n_bytes)
            report(f"downloading {len(absent)} files of {name}, {size}, to {cache_folder()}")
        patterns = [re.sub(r"([\[*?])", r"[\1]", file) for file in files]
        return Path(snapshot_download(name.repo, revision=name.revision, allow_patterns=patterns))
    except CheckpointError:
        raise
    except Exception as error:  # the HTTP library, which is not ours, raises types of its own
        raise CheckpointError(f"{name} cannot be downloaded: {_reason(error, constants.ENDPOINT)}") from error


def _match(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that match one of the patterns, in which `*` does not cross folders."""
    rows = list(patterns)
    return [name for name in names if any(fnmatchcase(name, row) and name.count("/") == row.count("/") for row in rows)]


def _check_space(name: HubName, n_bytes: int) -> None:
    folder = cache_folder()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        needed, left = model_cost.readable_bytes(n_bytes), model_cost.readable_bytes(free)
        raise CheckpointError(
            f"{name} needs {needed}, but {left} are free in {folder}; set HF_HOME to a folder on a larger disk."
        )


def _reason(error: Any, endpoint: str) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it to allow downloads."
    if isinstance(error, GatedRepoError) or status == 403:
        return (
            "access is restricted. Accept its licence on its page of the hub, then set HF_TOKEN or run `hf auth login`."
        )
    if isinstance(error, RepositoryNotFoundError) or status == 401:
        return (
            f"{endpoint} knows no such model, or it is private. Check the name; for a private model set HF_TOKEN "
            "or run `hf auth login`."
        )
    if isinstance(error, RevisionNotFoundError):
        return "it has no such branch, tag or commit; leave out `@...` for the branch main."
    if status is not None:
        return f"{endpoint} answered with status {status}; try again later."
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"no space left in {cache_folder()}. Free some and run the command again; complete files are kept."
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS):
        return f"{cache_folder()} is not writable; set HF_HOME to another folder."
    reason = " ".join(str(error).split())[:150] or type(error).__name__
    return (
        f"the connection to {endpoint} failed ({reason}). "
        "Check the network, then run the command again; complete files are kept."
    )
