"""A run with a capture: what it computes, the recorder that fills the capture, and the budget that it must keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from workbench import provenance
from workbench.config import ModelConfig
from workbench.errors import CaptureBudgetError, CaptureError
from workbench.hooks import hook_points
from workbench.hooks.capture import Capture
from workbench.hooks.capture_request import LOGITS, Request
from workbench.hooks.hook_points import (
    KEY_MASS,
    MAP,
    PATTERN,
    SCORES,
    SUMMARIES,
    Site,
    Subscription,
    compute,
    layer_of,
    point_of,
)
from workbench.hooks.intervention import described_interventions
from workbench.hooks.run_limits import layer_number, warn_beyond_context
from workbench.layers import tensor_parallel
from workbench.layers.attention import AttentionInputs
from workbench.layers.kv_cache import KVCache
from workbench.layers.memory import free_memory, out_of_memory, too_little_memory
from workbench.model_cost import readable_bytes
from workbench.provenance import ModelSource

Logits = Literal["all", "last"]


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
    def hidden(self, tokens: Tensor, cache: KVCache | None, stop_at_layer: int | None, /) -> Tensor: ...
    def unembed(self, x: Tensor, /, *, start: int = 0, positions: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Run:
    """What a run computes besides the capture.

    logits: "all", those of the last position, or None. stop_at_layer: only the layers below it run, and its input takes
    the place of the logits. grad: the captured tensors are on the path to the logits in autograd's graph. materialize:
    patterns are computed in the run. copies_keys: a cache's keys are copied, because its owner may write over them.
    """

    logits: Logits | None = "all"
    stop_at_layer: int | None = None
    grad: bool = False
    materialize: bool = False
    copies_keys: bool = True


def run(
    model: Model,
    tokens: Tensor,
    request: Request,
    settings: Run = Run(),
    *,
    cache: KVCache | None = None,
    budget: int | None = None,
) -> tuple[Tensor | None, Capture]:
    """Run the model and capture what is requested; see `Transformer.run_with_capture`."""
    past = 0 if cache is None else cache.length
    request = request.within(tokens.shape[0], past, past + tokens.shape[1])
    settings = _checked(model, request, settings, cache)
    check_budget(model, [tokens.shape], request, settings, past=past, budget=budget, cached=cache is not None)
    recorder = _Recorder(request, model.config, cache is not None and settings.copies_keys, settings.materialize)
    all_logits = any(LOGITS in s.names for s in hook_points.active(model))
    try:
        with (
            torch.set_grad_enabled(settings.grad),
            hook_points.subscribe(model, *recorder.subscriptions(grad=settings.grad)),
        ):
            if settings.logits == "all" and settings.stop_at_layer is None:
                logits: Tensor | None = model(tokens, cache)
            else:
                warn_beyond_context(model, model.config.max_seq_len, past, tokens.shape[1])
                hidden = model.hidden(tokens, cache, _last_layer(model, request, settings, cache))
                if settings.stop_at_layer is None:
                    logits = _logits(model, hidden, past, request, settings.logits, everything=all_logits)
                else:
                    logits = {"all": hidden, "last": hidden[:, -1:], None: None}[settings.logits]
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    else:
        recorder.check_unchanged()
        capture = Capture(
            model.config, tokens, request, past,
            MappingProxyType(recorder.tensors), MappingProxyType(recorder.inputs),
            MappingProxyType(_provenance(model)), None if cache is None or cache.pad is None else cache.pad.clone(),
        )  # fmt: skip
        return logits, capture
    # Outside the handler: the error holds the failed run's tensors.
    raise too_little_memory(tokens.shape, model.device, "capture less, pass logits='last' or None")


def check_budget(
    model: Model,
    shapes: Sequence[Sequence[int]],
    request: Request,
    settings: Run,
    *,
    past: int = 0,
    budget: int | None = None,
    cached: bool = False,
) -> None:
    """Check runs of these shapes, whose captures are all kept, before they run.

    Shapes: each [batch, pos]
    budget: most bytes of the capture and of the logits while they are made; None: half of the memory that is free now.
    Raises: CaptureBudgetError, naming the largest parts.
    """
    itemsize = torch.empty(0, dtype=model.dtype).element_size()
    edited = any(s.edit is not None for s in hook_points.active(model))
    dense = settings.materialize or _edited(model, request.names) or (settings.grad and _has_pattern(request.names))
    shared = not (cached or edited or tensor_parallel.size() > 1)
    sizes: Counter[str] = Counter()
    n_logits = 0
    for batch, seqlen in shapes:
        sizes.update(request.n_bytes(model.config, batch, seqlen, past, itemsize, dense=dense, shared=shared))
        if settings.logits is not None and settings.stop_at_layer is None:
            n_logits += batch * (seqlen if settings.logits == "all" else 1)
    # In the model's dtype and, except for float32, a copy in float32. A capture of all of them is the same tensor.
    held = 0 if settings.logits == "all" and LOGITS in sizes and request.n_positions is None else 4
    sizes["logits"] = n_logits * model.config.vocab_size * (held + (itemsize if itemsize != 4 else 0))
    needed = sum(sizes.values())
    budget = free_memory(model.device) // 2 if budget is None else budget
    if not isinstance(budget, int | float):
        raise CaptureError(f"budget must be a number of bytes, found {budget!r:.80}.")
    if needed <= budget:
        return
    parts: Counter[str] = Counter()
    for name, size in sizes.items():
        parts[f"logits of {n_logits:,} tokens" if name == "logits" else point_of(name).name.replace("{l}", "*")] += size
    named = ", ".join(f"{name} {readable_bytes(size)}" for name, size in parts.most_common(3) if size)
    advice = "logits='last' or None leaves logits out. " if settings.logits == "all" and n_logits else ""
    raise CaptureBudgetError(
        f"this capture needs {readable_bytes(needed)}, over the budget of {readable_bytes(budget)}: {named}.\n"
        f"{advice}Narrow it with layers=, heads= or positions=, request fewer names, or raise budget= (bytes)."
    )


def _checked(model: Model, request: Request, settings: Run, cache: KVCache | None) -> Run:
    """The settings with `stop_at_layer` counted from 0. Raises: CaptureError if they do not fit each other."""
    if settings.logits not in ("all", "last", None):
        raise CaptureError(f"logits must be 'all', 'last' or None, found {settings.logits!r}.")
    if settings.grad and torch.is_inference_mode_enabled():
        raise CaptureError("grad=True cannot be used under torch.inference_mode(); leave that block first.")
    if settings.grad and cache is not None:
        raise CaptureError("grad=True cannot be used with a cache, which is written in place; run the whole text.")
    if settings.stop_at_layer is None:
        return settings
    stop = layer_number(settings.stop_at_layer, model.config.n_layers)
    if cache is not None:
        raise CaptureError("stop_at_layer cannot be used with a cache: later layers would miss these tokens.")
    beyond = [name for name in request.names if _runs_in(name, model.config.n_layers) >= stop]
    if beyond:
        raise CaptureError(
            f"{beyond[0]} is beyond stop_at_layer={settings.stop_at_layer}: only layers below {stop} run. "
            "Narrow the names with layers=, or stop later."
        )
    return replace(settings, stop_at_layer=stop)


def _runs_in(name: str, n_layers: int) -> int:
    """The layer in which a run reaches a hook: -1 for the embedding, `n_layers` for what follows the layers."""
    layer = layer_of(name)
    if layer is not None:
        return layer
    return -1 if name == "hook_embed" else n_layers


def _last_layer(model: Model, request: Request, settings: Run, cache: KVCache | None) -> int | None:
    """The layer at which the run may stop; None if it must not.

    Without logits nothing after the last hook is needed, except by a cache and by other subscriptions.
    """
    if settings.stop_at_layer is not None:
        return settings.stop_at_layer
    if settings.logits is not None or cache is not None:
        return None
    n_layers = model.config.n_layers
    names = {*request.names, *(name for s in hook_points.active(model) for name in s.names)}
    stop = 1 + max(_runs_in(name, n_layers) for name in names)
    return stop if stop < n_layers else None


def _logits(
    model: Model, hidden: Tensor, past: int, request: Request, wanted: Logits | None, *, everything: bool
) -> Tensor | None:
    """The last logits if they are wanted; no others are made than those, and those that a subscription is to see.

    Shapes: hidden [batch, pos, dim] -> [batch, 1, vocab], or None
    """
    end = past + hidden.shape[1]
    observed: set[int] = set()
    if LOGITS in request.names:
        rows = [request.positions] if request.row_positions is None else request.row_positions
        observed = {position for row in rows for position in (range(past, end) if row is None else row)}
    positions = sorted(observed | ({end - 1} if wanted == "last" else set()))
    if everything or len(positions) == hidden.shape[1]:
        logits = model.unembed(hidden, start=past)
    elif not positions:
        return None
    else:
        at = torch.tensor(positions, device=hidden.device)
        logits = model.unembed(hidden[:, at - past], positions=at)
    return logits[:, -1:] if wanted == "last" else None


class _Recorder:
    """Fills a capture: narrows each activation before it is copied."""

    def __init__(self, request: Request, config: ModelConfig, copies_keys: bool, materialize: bool) -> None:
        self.request, self.config = request, config
        self.copies_keys, self.materialize = copies_keys, materialize or request.row_positions is not None
        self.tensors: dict[str, Tensor] = {}
        self.inputs: dict[int, AttentionInputs] = {}
        self._versions: dict[str, int] = {}  # of the run's own tensors when they were captured

    def subscriptions(self, *, grad: bool) -> list[Subscription]:
        """With `grad` a capture is an edit: the captured tensor itself goes on through the run, patterns included."""
        names = frozenset(self.request.names)
        if not grad:
            return [Subscription(names, observe=self._record, inputs=True)]
        summaries = frozenset(name for name in names if name.endswith(SUMMARIES))
        return [
            Subscription(frozenset(["hook_embed"]), edit=_with_gradient),
            Subscription(names - summaries, edit=self._record_on_path),
            Subscription(summaries, observe=self._record, inputs=True),
        ]

    def check_unchanged(self) -> None:
        """Raises: CaptureError if an edit changed a captured tensor in place after it was captured."""
        for name, version in self._versions.items():
            if self.tensors[name]._version != version:
                raise CaptureError(
                    f"{name} was changed in place after it was captured, by an edit at a later hook point. "
                    "Return a new tensor from the edit."
                )

    def _record(self, site: Site, x: Tensor | AttentionInputs) -> None:
        if isinstance(x, AttentionInputs):
            self._record_inputs(site, x)
            return
        index = self._index(site, x)
        self._keep(site, x if index is None else x[index], own=index is None)

    def _record_on_path(self, site: Site, x: Tensor) -> Tensor:
        index = self._index(site, x)
        part = x if index is None else x[index]
        self._keep(site, part, own=index is None)
        return x if index is None else x.index_put(index, part)

    def _keep(self, site: Site, x: Tensor, *, own: bool) -> None:
        self.tensors[site.name] = x
        if own and not x.is_inference():
            self._versions[site.name] = x._version

    def _record_inputs(self, site: Site, inputs: AttentionInputs) -> None:
        assert site.layer is not None
        if site.layer in self.inputs and not self.materialize:
            return
        heads = self._heads(site, self.config.n_heads)
        places = self._places(site)
        if places is not None and len(places) > 1:
            parts = [compute(site.name, _row(inputs, i).narrow(heads, row)) for i, row in enumerate(places)]
            self.tensors[site.name] = torch.cat(parts)
            return
        inputs = inputs.narrow(heads, None if places is None else places[0])
        if self.materialize:
            self.tensors[site.name] = compute(site.name, inputs)
            return
        if self.copies_keys:  # the cache's memory will be overwritten; copy what it holds now
            inputs = replace(inputs, k=inputs.k.clone())
        self.inputs[site.layer] = inputs

    def _index(self, site: Site, x: Tensor) -> tuple[Tensor, ...] | None:
        """Indices along the first axes, which select the requested heads and positions; None for all."""
        axes = site.point.axes[:3]
        places = self._places(site) if "pos" in axes or "query_pos" in axes else None
        heads = self._heads(site, x.shape[axes.index("head")]) if "head" in axes else None
        if places is None and site.name.endswith((MAP, KEY_MASS)) and self.request.n_positions is not None:
            raise CaptureError(
                f"{site.name} sums over queries, and this run computes the pattern. Capture it without positions=, "
                "or capture attn.hook_pattern at those positions."
            )
        if places is None and heads is None:
            return None
        index: list[Tensor] = []
        used = [axis for axis in axes if axis in ("batch", "pos", "query_pos", "head")]
        for i, axis in enumerate(used):
            shape = [1] * len(used)
            shape[i] = -1
            if axis in ("pos", "query_pos") and places is not None:
                shape[0] = len(places)
                index.append(places.view(shape))
            elif axis == "head" and heads is not None:
                index.append(heads.view(shape))
            else:
                index.append(torch.arange(x.shape[i], device=x.device).view(shape))
        return tuple(index)

    def _heads(self, site: Site, width: int) -> Tensor | None:
        if self.request.heads is None:
            return None
        heads = self.request.heads if width == self.config.n_heads else self.request.kv_heads(self.config)
        return torch.tensor(heads, device=site.positions.device)

    def _places(self, site: Site) -> Tensor | None:
        """Where the requested positions are among the run's, of all rows or of each; None for all.

        Shapes: -> [1 or batch, n]
        """
        rows = self.request.row_positions
        if rows is None:
            if self.request.positions is None:
                return None
            rows = (self.request.positions,)
        return torch.searchsorted(site.positions, torch.tensor(rows, device=site.positions.device))


def _with_gradient(site: Site, x: Tensor) -> Tensor:
    """The embedding as a leaf if no weight requires gradients: then everything after it has one."""
    return x if x.requires_grad else x.detach().requires_grad_()


def _row(inputs: AttentionInputs, i: int) -> AttentionInputs:
    """One row of the batch."""
    pad = inputs.mask.pad
    mask = inputs.mask if pad is None else replace(inputs.mask, pad=pad[i : i + 1])
    return replace(inputs, q=inputs.q[i : i + 1], k=inputs.k[i : i + 1], mask=mask)


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


def _edited(model: Model, names: Sequence[str]) -> bool:
    changed = {name for s in hook_points.active(model) if s.edit is not None for name in s.names}
    return any(name.endswith((SCORES, PATTERN)) and name in changed for name in names)


def _has_pattern(names: Sequence[str]) -> bool:
    return any(name.endswith((SCORES, PATTERN)) for name in names)
