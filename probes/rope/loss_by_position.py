"""Loss by position: how well a model predicts each part of a long text, with and without interventions.

Made for texts longer than the trained context, where a model fails at distances that it was not trained on and
`workbench.RopeScaling` may help. Runs the model; nothing is captured.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.base import arguments
from probes.base.result import Result, frozen, tidy
from workbench.errors import DataError
from workbench.hooks.intervention import Intervention
from workbench.model import Transformer

PLAIN = "plain"
"""Name of the run without interventions, the baseline of the comparison."""

LOGIT_CHUNK = 256  # positions whose logits are in memory at the same time


@dataclass(frozen=True)
class LossByPosition(Result):
    """Mean loss of the tokens in each stretch of positions, in nats. Arrays are [run, stretch].

    A stretch has the tokens at positions `start` to `end` - 1. The first run is the plain one; `change` is a run's
    loss minus the plain run's on the same tokens. Low and high are the 95% confidence interval of the mean over
    windows (Student's t, paired by window for the change), NaN for a single window.
    """

    AXES = {
        "start": ("stretch",),
        "end": ("stretch",),
        **dict.fromkeys(("loss", "low", "high", "change", "change_low", "change_high"), ("run", "stretch")),
    }
    FIGURE = "probes.rope.loss_figures.loss_by_position"
    UNITS = "positions in tokens; loss and change in nats per token"

    runs: tuple[str, ...]
    start: np.ndarray  # [stretch]
    end: np.ndarray  # [stretch]
    loss: np.ndarray
    low: np.ndarray
    high: np.ndarray
    change: np.ndarray
    change_low: np.ndarray
    change_high: np.ndarray
    n_windows: int
    context: int  # the model's context, from its configuration

    def frame(self) -> pd.DataFrame:
        """One row per run and stretch: run, start, end, n_windows, loss, low, high, change, change_low, change_high."""
        names = ("loss", "low", "high", "change", "change_low", "change_high")
        axes = {"run": self.runs, "start": self.start}
        table = tidy(axes, {name: getattr(self, name) for name in names})
        table.insert(2, "end", np.tile(self.end, len(self.runs)))
        table.insert(3, "n_windows", self.n_windows)
        return table


def windows(tokens: Sequence[int], length: int, *, bos: int | None = None) -> Tensor:
    """A long text cut into windows that do not overlap, each starting with `bos` if given; the remainder is dropped.

    Shapes: -> [window, length] int64
    Raises: DataError for a text that is shorter than one window, or windows of fewer than two tokens.
    """
    if length < 2:
        raise DataError(f"a window needs at least 2 tokens, one to read and one to predict; found {length}.")
    step = length - (bos is not None)
    if len(tokens) < step:
        raise DataError(f"the text has {len(tokens)} tokens but a window needs {step}; give a longer text.")
    cut = torch.tensor(tokens[: len(tokens) // step * step], dtype=torch.int64).view(-1, step)
    return cut if bos is None else torch.nn.functional.pad(cut, (1, 0), value=bos)


def stretches(length: int, context: int, *, count: int = 16) -> list[int]:
    """Bounds of about `count` equal stretches of positions 1 to length - 1; the end of the context is also a bound.

    Shapes: -> [stretch + 1], ascending, from 1 to `length`
    """
    bounds = {round(bound) for bound in np.linspace(0, length, count + 1)[1:-1].tolist()} | {1, length}
    return sorted({bound for bound in bounds | {context} if 1 <= bound <= length})


@torch.no_grad()
def token_losses(model: Transformer, windows: Tensor, *, batch_tokens: int = 8_192) -> Tensor:
    """Loss of every token but the first of each window, under the active interventions.

    Shapes: windows [window, pos] int64 -> [window, pos - 1] float32 on the CPU; column i is position i + 1
    Units:  nats.
    """
    rows = []
    for batch in windows.split(max(1, batch_tokens // windows.shape[1])):
        tokens = batch.to(model.device)
        hidden = model.hidden(tokens)
        losses = []
        for start in range(0, tokens.shape[1] - 1, LOGIT_CHUNK):
            targets = tokens[:, start + 1 : start + 1 + LOGIT_CHUNK]
            logits = model.unembed(hidden[:, start : start + targets.shape[1]], start=start)
            losses.append(torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none"))
        rows.append(torch.cat(losses, 1).cpu())
    return torch.cat(rows)


def loss_by_position(
    model: Transformer,
    windows: Tensor,
    runs: Mapping[str, Sequence[Intervention]] | None = None,
    *,
    edges: Sequence[int] | None = None,
    batch_tokens: int = 8_192,
) -> LossByPosition:
    """Loss by position of the plain model, and of the model under each named set of interventions.

    Shapes: windows [window, pos] int64, from `windows` -> [run, stretch]; `edges` [stretch + 1] bound the stretches,
            default: those of `stretches`
    Units:  nats per token; intervals over windows, where each window's mean over the stretch counts once.
    Raises: DataError for edges that do not ascend between 1 and the windows' length; InterventionError or ConfigError
            for an intervention that does not fit the model.
    Source: arXiv 2306.15595, 2309.00071 (perplexity beyond the trained context).
    Exact:  an intervention that changes nothing has a change of exactly 0.
    """
    arguments.token_batch(windows, "windows")
    context, length = model.config.max_seq_len, windows.shape[1]
    edges = stretches(length, context) if edges is None else list(edges)
    rising = all(a < b for a, b in zip(edges, edges[1:], strict=False))
    if len(edges) < 2 or not rising or edges[0] < 1 or edges[-1] > length:
        raise DataError(f"edges must ascend between 1 (the first predicted token) and {length}; found {edges}.")
    all_runs: dict[str, Sequence[Intervention]] = {PLAIN: (), **(runs or {})}
    if all_runs[PLAIN]:
        raise DataError(f"{PLAIN!r} is the name of the run without interventions; use another name for yours.")
    by_run = []
    for interventions in all_runs.values():
        with model.intervene(*interventions):
            losses = token_losses(model, windows, batch_tokens=batch_tokens).double()
        pieces = [losses[:, a - 1 : b - 1].mean(-1) for a, b in zip(edges, edges[1:], strict=False)]
        by_run.append(torch.stack(pieces, -1))
    values = torch.stack(by_run)  # [run, window, stretch]
    loss, low, high = _interval(values)
    change, change_low, change_high = _interval(values - values[:1])
    return LossByPosition(
        tuple(all_runs),
        frozen(np.array(edges[:-1])),
        frozen(np.array(edges[1:])),
        *(frozen(part) for part in (loss, low, high, change, change_low, change_high)),
        n_windows=len(windows),
        context=context,
    )


def _interval(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over windows with its 95% interval. Shapes: [run, window, stretch] -> three of [run, stretch]"""
    n = x.shape[1]
    mean = x.mean(1)
    margin = x.std(1) * t_quantile(n - 1) / math.sqrt(n) if n > 1 else torch.full_like(mean, math.nan)
    return mean, mean - margin, mean + margin


def t_quantile(degrees: int) -> float:
    """97.5% quantile of Student's t: a table up to 4 degrees of freedom, then the Cornish-Fisher series (to 0.2%)."""
    if degrees <= 4:
        return (12.706, 4.303, 3.182, 2.776)[degrees - 1]
    z, v = 1.959964, degrees
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
