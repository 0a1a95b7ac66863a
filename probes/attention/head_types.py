"""Head types: scores over a set of prompts with confidence intervals, and a catalogue of heads by type.

A score is a mean over prompts. The intervals are bootstraps over prompts, so they do not hold for other models or
other kinds of text. This module only measures attention; `probes.patching.ablation` measures effects.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.attention.head_metrics import HOOKS as HOOKS
from probes.attention.head_metrics import (
    PATTERN,
    entropy,
    expected_distance,
    normalised_entropy,
    offset_mass,
    pattern_blocks,
    repeated_blocks,
    sink_mass,
)
from probes.base import arguments, capture_access
from probes.base.bootstrap import LEVEL, RESAMPLES, draws, percentiles
from probes.base.head_names import Head
from probes.base.result import Result, frozen, tidy
from workbench.errors import DataError
from workbench.hooks.capture import Capture
from workbench.model import Transformer

Rows = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""pattern [batch, head, query_pos, key_pos] and queries [query_pos] to scores [batch, head, query_pos] by name."""


@dataclass(frozen=True)
class Rule:
    """Condition for a head type: the mean `score` is at least `threshold`, or at most `threshold` if `below`."""

    score: str
    threshold: float
    below: bool = False

    def holds(self, values: np.ndarray) -> np.ndarray:
        return values <= self.threshold if self.below else values >= self.threshold


RULES: Mapping[str, Rule] = {
    "previous": Rule("previous", 0.3),
    "induction": Rule("induction", 0.3),
    "duplicate": Rule("duplicate", 0.3),
    "sink": Rule("sink_1", 0.3),
    "uniform": Rule("entropy_norm", 0.95),
    "local": Rule("distance", 3.0, below=True),
}
"""Types in the catalogue. 0.3 for sinks is from arXiv 2410.10781; the other thresholds are arbitrary, pass your own."""

BLOCKS = (16, 20, 24, 32)
"""Lengths of the random blocks that are used to measure induction and duplicate-token heads."""


def with_thresholds(options: Iterable[str]) -> dict[str, Rule]:
    """`RULES` with some thresholds replaced, each written as `previous=0.5`. Raises: DataError for anything else."""
    rules = dict(RULES)
    for option in options:
        kind, _, number = option.partition("=")
        try:
            rules[kind] = replace(rules[kind], threshold=float(number))
        except (KeyError, ValueError) as error:
            raise DataError(
                f"{option!r} is not a threshold; write TYPE=NUMBER, TYPE one of {', '.join(RULES)}."
            ) from error
    return rules


@dataclass(frozen=True)
class HeadScores(Result):
    """Scores of each head on each prompt. `values` are [prompt, layer, head] by name, NaN where undefined.

    `resamples`, `level` and `seed` are the settings of the bootstrap intervals.
    """

    AXES = {"values": ("prompt", "layer", "head")}
    FIGURE = "probes.attention.figures.head_scores"
    UNITS = "distance in tokens, all else shares from 0 to 1"

    values: dict[str, np.ndarray]
    resamples: int = RESAMPLES
    level: float = LEVEL
    seed: int = 0

    @property
    def n_prompts(self) -> int:
        return len(next(iter(self.values.values())))

    def mean(self, name: str) -> np.ndarray:
        """Mean over the prompts with a defined score. Shapes: -> [layer, head]"""
        return _means(self.values[name], np.ones((1, self.n_prompts)))[0]

    def interval(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Percentile bootstrap of the mean, prompts drawn with replacement. Shapes: -> low, high [layer, head]"""
        if self.n_prompts < 2:
            missing = np.full(self.values[name].shape[1:], np.nan)
            return missing, missing
        means = _means(self.values[name], draws(self.n_prompts, self.resamples, self.seed))
        return percentiles(means, self.level)

    def frame(self) -> pd.DataFrame:
        """One row per head and score: layer, head, score, mean, low, high (NaN for a single prompt), n_prompts."""
        tables = []
        for name in self.values:
            low, high = self.interval(name)
            axes = {"layer": range(low.shape[0]), "head": range(low.shape[1])}
            table = tidy(axes, {"mean": self.mean(name), "low": low, "high": high})
            table.insert(2, "score", name)
            tables.append(table)
        return pd.concat(tables, ignore_index=True).assign(n_prompts=self.n_prompts)


def _means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted means over prompts, without NaN. Shapes: [prompt, ...], [resample, prompt] -> [resample, ...]"""
    defined = ~np.isnan(values)
    total = np.tensordot(weights, np.where(defined, values, 0.0), 1)
    count = np.tensordot(weights, defined.astype(float), 1)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


@torch.no_grad()
def text_scores(model: Transformer, prompts: Sequence[Sequence[int]]) -> HeadScores:
    """Scores of each head on ordinary prompts: one number per prompt, head and score, the mean over queries.

    Position 0 can only attend to itself and is left out, so a head that only looks back can score 1.
    Shapes: prompts: token ids, of any lengths from 2 -> [prompt, layer, head]
    Units:  previous, sink_1: probability; entropy_norm: entropy / ln(i + 1); distance: tokens.
    Raises: DataError for no prompts, or one with fewer than two tokens.
    Source: arXiv 2211.00593 (previous token), 2410.10781 (sink), 1906.04341 (entropy), 1906.04284 (distance).
    """
    if not prompts:
        raise DataError("there are no prompts; give at least one, and two or more for intervals.")
    by_name: dict[str, list[Tensor]] = {}
    for number, ids in enumerate(prompts):
        if len(ids) < 2:
            raise DataError(f"prompt {number} has {len(ids)} tokens; it needs at least 2.")
        _, cap = model.run_with_capture(torch.tensor([list(ids)], device=model.device), HOOKS, logits=None)
        for name, values in _over_queries(cap, 1, _text_rows).items():
            by_name.setdefault(name, []).append(values)
    return HeadScores({name: frozen(torch.cat(values), np.float64) for name, values in by_name.items()})


@torch.no_grad()
def repeat_scores(model: Transformer, *, blocks: Sequence[int] = BLOCKS, batch: int = 4, seed: int = 0) -> HeadScores:
    """Induction and duplicate-token scores on repeated random blocks, one number per prompt and head.

    Blocks of several lengths L, `batch` prompts of each: a head that looks a fixed distance back scores like an
    induction head at one length only.
    Shapes: -> [prompt, layer, head]: mean over the second copy of A[i, i - L + 1] and of A[i, i - L]
    Units:  attention, between 0 and 1.
    Raises: HookError if two blocks do not fit the model's context; DataError for no blocks.
    Source: arXiv 2209.11895 (prefix matching on random tokens), 2211.00593 (duplicate token).
    """
    arguments.at_least(1, batch=batch)
    if not blocks:
        raise DataError("there are no block lengths; give at least one.")
    parts = []
    for number, block in enumerate(blocks):
        tokens = repeated_blocks(model, block=block, batch=batch, seed=seed + 1000 * number)
        _, cap = model.run_with_capture(tokens, HOOKS, logits=None)
        offsets = {"induction": block - 1, "duplicate": block}

        def rows(pattern: Tensor, queries: Tensor, offsets: dict[str, int] = offsets) -> dict[str, Tensor]:
            return {name: offset_mass(pattern, queries, offset) for name, offset in offsets.items()}

        parts.append(_over_queries(cap, tokens.shape[1] - block, rows))
    return HeadScores({name: frozen(torch.cat([part[name] for part in parts]), np.float64) for name in parts[0]})


def _text_rows(pattern: Tensor, queries: Tensor) -> dict[str, Tensor]:
    return {
        "previous": offset_mass(pattern, queries, 1),
        "sink_1": sink_mass(pattern, 1),
        "entropy_norm": normalised_entropy(entropy(pattern), queries),
        "distance": expected_distance(pattern, queries),
    }


def _over_queries(cap: Capture, start: int, rows: Rows) -> dict[str, Tensor]:
    """Mean of `rows(pattern, queries)` over the queries from `start` on. Shapes: -> [batch, layer, head]"""
    layers: dict[str, list[Tensor]] = {}
    for layer in capture_access.layers(cap, PATTERN):
        parts: dict[str, list[Tensor]] = {}
        chosen = [position for position in capture_access.positions(cap).tolist() if position >= start]
        for queries, pattern in pattern_blocks(cap, layer, queries=chosen):
            for name, values in rows(pattern, queries).items():
                parts.setdefault(name, []).append(values)  # [batch, head, query_pos]
        for name, values in parts.items():
            layers.setdefault(name, []).append(torch.cat(values, -1).double().mean(-1))
    return {name: torch.stack(values, 1).cpu() for name, values in layers.items()}


# --- catalogue ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Catalogue(Result):
    """Heads by type, with confidence intervals. `mean`, `low` and `high` are [layer, head] by type."""

    AXES = {"mean": ("layer", "head"), "low": ("layer", "head"), "high": ("layer", "head")}
    FIGURE = "probes.attention.figures.catalogue"
    UNITS = "those of the score: distance in tokens, all else shares from 0 to 1"

    rules: Mapping[str, Rule]
    mean: dict[str, np.ndarray]
    low: dict[str, np.ndarray]
    high: dict[str, np.ndarray]
    n_prompts: dict[str, int] = field(default_factory=dict)

    def is_type(self, kind: str) -> np.ndarray:
        """[layer, head] bool: the mean satisfies the rule."""
        return self.rules[kind].holds(self.mean[kind])

    def is_sure(self, kind: str) -> np.ndarray:
        """[layer, head] bool: the whole interval satisfies the rule."""
        rule = self.rules[kind]
        return rule.holds(self.high[kind] if rule.below else self.low[kind])

    def of(self, kind: str) -> list[Head]:
        """The heads of a type, strongest first."""
        rule, mean = self.rules[kind], self.mean[kind]
        cells = [(int(layer), int(head)) for layer, head in np.argwhere(self.is_type(kind))]
        return sorted(cells, key=lambda cell: (mean[cell] if rule.below else -mean[cell], cell))

    def frame(self) -> pd.DataFrame:
        """One row per type and head of it: type, layer, head, score, mean, low, high, threshold, sure, n_prompts.

        `sure` is true if the whole interval satisfies the rule. Strongest first within a type.
        """
        names = ["type", "layer", "head", "score", "mean", "low", "high", "threshold", "sure", "n_prompts"]
        rows = []
        for kind, rule in self.rules.items():
            sure = self.is_sure(kind)
            for cell in self.of(kind):
                numbers = [float(values[kind][cell]) for values in (self.mean, self.low, self.high)]
                rows.append([kind, *cell, rule.score, *numbers, rule.threshold, bool(sure[cell]), self.n_prompts[kind]])
        return pd.DataFrame(rows, columns=names)


def catalogue(*scores: HeadScores, rules: Mapping[str, Rule] = RULES) -> Catalogue:
    """Heads by type, from scores on prompts. A head can have several types, or none.

    Shapes: [prompt, layer, head] -> [layer, head] per type
    Units:  those of each type's score.
    Raises: DataError for a rule whose score was not measured (the message names those that were).
    Source: the thresholds are in `RULES`; arXiv 2410.10781 for sinks.
    """
    measured = {name: head_scores for head_scores in scores for name in head_scores.values}
    absent = {rule.score for rule in rules.values()} - measured.keys()
    if absent:
        raise DataError(
            f"scores are missing: {', '.join(sorted(absent))}; measured: {', '.join(sorted(measured)) or 'none'}."
        )
    mean, low, high = {}, {}, {}
    for kind, rule in rules.items():
        mean[kind] = frozen(measured[rule.score].mean(rule.score))
        low[kind], high[kind] = map(frozen, measured[rule.score].interval(rule.score))
    return Catalogue(rules, mean, low, high, {kind: measured[rules[kind].score].n_prompts for kind in rules})
