"""MLP neurons, a = silu(w1 x) * (w3 x): their activations on a prompt, and the tokens that their weights promote.

A neuron's activation is silu(gate) * up, not silu(gate): an open gate with a negative up gives a negative activation,
and the neuron then writes the opposite of its direction. Statistics are over the captured tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.base import arguments, capture_access
from probes.base.result import Result, frozen, tidy
from probes.base.weights import neuron_writer, unembedding
from probes.logits.logit_lens import token_text
from probes.norms.rms_norms import kurtosis
from workbench.errors import HookError, MissingHookError
from workbench.hooks.capture import Capture
from workbench.model import Transformer

HOOKS = ("blocks.*.mlp.hook_pre", "blocks.*.mlp.hook_post")
"""Hooks to capture for `neuron_statistics`."""

ROWS = 8192  # rows of the vocabulary that are converted to float64 at once


# --- on a prompt ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NeuronStatistics(Result):
    """Activation statistics of every neuron over the captured tokens. Arrays are [layer, neuron].

    `open_share`: share of tokens whose gate w1 x is positive; `mean`, `rms`, `kurtosis` (3 for a normal distribution)
    and `sparsity` of the activation over tokens: 0 if all are equally large, 1 if only one token has any.
    `token_sparsity` [layer] is the sparsity over the layer's neurons, as the mean over tokens. top_batch, top_pos,
    top_value [layer, neuron, k] are the largest activations by magnitude, with their sign. `nonfinite` [layer] counts
    NaN and infinite activations: the numbers of such neurons, and their layer's token_sparsity, are NaN or meaningless.
    """

    AXES = {
        **dict.fromkeys(("open_share", "mean", "rms", "kurtosis", "sparsity"), ("layer", "neuron")),
        "token_sparsity": ("layer",),
        "nonfinite": ("layer",),
        **dict.fromkeys(("top_batch", "top_pos", "top_value"), ("layer", "neuron", "k")),
    }
    FIGURE = "probes.mlp.figures.neuron_statistics"
    UNITS = "mean, rms and top_value as activations; open_share and sparsity from 0 to 1; kurtosis 3 if normal"

    layers: tuple[int, ...]
    open_share: np.ndarray
    mean: np.ndarray
    rms: np.ndarray
    kurtosis: np.ndarray
    sparsity: np.ndarray
    token_sparsity: np.ndarray
    top_batch: np.ndarray
    top_pos: np.ndarray
    top_value: np.ndarray
    nonfinite: np.ndarray

    def frame(self) -> pd.DataFrame:
        """Row per neuron: layer, neuron, open_share, mean, rms, kurtosis, sparsity; top_batch, top_pos, top_value."""
        names = ("open_share", "mean", "rms", "kurtosis", "sparsity")
        top = {name: getattr(self, name)[..., 0] for name in ("top_batch", "top_pos", "top_value")}
        columns = {name: getattr(self, name) for name in names}
        return tidy({"layer": self.layers, "neuron": range(self.rms.shape[1])}, {**columns, **top})

    def tops(self, layer: int, neuron: int) -> pd.DataFrame:
        """Largest activations of one neuron, by magnitude: batch, pos, value."""
        at = self.layers.index(layer), neuron
        return pd.DataFrame({"batch": self.top_batch[at], "pos": self.top_pos[at], "value": self.top_value[at]})


def hoyer(x: Tensor) -> Tensor:
    """Sparsity over the last axis: (sqrt(n) - norm1 / norm2) / (sqrt(n) - 1); 0 if all are equal, 1 if one is not 0.

    Shapes: [..., n] -> [...]; NaN if all are 0, or n is 1
    Source: arXiv cs/0408058.
    """
    root = math.sqrt(x.shape[-1])
    ratio = x.abs().sum(-1) / x.norm(dim=-1)
    return (root - ratio) / (root - 1) if root > 1 else torch.full_like(ratio, math.nan)


def neuron_statistics(cap: Capture, *, top: int = 5) -> NeuronStatistics:
    """Share of open gates, sparsity, kurtosis and top tokens of every neuron of the captured layers.

    Shapes: mlp.hook_pre, mlp.hook_post [batch, pos, ffn] per layer -> [layer, neuron], [layer, neuron, top]
    Units:  activations as the model has them; shares and sparsity between 0 and 1; computed in float32.
    Raises: MissingHookError if one of `HOOKS` was not captured; HookError for left-padded rows.
    Source: arXiv 2002.05202.
    """
    arguments.at_least(1, top=top)
    capture_access.unpadded(cap)
    layers = capture_access.layers(cap, "mlp.hook_post")
    missing = [layer for layer in layers if f"blocks.{layer}.mlp.hook_pre" not in cap]
    if missing:
        raise MissingHookError(f"this capture has no 'blocks.{missing[0]}.mlp.hook_pre'; add it to the names.")
    columns: dict[str, list[Tensor]] = {}
    for layer in layers:
        post = cap[f"blocks.{layer}.mlp.hook_post"].detach()
        n_pos = post.shape[1]
        post = post.flatten(0, 1).float().T  # [neuron, batch * pos]
        best = post.abs().topk(min(top, post.shape[1]), -1).indices
        measures = {
            "open_share": (cap[f"blocks.{layer}.mlp.hook_pre"] > 0).float().mean((0, 1)),
            "mean": post.mean(-1),
            "rms": post.square().mean(-1).sqrt(),
            "kurtosis": kurtosis(post),
            "sparsity": hoyer(post),
            "token_sparsity": hoyer(post.T).mean(),
            "top_batch": best // n_pos,
            "top_pos": capture_access.positions(cap).to(best.device)[best % n_pos],
            "top_value": post.gather(-1, best),
            "nonfinite": (~post.isfinite()).sum(),
        }
        for name, value in measures.items():
            columns.setdefault(name, []).append(value)
    return NeuronStatistics(layers, **{name: frozen(torch.stack(values)) for name, values in columns.items()})


# --- of the weights -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NeuronTokens(Result):
    """Tokens whose logits some neurons of a layer increase and decrease when they are positive. Arrays are [neuron, k].

    The largest effects come first. `text` maps a token to its bytes as ASCII; empty if the model has no tokenizer.
    """

    AXES = dict.fromkeys(("promoted", "promoted_effect", "suppressed", "suppressed_effect"), ("neuron", "k"))
    FIGURE = "probes.mlp.figures.neuron_tokens"
    UNITS = "logits for an activation of 1, times the final norm's scale"

    layer: int
    neurons: tuple[int, ...]
    promoted: np.ndarray
    promoted_effect: np.ndarray
    suppressed: np.ndarray
    suppressed_effect: np.ndarray
    text: dict[int, str]

    def frame(self) -> pd.DataFrame:
        """One row per neuron, side and rank: layer, neuron, side, rank, token, effect, text."""
        sides = ("promoted", "suppressed")
        columns = {
            "token": np.stack([self.promoted, self.suppressed], 1),
            "effect": np.stack([self.promoted_effect, self.suppressed_effect], 1),
        }
        axes = {"neuron": self.neurons, "side": sides, "rank": range(self.promoted.shape[1])}
        table = tidy(axes, columns)
        table.insert(0, "layer", self.layer)
        table["text"] = table["token"].map(lambda token: self.text.get(token, ""))
        return table


@torch.no_grad()
def neuron_tokens(model: Transformer, layer: int, neurons: Sequence[int], *, k: int = 10) -> NeuronTokens:
    """Promoted and suppressed tokens of neurons: (w2[:, neuron] * gain) . W_U, the direct path to the logits.

    A negative activation swaps the two lists. Later layers can read the direction too; this is only the direct path.
    Shapes: neurons [neuron] -> [neuron, k]
    Units:  logits for an activation of 1, times the final norm's scale (which depends on the prompt); float32.
    Raises: HookError for a layer or neuron that the model does not have, or a model that is split over processes.
    Source: arXiv 2203.14680.
    Exact:  summed over neurons, activation * effect / scale is the MLP's direct attribution to the logit.
    """
    arguments.at_least(1, k=k)
    config = model.config
    if not 0 <= layer < config.n_layers:
        raise HookError(f"the model has layers 0 to {config.n_layers - 1}, found {layer}.")
    for neuron in neurons:
        if not 0 <= neuron < config.ffn_dim:
            raise HookError(f"a layer has neurons 0 to {config.ffn_dim - 1}, found {neuron}.")
    written = neuron_writer(model, layer)[:, list(neurons)].T * model.norm.weight.float()  # [neuron, dim]
    effect = torch.cat([written @ rows.float().T for rows in unembedding(model).split(ROWS)], -1)  # [neuron, vocab]
    up, down = effect.topk(min(k, config.vocab_size), -1), effect.topk(min(k, config.vocab_size), -1, largest=False)
    text = token_text(model, {*up.indices.flatten().tolist(), *down.indices.flatten().tolist()})
    arrays = (frozen(values) for values in (up.indices, up.values, down.indices, down.values))
    return NeuronTokens(layer, tuple(neurons), *arrays, text)


@dataclass(frozen=True)
class EntropyNeurons(Result):
    """Candidates for entropy neurons: large weights, but almost the same effect on all logits. [layer, neuron] arrays.

    `norm` is that of w2's column; `logit_variance` the variance, over the vocabulary, of the cosine between the column
    and the unembedding's rows (NaN for a column of zeros); `chosen` those beyond both quantiles of their layer.
    """

    AXES = {"norm": ("layer", "neuron"), "logit_variance": ("layer", "neuron"), "chosen": ("layer", "neuron")}
    FIGURE = "probes.mlp.figures.entropy_neurons"
    UNITS = "norm as the weights; variance of a cosine"

    layers: tuple[int, ...]
    norm: np.ndarray
    logit_variance: np.ndarray
    chosen: np.ndarray  # bool
    norm_quantile: float
    variance_quantile: float

    def frame(self) -> pd.DataFrame:
        """One row per layer and neuron: ..., norm, logit_variance, chosen; the chosen first, by variance."""
        columns = {name: getattr(self, name) for name in ("norm", "logit_variance", "chosen")}
        table = tidy({"layer": self.layers, "neuron": range(self.norm.shape[1])}, columns)
        return table.sort_values(["chosen", "logit_variance"], ascending=[False, True], ignore_index=True)


@torch.no_grad()
def entropy_neurons(
    model: Transformer,
    *,
    layers: Sequence[int] | None = None,
    norm_quantile: float = 0.75,
    variance_quantile: float = 0.05,
) -> EntropyNeurons:
    """Candidates for entropy neurons: w2's column has a large norm, but affects all tokens almost equally.

    They act through the final norm's scale, not through the direction of a token. The rows of W_U include the final
    gain, as in the source, where the norm is folded in. By chance, (1 - norm_quantile) * variance_quantile of the
    neurons are chosen: 1.25% with the defaults, which are this project's own.
    Shapes: w2 [dim, ffn], W_U [vocab, dim] -> [layer, neuron]
    Units:  norm of the weights; variance of a cosine; computed in float64 through the rows' covariance [dim, dim].
    Raises: HookError for a layer that the model does not have, or a model that is split over processes.
    Source: arXiv 2406.16254.
    """
    config = model.config
    layers = tuple(range(config.n_layers)) if layers is None else tuple(layers)
    for layer in layers:
        if not 0 <= layer < config.n_layers:
            raise HookError(f"the model has layers 0 to {config.n_layers - 1}, found {layer}.")
    covariance = _covariance(model)
    norms, variances = [], []
    for layer in layers:
        columns = neuron_writer(model, layer).double()  # [dim, neuron]
        norms.append(columns.norm(dim=0))
        unit = columns / norms[-1]
        variances.append((unit * (covariance @ unit)).sum(0))
    norm, variance = torch.stack(norms), torch.stack(variances)  # [layer, neuron]
    large = norm >= norm.nanquantile(norm_quantile, -1, keepdim=True)
    small = variance <= variance.nanquantile(variance_quantile, -1, keepdim=True)
    arrays = (frozen(values) for values in (norm, variance, large & small))
    return EntropyNeurons(layers, *arrays, norm_quantile, variance_quantile)


def _covariance(model: Transformer) -> Tensor:
    """Covariance of the unembedding's rows times the gain, each of length 1. Shapes: -> [dim, dim] float64"""
    gain = model.norm.weight.double()
    table = unembedding(model)
    total = gain.new_zeros(len(gain))
    for rows in table.split(ROWS):
        total += torch.nn.functional.normalize(rows.double() * gain, dim=-1).sum(0)
    mean = total / len(table)
    products = gain.new_zeros(len(gain), len(gain))
    for rows in table.split(ROWS):  # centred first: the mean of squares minus the squared mean would lose precision
        centred = torch.nn.functional.normalize(rows.double() * gain, dim=-1) - mean
        products += centred.T @ centred
    return products / len(table)
