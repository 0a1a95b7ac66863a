"""A run with a capture: the observer that fills it, and the budget that is checked before the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from workbench import provenance
from workbench.config import ModelConfig
from workbench.errors import CaptureBudgetError, CaptureError
from workbench.hooks import hook_points
from workbench.hooks.capture import Capture
from workbench.hooks.capture_request import Request
from workbench.hooks.hook_points import (
    FROM_INPUTS,
    KEY_MASS,
    MAP,
    PATTERN,
    SCORES,
    Site,
    Subscription,
    compute,
    point_of,
)
from workbench.hooks.intervention import described_interventions
from workbench.layers import tensor_parallel
from workbench.layers.attention import AttentionInputs
from workbench.layers.attention_stats import STATS, map_side
from workbench.layers.kv_cache import KVCache
from workbench.layers.memory import free_memory
from workbench.model_cost import readable_bytes
from workbench.provenance import ModelSource


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
        MappingProxyType(_provenance(model)), None if cache is None or cache.pad is None else cache.pad.clone(),
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
        "interventions": described_interventions(model),
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
    named = ", ".join(f"{name} {readable_bytes(size)}" for name, size in costly)
    raise CaptureBudgetError(
        f"this capture needs {readable_bytes(needed)}, over the budget of {readable_bytes(budget)}: {named}.\n"
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
