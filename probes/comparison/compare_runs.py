"""Differences between two runs of the same tokens (other model, dtype, context, RoPE or interventions), hook by hook.

A is the reference: relative differences are divided by its norm, divergences are KL(A || B). Captures have q and k in
Meta's order, adjacent pairs; `probes.comparison.alignment.capture_from_tensors` makes a capture from another
implementation's tensors, and permutes those in half-split order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.base.result import Result, frozen, tidy
from probes.comparison.alignment import Align, Aligned, align_captures
from workbench.hooks.capture import Capture
from workbench.hooks.hook_points import PATTERN, layer_of

LOGITS, MEASURES = "hook_logits", ("largest", "relative", "cosine")


@dataclass(frozen=True)
class HeadDifferences(Result):
    """Differences by head, as `Comparison` defines them, for the hooks that have heads.

    Heads are numbered as in the model, key/value heads for k and v; NaN where a hook has no such head. `kl` is KL(A ||
    B) of a head's pattern in nats, `moved` the total variation between 0 and 1; both are means over queries.
    """

    AXES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **dict.fromkeys(("held", *MEASURES), ("hook", "head")),
        **dict.fromkeys(("kl", "moved"), ("layer", "head")),
    }
    FIGURE: ClassVar[str] = "probes.comparison.figures.heads"
    UNITS = "largest in units of the hook; relative and moved are shares; kl in nats"

    hooks: tuple[str, ...]
    layers: tuple[int, ...]  # those with patterns
    group_size: int  # query heads that share a key/value head, in A
    held: np.ndarray  # [hook, head] bool: whether the hook has that head
    largest: np.ndarray
    relative: np.ndarray
    cosine: np.ndarray
    kl: np.ndarray
    moved: np.ndarray

    def frame(self) -> pd.DataFrame:
        """One row per hook and head: hook, layer, head, largest, relative, cosine; kl and moved of patterns."""
        heads = range(self.largest.shape[1])
        columns = {name: getattr(self, name) for name in MEASURES}
        for name in ("kl", "moved"):
            columns[name] = np.full(self.largest.shape, np.nan)
            columns[name][[hook.endswith(PATTERN) for hook in self.hooks]] = getattr(self, name)
        table = tidy({"hook": np.array(self.hooks, dtype=object), "head": heads}, columns)
        table.insert(1, "layer", [layer_of(hook) for hook in table["hook"]])
        return table[self.held.ravel()].reset_index(drop=True)


@dataclass(frozen=True)
class LogitDifferences(Result):
    """Differences between two runs' predictions at each position.

    `kl` is KL(A || B) in nats; `rank` is the rank, from 0, of A's top token in B; `agree` is true if the rank is 0, so
    that greedy decoding gives the same token. Of tokens with equal logits, the lowest id ranks first, as in greedy
    decoding. If either run has NaN at a position, the values are NaN, -1 and False.
    """

    AXES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **dict.fromkeys(("kl", "rank", "agree"), ("batch", "pos")),
        "positions": ("pos",),
    }
    FIGURE: ClassVar[str] = "probes.comparison.figures.logits"
    UNITS = "kl in nats; rank from 0"

    positions: np.ndarray  # [pos], absolute, in A
    kl: np.ndarray
    rank: np.ndarray
    agree: np.ndarray

    @property
    def agreement(self) -> float:
        """Share of positions where both runs have the same top token."""
        return float(self.agree.mean())

    def frame(self) -> pd.DataFrame:
        """One row per batch row and position: batch, pos, kl, rank, agree."""
        axes = {"batch": range(len(self.kl)), "pos": self.positions}
        return tidy(axes, {name: getattr(self, name) for name in ("kl", "rank", "agree")})


@dataclass(frozen=True)
class Comparison(Result):
    """Differences between A and B at every shared hook, in the order of a run. Arrays are [hook].

    `largest` is the largest absolute difference; `relative` is norm(a - b) / norm(a) over all values of the hook, 0 for
    equal tensors and infinite if A is zero and B is not; `cosine` is the mean over tokens of the cosine between the two
    vectors, without those of length 0. `left_out` maps other hooks to the reason why they are not compared.
    """

    AXES: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(MEASURES, ("hook",))
    FIGURE: ClassVar[str] = "probes.comparison.figures.comparison"
    UNITS = "largest in units of the hook; relative is norm(a - b) / norm(a)"

    hooks: tuple[str, ...]
    largest: np.ndarray
    relative: np.ndarray
    cosine: np.ndarray
    by_head: HeadDifferences | None
    logits: LogitDifferences | None
    left_out: Mapping[str, str]

    def part(self, threshold: float = 1e-3) -> str | None:
        """The first hook of the run whose relative difference is above the threshold or NaN; None if there is none."""
        differs = ~(self.relative <= threshold)
        return self.hooks[int(differs.argmax())] if differs.any() else None

    def frame(self) -> pd.DataFrame:
        """One row per hook: hook, layer, largest, relative, cosine; layer is -1 for the model's own hooks."""
        table = tidy({"hook": np.array(self.hooks, dtype=object)}, {name: getattr(self, name) for name in MEASURES})
        table.insert(1, "layer", [-1 if (layer := layer_of(hook)) is None else layer for hook in self.hooks])
        return table


@torch.no_grad()
def compare(a: Capture, b: Capture, *, align: Align = "equal") -> Comparison:
    """Compare two captures of the same tokens by hook, by head and by prediction.

    Shapes: every hook as the hook table's axes -> [hook], [hook, head], logits [batch, pos]
    Units:  of the hook (largest), shares (relative), nats (kl). Computed in float64, in blocks of tokens.
    Raises: HookError for captures of different tokens, unless `align` selects the shared ones; or if no hook is shared.
    Exact:  a capture compared with itself differs by 0, with cosine 1, and agrees everywhere.
    """
    sides = align_captures(a, b, align=align)
    rows = {name: _hook_differences(sides, name) for name in sides.hooks}
    whole = np.array([measures[:, -1] for measures in rows.values()])  # [hook, measure]
    return Comparison(
        sides.hooks,
        *(frozen(whole[:, i]) for i in range(3)),
        by_head=_head_differences(sides, rows),
        logits=_logit_differences(sides) if LOGITS in sides.hooks else None,
        left_out=sides.left_out,
    )


def _hook_differences(sides: Aligned, name: str) -> np.ndarray:
    """Largest, relative and cosine of one hook, then a pattern's KL and total variation.

    Shapes: -> float64 [measure, head + 1]: by head number, then over the whole hook; NaN for heads not captured
    """
    heads = sides.heads(name)
    sums: dict[str, Tensor] = {}
    count = 0
    for _, x, y in sides.blocks(name):
        block_sums: dict[str, Tensor] = {}
        if name.endswith(PATTERN):
            logs, x, y = x - y, x.exp(), y.exp()
            block_sums = _pattern_differences(logs, x, y)
        distance, xx, yy, xy = (x - y).abs(), x.square().sum(-1), y.square().sum(-1), (x * y).sum(-1)
        by_token = [torch.cat([part, part.sum(2, keepdim=True)], 2) for part in (xx, yy, xy)]  # [batch, pos, head + 1]
        cosine = by_token[2] / (by_token[0] * by_token[1]).sqrt()
        zero_length = (by_token[0] == 0) | (by_token[1] == 0)  # a vector of length 0 has no direction
        squares = torch.stack([distance.square().sum(-1), xx])
        block_sums |= {
            "apart": torch.cat([squares, squares.sum(-1, keepdim=True)], -1).sum((1, 2)),  # [2, head + 1]
            "cosine": cosine.masked_fill(zero_length, 0.0).sum((0, 1)),
            "directed": (~zero_length).sum((0, 1)),
        }
        largest = distance.amax((0, 1, 3))
        largest = torch.cat([largest, largest.amax().unsqueeze(0)])
        sums["largest"] = torch.maximum(sums["largest"], largest) if sums else largest
        for key, value in block_sums.items():
            sums[key] = sums[key] + value if key in sums else value
        count += x.shape[0] * x.shape[1]
    difference, size = sums["apart"].sqrt()
    relative = torch.where(difference == 0, difference, difference / size)
    rows = [sums["largest"], relative, sums["cosine"] / sums["directed"]]
    rows += [sums[key] / count if key in sums else torch.full_like(relative, torch.nan) for key in ("kl", "moved")]
    values = torch.stack(rows).cpu().numpy()  # [measure, held head + 1]
    placed = np.full((len(rows), sides.a.config.n_heads + 1), np.nan)
    placed[:, [*heads, -1]] = values if heads else values[:, -1:]
    return placed


def _pattern_differences(logs: Tensor, p: Tensor, q: Tensor) -> dict[str, Tensor]:
    """KL in nats and total variation of patterns p and q, summed over tokens; `logs` is ln p - ln q.

    Shapes: [batch, pos, head, key] -> [head + 1] each; the last is the mean over heads
    """
    kl = (p * logs).masked_fill(p == 0, 0.0).sum(-1).clamp(min=0)  # rounding may leave -1e-17
    sums = {"kl": kl.sum((0, 1)), "moved": 0.5 * (p - q).abs().sum((0, 1, 3))}
    return {name: torch.cat([value, value.mean().unsqueeze(0)]) for name, value in sums.items()}


def _head_differences(sides: Aligned, rows: Mapping[str, np.ndarray]) -> HeadDifferences | None:
    hooks = tuple(name for name in rows if sides.heads(name))
    if not hooks:
        return None
    values = np.stack([rows[name][:, :-1] for name in hooks])  # [hook, measure, head]
    has_head = np.zeros((len(hooks), sides.a.config.n_heads), dtype=bool)
    for row, name in zip(has_head, hooks, strict=True):
        row[list(sides.heads(name))] = True
    patterns = [name for name in hooks if name.endswith(PATTERN)]
    of_patterns = values[[name in patterns for name in hooks]]
    return HeadDifferences(
        hooks,
        tuple(layer for name in patterns if (layer := layer_of(name)) is not None),
        sides.a.config.group_size,
        frozen(has_head),
        *(frozen(values[:, i]) for i in range(3)),
        *(frozen(of_patterns[:, i]) for i in (3, 4)),
    )


def _logit_differences(sides: Aligned) -> LogitDifferences:
    parts: dict[str, list[Tensor]] = {"kl": [], "rank": [], "agree": []}
    for _, x, y in sides.blocks(LOGITS):
        x, y = x.squeeze(2), y.squeeze(2)  # [batch, pos, vocab]
        logs = x.log_softmax(-1)
        kl = (logs.exp() * (logs - y.log_softmax(-1))).sum(-1)
        first = x.argmax(-1, keepdim=True)
        in_b = y.gather(-1, first)
        earlier = torch.arange(y.shape[-1], device=y.device) < first  # of equal logits, the first is chosen
        rank = ((y > in_b) | ((y == in_b) & earlier)).sum(-1)
        rank = rank.masked_fill(kl.isnan(), -1)
        for name, value in {"kl": kl.clamp(min=0), "rank": rank, "agree": rank == 0}.items():
            parts[name].append(value.cpu())
    return LogitDifferences(frozen(sides.positions), **{name: frozen(torch.cat(x, 1)) for name, x in parts.items()})
