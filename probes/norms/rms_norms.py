"""RMS norms (input RMS, gains) and the residual stream: massive activations, outlier dimensions, contributions.

Thresholds from the literature are parameters, because they were chosen for models of other sizes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.base import arguments, capture_access
from probes.base.result import Result, frozen, tidy
from workbench.errors import MissingHookError
from workbench.hooks.capture import Capture
from workbench.model import Transformer

HOOKS = (
    "blocks.*.ln1.hook_scale",
    "blocks.*.ln2.hook_scale",
    "ln_final.hook_scale",
    "blocks.*.hook_resid_pre",
    "blocks.*.hook_resid_mid",
    "blocks.*.hook_resid_post",
    "blocks.*.hook_attn_out",
    "blocks.*.hook_mlp_out",
)
"""Hooks to capture for every probe of this module."""

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
FINAL = "ln_final"


# --- input RMS ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InputRms(Result):
    """The divisor of each norm at each token. `rms` is [norm, batch, pos]; `norms` names its rows (layer, norm).

    The final norm has layer n_layers. `nonfinite` counts NaN and infinite entries. `positions` [pos] are absolute.
    """

    AXES = {"rms": ("norm", "batch", "pos"), "positions": ("pos",)}
    FIGURE = "probes.norms.figures.input_rms"
    UNITS = "rms as the stream's entries"

    norms: tuple[tuple[int, str], ...]
    rms: np.ndarray
    nonfinite: int
    positions: np.ndarray

    def frame(self) -> pd.DataFrame:
        """One row per norm, batch row and position: layer, norm, batch, pos, rms."""
        count, batch, _ = self.rms.shape
        table = tidy({"row": range(count), "batch": range(batch), "pos": self.positions}, {"rms": self.rms})
        row = table.pop("row").to_numpy()
        table.insert(0, "layer", np.array([layer for layer, _ in self.norms])[row])
        table.insert(1, "norm", np.array([norm for _, norm in self.norms])[row])
        return table


def rms(x: Tensor, eps: float) -> Tensor:
    """Root mean square over the last axis, as RMSNorm computes it.

    Shapes: [..., dim] -> [...]
    Units:  those of the stream; computed in float32 at least.
    Source: arXiv 1910.07467.
    """
    return (x.to(torch.promote_types(x.dtype, torch.float32)).square().mean(-1) + eps).sqrt()


def input_rms(cap: Capture) -> InputRms:
    """The RMS by which every captured norm divides its input, per layer and token.

    Shapes: hook_scale [batch, pos, 1] of each norm -> [norm, batch, pos]
    Units:  those of the stream: sqrt(mean x^2 + eps).
    Raises: MissingHookError if no `hook_scale` was captured; HookError for left-padded rows.
    Source: arXiv 1910.07467.
    """
    capture_access.unpadded(cap)
    names = [name for name in cap.names if name.endswith(".hook_scale")]
    if not names:
        raise MissingHookError("this capture has no hook_scale; add '*.hook_scale' to the names of run_with_capture.")
    norms = tuple(_norm_of(name, cap.config.n_layers) for name in names)
    scale = frozen(torch.stack([cap[name].squeeze(-1).float() for name in names]))
    return InputRms(norms, scale, int((~np.isfinite(scale)).sum()), frozen(capture_access.positions(cap)))


# --- gains ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GainStatistics(Result):
    """The learned gains of every norm. `norms` names the rows (layer, norm); the final norm has layer n_layers.

    quantiles [norm, quantile] at `QUANTILES`; mean, std, kurtosis [norm]; top_dims, top_values [norm, k], sorted by
    distance from the median. Kurtosis is the fourth standardised moment: 3 for a normal distribution.
    """

    AXES = {
        "quantiles": ("norm", "quantile"),
        **dict.fromkeys(("mean", "std", "kurtosis"), ("norm",)),
        "top_dims": ("norm", "k"),
        "top_values": ("norm", "k"),
    }
    FIGURE = "probes.norms.figures.gain_quantiles"
    UNITS = "factors; kurtosis 3 if normal"

    norms: tuple[tuple[int, str], ...]
    quantiles: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    kurtosis: np.ndarray
    top_dims: np.ndarray
    top_values: np.ndarray

    def frame(self) -> pd.DataFrame:
        """One row per norm: layer, norm, mean, std, kurtosis, q0 ... q100, top_dim, top_value."""
        table = pd.DataFrame(self.norms, columns=["layer", "norm"])
        table["mean"], table["std"], table["kurtosis"] = self.mean, self.std, self.kurtosis
        for i, q in enumerate(QUANTILES):
            table[f"q{round(100 * q)}"] = self.quantiles[:, i]
        table["top_dim"], table["top_value"] = self.top_dims[:, 0], self.top_values[:, 0]
        return table


def kurtosis(x: Tensor) -> Tensor:
    """Fourth standardised moment over the last axis: 3 for a normal distribution, NaN where all values are equal.

    Shapes: [..., n] -> [...]
    """
    centred = x - x.mean(-1, keepdim=True)
    return centred.pow(4).mean(-1) / centred.square().mean(-1).square()


@torch.no_grad()
def gain_statistics(model: Transformer, *, top: int = 5) -> GainStatistics:
    """Quantiles, kurtosis and extreme dimensions of every norm's gain.

    Shapes: gains [dim] -> [norm, ...]
    Units:  the gain is a factor; computed in float64.
    """
    arguments.at_least(1, top=top)
    rows = [(_norm_of(name, model.config.n_layers), gain.double().cpu()) for name, gain in _gains(model)]
    gains = torch.stack([gain for _, gain in rows])  # [norm, dim]
    distance = (gains - gains.median(-1, keepdim=True).values).abs()
    dims = distance.topk(min(top, gains.shape[-1]), -1).indices
    return GainStatistics(
        tuple(norm for norm, _ in rows),
        frozen(torch.quantile(gains, torch.tensor(QUANTILES, dtype=torch.float64), -1).T),
        frozen(gains.mean(-1)),
        frozen(gains.std(-1, correction=0)),
        frozen(kurtosis(gains)),
        frozen(dims),
        frozen(gains.gather(-1, dims)),
    )


# --- large activations in the stream --------------------------------------------------------------------------


@dataclass(frozen=True)
class MassiveActivations(Result):
    """Entries of the stream that are far larger than all others, and each layer's largest magnitudes.

    The table has one row per massive entry; `top` [layer, 3] are the largest magnitudes, `median` [layer] the median.
    """

    AXES = {"top": ("layer", "rank"), "median": ("layer",)}
    FIGURE = "probes.norms.figures.massive_activations"
    UNITS = "value as the stream's entries; ratio to the layer's median magnitude"

    layers: tuple[int, ...]
    table: pd.DataFrame
    top: np.ndarray
    median: np.ndarray
    threshold: float
    ratio: float
    nonfinite: int

    def frame(self) -> pd.DataFrame:
        """One row per massive entry: layer, batch, pos, dim, value, ratio (to the layer's median magnitude)."""
        return self.table.copy()

    def by_layer(self) -> pd.DataFrame:
        """One row per layer: layer, top_1, top_2, top_3, median, massive (number of entries)."""
        table = pd.DataFrame({"layer": self.layers})
        for i in range(self.top.shape[1]):
            table[f"top_{i + 1}"] = self.top[:, i]
        table["median"] = self.median
        counts = self.table["layer"].value_counts()
        table["massive"] = table["layer"].map(counts).fillna(0).astype(int)
        return table


def massive_entries(x: Tensor, *, threshold: float = 100.0, ratio: float = 1000.0) -> Tensor:
    """Mask of the massive entries: |x| > threshold, and at least `ratio` times the median |x|.

    Shapes: [batch, pos, dim] -> bool [batch, pos, dim]
    Source: arXiv 2402.17762.
    """
    size = x.float().abs()
    return (size > threshold) & (size >= ratio * median(size))


def median(x: Tensor) -> Tensor:
    """The median of all finite entries (the mean of the middle two if their number is even); NaN if there are none.

    Shapes: any -> []
    """
    ordered = x[x.isfinite()].sort().values  # torch.quantile refuses more than 16 million entries
    n = len(ordered)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2 if n else x.new_tensor(math.nan)


def massive_activations(cap: Capture, *, threshold: float = 100.0, ratio: float = 1000.0) -> MassiveActivations:
    """Massive activations in the stream after every captured block.

    Shapes: hook_resid_post [batch, pos, dim] per layer -> a table of entries, and [layer, 3], [layer]
    Units:  those of the stream.
    Raises: MissingHookError if `hook_resid_post` was captured for no layer; HookError for left-padded rows.
    Source: arXiv 2402.17762, whose thresholds are the defaults.
    """
    capture_access.unpadded(cap)
    positions = capture_access.positions(cap).numpy()
    layers, tables, top, medians, nonfinite = [], [], [], [], 0
    for layer, x in _streams(cap, "hook_resid_post"):
        size = x.abs()
        layer_median = median(size)
        nonfinite += int((~x.isfinite()).sum())
        indices = massive_entries(x, threshold=threshold, ratio=ratio).nonzero().cpu()  # [entry, 3]
        values = x.cpu()[tuple(indices.T)]
        table = pd.DataFrame(indices.numpy(), columns=["batch", "pos", "dim"])
        table["pos"] = positions[table["pos"]]
        table.insert(0, "layer", layer)
        table["value"] = values.numpy()
        table["ratio"] = (values.abs() / layer_median.cpu()).numpy()
        tables.append(table)
        layers.append(layer)
        top.append(torch.where(x.isfinite(), size, 0).flatten().topk(min(3, size.numel())).values)
        medians.append(layer_median)
    table = pd.concat(tables, ignore_index=True)
    return MassiveActivations(
        tuple(layers), table, frozen(torch.stack(top)), frozen(torch.stack(medians)), threshold, ratio, nonfinite
    )


@dataclass(frozen=True)
class OutlierDimensions(Result):
    """Dimensions of the stream that are large in many layers and at many positions. Arrays are [dim].

    `layer_share`: layers with at least one large entry; `position_share`: large entries among all layers' positions.
    """

    AXES = {"layer_share": ("dim",), "position_share": ("dim",), "largest": ("dim",), "outlier": ("dim",)}
    FIGURE = "probes.norms.figures.outlier_dimensions"
    UNITS = "shares from 0 to 1; largest as the stream's entries"

    layer_share: np.ndarray
    position_share: np.ndarray
    largest: np.ndarray
    outlier: np.ndarray  # bool

    @property
    def dims(self) -> tuple[int, ...]:
        """The outlier dimensions."""
        return tuple(int(dim) for dim in np.flatnonzero(self.outlier))

    def frame(self) -> pd.DataFrame:
        """One row per dimension: dim, layer_share, position_share, largest, outlier; the largest first."""
        names = ("layer_share", "position_share", "largest", "outlier")
        table = pd.DataFrame({"dim": np.arange(len(self.outlier)), **{name: getattr(self, name) for name in names}})
        return table.sort_values(["outlier", "largest"], ascending=False, ignore_index=True)


def middle(ordered: Tensor) -> Tensor:
    """The median along the last axis of entries in ascending order: the mean of the middle two of an even number.

    Shapes: [..., dim] -> [..., 1]
    """
    dim = ordered.shape[-1]
    return (ordered[..., (dim - 1) // 2, None] + ordered[..., dim // 2, None]) / 2


def typical_size(ordered: Tensor) -> Tensor:
    """The standard deviation of normal entries with the same median magnitude, which outliers do not change.

    Shapes: magnitudes in ascending order [..., dim] -> [..., 1]
    """
    return middle(ordered) / 0.6744897501960817  # the median of |x| for a normal x of deviation 1


def outlier_dimensions(
    cap: Capture,
    *,
    magnitude: float = 6.0,
    layer_share: float = 0.25,
    position_share: float = 0.06,
    absolute: bool = False,
) -> OutlierDimensions:
    """Dimensions that are large in enough layers and at enough positions of the stream after each block.

    An entry is large if |x| >= `magnitude` standard deviations of its layer and position (`typical_size`), because the
    stream grows from layer to layer. `absolute` compares |x| itself, as the paper does for the inputs of its products.
    Shapes: hook_resid_post [batch, pos, dim] per layer -> [dim]
    Units:  shares between 0 and 1; `largest` as the stream's entries.
    Raises: MissingHookError if `hook_resid_post` was captured for no layer; HookError for left-padded rows.
    Source: arXiv 2208.07339, whose thresholds are the defaults.
    """
    capture_access.unpadded(cap)
    hits, any_hit, largest = [], [], []
    for _, x in _streams(cap, "hook_resid_post"):
        flat = x.abs().flatten(0, 1)  # [batch * pos, dim]
        large = flat >= (magnitude if absolute else magnitude * typical_size(flat.sort(-1).values))
        hits.append(large.float().mean(0))
        any_hit.append(large.any(0))
        largest.append(flat.amax(0))
    layers, positions = torch.stack(any_hit).float().mean(0), torch.stack(hits).mean(0)
    outlier = (layers >= layer_share) & (positions >= position_share)
    return OutlierDimensions(frozen(layers), frozen(positions), frozen(torch.stack(largest).amax(0)), frozen(outlier))


@dataclass(frozen=True)
class ContributionRatios(Result):
    """Size of each sublayer's output relative to the stream before it. Arrays are [layer, sublayer, batch, pos].

    `positions` [pos] are absolute.
    """

    AXES = {
        **dict.fromkeys(("ratio", "cosine"), ("layer", "sublayer", "batch", "pos")),
        "positions": ("pos",),
    }
    FIGURE = "probes.norms.figures.contribution_ratios"
    UNITS = "norm(added) / norm(stream), and the cosine between them"

    layers: tuple[int, ...]
    ratio: np.ndarray
    cosine: np.ndarray
    positions: np.ndarray
    sublayers: tuple[str, ...] = ("attn", "mlp")

    def frame(self) -> pd.DataFrame:
        """One row per layer, sublayer, batch row and position: ..., ratio, cosine."""
        batch = range(self.ratio.shape[2])
        axes = {"layer": self.layers, "sublayer": self.sublayers, "batch": batch, "pos": self.positions}
        return tidy(axes, {"ratio": self.ratio, "cosine": self.cosine})


def contribution(out: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
    """norm(out) / norm(stream), and the cosine between them.

    Shapes: [..., dim], [..., dim] -> [...], [...]
    Source: arXiv 2004.10102.
    """
    out, stream = out.float(), stream.float()
    ratio = out.norm(dim=-1) / stream.norm(dim=-1)
    return ratio, torch.nn.functional.cosine_similarity(out, stream, dim=-1)


def contribution_ratios(cap: Capture) -> ContributionRatios:
    """Attention's output relative to the stream before the block, and the MLP's relative to the stream after attention.

    Shapes: hook_attn_out, hook_mlp_out, hook_resid_pre, hook_resid_mid [batch, pos, dim]
            -> [layer, sublayer, batch, pos]
    Units:  ratios of lengths, and cosines; computed in float32.
    Raises: MissingHookError if one of the four was not captured for a layer; HookError for left-padded rows.
    Source: arXiv 2004.10102.
    """
    capture_access.unpadded(cap)
    layers = capture_access.layers(cap, "hook_attn_out")
    pairs = [
        [
            contribution(cap[f"blocks.{layer}.hook_{out}"], cap[f"blocks.{layer}.hook_resid_{stream}"])
            for out, stream in (("attn_out", "pre"), ("mlp_out", "mid"))
        ]
        for layer in layers
    ]
    ratio, cosine = (frozen(torch.stack([torch.stack([pair[i] for pair in row]) for row in pairs])) for i in (0, 1))
    return ContributionRatios(layers, ratio, cosine, frozen(capture_access.positions(cap)))


# --- reading captures and models ------------------------------------------------------------------------------


def _streams(cap: Capture, suffix: str) -> Iterator[tuple[int, Tensor]]:
    for layer in capture_access.layers(cap, suffix):
        yield layer, cap[f"blocks.{layer}.{suffix}"].detach().float()


def _norm_of(name: str, n_layers: int) -> tuple[int, str]:
    if name.startswith(FINAL):
        return n_layers, FINAL
    _, layer, norm = name.split(".")[:3]
    return int(layer), norm


def _gains(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    for layer, block in enumerate(model.layers):
        yield f"blocks.{layer}.ln1", block.attention_norm.weight
        yield f"blocks.{layer}.ln2", block.ffn_norm.weight
    yield FINAL, model.norm.weight
