"""Paths between heads and to the logits: path patching, logit paths from each token, and composition scores.

Activation patching shows that a head matters, but not for which later heads. Path patching freezes all other heads, so
that a change reaches the chosen receivers only through the stream. Composition scores use the weights alone: they show
how much of what one head reads another head can write.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.base import weights
from probes.base.head_names import Head
from probes.base.result import Result, frozen, tidy
from probes.logits.component_attribution import source_attribution
from probes.logits.logit_attribution import Target
from probes.patching.activation_patching import (
    MAX_TOKENS,
    SITES,
    Direction,
    Patching,
    Place,
    _mask,
    _PatchRuns,
    _result,
)
from probes.patching.prompt_pairs import Pair
from workbench.errors import HookError
from workbench.hooks import hook_points
from workbench.hooks.capture import Capture
from workbench.hooks.hook_points import Site, Subscription
from workbench.model import Transformer

Through = Literal["q", "k", "v"]
Z, MLP = SITES["heads"], SITES["mlp_out"]


@dataclass(frozen=True)
class PathPatching(Patching):
    """A target under the patch of each path from a sender to the receivers: `patched` [layer, head, pos, prompt].

    Layers and heads are the senders'. There is a single `pos`, -1 for all. Without receivers the path leads to the
    logits. `through` is the receivers' input that changes, "q", "k" or "v". The rest is as in `Patching`.
    """

    receivers: tuple[Head, ...]
    through: Through
    mlps_frozen: bool

    FIGURE = "probes.patching.figures.path_patching"


@torch.no_grad()
def path_patching(
    model: Transformer,
    pair: Pair,
    receivers: Sequence[Head] = (),
    *,
    through: Through = "q",
    direction: Direction = "denoise",
    freeze_mlps: bool = False,
    budget: int = MAX_TOKENS,
) -> PathPatching:
    """The target when each head's output is patched only on the path to the receivers (default: to the logits).

    A first run freezes all other heads at their unpatched outputs; it freezes MLPs only with `freeze_mlps`. The
    queries, keys or values that the receivers compute in it are patched into a second run, in which nothing is frozen.
    Heads that share a key/value head receive its keys and values together. `budget` is as in
    `activation_patching.patching`.
    Shapes: -> [layer, head, 1, prompt], for each layer below the last receiver's
    Units:  the target's own.
    Raises: HookError for a receiver that the model does not have, or that has no earlier head.
    Source: arXiv 2211.00593, 2304.05969.
    Exact:  with MLPs frozen and no receivers, the final stream changes only by what the head writes.
    """
    config, targets = model.config, tuple(sorted(set(receivers)))
    for layer, head in targets:
        if not (0 <= layer < config.n_layers and 0 <= head < config.n_heads):
            raise HookError(
                f"the model has heads L0H0 to L{config.n_layers - 1}H{config.n_heads - 1}; found L{layer}H{head}."
            )
    if targets and targets[-1][0] == 0:
        raise HookError("a receiver in layer 0 has no earlier heads; choose receivers in later layers.")
    if through not in ("q", "k", "v"):
        raise HookError(f"through must be 'q', 'k' or 'v'; found {through!r}.")
    run = _PatchRuns.of(model, pair, "heads", direction)
    layers = tuple(range(targets[-1][0] if targets else config.n_layers))
    held = [f"blocks.*.{Z}", *([f"blocks.*.{MLP}"] if freeze_mlps else [])]
    _, base = model.run_with_capture(run.tokens, held, logits=None)
    n_prompts, n_pos = pair.clean.shape
    batch = max(1, budget // (n_prompts * n_pos))
    patched, layer_runs = [], 3 * n_prompts * config.n_layers
    for layer in layers:
        later = [aim for aim in targets if aim[0] > layer]
        rows = []
        for start in range(0, config.n_heads, batch):
            chunk = run.places[start : start + batch]
            normed, inputs = _run_patched_senders(
                run, base, layer, chunk, [f"blocks.{at}.attn.hook_{through}" for at, _ in later]
            )
            if targets:
                normed = _run_patched_receivers(run, later, inputs)
            rows.append(torch.stack([run.target_values(final) for final in normed.split(n_prompts)]))
            layers_run = config.n_layers - layer + (config.n_layers - later[0][0] if targets else 0)
            layer_runs += len(chunk) * n_prompts * layers_run
        patched.append(torch.cat(rows))
    naive = (3 + (2 if targets else 1) * len(layers) * config.n_heads) * n_prompts * config.n_layers
    result = _result(run, layers, torch.stack(patched), ("exact", layer_runs, naive))
    return PathPatching(**vars(result), receivers=targets, through=through, mlps_frozen=freeze_mlps)


def _run_patched_senders(
    run: _PatchRuns, base: Capture, layer: int, places: Sequence[Place], watched: Sequence[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """A run with senders of one layer patched, one per row, and all later heads frozen; with the watched activations.

    Shapes: -> [place * prompt, pos, dim], and tensors whose first axis is place * prompt
    """
    later = [name for name in base.names if _is_after_heads(name, layer)]
    watched_values: dict[str, Tensor] = {}
    frozen_outputs = [
        Subscription(frozenset([name]), edit=partial(_replace, _repeated(base[name], len(places)))) for name in later
    ]
    watch = Subscription(frozenset(watched), observe=lambda site, x: watched_values.__setitem__(site.name, x))
    with hook_points.subscribe(run.model, *frozen_outputs, watch):
        return run.patched_stream(layer, places), watched_values


def _run_patched_receivers(run: _PatchRuns, receivers: Sequence[Head], inputs: dict[str, Tensor]) -> Tensor:
    """A run with only the receivers' inputs patched, nothing frozen. Shapes: -> [place * prompt, pos, dim]"""
    first, group, edits = receivers[0][0], run.model.config.group_size, []
    for name, value in inputs.items():
        shared = 1 if name.endswith("hook_q") else group
        places = [(head // shared, -1) for layer, head in receivers if layer == hook_points.layer_of(name)]
        chosen = torch.stack([_mask(value[:1], [place]) for place in places]).any(0)
        edits.append(Subscription(frozenset([name]), edit=partial(_replace_where, chosen, value)))
    times = len(next(iter(inputs.values()))) // len(run.tokens)
    with hook_points.subscribe(run.model, *edits):
        return run.model.forward_from_layer(_repeated(run.stream_before(first), times), first)


def _is_after_heads(name: str, layer: int) -> bool:
    """True if a hook point comes after the heads of a layer."""
    at = hook_points.layer_of(name)
    assert at is not None
    return at > layer or (at == layer and name.endswith(MLP))


def _replace(value: Tensor, _: Site, x: Tensor) -> Tensor:
    return value


def _replace_where(chosen: Tensor, value: Tensor, _: Site, x: Tensor) -> Tensor:
    return torch.where(chosen, value, x)


def _repeated(x: Tensor, times: int) -> Tensor:
    """The prompts repeated for each place. Shapes: [prompt, ...] -> [place * prompt, ...]"""
    return x.repeat(times, *[1] * (x.dim() - 1))


# --- logit paths ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogitPaths(Result):
    """Contribution of each head to a logit from each token that it attends to: `values` [layer, head, key_pos].

    `weights` [layer, head, key_pos] is the attention of `position`. `error` is the largest difference between the sum
    over a head's keys and the head's direct attribution.
    """

    position: int
    target: Target
    values: np.ndarray
    weights: np.ndarray
    error: float

    AXES = dict.fromkeys(("values", "weights"), ("layer", "head", "key_pos"))
    FIGURE = "probes.patching.figures.logit_paths"
    UNITS = "weight from 0 to 1; contribution in logits"

    def frame(self) -> pd.DataFrame:
        """One row per head and key, strongest first: layer, head, key_pos, weight, contribution."""
        axes = {name: range(size) for name, size in zip(("layer", "head", "key_pos"), self.values.shape, strict=True)}
        table = tidy(axes, {"weight": self.weights, "contribution": self.values})
        return table.sort_values("contribution", key=np.abs, ascending=False, kind="stable", ignore_index=True)


def logit_paths(model: Transformer, cap: Capture, target: Target, *, position: int = -1, row: int = 0) -> LogitPaths:
    """`source_attribution` of all heads, ranked together: A_ij (v_j W_O * gain / r_final) . W_U[target].

    Shapes: -> [layer, head, key_pos]
    Units:  logits, computed in float32.
    Raises: MissingHookError or HookError as `component_attribution.source_attribution`, for a capture of
            `component_attribution.SOURCE_HOOKS`.
    Source: arXiv 2211.00593, 2004.10102.
    Exact:  a head's keys sum to its direct attribution; `error` is the largest deviation.
    """
    config = model.config
    heads = [(layer, head) for layer in range(config.n_layers) for head in range(config.n_heads)]
    attributions = [source_attribution(model, cap, [target], head, position=position, row=row) for head in heads]
    shape = (config.n_layers, config.n_heads, -1)
    values = np.stack([attribution.values[0] for attribution in attributions]).reshape(shape)
    weights = np.stack([attribution.weights for attribution in attributions]).reshape(shape)
    error = max(attribution.error for attribution in attributions)
    return LogitPaths(attributions[0].position, target, frozen(values), frozen(weights), error)


# --- composition scores ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Composition(Result):
    """Composition scores of two heads, a writer and a reader: `q`, `k`, `v` [layer, head, to_layer, to_head].

    NaN if the reader's layer is not later than the writer's, or a head's matrices are 0. `chance` is the root mean
    square of a score if the writer's output is rotated at random.
    """

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    chance: float

    AXES = dict.fromkeys(("q", "k", "v"), ("layer", "head", "to_layer", "to_head"))
    FIGURE = "probes.patching.figures.composition"
    UNITS = "0 (nothing that is written is read) to 1"

    def frame(self) -> pd.DataFrame:
        """One row per writer and later reader: layer, head, to_layer, to_head, q, k, v."""
        below, _, above, _ = np.indices(self.q.shape)
        places = np.argwhere(below < above)
        table = pd.DataFrame(places, columns=["layer", "head", "to_layer", "to_head"])
        for name in ("q", "k", "v"):
            table[name] = getattr(self, name)[tuple(places.T)]
        return table


@torch.no_grad()
def composition(model: Transformer) -> Composition:
    """Q-, K- and V-composition of each two heads: norm of their matrices' product over the product of their norms.

    For a writer's W_OV = W_O W_V and a reader's W_QK = W_Q^T W_K: ||W_QK^T W_OV|| (q) and ||W_QK W_OV|| (k) over
    ||W_QK|| ||W_OV||, and ||W_OV' W_OV|| over ||W_OV'|| ||W_OV|| (v); norms are Frobenius. The gain of an RMSNorm
    belongs to the matrices that read after it. Rotation is left out: scores are those at distance 0. A reader that
    reads all r written directions equally scores r^-1/2: compare with `chance`, not with 1.
    Shapes: -> [layer, head, to_layer, to_head]
    Units:  none: 0 (nothing that is written is read) to 1.
    Raises: HookError for a model that is split over processes.
    Source: Elhage et al. 2021.
    """
    weights.whole(model)
    heads = [_head_matrices(model, layer) for layer in range(model.config.n_layers)]
    n_layers, n_heads = model.config.n_layers, model.config.n_heads
    scores = torch.full((3, n_layers, n_heads, n_layers, n_heads), float("nan"))
    for reader_layer, (q, k, v, o) in enumerate(heads):
        # Each kind: the matrix that reads the stream, and the Gram matrix of the one that follows it.
        kinds = ((q, _gram(k)), (k, _gram(q)), (v, _gram(o)))
        for writer_layer, (_, _, write_v, write_o) in enumerate(heads[:reader_layer]):
            written = _gram(write_v)  # [head, head_dim, head_dim]
            size = (_gram(write_o) * written).sum((-1, -2))  # [head]: ||W_OV||^2
            for kind, (reader, behind_gram) in enumerate(kinds):
                scale = (_gram(reader) * behind_gram).sum((-1, -2))  # [to_head]
                for head in range(n_heads):
                    middle = reader @ write_o[head].mT  # [to_head, head_dim, head_dim]
                    squared = ((behind_gram @ middle @ written[head]) * middle).sum((-1, -2))
                    share = (squared.clamp(min=0) / (scale * size[head])).sqrt()
                    scores[kind, writer_layer, head, reader_layer] = share.float().cpu()
    return Composition(*(frozen(values) for values in scores), model.config.dim**-0.5)


def _head_matrices(model: Transformer, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer's W_Q, W_K, W_V with the norm's gain, and W_O transposed, by query head.

    Shapes: -> float64 [head, head_dim, dim], four of them
    """
    block, config = model.layers[layer], model.config
    gain = block.attention_norm.weight.double()
    attention = block.attention
    q, k, v = (
        (weight.weight.double() * gain).unflatten(0, (-1, config.head_dim))
        for weight in (attention.wq, attention.wk, attention.wv)
    )
    o = attention.wo.weight.double().T.unflatten(0, (-1, config.head_dim))
    return q, k.repeat_interleave(config.group_size, 0), v.repeat_interleave(config.group_size, 0), o


def _gram(x: Tensor) -> Tensor:
    """Shapes: [head, head_dim, dim] -> [head, head_dim, head_dim]"""
    return x @ x.mT
