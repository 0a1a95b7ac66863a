"""Attribution patching: all activation patches of a sweep estimated from one gradient, and the estimate's error."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.base import gradients
from probes.base.result import Result, frozen, tidy
from probes.patching.activation_patching import SITES, Direction, Patching, What, _checked_layers, _PatchRuns, _result
from probes.patching.prompt_pairs import Pair
from workbench.errors import HookError
from workbench.hooks import hook_points
from workbench.hooks.hook_points import PATTERN, Subscription
from workbench.model import Transformer


def attribution_patching(
    model: Transformer,
    pair: Pair,
    what: What = "resid_pre",
    *,
    direction: Direction = "denoise",
    layers: Sequence[int] | None = None,
) -> Patching:
    """All patches of one kind estimated from one gradient: (other - own) . d target / d activation.

    Two forward passes and one backward pass for any number of patches. Accurate if the target is nearly linear in the
    activation, so worst for the whole stream in early layers. `gradient_error` compares it with `patching`.
    Shapes: -> [layer, head, pos, prompt]
    Units:  the target's own.
    Works under `no_grad` and `inference_mode` too.
    Raises: HookError as `patching`, or for a target without a gradient, such as a rank.
    Source: Nanda 2023, arXiv 2310.10348.
    Exact:  for a target that is linear in the activation, such as a logit in what enters the unembedding.
    """
    chosen, run = _checked_layers(model, layers), _PatchRuns.of(model, pair, what, direction)
    names = [f"blocks.{layer}.{SITES[what]}" for layer in chosen]
    own, grads = _gradients(run, names)
    patched = []
    for name, grad in grads.items():
        with torch.no_grad():
            rise = ((run.source[name] - own[name]).float() * grad.float()).sum(-1)  # [prompt, pos] or [.., head]
            if rise.dim() == 3:
                rise = rise if name.endswith(PATTERN) else rise.transpose(1, 2)  # [prompt, head, pos]
                rise = rise.sum(2) if run.positions == (-1,) else rise.flatten(1)  # [prompt, head (* pos)]
        patched.append(run.own_target + rise.T.double().cpu())
    n_prompts, n_layers = len(pair.clean), model.config.n_layers
    # A backward pass counts as two forward passes. `naive` counts a run for each patch.
    naive = (2 + len(chosen) * len(run.places)) * n_prompts * n_layers
    return _result(run, chosen, torch.stack(patched), ("gradient", 5 * n_prompts * n_layers, naive))


def _gradients(run: _PatchRuns, names: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The activations of the run to patch, and d target / d activation. Shapes: by hook name, each as the hook's"""
    own: dict[str, Tensor] = {}
    # A leaf at the embedding makes all later activations part of the graph, even if no weight requires gradients.
    leaf = Subscription(frozenset(["hook_embed"]), edit=lambda _, x: x.detach().requires_grad_())
    # An edit gets the tensor that the run goes on with; an observer of a pattern would get one beside it.
    watch = Subscription(frozenset(names), edit=lambda site, x: own.setdefault(site.name, x))
    with gradients.enabled(run.model), hook_points.subscribe(run.model, leaf, watch):
        tokens = run.tokens.clone()  # those of the caller may be inference tensors
        value = run.target(run.model(tokens), tokens)
        if not value.requires_grad:
            raise HookError("the target has no gradient: it must be computed from the logits by differentiable steps.")
        found = torch.autograd.grad(value.sum(), [own[name] for name in names], allow_unused=True)
    grads = {name: grad for name, grad in zip(names, found, strict=True)}
    return own, {name: torch.zeros_like(own[name]) if grad is None else grad for name, grad in grads.items()}


@dataclass(frozen=True)
class GradientError(Result):
    """Estimated and exact patches: `exact` and `estimate` of `restored`, [layer, head, pos].

    `largest` and `mean` describe the absolute error; `correlation` is Pearson's over all patches.
    """

    what: What
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    positions: tuple[int, ...]
    exact: np.ndarray
    estimate: np.ndarray
    largest: float
    mean: float
    correlation: float

    AXES = {"exact": ("layer", "head", "pos"), "estimate": ("layer", "head", "pos")}
    FIGURE = "probes.patching.figures.gradient_error"
    UNITS = "shares of the clean run's difference"

    def frame(self) -> pd.DataFrame:
        """One row per patch: layer, head, pos, exact, estimate, error."""
        columns = {"exact": self.exact, "estimate": self.estimate, "error": self.estimate - self.exact}
        return tidy({"layer": self.layers, "head": self.heads, "pos": self.positions}, columns)


def gradient_error(exact: Patching, estimate: Patching) -> GradientError:
    """Error of attribution patching, compared with exact patches.

    Shapes: both [layer, head, pos, prompt] -> [layer, head, pos]
    Units:  shares of the clean run's difference, as `Patching.restored`.
    Raises: HookError if the two do not have the same patches, or are not one exact and one estimated.
    Source: arXiv 2310.10348.
    """
    for name in ("what", "direction", "layers", "heads", "positions"):
        if getattr(exact, name) != getattr(estimate, name):
            raise HookError(f"the two sweeps differ in {name}: {getattr(exact, name)} and {getattr(estimate, name)}.")
    if (exact.how, estimate.how) != ("exact", "gradient"):
        raise HookError(
            "pass a result of `patching` and then one of `attribution_patching`; "
            f"found {exact.how!r} and {estimate.how!r}."
        )
    exact_shares, estimated_shares = exact.restored, estimate.restored
    error = np.abs(estimated_shares - exact_shares)
    spread = exact_shares.std() * estimated_shares.std()
    correlation = (
        float(((exact_shares - exact_shares.mean()) * (estimated_shares - estimated_shares.mean())).mean() / spread)
        if spread > 0
        else np.nan
    )
    places = (exact.what, exact.layers, exact.heads, exact.positions)
    return GradientError(
        *places, frozen(exact_shares), frozen(estimated_shares), float(error.max()), float(error.mean()), correlation
    )
