"""`Capture`: the activations of a run at the requested hook points, with their provenance.

Scores, patterns and their summaries are not stored. The rotated q and k are stored, and a pattern is computed when it
is read, per layer, head and query range. The size of a capture is known before the run; a run over its budget is
refused. Captures are saved to and loaded from safetensors with their provenance.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from workbench import provenance
from workbench.config import ModelConfig, scaling_from_fields
from workbench.errors import CaptureBudgetError, CaptureError, MissingHookError
from workbench.hooks import hook_points
from workbench.hooks.hook_points import (
    FROM_INPUTS,
    KEY_MASS,
    MAP,
    PATTERN,
    SCORES,
    Site,
    Subscription,
    compute,
    layer_of,
    point_of,
)
from workbench.hooks.intervention import active_interventions
from workbench.layers import tensor_parallel
from workbench.layers.attention import AttentionInputs
from workbench.layers.attention_mask import Mask
from workbench.layers.attention_stats import STATS, map_side
from workbench.layers.kv_cache import KVCache
from workbench.provenance import ModelSource

FORMAT = "workbench capture 1"


class Model(Protocol):
    """The part of a model that a capture uses."""

    config: ModelConfig

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def source(self) -> ModelSource | None: ...
    def __call__(self, tokens: Tensor, cache: KVCache | None, /) -> Tensor: ...


@dataclass(frozen=True)
class Request:
    """The requested content of a capture: hook names, and which of their heads and positions."""

    names: tuple[str, ...]
    heads: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        names: str | Iterable[str],
        *,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
    ) -> Request:
        """Raises: UnknownHookError for a name or layer, CaptureError for heads or positions out of range."""
        full = hook_points.expand(names, config, layers=layers)
        if not full:
            raise CaptureError("nothing to capture: no hook in the requested layers matches the names.")
        if heads is not None and (not heads or min(heads) < 0 or max(heads) >= config.n_heads):
            raise CaptureError(f"the model has heads 0 to {config.n_heads - 1}, found {list(heads)}.")
        return cls(
            full,
            None if heads is None else tuple(sorted(set(heads))),
            None if positions is None else tuple(sorted(set(positions))),
        )

    def kv_heads(self, config: ModelConfig) -> tuple[int, ...] | None:
        """The key/value heads of the requested heads."""
        if self.heads is None:
            return None
        return tuple(sorted({head // config.group_size for head in self.heads}))

    def n_bytes(self, config: ModelConfig, batch: int, seqlen: int, past: int, itemsize: int) -> dict[str, int]:
        """Bytes needed for each name. A layer's q and k count once, for the first name that needs them."""
        rows = seqlen if self.positions is None else len(self.positions)
        sizes: dict[str, int] = {}
        counted_layers: set[int | None] = set()
        for name in self.names:
            point = point_of(name)
            if name.endswith(FROM_INPUTS):
                heads = config.n_heads if self.heads is None else len(self.heads)
                kv = self.kv_heads(config)
                keys = (config.n_kv_heads if kv is None else len(kv)) * (past + seqlen)
                is_first = layer_of(name) not in counted_layers
                counted_layers.add(layer_of(name))
                sizes[name] = batch * config.head_dim * (heads * rows + keys) * itemsize if is_first else 0
                continue
            count = batch * rows
            for axis in point.axes:
                width = point.width(axis, config)
                if axis == "head" and self.heads is not None:
                    width = len(self.heads) if width == config.n_heads else len(self.kv_heads(config) or ())
                count *= width or 1
            sizes[name] = count * (4 if name.endswith(("hook_scale", "hook_logits")) else itemsize)
        return sizes


@dataclass(frozen=True)
class Capture:
    """Activations of a run at the requested hook points. Tensors stay on the model's device.

    Shapes: tokens [batch, pos] int64; the others as the hook table's axes, with `heads` and `positions` narrowed.
    heads, positions: the captured head numbers and absolute positions; None for all. At the key and value points, the
    key/value heads of `heads` are captured.
    """

    config: ModelConfig
    tokens: Tensor
    request: Request
    start: int
    tensors: Mapping[str, Tensor]
    inputs: Mapping[int, AttentionInputs]
    provenance: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        return self.request.names

    @property
    def heads(self) -> tuple[int, ...] | None:
        return self.request.heads

    @property
    def positions(self) -> tuple[int, ...] | None:
        return self.request.positions

    @property
    def n_bytes(self) -> int:
        """Size in bytes, including the q and k of lazily computed patterns."""
        tensor_bytes = sum(t.numel() * t.element_size() for t in self.tensors.values())
        return tensor_bytes + sum(i.n_bytes for i in self.inputs.values())

    def __contains__(self, name: object) -> bool:
        return name in self.request.names

    def __getitem__(self, name: str) -> Tensor:
        """The tensor at a hook point; a pattern, its scores or a summary is computed now.

        Raises: MissingHookError if it was not captured (names what to add).
        """
        if name in self.tensors:
            return self.tensors[name]
        layer = layer_of(name)
        if name in self and layer is not None and layer in self.inputs:
            return compute(name, self.inputs[layer])
        raise MissingHookError(f"this capture does not hold {name!r}; add it to the names of run_with_capture.")

    def axes(self, name: str) -> tuple[str, ...]:
        """Names of a tensor's axes."""
        if name not in self:
            raise MissingHookError(f"this capture does not hold {name!r}; add it to the names of run_with_capture.")
        return point_of(name).axes

    def layers(self, suffix: str) -> tuple[int, ...]:
        """The layers for which `blocks.{l}.{suffix}` was captured."""
        return tuple(layer for layer in range(self.config.n_layers) if f"blocks.{layer}.{suffix}" in self)

    def stack(self, suffix: str) -> Tensor:
        """`blocks.{l}.{suffix}` of every captured layer. Shapes: -> [layer, ...]"""
        layers = self.layers(suffix)
        if not layers:
            raise MissingHookError(
                f"this capture does not hold 'blocks.*.{suffix}'; add it to the names of run_with_capture."
            )
        return torch.stack([self[f"blocks.{layer}.{suffix}"] for layer in layers])

    def pattern(
        self, layer: int, *, heads: Sequence[int] | None = None, queries: Sequence[int] | None = None
    ) -> Tensor:
        """One layer's attention weights, for some heads (global numbers) and some queries (absolute positions).

        Shapes: -> float32 [batch, head, query_pos, key_pos]
        Raises: MissingHookError for a layer, head or query that was not captured.
        """
        name = f"blocks.{layer}.{PATTERN}"
        captured_heads = tuple(range(self.config.n_heads)) if self.heads is None else self.heads
        head_index = None if heads is None else self._index(captured_heads, heads, "head")
        end = self.start + self.tokens.shape[1]
        captured_queries = tuple(range(self.start, end)) if self.positions is None else self.positions
        query_index = None if queries is None else self._index(captured_queries, queries, "position")
        if layer in self.inputs and name in self:
            return self.inputs[layer].narrow(head_index, query_index).pattern()
        pattern = self[name]
        if head_index is not None:
            pattern = pattern[:, head_index]
        return pattern if query_index is None else pattern[:, :, query_index]

    def _index(self, captured: Sequence[int], requested: Sequence[int], what: str) -> Tensor:
        index = {n: i for i, n in enumerate(captured)}
        try:
            return torch.tensor([index[n] for n in requested], device=self.tokens.device)
        except KeyError:
            raise MissingHookError(
                f"this capture holds {what}s {captured[0]} to {captured[-1]} ({len(captured)} of them), "
                f"not all of {list(requested)}."
            ) from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the capture and its provenance as one safetensors file. Raises: CaptureError if that fails."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = Path(path)
        entries = {"tokens": self.tokens, **{f"tensor/{name}": t for name, t in self.tensors.items()}}
        for layer, inputs in self.inputs.items():
            entries[f"inputs/{layer}/q"], entries[f"inputs/{layer}/k"] = inputs.q, inputs.k
            entries[f"inputs/{layer}/kv_of"] = inputs.kv_of
            entries[f"inputs/{layer}/positions"] = inputs.mask.positions
            if inputs.mask.pad is not None:
                entries[f"inputs/{layer}/pad"] = inputs.mask.pad
        about = {
            "config": asdict(self.config),
            "request": asdict(self.request),
            "start": self.start,
            "provenance": dict(self.provenance),
        }
        temporary = path.with_name(path.name + ".partial")
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in entries.items()}
        try:
            save_file(tensors, temporary, metadata={"format": FORMAT, "about": json.dumps(about)})
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise CaptureError(f"{path} cannot be written: {error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Capture:
        """Read a capture that `save` wrote, onto a device. Raises: CaptureError for any other file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise CaptureError(f"{path} is not a capture in the format that this version reads ({FORMAT}).")
                entries = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CaptureError(f"{path} cannot be read as a capture: {error}") from error
        about = json.loads(metadata["about"])
        config = dict(about["config"])
        if config["rope_scaling"]:
            config["rope_scaling"] = scaling_from_fields(config["rope_scaling"])
        stored = about["request"]
        narrowed = {key: None if stored[key] is None else tuple(stored[key]) for key in ("heads", "positions")}
        request = Request(tuple(stored["names"]), **narrowed)
        inputs = {}
        for name in entries:
            if name.startswith("inputs/") and name.endswith("/q"):
                prefix = name[: -len("q")]
                mask = Mask(entries[prefix + "positions"], entries.get(prefix + "pad"))
                inputs[int(prefix.split("/")[1])] = AttentionInputs(
                    entries[name], entries[prefix + "k"], mask, entries[prefix + "kv_of"]
                )
        tensors = {name[len("tensor/") :]: t for name, t in entries.items() if name.startswith("tensor/")}
        return cls(
            ModelConfig(**config), entries["tokens"], request, about["start"],
            MappingProxyType(tensors), MappingProxyType(inputs), MappingProxyType(about["provenance"]),
        )  # fmt: skip


class _Recorder:
    """The observer that fills a capture: narrows each activation before it is copied."""

    def __init__(self, request: Request, config: ModelConfig, cached: bool, materialize: bool) -> None:
        self.request, self.config, self.cached, self.materialize = request, config, cached, materialize
        self.tensors: dict[str, Tensor] = {}
        self.inputs: dict[int, AttentionInputs] = {}

    def subscription(self) -> Subscription:
        return Subscription(frozenset(self.request.names), observe=self._record, inputs=True)

    def _record(self, site: Site, x: Tensor | AttentionInputs) -> None:
        if isinstance(x, AttentionInputs):
            self._record_inputs(site, x)
            return
        if site.name.endswith((MAP, KEY_MASS)) and self.request.positions is not None:
            raise CaptureError(
                f"{site.name} sums over queries, and an intervention changes its pattern. Capture it without "
                "positions=, or capture attn.hook_pattern at those positions."
            )
        for axis, name in enumerate(site.point.axes):
            index = self._indices(name, site, x.shape[axis])
            if index is not None:
                x = x.index_select(axis, index)
        self.tensors[site.name] = x

    def _record_inputs(self, site: Site, inputs: AttentionInputs) -> None:
        assert site.layer is not None
        if site.layer in self.inputs and not self.materialize:
            return
        heads = self._indices("head", site, self.config.n_heads)
        inputs = inputs.narrow(heads, self._indices("query_pos", site, len(site.positions)))
        if self.materialize:
            self.tensors[site.name] = compute(site.name, inputs)
            return
        if self.cached:  # the cache's memory will be overwritten; copy what it holds now
            inputs = replace(inputs, k=inputs.k.clone())
        self.inputs[site.layer] = inputs

    def _indices(self, axis: str, site: Site, width: int) -> Tensor | None:
        """Indices to capture along an axis; None for all."""
        request, device = self.request, site.positions.device
        if axis == "head" and request.heads is not None:
            heads = request.heads if width == self.config.n_heads else request.kv_heads(self.config)
            return torch.tensor(heads, device=device)
        if axis in ("pos", "query_pos") and request.positions is not None:
            positions = torch.tensor(request.positions, device=device)
            return torch.isin(site.positions, positions).nonzero().squeeze(-1)
        return None


def run(
    model: Model,
    tokens: Tensor,
    request: Request,
    *,
    cache: KVCache | None = None,
    budget: int | None = None,
    materialize: bool = False,
) -> tuple[Tensor, Capture]:
    """Run the model and capture what is requested.

    Shapes: tokens [batch, pos] int64 -> logits [batch, pos, vocab] float32, and the capture
    budget: most bytes of the capture; None: half of the memory that is free now.
    materialize: compute scores and patterns in the run (for gradients through them) instead of when they are read.
    Raises: CaptureBudgetError before the run, naming the largest hooks.
    """
    past = 0 if cache is None else cache.length
    if request.positions is not None:
        end = past + tokens.shape[1]
        if not request.positions or request.positions[0] < past or request.positions[-1] >= end:
            raise CaptureError(f"this run has positions {past} to {end - 1}, found {list(request.positions)[:8]}.")
    _check_budget(model, tokens, request, past, budget, materialize)
    recorder = _Recorder(request, model.config, cache is not None, materialize)
    with hook_points.subscribe(model, recorder.subscription()):
        logits = model(tokens, cache)
    capture = Capture(
        model.config, tokens, request, past,
        MappingProxyType(recorder.tensors), MappingProxyType(recorder.inputs),
        MappingProxyType(_provenance(model)),
    )  # fmt: skip
    return logits, capture


def _provenance(model: Model) -> dict[str, Any]:
    return {
        "model": None if model.source is None else model.source.name,
        "tokenizer_sha256": None if model.source is None else model.source.tokenizer_sha256,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "processes": tensor_parallel.size(),
        "pair_order": "adjacent",  # q and k are in Meta's order
        "interventions": [i.to_dict() for i in active_interventions(model) if i is not None],
        "commit": provenance.commit(),
        "versions": provenance.versions(),
    }


def _check_budget(
    model: Model, tokens: Tensor, request: Request, past: int, budget: int | None, materialize: bool
) -> None:
    batch, seqlen = tokens.shape
    itemsize = torch.empty(0, dtype=model.dtype).element_size()
    sizes = request.n_bytes(model.config, batch, seqlen, past, itemsize)
    dense = materialize or _edited(model, request.names)
    if dense:
        heads = model.config.n_heads if request.heads is None else len(request.heads)
        rows = seqlen if request.positions is None else len(request.positions)
        for name in sizes:
            if name.endswith(FROM_INPUTS):
                sizes[name] = batch * heads * 4 * _cells(name, rows, past + seqlen)
    needed = sum(sizes.values())
    budget = free_memory(model.device) // 2 if budget is None else budget
    if needed <= budget:
        return
    parts: dict[str, int] = {}
    for name, size in sizes.items():
        row = point_of(name).name.replace("{l}", "*")
        parts[row] = parts.get(row, 0) + size
    costly = sorted(parts.items(), key=lambda part: -part[1])[:3]
    named = ", ".join(f"{name} {_readable(size)}" for name, size in costly)
    raise CaptureBudgetError(
        f"this capture needs {_readable(needed)}, over the budget of {_readable(budget)}: {named}.\n"
        "Narrow it with layers=, heads= or positions=, request fewer names, or raise budget= (bytes)."
    )


def _cells(name: str, rows: int, keys: int) -> int:
    """Number of elements of one head's pattern, scores or summary."""
    if name.endswith((SCORES, PATTERN)):
        return rows * keys
    if name.endswith(MAP):
        return map_side(rows) * map_side(keys)
    return keys if name.endswith(KEY_MASS) else rows * len(STATS)


def _edited(model: Model, names: Sequence[str]) -> bool:
    changed = {name for s in hook_points.active(model) if s.edit is not None for name in s.names}
    return any(name.endswith((SCORES, PATTERN)) and name in changed for name in names)


def free_memory(device: torch.device) -> int:
    """Bytes free for new tensors on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 8 << 30


def _readable(n_bytes: int) -> str:
    size = float(n_bytes)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
