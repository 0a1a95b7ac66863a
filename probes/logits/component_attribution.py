"""Direct logit attribution within a part: to the neurons of an MLP, and to the tokens that a head attends to.

Both sum to their part's contribution in `probes.logits.logit_attribution`, and freeze the final norm's scale in the
same way. `removed` is the direct loss of the logit if a neuron is removed and the norm's scale is computed again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from probes.base import arguments, capture_access
from probes.base.result import Result, frozen
from probes.base.weights import head_writer, neuron_writer
from probes.logits.logit_attribution import (
    Target,
    logits_lost_without,
    target_table,
    target_texts,
    unembedding_directions,
)
from probes.logits.logit_lens import token_text
from workbench.errors import HookError, MissingHookError
from workbench.hooks.capture import Capture
from workbench.model import Transformer

NEURON_HOOKS = (
    "blocks.*.mlp.hook_post",
    "blocks.*.hook_mlp_out",
    "blocks.*.hook_resid_post",
    "ln_final.hook_scale",
)
"""Hooks to capture for `neuron_attribution`."""

SOURCE_HOOKS = ("blocks.*.attn.hook_pattern", "blocks.*.attn.hook_v", "blocks.*.attn.hook_z", "ln_final.hook_scale")
"""Hooks to capture for `source_attribution`."""

HOOKS = tuple(dict.fromkeys((*NEURON_HOOKS, *SOURCE_HOOKS)))


# --- by neuron ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NeuronAttribution(Result):
    """The neurons of each layer's MLP with the largest contributions to some logits. Arrays are [token, layer, k].

    `neurons` are their numbers, `values` their contributions, `removed` the logit's loss without each of them, with the
    norm's scale computed again. `mlp` [token, layer] is the contribution of the whole MLP, `rest` [token, layer] that
    of its other neurons, summed one by one; `error` is the largest difference between an MLP and all its neurons.
    """

    position: int
    tokens: tuple[Target, ...]
    layers: tuple[int, ...]
    neurons: np.ndarray
    values: np.ndarray
    removed: np.ndarray
    mlp: np.ndarray
    rest: np.ndarray
    error: float
    text: dict[int, str]

    AXES = {
        "neurons": ("token", "layer", "k"),
        "values": ("token", "layer", "k"),
        "removed": ("token", "layer", "k"),
        "mlp": ("token", "layer"),
        "rest": ("token", "layer"),
    }
    FIGURE = "probes.logits.figures.neuron_attribution"
    UNITS = "logits"

    def frame(self) -> pd.DataFrame:
        """One row per token, layer and rank: token, minus, layer, rank, neuron, contribution, removed, mlp, rest."""
        whole = {name: np.broadcast_to(getattr(self, name)[..., None], self.values.shape) for name in ("mlp", "rest")}
        columns = {"neuron": self.neurons, "contribution": self.values, "removed": self.removed, **whole}
        return target_table(self.tokens, {"layer": self.layers, "rank": range(self.values.shape[-1])}, columns)


@torch.no_grad()
def neuron_attribution(
    model: Transformer, cap: Capture, tokens: Sequence[Target], *, k: int = 10, position: int = -1, row: int = 0
) -> NeuronAttribution:
    """Direct attribution to the neurons of every captured MLP: a * (w2[:, neuron] * gain / r_final) . W_U[token].

    Shapes: mlp.hook_post [batch, pos, ffn] per layer -> [token, layer, k]
    Units:  logits, computed in float32.
    Raises: MissingHookError if one of `NEURON_HOOKS` was not captured; HookError for left-padded rows, an unknown token
            or position, or a model that is split over processes.
    Source: arXiv 2203.14680, 2211.00593.
    Exact:  a layer's k values and `rest` sum to its MLP's contribution, up to `error`.
    """
    arguments.at_least(1, k=k)
    capture_access.unpadded(cap)
    at, row = capture_access.place(cap, position), capture_access.row_of(cap, row)
    readout = unembedding_directions(model, tokens)
    direction = readout / cap["ln_final.hook_scale"][row, at].float()
    x = cap[f"blocks.{model.config.n_layers - 1}.hook_resid_post"][row, at]
    layers = capture_access.layers(cap, "mlp.hook_post")
    by_layer = []
    for layer in layers:
        w2 = neuron_writer(model, layer)  # [dim, ffn]
        activations = cap[f"blocks.{layer}.mlp.hook_post"][row, at].float()
        contributions = direction @ w2 * activations  # [token, ffn]
        best = contributions.abs().topk(min(k, contributions.shape[-1]), -1).indices  # [token, k]
        top = contributions.gather(-1, best)
        written = w2.T[best] * activations[best][..., None]  # [token, k, dim]
        lost = [
            logits_lost_without(model, x, vectors, target_readout[None])[0]
            for vectors, target_readout in zip(written, readout, strict=True)
        ]
        mlp = direction @ cap[f"blocks.{layer}.hook_mlp_out"][row, at].float()
        others = contributions.scatter(-1, best, 0.0).sum(-1)
        by_layer.append((best, top, torch.stack(lost), mlp, others))
    neurons, values, removed, mlp, rest = (torch.stack(pieces, 1) for pieces in zip(*by_layer, strict=True))
    return NeuronAttribution(
        int(capture_access.positions(cap)[at]), tuple(tokens), layers, frozen(neurons), frozen(values), frozen(removed),
        frozen(mlp), frozen(rest), float((values.sum(-1) + rest - mlp).abs().max()), target_texts(model, tokens),
    )  # fmt: skip


# --- by key of a head -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SourceAttribution(Result):
    """One head's contribution to some logits from each token that it attends to. `values` is [token, key_pos].

    `weights` [key_pos] are the attention weights; `head_value` [token] is the head's whole contribution; `error` the
    largest difference between it and the sum over keys. `prompt` [key_pos] are the tokens attended to.
    """

    layer: int
    head: int
    position: int
    tokens: tuple[Target, ...]
    prompt: tuple[int, ...]
    values: np.ndarray
    weights: np.ndarray
    head_value: np.ndarray
    error: float
    text: dict[int, str]

    AXES = {"values": ("token", "key_pos"), "weights": ("key_pos",), "head_value": ("token",)}
    FIGURE = "probes.logits.figures.source_attribution"
    UNITS = "weight from 0 to 1; contribution in logits"

    def frame(self) -> pd.DataFrame:
        """One row per token and key: token, minus, key_pos, weight, contribution."""
        columns = {"weight": np.broadcast_to(self.weights, self.values.shape), "contribution": self.values}
        return target_table(self.tokens, {"key_pos": range(len(self.weights))}, columns)


@torch.no_grad()
def source_attribution(
    model: Transformer,
    cap: Capture,
    tokens: Sequence[Target],
    head: tuple[int, int],
    *,
    position: int = -1,
    row: int = 0,
) -> SourceAttribution:
    """A head's direct attribution split by key: A_ij (v_j W_O * gain / r_final) . W_U[token].

    Shapes: head (layer, head) -> [token, key_pos]
    Units:  logits, computed in float32.
    Raises: MissingHookError if one of `SOURCE_HOOKS` was not captured for the layer; HookError for a capture of some
            positions, after a cache or of left-padded rows, an unknown token or position, or a split model.
    Source: arXiv 2211.00593, 2004.10102.
    Exact:  the keys sum to the head's contribution, up to `error`.
    """
    capture_access.whole(cap, "attribution by key")
    capture_access.unpadded(cap)
    at, row = capture_access.place(cap, position), capture_access.row_of(cap, row)
    layer, number = head
    head_at, kv_at = capture_access.head_index(cap, number)
    if not 0 <= layer < model.config.n_layers:
        raise HookError(f"the model has layers 0 to {model.config.n_layers - 1}, found {layer}.")
    if f"blocks.{layer}.attn.hook_v" not in cap:
        raise MissingHookError(f"this capture has no 'blocks.{layer}.attn.hook_v'; add it to the names.")
    direction = unembedding_directions(model, tokens) / cap["ln_final.hook_scale"][row, at].float()
    head_direction = direction @ head_writer(model, layer)[:, number]  # [token, head_dim]
    weights = cap.pattern(layer, heads=[number], queries=[at])[row, 0, 0]  # [key_pos]
    values = (
        head_direction @ cap[f"blocks.{layer}.attn.hook_v"][row, :, kv_at].float().T
    ) * weights  # [token, key_pos]
    whole = head_direction @ cap[f"blocks.{layer}.attn.hook_z"][row, at, head_at].float()
    prompt = cap.tokens[row].tolist()
    return SourceAttribution(
        layer, number, at, tuple(tokens), tuple(prompt), frozen(values), frozen(weights), frozen(whole),
        float((values.sum(-1) - whole).abs().max()), target_texts(model, tokens) | token_text(model, prompt),
    )  # fmt: skip
