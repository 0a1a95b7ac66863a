"""Attribution patching: all activation patches of a sweep estimated from one gradient, and the estimate's error."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from probes.base.result import Result, frozen, tidy
from probes.patching.activation_patching import SITES, Direction, Patching, What, _checked_layers, _PatchRuns, _result
from probes.patching.prompt_pairs import Pair
from workbench.errors import HookError
from workbench.hooks import hook_points
from workbench.hooks.hook_points import Subscription
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
    Raises: HookError as `patching`.
    Source: Nanda 2023, arXiv 2310.10348.
    Exact:  for a target that is linear in the activation, such as a logit in what enters the unembedding.
    """
    chosen, run = _checked_layers(model, layers), _PatchRuns.of(model, pair, what, direction)
    names = [f"blocks.{layer}.{SITES[what]}" for layer in chosen]
    # A leaf at the embedding makes all later activations part of the graph, even if no weight requires gradients.
    leaf = Subscription(frozenset(["hook_embed"]), edit=lambda _, x: x.detach().requires_grad_())
    with torch.enable_grad(), hook_points.subscribe(model, leaf):
        logits, cap = model.run_with_capture(run.tokens, names)
        value = pair.target(logits, run.tokens)
        grads = torch.autograd.grad(value.sum(), [cap[name] for name in names])
    patched = []
    for name, grad in zip(names, grads, strict=True):
        with torch.no_grad():
            rise = ((run.source[name] - cap[name]).float() * grad.float()).sum(-1)  # [prompt, pos] or [.., head]
        if what == "heads":
            rise = rise.sum(1)  # [prompt, head]
        elif what == "heads_by_position":
            rise = rise.transpose(1, 2).flatten(1)  # [prompt, head * pos]
        patched.append(run.own_target + rise.T.double().cpu())
    n_prompts, n_layers = len(pair.clean), model.config.n_layers
    # A backward pass counts as two forward passes. `naive` counts a run for each patch.
    naive = (2 + len(chosen) * len(run.places)) * n_prompts * n_layers
    return _result(run, chosen, torch.stack(patched), ("gradient", 5 * n_prompts * n_layers, naive))


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
