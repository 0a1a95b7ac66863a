"""The models of this server: those it was started with and those added on a page, each loaded at its first use.

Models are shared by all users of the process. While one loads, the others can be used. Draws nothing.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import streamlit as st
import torch

import workbench as wb
from dashboard.session import gc_freeze
from dashboard.session.settings import Settings
from workbench import model_cost
from workbench.checkpoint.load import resolve_device
from workbench.checkpoint.manifest import open_checkpoint
from workbench.checkpoint.sources.names import resolve
from workbench.config import ModelConfig
from workbench.errors import CheckpointError, DataError
from workbench.layers.memory import free_memory
from workbench.model import Transformer
from workbench.provenance import display_name


@dataclass(frozen=True)
class ServedModel:
    """A model that can be selected. `id` is used in URLs: the folder's name with a part of the path's hash."""

    id: str
    path: str


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory that a model would need. Units: bytes; `cache` is the key/value cache for one text of full length."""

    config: ModelConfig
    weights: int
    cache: int
    free: int

    def __str__(self) -> str:
        weights, cache, free = map(model_cost.readable_bytes, (self.weights, self.cache, self.free))
        context = f"{self.config.max_seq_len:,} tokens"
        return f"{weights} for the weights and {cache} for the key/value cache of {context}; {free} are free"


class ModelPool:
    """Loaded models by path, with one lock for each path: loading one model does not block another."""

    def __init__(self) -> None:
        self.added: list[str] = []
        self._guard = Lock()
        self._locks: dict[str, Lock] = {}
        self._loaded: dict[str, Transformer] = {}

    def get(self, path: str, progress: Callable[[float], None] | None = None) -> Transformer:
        with self._guard:
            lock = self._locks.setdefault(path, Lock())
        with lock:
            if path not in self._loaded:
                model = wb.load_model(path, progress=progress)
                with self._guard:
                    self._loaded[path] = model.eval().requires_grad_(False)
            return self._loaded[path]

    def drop(self, path: str) -> None:
        with self._guard:
            self._loaded.pop(path, None)

    def loaded_bytes(self) -> dict[str, int]:
        """Bytes of weights of each loaded model, by path."""
        with self._guard:
            loaded = dict(self._loaded)
        return {
            path: sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
            for path, model in loaded.items()
        }


@st.cache_resource(show_spinner=False)
def pool() -> ModelPool:
    """The model pool of this server."""
    return ModelPool()


def served() -> tuple[ServedModel, ...]:
    """Every model of this server; the one it was started with comes first."""
    settings = Settings.from_env()
    paths = dict.fromkeys((settings.model, *settings.more, *pool().added))
    return tuple(ServedModel(_id(path), path) for path in paths)


def add(text: str) -> ServedModel:
    """Add a checkpoint folder to the models that the pages can select.

    Raises: CheckpointError or ConfigError if it is not a checkpoint, DataError if its weights do not fit into memory.
    """
    path, needed = inspect_checkpoint(text)
    if needed.weights > needed.free:
        raise DataError(
            f"Not enough memory: this model needs {needed}. Unload a model, or serve it on a larger machine."
        )
    if path not in pool().added:
        pool().added.append(path)
    return ServedModel(_id(path), path)


def inspect_checkpoint(text: str) -> tuple[str, MemoryEstimate]:
    """The absolute path of a typed folder and the memory that its model would need; nothing is loaded.

    Raises: CheckpointError or ConfigError if it is not a checkpoint.
    """
    if text.strip() == "demo":
        return "demo", memory_estimate("demo")
    try:
        path = resolve(text.strip()).resolve()
        return str(path), memory_estimate(str(path))
    except (OSError, RuntimeError, ValueError) as error:  # no permission, no such home folder, a zero byte
        raise CheckpointError(f"The folder cannot be read: {error}.") from error


def memory_estimate(path: str) -> MemoryEstimate:
    """Raises: CheckpointError or ConfigError if it is not a checkpoint."""
    checkpoint = open_checkpoint(path)
    config, itemsize = checkpoint.config, checkpoint.dtype.itemsize
    cache = model_cost.cache_bytes_per_token(config, itemsize=itemsize) * config.max_seq_len
    return MemoryEstimate(config, config.n_params * itemsize, cache, free_memory(resolve_device("auto")))


def unload(path: str) -> None:
    """Free a model's memory. It is loaded again at its next use."""
    pool().drop(path)
    gc_freeze.collect_all()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _id(path: str) -> str:
    if path == "demo":
        return path
    name = re.sub(r"[^\w.-]+", "-", display_name(Path(path)))[:40].strip("-") or "model"
    return f"{name}-{hashlib.sha256(path.encode(errors='surrogateescape')).hexdigest()[:6]}"
