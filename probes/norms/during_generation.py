"""Norms and residual stream during generation: input RMS, contributions and large activations at every token.

Each step is captured when it runs, with the key/value cache: nothing is computed twice, and no stream is stored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.base import arguments
from probes.base.result import Result, frozen, tidy
from probes.norms import rms_norms
from probes.norms.rms_norms import ContributionRatios, InputRms, OutlierDimensions
from workbench.errors import DataError
from workbench.hooks.capture import Capture
from workbench.model import Transformer

HOOKS = rms_norms.HOOKS
"""Hooks captured at every step; each probe uses some of them."""

_LAYER_SHARE, _POSITION_SHARE = 0.25, 0.06  # as in `rms_norms.outlier_dimensions`


@dataclass(frozen=True)
class GeneratedNorms(Result):
    """Norms over a prompt and the text generated after it, for one sequence.

    `tokens` are the ids that were run: the prompt, then all generated tokens except the last, which was not run.
    Position p of `rms` and `contributions` belongs to tokens[p]. From `n_prompt` - 1 on, the logits at a position chose
    the next token.
    """

    tokens: tuple[int, ...]
    n_prompt: int
    rms: InputRms
    contributions: ContributionRatios

    AXES = {"steps": ("pos",)}
    FIGURE = "probes.norms.generation_figures.generated_norms"
    UNITS = "rms as the stream's entries"

    @property
    def steps(self) -> np.ndarray:
        """0 for the prompt, then 1, 2, ... Shapes: -> [pos]"""
        return _steps(self.tokens, self.n_prompt)

    def frame(self) -> pd.DataFrame:
        """One row per norm and position: layer, norm, pos, step (0 for the prompt), token, rms."""
        table = self.rms.frame().drop(columns="batch")
        return _with_step_and_token(table, self.tokens, self.n_prompt, at=3)


@dataclass(frozen=True)
class GeneratedStream(Result):
    """The stream after every block, and the sublayers' contributions, over a prompt and the text generated after it.

    All arrays except `outliers` are [layer, pos]. `largest` and `median`: magnitude of a position's entries. `massive`:
    number of entries above the threshold and at least `ratio` times that median. `large`: number of entries with at
    least the size of an outlier dimension. `attn`, `mlp`: norm of the contribution over the norm of the stream.
    `outliers` [pos] counts the outlier dimensions of the text up to each position; `dimensions` are those of the whole
    text. `tokens` and `n_prompt` as in `GeneratedNorms`.
    """

    tokens: tuple[int, ...]
    n_prompt: int
    largest: np.ndarray
    median: np.ndarray
    massive: np.ndarray
    large: np.ndarray
    attn: np.ndarray
    mlp: np.ndarray
    outliers: np.ndarray
    dimensions: OutlierDimensions

    AXES = {
        **{name: ("layer", "pos") for name in ("largest", "median", "massive", "large", "attn", "mlp")},
        "outliers": ("pos",),
    }
    FIGURE = "probes.norms.generation_figures.generated_stream"
    UNITS = (
        "largest and median as the stream's entries; massive, large and outliers are counts; attn and mlp "
        "over the stream's norm"
    )

    def frame(self) -> pd.DataFrame:
        """One row per layer and position: layer, pos, step (0 for the prompt), token, then a column per array."""
        names = ("largest", "median", "massive", "large", "attn", "mlp")
        columns = {name: getattr(self, name) for name in names}
        columns["outliers"] = np.broadcast_to(self.outliers, self.largest.shape)
        n_layers, pos = self.largest.shape
        table = tidy({"layer": range(n_layers), "pos": range(pos)}, columns)
        return _with_step_and_token(table, self.tokens, self.n_prompt, at=2)


@torch.no_grad()
def generated_norms(model: Transformer, prompt: Sequence[int], *, steps: int = 32) -> GeneratedNorms:
    """Input RMS and contribution ratios over a prompt and `steps` greedily generated tokens.

    Shapes: prompt [pos] -> rms [norm, 1, pos + steps - 1], contributions [layer, sublayer, 1, pos + steps - 1]
    Units:  as `probes.norms.rms_norms.input_rms` and `contribution_ratios`.
    Raises: DataError for an empty prompt or no steps.
    Source: arXiv 1910.07467 (RMS), 2004.10102 (ratios).
    Exact:  equals one capture of the whole text, up to the rounding of a cached run.
    """
    hooks = [name for name in HOOKS if not name.endswith("resid_post")]
    tokens, rms, ratios = list(prompt), [], []
    for cap in _captures(model, tokens, steps, hooks):
        rms.append(rms_norms.input_rms(cap))
        ratios.append(rms_norms.contribution_ratios(cap))
    return GeneratedNorms(
        tuple(tokens),
        len(prompt),
        InputRms(
            rms[0].norms,
            _concatenated([part.rms for part in rms]),
            sum(part.nonfinite for part in rms),
            _concatenated([part.positions for part in rms]),
        ),
        ContributionRatios(
            ratios[0].layers,
            _concatenated([part.ratio for part in ratios]),
            _concatenated([part.cosine for part in ratios]),
            _concatenated([part.positions for part in ratios]),
        ),
    )


@torch.no_grad()
def generated_stream(
    model: Transformer,
    prompt: Sequence[int],
    *,
    steps: int = 32,
    threshold: float = 100.0,
    ratio: float = 1000.0,
    magnitude: float = 6.0,
) -> GeneratedStream:
    """Massive activations, outlier dimensions and contribution ratios while `steps` tokens are generated greedily.

    Shapes: prompt [pos] -> [layer, pos + steps - 1]
    Units:  magnitudes as the stream's, computed in float32; `magnitude` in standard deviations, as in
            `outlier_dimensions`. Each position is compared with its own median, so that later steps do not change it.
    Raises: DataError for an empty prompt or no steps.
    Source: arXiv 2402.17762 (threshold, ratio), 2208.07339 (magnitude, in a quarter of the layers and at 6% of the
            positions), 2004.10102 (ratios).
    Exact:  equals one capture of the whole text, up to the rounding of a cached run.
    """
    hooks = [name for name in HOOKS if not name.endswith("hook_scale")]
    tokens, tally = list(prompt), _OutlierCounter(model.config.n_layers, model.config.dim)
    parts: list[dict[str, Tensor]] = []
    ratios: list[np.ndarray] = []
    for cap in _captures(model, tokens, steps, hooks):
        size = torch.stack([cap[f"blocks.{i}.hook_resid_post"][0].float().abs() for i in range(model.config.n_layers)])
        ordered = size.sort(-1).values  # [layer, pos, dim]
        median = rms_norms.middle(ordered)
        massive = (size > threshold) & (size >= ratio * median)
        large = size >= magnitude * rms_norms.typical_size(ordered)
        tally.add(size.cpu(), large.cpu())
        part = {"largest": ordered[..., -1], "median": median[..., 0]}
        part |= {"massive": massive.sum(-1), "large": large.sum(-1)}
        parts.append({name: values.cpu() for name, values in part.items()})
        ratios.append(rms_norms.contribution_ratios(cap).ratio[:, :, 0])  # [layer, sublayer, pos]
    added = _concatenated(ratios)
    return GeneratedStream(
        tuple(tokens),
        len(prompt),
        *(frozen(torch.cat([part[name] for part in parts], -1)) for name in ("largest", "median", "massive", "large")),
        frozen(added[:, 0]),
        frozen(added[:, 1]),
        frozen(np.array(tally.counts)),
        tally.dimensions(len(tokens)),
    )


def _captures(model: Transformer, tokens: list[int], steps: int, hooks: Sequence[str]) -> Iterator[Capture]:
    """One capture per step: the prompt, then each generated token except the last, which is appended to `tokens`."""
    if not tokens or steps < 1:
        raise DataError(f"generation needs a prompt and at least 1 step; found {len(tokens)} tokens, {steps} steps.")
    tokens[:] = arguments.prompt_ids(tokens)
    cache = model.empty_cache(1, len(tokens) + steps - 1)
    next_tokens = list(tokens)
    for step in range(steps):
        ids = torch.tensor([next_tokens], device=model.device)
        logits, cap = model.run_with_capture(ids, hooks, cache=cache, logits="last")
        yield cap
        next_tokens = [int(logits[0, -1].argmax())]
        if step < steps - 1:
            tokens += next_tokens


class _OutlierCounter:
    """Counts large entries of a growing text to find its outlier dimensions; stores no streams."""

    def __init__(self, n_layers: int, dim: int) -> None:
        self.hits = torch.zeros(n_layers, dim)
        self.largest = torch.zeros(dim)
        self.counts: list[int] = []

    def add(self, size: Tensor, large: Tensor) -> None:
        """Shapes: [layer, pos, dim], [layer, pos, dim] bool"""
        self.largest = torch.maximum(self.largest, size.amax((0, 1)))
        for position in large.unbind(1):
            self.hits += position
            self.counts.append(len(self.dimensions(len(self.counts) + 1).dims))

    def dimensions(self, n: int) -> OutlierDimensions:
        """The outlier dimensions of the n positions that were added."""
        layers, positions = (self.hits > 0).float().mean(0), (self.hits / n).mean(0)
        outlier = (layers >= _LAYER_SHARE) & (positions >= _POSITION_SHARE)
        return OutlierDimensions(frozen(layers), frozen(positions), frozen(self.largest), frozen(outlier))


def _concatenated(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate along the positions, the last axis."""
    return frozen(np.concatenate(parts, -1))


def _steps(tokens: Sequence[int], n_prompt: int) -> np.ndarray:
    return np.maximum(np.arange(len(tokens)) - n_prompt + 1, 0)


def _with_step_and_token(table: pd.DataFrame, tokens: Sequence[int], n_prompt: int, *, at: int) -> pd.DataFrame:
    """Insert the columns step and token after the column pos."""
    pos = table["pos"].to_numpy()
    table.insert(at, "step", _steps(tokens, n_prompt)[pos])
    table.insert(at + 1, "token", np.array(tokens)[pos])
    return table
