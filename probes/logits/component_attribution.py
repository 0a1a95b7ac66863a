"""Direct logit attribution within a part: an MLP's neurons, and the tokens that a head looks at.

Both sum to their part's contribution in `probes.logits.logit_attribution`, and freeze the final norm's scale as it
does. `removed` is what the logit would lose directly if a neuron were taken out and the norm scaled anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from probes.base import capture_access
from probes.base.result import Result, frozen
from probes.base.weights import head_writer, neuron_writer
from probes.logits.logit_attribution import Target, by_target, readout_of, removed_by, texts_of
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
"""What to capture for `neuron_attribution`."""

SOURCE_HOOKS = ("blocks.*.attn.hook_pattern", "blocks.*.attn.hook_v", "blocks.*.attn.hook_z", "ln_final.hook_scale")
"""What to capture for `source_attribution`."""

HOOKS = tuple(dict.fromkeys((*NEURON_HOOKS, *SOURCE_HOOKS)))


# --- by neuron ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NeuronAttribution(Result):
    """The neurons of each layer's MLP that add most to some logits, by magnitude. Arrays are [token, layer, k].

    `neurons` are their numbers, `values` what they add, `removed` what the logit would lose if the norm were scaled
    anew without them. `mlp` [token, layer] is the whole MLP's contribution, `rest` [token, layer] that of its other
    neurons, summed one by one; `error` is the largest difference between an MLP and all of its neurons.
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
        return by_target(self.tokens, {"layer": self.layers, "rank": range(self.values.shape[-1])}, columns)


@torch.no_grad()
def neuron_attribution(
    model: Transformer, cap: Capture, tokens: Sequence[Target], *, k: int = 10, position: int = -1, row: int = 0
) -> NeuronAttribution:
    """Direct attribution to the neurons of every captured MLP: a * (w2[:, neuron] * gain / r_final) . W_U[token].

    Shapes: mlp.hook_post [batch, pos, ffn] per layer -> [token, layer, k]
    Units:  logits, computed in float32.
    Raises: MissingHookError if one of `NEURON_HOOKS` was not captured; HookError for an unknown token or position, or
            a model that is split over processes.
    Source: arXiv 2203.14680, 2211.00593.
    Exact:  a layer's k values and the rest sum to its MLP's contribution; `error` says how nearly.
    """
    at, row = capture_access.place(cap, position), capture_access.row_of(cap, row)
    readout = readout_of(model, tokens)
    direction = readout / cap["ln_final.hook_scale"][row, at].float()
    x = cap[f"blocks.{model.config.n_layers - 1}.hook_resid_post"][row, at]
    layers = capture_access.layers(cap, "mlp.hook_post")
    found = []
    for layer in layers:
        w2 = neuron_writer(model, layer)  # [dim, ffn]
        fired = cap[f"blocks.{layer}.mlp.hook_post"][row, at].float()
        every = direction @ w2 * fired  # [token, ffn]
        best = every.abs().topk(min(k, every.shape[-1]), -1).indices  # [token, k]
        top = every.gather(-1, best)
        written = w2.T[best] * fired[best][..., None]  # [token, k, dim]
        lost = [removed_by(model, x, mine, aim[None])[0] for mine, aim in zip(written, readout, strict=True)]
        mlp = direction @ cap[f"blocks.{layer}.hook_mlp_out"][row, at].float()
        others = every.scatter(-1, best, 0.0).sum(-1)
        found.append((best, top, torch.stack(lost), mlp, others))
    neurons, values, removed, mlp, rest = (torch.stack(pieces, 1) for pieces in zip(*found, strict=True))
    return NeuronAttribution(
        int(capture_access.positions(cap)[at]), tuple(tokens), layers, frozen(neurons), frozen(values), frozen(removed),
        frozen(mlp), frozen(rest), float((values.sum(-1) + rest - mlp).abs().max()), texts_of(model, tokens),
    )  # fmt: skip


# --- from a head's pattern to the logit -----------------------------------------------------------------------


@dataclass(frozen=True)
class SourceAttribution(Result):
    """What one head carries to some logits from each token that it looks at. `values` is [token, key_pos].

    `weights` [key_pos] is the attention; `head_value` [token] the head's whole contribution; `error` the largest
    difference between it and the sum over keys. `prompt` [key_pos] are the tokens looked at.
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
        return by_target(self.tokens, {"key_pos": range(len(self.weights))}, columns)


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
            positions or after a cache, an unknown token or position, or a model that is split over processes.
    Source: arXiv 2211.00593, 2004.10102.
    Exact:  the keys sum to the head's contribution; `error` says how nearly.
    """
    capture_access.whole(cap, "attribution by key")
    at, row = capture_access.place(cap, position), capture_access.row_of(cap, row)
    layer, number = head
    mine, group = capture_access.head_index(cap, number)
    if not 0 <= layer < model.config.n_layers:
        raise HookError(f"the model has layers 0 to {model.config.n_layers - 1}, found {layer}.")
    if f"blocks.{layer}.attn.hook_v" not in cap:
        raise MissingHookError(f"this capture holds no 'blocks.{layer}.attn.hook_v'; add it to the names.")
    direction = readout_of(model, tokens) / cap["ln_final.hook_scale"][row, at].float()
    aim = direction @ head_writer(model, layer)[:, number]  # [token, head_dim]
    weights = cap.pattern(layer, heads=[number], queries=[at])[row, 0, 0]  # [key_pos]
    values = (aim @ cap[f"blocks.{layer}.attn.hook_v"][row, :, group].float().T) * weights  # [token, key_pos]
    whole = aim @ cap[f"blocks.{layer}.attn.hook_z"][row, at, mine].float()
    prompt = cap.tokens[row].tolist()
    return SourceAttribution(
        layer, number, at, tuple(tokens), tuple(prompt), frozen(values), frozen(weights), frozen(whole),
        float((values.sum(-1) - whole).abs().max()), texts_of(model, tokens) | token_text(model, prompt),
    )  # fmt: skip
