"""Errors of linear approximations of the norm, and the difference between RMSNorm and LayerNorm.

Attribution treats the norm as a fixed scale. This module measures the error of that on the model's own streams, and the
error of the norm's derivative, which is better for small steps and often worse for large ones. Llama's norm does not
subtract the mean, as LayerNorm does; this module measures the difference.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.base import capture_access
from probes.base.result import Result, frozen, tidy
from probes.norms.rms_norms import FINAL
from workbench.config import ModelConfig
from workbench.hooks.capture import Capture
from workbench.model import RMSNorm, Transformer

HOOKS = (
    "hook_embed",
    "blocks.*.hook_resid_pre",
    "blocks.*.hook_resid_mid",
    "blocks.*.hook_resid_post",
    "blocks.*.hook_attn_out",
    "blocks.*.hook_mlp_out",
)
"""Hooks to capture for every probe of this module."""


# --- the norm as a linear map ---------------------------------------------------------------------------------


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x over its root mean square, times the gain, in x's own dtype.

    Shapes: x [..., dim], gain [dim] -> [..., dim]
    """
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gain


def linearisation(x: Tensor, d: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Error of N(x) + J d as an approximation of N(x + d), relative to the true change: derivative, frozen scale.

    norm(N(x + d) - N(x) - J d) / norm(N(x + d) - N(x)), first with J = diag(g) / r (I - x x^T / (dim r^2)), then with
    J = diag(g) / r, where r is the norm's divisor at x. 0 is exact; 1 is as bad as to predict no change.
    Shapes: x, d [..., dim], gain [dim] -> [...], [...]; infinite where only the approximation predicts a change, NaN
            where neither changes
    Source: arXiv 2507.02559.
    """
    scale = (x.square().mean(-1, keepdim=True) + eps).sqrt()  # r: [..., 1]
    change = rms_norm(x + d, gain, eps) - rms_norm(x, gain, eps)
    along = x * (x * d).mean(-1, keepdim=True) / scale.square()  # x x^T d / (dim r^2)
    size = change.norm(dim=-1)
    derivative, frozen_scale = (change - gain * step / scale for step in (d - along, d))
    return derivative.norm(dim=-1) / size, frozen_scale.norm(dim=-1) / size


@dataclass(frozen=True)
class LinearisedNorm(Result):
    """Errors of linear approximations of a norm when a part of the stream is removed. Arrays are [part, batch, pos].

    `parts` names the rows: (layer, part), with "embed" at layer -1; `norms` is the norm that reads them: (layer, norm),
    the final norm at n_layers. `size` is norm(part) / norm(stream): larger steps are harder to predict. `positions`
    [pos] are absolute.
    """

    AXES = {
        **dict.fromkeys(("derivative", "frozen_scale", "size"), ("part", "batch", "pos")),
        "positions": ("pos",),
    }
    FIGURE = "probes.norms.linearity_figures.linearised_norm"
    UNITS = "errors as shares of the true change, 0 is exact; size is norm(part) / norm(stream)"

    parts: tuple[tuple[int, str], ...]
    norms: tuple[tuple[int, str], ...]
    derivative: np.ndarray
    frozen_scale: np.ndarray
    size: np.ndarray
    positions: np.ndarray

    def frame(self) -> pd.DataFrame:
        """One row per part, batch row and position: layer, part, norm_layer, norm, batch, pos, both errors, size."""
        count, batch, _ = self.size.shape
        columns = {"derivative": self.derivative, "frozen_scale": self.frozen_scale, "size": self.size}
        table = tidy({"row": range(count), "batch": range(batch), "pos": self.positions}, columns)
        row = table.pop("row").to_numpy()
        labels = {"layer": self.parts, "part": self.parts, "norm_layer": self.norms, "norm": self.norms}
        for at, (name, source) in enumerate(labels.items()):
            table.insert(at, name, np.array([pair[at % 2] for pair in source])[row])
        return table


@torch.no_grad()
def linearised_norm(model: Transformer, cap: Capture, *, final: bool = False) -> LinearisedNorm:
    """Remove each sublayer's output from the stream, and compare the norm's output with two linear predictions.

    By default each output is removed at the norm that reads it first. With `final`, every part, the embedding too, is
    removed at the final norm: direct logit attribution assumes the frozen scale there.
    Shapes: hook_embed, hook_attn_out, hook_mlp_out, hook_resid_mid, hook_resid_post [batch, pos, dim]
            -> [part, batch, pos]
    Units:  a share of the true change: 0 is exact. Computed in float64.
    Raises: MissingHookError if one of them was not captured for a layer; HookError for left-padded rows.
    Source: arXiv 2507.02559; 2211.00593 for the attribution.
    """
    capture_access.unpadded(cap)
    n_layers = model.config.n_layers
    rows = []
    for layer in range(n_layers):
        for part, stream in (("attn", "mid"), ("mlp", "post")):
            if final:
                norm, x = (n_layers, FINAL), f"blocks.{n_layers - 1}.hook_resid_post"
            else:
                norm, x = _next_norm(layer, part, n_layers), f"blocks.{layer}.hook_resid_{stream}"
            rows.append(((layer, part), norm, x, f"blocks.{layer}.hook_{part}_out"))
    if final:
        rows.insert(0, ((-1, "embed"), (n_layers, FINAL), f"blocks.{n_layers - 1}.hook_resid_post", "hook_embed"))
    measures = []
    for _, norm, stream, part in rows:
        x, d = cap[stream].double(), -cap[part].double()
        errors = linearisation(x, d, _gain(model, norm).double().to(x.device), cap.config.norm_eps)
        measures.append(torch.stack([*errors, d.norm(dim=-1) / x.norm(dim=-1)]))
    derivative, frozen_scale, size = (frozen(part) for part in torch.stack(measures, 1))
    parts, norms = (tuple(row[i] for row in rows) for i in (0, 1))
    return LinearisedNorm(parts, norms, derivative, frozen_scale, size, frozen(capture_access.positions(cap)))


def _next_norm(layer: int, part: str, n_layers: int) -> tuple[int, str]:
    """The norm that first reads a sublayer's output."""
    if part == "attn":
        return layer, "ln2"
    return (n_layers, FINAL) if layer + 1 == n_layers else (layer + 1, "ln1")


def _gain(model: Transformer, norm: tuple[int, str]) -> Tensor:
    layer, name = norm
    if name == FINAL:
        return model.norm.weight
    block = model.layers[layer]
    gain: Tensor = (block.attention_norm if name == "ln1" else block.ffn_norm).weight
    return gain


# --- RMSNorm against LayerNorm --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recentring(Result):
    """Effect of subtracting the mean, as LayerNorm does. Arrays are [norm, batch, pos].

    `share` is |mean| / rms of the norm's input, between 0 and 1; `change` is norm(LayerNorm - RMSNorm) over
    norm(RMSNorm), both without gain and bias. `norms` names the rows: (layer, norm), the final norm at n_layers.
    `positions` [pos] are absolute.
    """

    AXES = {"share": ("norm", "batch", "pos"), "change": ("norm", "batch", "pos"), "positions": ("pos",)}
    FIGURE = "probes.norms.linearity_figures.recentring"
    UNITS = "shares; 0 changes nothing"

    norms: tuple[tuple[int, str], ...]
    share: np.ndarray
    change: np.ndarray
    positions: np.ndarray

    def frame(self) -> pd.DataFrame:
        """One row per norm, batch row and position: layer, norm, batch, pos, share, change."""
        count, batch, _ = self.share.shape
        axes = {"row": range(count), "batch": range(batch), "pos": self.positions}
        table = tidy(axes, {"share": self.share, "change": self.change})
        row = table.pop("row").to_numpy()
        for at, name in enumerate(("layer", "norm")):
            table.insert(at, name, np.array([norm[at] for norm in self.norms])[row])
        return table

    def by_norm(self) -> pd.DataFrame:
        """One row per norm: layer, norm, then the median and the maximum of share and change over tokens."""
        groups = self.frame().groupby(["layer", "norm"], sort=False)
        table = groups[["share", "change"]].agg(["median", "max"])
        table.columns = [f"{name}_{how}" for name, how in table.columns]
        return table.reset_index()


def recentred(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """|mean| / rms of x, and the relative change of the normalised x by re-centring.

    Shapes: [..., dim] -> [...], [...]
    Exact:  without eps the change is sqrt(2 - 2 sqrt(1 - share^2)).
    Source: arXiv 1910.07467.
    """
    share = x.mean(-1).abs() / x.square().mean(-1).sqrt()
    rms_normed = rms_norm(x, x.new_ones(x.shape[-1]), eps)
    layer_normed = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=eps)
    return share, (layer_normed - rms_normed).norm(dim=-1) / rms_normed.norm(dim=-1)


def recentring(cap: Capture) -> Recentring:
    """Change of each norm's output if the mean is subtracted, as in LayerNorm.

    Shapes: hook_resid_pre, hook_resid_mid [batch, pos, dim] per layer, and hook_resid_post of the last layer, if it was
            captured, for the final norm -> [norm, batch, pos]
    Units:  shares: 0 changes nothing. Computed in float64.
    Raises: MissingHookError if hook_resid_pre or hook_resid_mid was captured for no layer; HookError for left-padded
            rows.
    Source: arXiv 1910.07467, whose claim is that re-centring is not needed.
    """
    capture_access.unpadded(cap)
    norms, measures = [], []
    for norm, x in _norm_inputs(cap):
        norms.append(norm)
        measures.append(torch.stack(recentred(x.double(), cap.config.norm_eps)))
    share, change = (frozen(part) for part in torch.stack(measures, 1))
    return Recentring(tuple(norms), share, change, frozen(capture_access.positions(cap)))


def _norm_inputs(cap: Capture) -> Iterator[tuple[tuple[int, str], Tensor]]:
    capture_access.layers(cap, "hook_resid_mid")
    for layer in capture_access.layers(cap, "hook_resid_pre"):
        yield (layer, "ln1"), cap[f"blocks.{layer}.hook_resid_pre"]
        yield (layer, "ln2"), cap[f"blocks.{layer}.hook_resid_mid"]
    last = f"blocks.{cap.config.n_layers - 1}.hook_resid_post"
    if last in cap:
        yield (cap.config.n_layers, FINAL), cap[last]


# --- run times ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NormTimes(Result):
    """Run times of each norm on this machine, in seconds per call. Arrays are [norm, repeat]."""

    AXES = {"seconds": ("norm", "repeat")}
    FIGURE = "probes.norms.linearity_figures.norm_times"
    UNITS = "seconds per call"

    norms: tuple[str, ...]
    seconds: np.ndarray
    tokens: int
    dim: int
    dtype: str
    device: str

    def frame(self) -> pd.DataFrame:
        """One row per norm: norm, tokens, dim, dtype, device, median, low, high (25% and 75%), in seconds per call."""
        low, middle, high = np.quantile(self.seconds, [0.25, 0.5, 0.75], axis=1)
        about = {"tokens": self.tokens, "dim": self.dim, "dtype": self.dtype, "device": self.device}
        return pd.DataFrame({"norm": self.norms, **about, "median": middle, "low": low, "high": high})


@torch.no_grad()
def norm_times(
    config: ModelConfig,
    *,
    tokens: int = 512,
    repeats: int = 30,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> NormTimes:
    """Run times of the model's own norm, PyTorch's RMSNorm and PyTorch's LayerNorm on the same numbers.

    Shapes: random [tokens, dim] -> [norm, repeat]
    Units:  seconds per call, after one warm-up call; the norms alternate, so that a slow moment of the machine affects
            all. The times depend on the implementation as much as on the formula.
    """
    functional, shape = torch.nn.functional, (config.dim,)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, config.dim, generator=generator).to(device, dtype)
    gain, bias = torch.ones_like(x[0]), torch.zeros_like(x[0])
    rms_norm_module = RMSNorm(config.dim, config.norm_eps).to(device, dtype)
    variants = {
        "this model's RMSNorm": lambda: rms_norm_module(x, None),
        "torch rms_norm": lambda: functional.rms_norm(x, shape, gain, config.norm_eps),
        "torch layer_norm": lambda: functional.layer_norm(x, shape, gain, bias, config.norm_eps),
    }
    seconds = np.zeros((len(variants), repeats + 1))
    for repeat in range(repeats + 1):
        for index, call in enumerate(variants.values()):
            begin = _synchronised_time(x)
            call()
            seconds[index, repeat] = _synchronised_time(x) - begin
    name = str(dtype).removeprefix("torch.")
    return NormTimes(tuple(variants), frozen(seconds[:, 1:]), tokens, config.dim, name, str(x.device))


def _synchronised_time(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
