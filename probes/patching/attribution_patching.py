"""Attribution patching: every activation patch of a sweep estimated from one gradient, and how wrong that is."""

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
    """Every patch of one kind estimated from one gradient: (other - own) . d target / d activation.

    Two forwards and one backward, however many patches. Good where the target is nearly linear in the activation, so
    worst for the whole stream in early layers: `gradient_error` measures it against `patching`.
    Shapes: -> [layer, head, pos, prompt]
    Units:  the target's own.
    Raises: HookError as `patching`.
    Source: Nanda 2023, arXiv 2310.10348.
    Exact:  for a target that is linear in the activation, such as a logit in what enters the unembedding.
    """
    chosen, run = _checked_layers(model, layers), _PatchRuns.of(model, pair, what, direction)
    names = [f"blocks.{layer}.{SITES[what]}" for layer in chosen]
    # A leaf at the embedding makes everything above it part of the graph, whether or not weights want gradients.
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
    # A backward counts as two forwards. Naive is what running every patch would take.
    naive = (2 + len(chosen) * len(run.places)) * n_prompts * n_layers
    return _result(run, chosen, torch.stack(patched), ("gradient", 5 * n_prompts * n_layers, naive))


@dataclass(frozen=True)
class GradientError(Result):
    """Estimated against run patches: `exact` and `estimate` of `restored`, [layer, head, pos].

    `largest` and `mean` are of the absolute error; `correlation` is Pearson's over all patches.
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
    """How far attribution patching is from the patches that were run.

    Shapes: both [layer, head, pos, prompt] -> [layer, head, pos]
    Units:  shares of the clean run's difference, as `Patching.restored`.
    Raises: HookError if the two are not of the same patches, or of one way of finding them.
    Source: arXiv 2310.10348.
    """
    for name in ("what", "direction", "layers", "heads", "positions"):
        if getattr(exact, name) != getattr(estimate, name):
            raise HookError(f"the two sweeps differ in {name}: {getattr(exact, name)} and {getattr(estimate, name)}.")
    if (exact.how, estimate.how) != ("exact", "gradient"):
        raise HookError(f"give `patching`, then `attribution_patching`; found {exact.how} and {estimate.how}.")
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
