"""NaN and infinity in a run's activations: the hook, layer and tokens where they begin, and how many there are.

The NaN of one token spreads to others: attention multiplies a masked value by a weight of 0, and 0 x NaN is NaN, in
PyTorch's own kernels too. After one layer every position of the row may be NaN, including those before the token. So
the important result is the first hook in the order of a run, and its tokens.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.base import arguments, capture_access
from probes.base.result import Result, frozen, tidy
from workbench.checkpoint.assemble import is_finite
from workbench.config import ModelConfig
from workbench.hooks.capture import Capture
from workbench.hooks.hook_points import SCORES, Site, Subscription, expand, hook_names, layer_of, point_of, subscribe
from workbench.hooks.values import position_axis
from workbench.layers.attention import AttentionInputs
from workbench.model import Transformer

KINDS = ("nan", "plus", "minus")
INPUT_HOOKS = {"q": "attn.hook_rot_q", "k": "attn.hook_rot_k"}
"""Hook names of the attention inputs, which a capture stores instead of scores, patterns and statistics."""


@dataclass(frozen=True)
class NonFiniteHook:
    """One hook with values that are not finite: the count of each kind, and the tokens."""

    hook: str
    layer: int | None
    tokens: tuple[tuple[int, int], ...]  # (batch row, absolute position), in order
    nan: int
    plus: int
    minus: int

    def __str__(self) -> str:
        counts = {"NaN": self.nan, "+inf": self.plus, "-inf": self.minus}
        row, position = self.tokens[0]
        more = f" and {len(self.tokens) - 1} more" if len(self.tokens) > 1 else ""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
        layer = "" if self.layer is None else f", layer {self.layer}"
        return f"{self.hook}{layer}: {kinds} at batch row {row}, position {position}{more}"


@dataclass(frozen=True)
class NonFinite(Result):
    """The hooks whose values are not all finite, in the order of a run, out of `n_checked` hooks.

    `nan`, `plus` and `minus` count NaN, +inf and -inf; `spoilt` marks the tokens that have any, by absolute position.
    """

    AXES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **dict.fromkeys(KINDS, ("hook",)),
        "spoilt": ("hook", "batch", "pos"),
    }
    FIGURE: ClassVar[str] = "probes.comparison.figures.non_finite"
    UNITS = "number of entries that are NaN, plus infinity and minus infinity"

    hooks: tuple[str, ...]
    nan: np.ndarray
    plus: np.ndarray
    minus: np.ndarray
    spoilt: np.ndarray
    n_checked: int

    @property
    def first(self) -> NonFiniteHook | None:
        """The first hook with NaN or infinity; None if everything is finite."""
        return self.at(0) if self.hooks else None

    def at(self, index: int) -> NonFiniteHook:
        """The hook at an index of `hooks`, with its counts and tokens."""
        hook = self.hooks[index]
        tokens = tuple((int(row), int(pos)) for row, pos in np.argwhere(self.spoilt[index]))
        return NonFiniteHook(hook, layer_of(hook), tokens, *(int(getattr(self, kind)[index]) for kind in KINDS))

    def frame(self) -> pd.DataFrame:
        """One row per hook: hook, layer, nan, plus, minus, number of tokens, and batch and pos of the first token."""
        table = tidy({"hook": np.array(self.hooks, dtype=object)}, {kind: getattr(self, kind) for kind in KINDS})
        places = [self.at(i) for i in range(len(self.hooks))]
        table.insert(1, "layer", [-1 if place.layer is None else place.layer for place in places])
        table["tokens"] = [len(place.tokens) for place in places]
        table["batch"] = [place.tokens[0][0] for place in places]
        table["pos"] = [place.tokens[0][1] for place in places]
        return table


def non_finite(cap: Capture) -> NonFinite:
    """NaN and infinities in a capture. In place of scores and patterns it may have only the rotated q and k.

    Masked scores (above the diagonal, and of left padding) are -inf by design and are not reported. Summaries of a
    pattern, such as hook_stats, are not reported either: they are NaN where they are undefined.
    Shapes: any hooks -> [hook], [hook, batch, pos]; pos counts from absolute position 0
    Units:  numbers of entries.
    Exact:  a hook is listed if and only if one of its captured values is not finite.
    """
    scan = _Scan(cap.config, cap.tokens.shape[0], cap.start + cap.tokens.shape[1])
    positions = capture_access.positions(cap)
    for layer, inputs in cap.inputs.items():  # first: they have every key, hook_rot_k maybe only some positions
        scan.add_inputs(layer, inputs)
    for name, x in cap.tensors.items():
        scan.add(name, x, positions)
    return scan.result()


@torch.no_grad()
def trace_non_finite(model: Transformer, tokens: Tensor, names: str | Iterable[str] | None = None) -> NonFinite:
    """Run a model and check every hook for NaN and infinity, without a capture.

    Nothing is stored, so memory does not grow with the number of hooks. Interventions act as in any run.
    Shapes: tokens [batch, pos] int64 -> as `non_finite`
    Units:  numbers of entries.
    Raises: UnknownHookError for an unknown hook name. Default: all hooks except hook_result, which is computed from z.
    """
    arguments.token_batch(tokens)
    if names is None:
        names_of_model = hook_names(model.config)
        watched = tuple(
            name for name in names_of_model if capture_access.of_tokens(name) and not name.endswith("hook_result")
        )
    else:
        watched = expand(names, model.config)
    scan = _Scan(model.config, *tokens.shape)

    def observe(site: Site, x: Tensor | AttentionInputs) -> None:
        if isinstance(x, AttentionInputs):
            assert site.layer is not None
            scan.add_inputs(site.layer, x)
        else:
            scan.add(site.name, x, site.positions.cpu())

    with subscribe(model, Subscription(frozenset(watched), observe=observe, inputs=True)):
        model(tokens.to(model.device))
    return scan.result()


class _Scan:
    """The counts of one run so far, hook by hook."""

    def __init__(self, config: ModelConfig, batch: int, end: int) -> None:
        self.config, self.shape = config, (batch, end)
        self.seen: set[str] = set()
        self.counts: dict[str, list[int]] = {}
        self.spoilt: dict[str, Tensor] = {}

    def add_inputs(self, layer: int, inputs: AttentionInputs) -> None:
        keys = torch.arange(inputs.k.shape[2])
        for of, positions in (("q", inputs.mask.positions.cpu()), ("k", keys)):
            self.add(f"blocks.{layer}.{INPUT_HOOKS[of]}", getattr(inputs, of).transpose(1, 2), positions)

    def add(self, name: str, x: Tensor, positions: Tensor) -> None:
        """Shapes: x as the hook's axes, of tokens at `positions` [pos]"""
        if name in self.seen or not capture_access.of_tokens(name):
            return
        self.seen.add(name)
        x, masked = x.detach(), name.endswith(SCORES)
        if not x.numel() or (not masked and is_finite(x)):
            return
        axis = position_axis(point_of(name))
        counts, spoilt = [0, 0, 0], torch.zeros(self.shape, dtype=torch.bool)
        for row, part in enumerate(x):  # one batch row at a time: the masks are as large as x
            kinds = [part.isnan(), part.isposinf(), part.isneginf()]
            if masked:
                kinds[2] &= ~_masked(kinds[2], positions.to(x.device))
            others = [i for i in range(part.dim()) if i != axis - 1]
            for i, kind in enumerate(kinds):
                counts[i] += int(kind.sum())
                spoilt[row, positions] |= kind.any(dim=others).cpu()
        if any(counts):
            self.counts[name], self.spoilt[name] = counts, spoilt

    def result(self) -> NonFinite:
        hooks = tuple(name for name in hook_names(self.config) if name in self.counts)
        counts = np.array([self.counts[name] for name in hooks], dtype=np.int64).reshape(-1, 3)
        spoilt = torch.stack([self.spoilt[name] for name in hooks]) if hooks else torch.zeros(0, *self.shape).bool()
        return NonFinite(hooks, *(frozen(counts[:, i]) for i in range(3)), frozen(spoilt), len(self.seen))


def _masked(minus: Tensor, positions: Tensor) -> Tensor:
    """The masked scores: keys after the query, and left padding, which no later query of any head sees.

    Shapes: minus [head, query_pos, key_pos] bool, positions [query_pos] -> bool [query_pos, key_pos]
    """
    keys = torch.arange(minus.shape[-1], device=minus.device)
    query = positions.unsqueeze(-1)
    unseen = (minus | (keys >= query)).all(1).all(0) & (keys < query.max())  # [key_pos]
    padding = unseen.long().cumprod(0).bool()
    return (keys > query) | padding & (keys != query)
