"""Table of hook points, and the dispatch of activations to subscriptions that observe or edit them.

The table is the single source for the documentation page, the error for an unknown name and the dashboard's list. A
`Subscription` belongs to one model and to the current context (thread or task), so two users of one model do not see
each other's. A `Scope` removes its own subscriptions, whatever the order in which scopes are left.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from typing import Any

from torch import Tensor

from workbench.config import ModelConfig
from workbench.errors import InterventionError, UnknownHookError, WorkbenchWarning
from workbench.layers import tensor_parallel
from workbench.layers.attention import AttentionInputs, EditedPattern
from workbench.layers.attention_stats import STATS
from workbench.layers.rope import Rotary


@dataclass(frozen=True)
class HookPoint:
    """One row of the table. `{l}` in the name stands for a layer's number."""

    name: str
    axes: tuple[str, ...]
    meaning: str

    @property
    def per_layer(self) -> bool:
        return "{l}" in self.name

    def width(self, axis: str, config: ModelConfig) -> int | None:
        """Size of an axis that the model's shape fixes; None for those that the tokens fix."""
        if axis == "head":
            return config.n_kv_heads if self.name.endswith(("hook_k", "hook_v", "hook_rot_k")) else config.n_heads
        sizes = {
            "dim": config.dim, "head_dim": config.head_dim, "ffn": config.ffn_dim,
            "vocab": config.vocab_size, "stat": len(STATS), "1": 1,
        }  # fmt: skip
        return sizes.get(axis)


def _row(name: str, axes: str, meaning: str) -> HookPoint:
    return HookPoint(name, tuple(axes.split()), meaning)


def _norm(prefix: str, of: str) -> tuple[HookPoint, ...]:
    return (
        _row(f"{prefix}.hook_scale", "batch pos 1", f"the RMS that {of} is divided by"),
        _row(f"{prefix}.hook_normalized", "batch pos dim", f"{of} after division, before the gain"),
        _row(f"{prefix}.hook_out", "batch pos dim", f"{of} after the gain"),
    )


_L = "blocks.{l}."
SCORES, PATTERN = "attn.hook_attn_scores", "attn.hook_pattern"
ROW_STATS, MAP, KEY_MASS = "attn.hook_stats", "attn.hook_map", "attn.hook_key_mass"
SUMMARIES = (ROW_STATS, MAP, KEY_MASS)  # of a pattern: computed from it, cannot be edited
LOGITS = "hook_logits"
FROM_INPUTS = (SCORES, PATTERN, *SUMMARIES)

HOOKS: tuple[HookPoint, ...] = (
    _row("hook_embed", "batch pos dim", "token embedding"),
    _row(_L + "hook_resid_pre", "batch pos dim", "the stream before the block"),
    *_norm(_L + "ln1", "the stream before attention"),
    _row(_L + "attn.hook_q", "batch pos head head_dim", "queries before rotation"),
    _row(_L + "attn.hook_k", "batch pos head head_dim", "keys before rotation; the key/value heads"),
    _row(_L + "attn.hook_v", "batch pos head head_dim", "values; the key/value heads"),
    _row(_L + "attn.hook_rot_q", "batch pos head head_dim", "queries after rotation"),
    _row(_L + "attn.hook_rot_k", "batch pos head head_dim", "keys after rotation; the key/value heads"),
    _row(_L + SCORES, "batch head query_pos key_pos", "scaled and masked scores, before softmax"),
    _row(_L + PATTERN, "batch head query_pos key_pos", "attention weights, after softmax"),
    _row(_L + ROW_STATS, "batch head query_pos stat", "statistics of each row of the pattern, which is not stored"),
    _row(_L + MAP, "batch head query_tile key_tile", "the pattern at up to 256 x 256: mean over a tile's rows"),
    _row(_L + KEY_MASS, "batch head key_pos", "weight that each key receives, summed over the queries"),
    _row(_L + "attn.hook_z", "batch pos head head_dim", "per head, before the output projection"),
    _row(_L + "attn.hook_result", "batch pos head dim", "per head, after the output projection"),
    _row(_L + "hook_attn_out", "batch pos dim", "what attention adds to the stream"),
    _row(_L + "hook_resid_mid", "batch pos dim", "the stream after attention is added"),
    *_norm(_L + "ln2", "the stream before the MLP"),
    _row(_L + "mlp.hook_pre", "batch pos ffn", "gate: w1 x"),
    _row(_L + "mlp.hook_pre_linear", "batch pos ffn", "up: w3 x"),
    _row(_L + "mlp.hook_post", "batch pos ffn", "the neurons: silu(gate) * up"),
    _row(_L + "hook_mlp_out", "batch pos dim", "what the MLP adds to the stream"),
    _row(_L + "hook_resid_post", "batch pos dim", "the stream after the MLP is added"),
    *_norm("ln_final", "the last stream"),
    _row(LOGITS, "batch pos vocab", "output of the unembedding, float32"),
)

_LAYER = re.compile(r"^blocks\.(\d+)\.")
_BY_NAME = {point.name: point for point in HOOKS}


def point_of(name: str) -> HookPoint:
    """The table's row for a full hook name such as `blocks.3.attn.hook_z`."""
    return _BY_NAME[_LAYER.sub("blocks.{l}.", name)]


def known(name: str) -> bool:
    """Whether a text is a full hook name of some model, rather than a pattern of names."""
    return _LAYER.sub("blocks.{l}.", name) in _BY_NAME


def layer_of(name: str) -> int | None:
    """The layer in a hook name; None for a hook outside the layers."""
    match = _LAYER.match(name)
    return int(match.group(1)) if match else None


@lru_cache(maxsize=64)
def _names(n_layers: int) -> tuple[str, ...]:
    block = [p.name for p in HOOKS if p.per_layer]
    first = HOOKS.index(_BY_NAME[block[0]])
    before = [p.name for p in HOOKS[:first]]
    after = [p.name for p in HOOKS[first + len(block) :]]
    blocks = [name.format(l=layer) for layer in range(n_layers) for name in block]
    return (*before, *blocks, *after)


def hook_names(config: ModelConfig) -> tuple[str, ...]:
    """Every hook name of a model, in the order in which a run reaches them."""
    return _names(config.n_layers)


def expand(
    patterns: str | Iterable[str], config: ModelConfig, *, layers: Iterable[int] | None = None
) -> tuple[str, ...]:
    """Full hook names for names or shell-style patterns, in the order of a run; `layers` keeps only those layers.

    Raises: UnknownHookError for a pattern that matches nothing; the message suggests similar names.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    known = hook_names(config)
    chosen: set[str] = set()
    for pattern in patterns:
        matched = [name for name in known if name == pattern] or _matches(pattern, known)
        if not matched:
            raise UnknownHookError(f"no hook is called {pattern!r}. {_hint(pattern, known, config)}")
        chosen.update(matched)
    if layers is not None:
        layer_set = set(layers)
        beyond = sorted(layer for layer in layer_set if not 0 <= layer < config.n_layers)
        if beyond:
            raise UnknownHookError(f"the model has layers 0 to {config.n_layers - 1}, not {beyond[0]}.")
        chosen = {name for name in chosen if layer_of(name) is None or layer_of(name) in layer_set}
    return tuple(name for name in known if name in chosen)


def _matches(pattern: str, known: Sequence[str]) -> list[str]:
    expression = re.compile(translate(pattern))
    return [name for name in known if expression.match(name)]


def _hint(pattern: str, known: Sequence[str], config: ModelConfig) -> str:
    layer = layer_of(pattern)
    if layer is not None and layer >= config.n_layers:
        return f"The model has layers 0 to {config.n_layers - 1}."
    near = difflib.get_close_matches(pattern.replace("*", "0"), known, n=3, cutoff=0.5)
    tail = pattern.rsplit(".", 1)[-1]
    near = near or [name for name in known if tail and tail in name][:3]
    return f"Did you mean {', '.join(near)}?" if near else "`workbench.hook_names(config)` lists them."


@dataclass(frozen=True)
class Site:
    """A hook point reached in a run: its name, layer and token positions.

    Shapes: positions [pos] int64, absolute, of this run's tokens (they follow those in a key/value cache).
    """

    name: str
    point: HookPoint
    layer: int | None
    positions: Tensor


Observe = Callable[[Site, "Tensor | AttentionInputs"], None]
Edit = Callable[[Site, Tensor], Tensor]
Restore = Callable[[Tensor], Tensor]
RotaryOverride = Callable[[ModelConfig], Rotary]


@dataclass(frozen=True)
class Subscription:
    """A subscription to some hook points: `observe` reads the activation, `edit` returns its replacement.

    An edit must not change its argument in place: an earlier capture may hold the same tensor.
    `rotary_override` belongs to no hook point: it replaces the rotary embedding of the whole run.
    `position_independent` means that `edit` depends neither on positions nor on the other sequences of the batch, so
    that sequences at different positions may run together. With `inputs`, an observer gets `AttentionInputs` instead of
    scores, pattern and summaries that nothing edits, and computes what it needs later. `positions` are the only ones
    that it changes; a scope warns of those that no run reached. `rows` above 1 means that `edit` has a value for each
    row of a batch.
    """

    names: frozenset[str]
    observe: Observe | None = None
    edit: Edit | None = None
    inputs: bool = False
    rotary_override: RotaryOverride | None = None
    position_independent: bool = False
    positions: frozenset[int] | None = None
    rows: int = 1

    @property
    def changes_the_run(self) -> bool:
        return self.edit is not None or self.rotary_override is not None


class _Entry:
    """A subscription of a scope. `close` ends it in every context that knows it."""

    def __init__(self, model: object, subscription: Subscription) -> None:
        self.model: object = model
        self.subscription: Subscription | None = subscription
        self.missed = subscription.positions  # those that no run has reached so far
        self._ran = False

    def close(self) -> None:
        self.model = self.subscription = None

    def run_at(self, positions: Tensor, only_logits: bool) -> None:
        """Note the positions of a run, if it reaches hook points of the subscription."""
        if not self.missed or not len(positions) or self.subscription is None:
            return
        if not (LOGITS in self.subscription.names if only_logits else self.subscription.names - {LOGITS}):
            return
        self._ran = True
        self.missed -= frozenset(positions.flatten().tolist())

    @property
    def warning(self) -> str | None:
        """What to warn of at the end: positions that no run reached, if there were runs."""
        if self.subscription is None or not self._ran or not self.missed:
            return None
        names, missed = sorted(self.subscription.names), sorted(self.missed)
        more = f" and {len(names) - 1} more hooks" if len(names) > 1 else ""
        shown = ", ".join(map(str, missed[:5])) + (f" and {len(missed) - 5} more" if len(missed) > 5 else "")
        return f"{names[0]}{more}: no run reached position {shown}, so nothing was changed there."


_ACTIVE: ContextVar[tuple[_Entry, ...]] = ContextVar("workbench_subscriptions", default=())


class Scope(AbstractContextManager[None]):
    """Subscriptions to a model's runs inside a `with` block, in the context that enters it.

    Scopes may be left in any order, and in another thread or context than the one that entered them.
    """

    def __init__(self, model: object, subscriptions: Sequence[Subscription]) -> None:
        self._model, self._subscriptions = model, tuple(subscriptions)
        self._entries: tuple[_Entry, ...] = ()

    def __enter__(self) -> None:
        if self._entries:
            raise InterventionError("this scope is already entered; make a second one to nest them.")
        self._entries = tuple(_Entry(self._model, s) for s in self._subscriptions)
        _ACTIVE.set((*_open_entries(), *self._entries))

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        entries, self._entries = self._entries, ()
        remarks = [entry.warning for entry in entries if kind is None]
        _close(entries)
        for remark in remarks:
            if remark is not None:
                warnings.warn(remark, WorkbenchWarning, stacklevel=2)


def _open_entries() -> tuple[_Entry, ...]:
    return tuple(entry for entry in _ACTIVE.get() if entry.subscription is not None)


def _close(entries: Iterable[_Entry]) -> None:
    for entry in entries:
        entry.close()
    _ACTIVE.set(_open_entries())


def subscribe(model: object, *subscriptions: Subscription) -> Scope:
    """Subscribe to a model's runs inside the `with` block, in this context only."""
    return Scope(model, subscriptions)


def active(model: object = None) -> tuple[Subscription, ...]:
    """The subscriptions to `model` (None: to any model) in this context, the outermost first."""
    return tuple(
        entry.subscription
        for entry in _ACTIVE.get()
        if entry.subscription is not None and (model is None or entry.model is model)
    )


def clear(model: object = None) -> None:
    """End the changes of `model`'s runs (None: of any model's) in this context; observers stay."""
    _close(
        entry
        for entry in _open_entries()
        if entry.subscription is not None
        and entry.subscription.changes_the_run
        and (model is None or entry.model is model)
    )


def position_independent(model: object) -> bool:
    """Whether no subscription to `model` depends on positions or on the other sequences of the batch."""
    return all(
        (s.position_independent and not any(name.endswith(FROM_INPUTS) for name in s.names))
        or (s.rotary_override is not None and not s.names)
        for s in active(model)
    )


def refuse_rows(model: object, function: str) -> None:
    """Refuse subscriptions with a value for each row, for a function that orders the rows of its batches itself.

    Raises: InterventionError
    """
    for s in active(model):
        if s.rows > 1:
            raise InterventionError(
                f"an intervention on {min(s.names)} has values for {s.rows} rows, but {function} orders rows itself. "
                "Use one row and its value at a time, or model(tokens)."
            )


class Tap:
    """Hook dispatcher of one run: passes the activation at a hook point to the subscriptions of that point.

    The model calls `x = tap(name, x)` at each hook point, as if it tapped the activation from a line. `tap_for` makes
    one Tap per run, and `at` one per part of the model that has subscriptions; where there is none, `tap` is None and
    the model skips the call.
    """

    def __init__(
        self, subscriptions: Sequence[Subscription], config: ModelConfig, positions: Tensor, prefix: str = ""
    ) -> None:
        self._subscriptions, self._config = subscriptions, config
        self._positions, self._prefix = positions, prefix
        self._names = frozenset().union(*(s.names for s in subscriptions))

    def at(self, prefix: str) -> Tap | None:
        """The Tap of a part of the model; None if that part has no subscriptions."""
        full = self._prefix + prefix
        below = [s for s in self._subscriptions if any(name.startswith(full) for name in s.names)]
        return Tap(below, self._config, self._positions, full) if below else None

    def rotary(self) -> Rotary | None:
        """The rotary embedding of the innermost intervention that overrides it: rotations do not compose."""
        overrides = [s.rotary_override for s in self._subscriptions if s.rotary_override is not None]
        return overrides[-1](self._config) if overrides else None

    def wants(self, name: str) -> bool:
        return self._prefix + name in self._names

    def edits(self, *names: str) -> bool:
        """Whether an intervention edits any of these points."""
        full = {self._prefix + name for name in names}
        return any(s.edit is not None and not full.isdisjoint(s.names) for s in self._subscriptions)

    def __call__(self, name: str, x: Tensor, restore: Restore | None = None) -> Tensor:
        """Apply the edits to x, outermost first, then pass it to the observers.

        restore: puts back, after each edit, what no edit may change (the mask of scores and pattern).
        """
        full = self._prefix + name
        if full not in self._names:
            return x
        point = point_of(full)
        site = Site(full, point, layer_of(full), self._positions)
        axis = self._split_axis(point, x)
        whole = x if axis is None else tensor_parallel.gather(x, axis)
        edited = self._edit(site, whole, restore)
        for s in self._subscriptions:
            if s.observe is not None and full in s.names:
                _notify(s, site, edited)
        if edited is whole:
            return x
        return edited if axis is None else tensor_parallel.scatter(edited, axis)

    def inputs(self, name: str, inputs: AttentionInputs) -> None:
        """Pass observers the scores, pattern or summaries, which the run itself does not compute."""
        full = self._prefix + name
        if full not in self._names:
            return
        site = Site(full, point_of(full), layer_of(full), self._positions)
        observers = [s for s in self._subscriptions if s.observe is not None and full in s.names]
        whole = inputs
        if inputs.q.shape[1] != self._config.n_heads:
            mask = inputs.mask
            whole = AttentionInputs.of(tensor_parallel.gather(inputs.q, 1), tensor_parallel.gather(inputs.k, 1), mask)
        for s in observers:
            assert s.observe is not None
            s.observe(site, whole if s.inputs else compute(name, whole))

    def _edit(self, site: Site, x: Tensor, restore: Restore | None) -> Tensor:
        for s in self._subscriptions:
            if s.edit is None or site.name not in s.names:
                continue
            y = checked_edit(site, x, s.edit(site, x))
            if y is not x and restore is not None:
                y = restore(y)
            x = y
        return x

    def _split_axis(self, point: HookPoint, x: Tensor) -> int | None:
        """The axis that tensor parallelism splits (heads or neurons); it is gathered, so that numbers are global."""
        for i, axis in enumerate(point.axes):
            if axis in ("head", "ffn") and x.shape[i] != point.width(axis, self._config):
                return i
        return None


def compute(name: str, inputs: AttentionInputs) -> Tensor:
    """The scores, pattern or summary that a hook name stands for."""
    if name.endswith(SCORES):
        return inputs.scores()
    return inputs.pattern() if name.endswith(PATTERN) else summarise(name, inputs)


def summarise(name: str, pattern: AttentionInputs | EditedPattern) -> Tensor:
    """The summary of a pattern that a hook name stands for."""
    if name.endswith(ROW_STATS):
        return pattern.stats()
    return pattern.pooled_map() if name.endswith(MAP) else pattern.key_mass()


def checked_edit(site: Site, x: Tensor, y: Any) -> Tensor:
    """What an edit of x returned, in x's dtype.

    Raises: InterventionError if it is not a tensor of real numbers with x's shape and device.
    """
    if not isinstance(y, Tensor):
        raise InterventionError(f"an intervention on {site.name} returned {type(y).__name__}; expected a tensor.")
    if y.shape != x.shape:
        raise InterventionError(
            f"an intervention on {site.name} returned shape {tuple(y.shape)}, expected {tuple(x.shape)}."
        )
    if not y.is_floating_point() or y.is_sparse:
        raise InterventionError(f"an intervention on {site.name} returned {y.dtype}; expected {x.dtype}.")
    if y.device != x.device:
        raise InterventionError(f"an intervention on {site.name} returned a tensor on {y.device}, expected {x.device}.")
    return y.to(x.dtype)


def _notify(s: Subscription, site: Site, x: Tensor) -> None:
    """Call an observer, and check that it did not modify the tensor."""
    assert s.observe is not None
    if x.is_inference():  # no version counter: pass a copy
        s.observe(site, x.clone())
        return
    # Those with `inputs` only store or count. For others a copy shows what no version counter does: writes to `.data`.
    before, version = None if s.inputs else x.detach().clone(), x._version
    s.observe(site, x)
    if x._version != version or (before is not None and not _same(before, x.detach())):
        raise InterventionError(
            f"an observer changed {site.name} in place. Copy it first, or use an intervention to change a run."
        )


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether all values are equal, NaN too."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def tap_for(model: object, config: ModelConfig, positions: Tensor, *, only_logits: bool = False) -> Tap | None:
    """The Tap of one run; None, at the cost of one look-up, if there are no subscriptions.

    only_logits: of the unembedding, which may run alone and reaches no other hook point.
    """
    entries = [entry for entry in _ACTIVE.get() if entry.model is model]
    if not entries:
        return None
    for entry in entries:
        entry.run_at(positions, only_logits)
    return Tap([entry.subscription for entry in entries if entry.subscription is not None], config, positions)


__all__ = [
    "HOOKS", "HookPoint", "Scope", "Site", "Subscription", "Tap", "active", "clear", "expand", "hook_names",
    "known", "layer_of", "point_of", "subscribe", "tap_for",
]  # fmt: skip
