"""Head ablation: the change of a loss, or of any other number, when heads are removed.

A pattern shows where a head looks; only ablation shows whether the model relies on it. Removing any head changes a
model, so the effect of the chosen heads is compared with that of as many other heads, drawn at random.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import workbench as wb
from probes.attention.head_metrics import repeated_blocks
from probes.attention.head_types import RULES, catalogue, repeat_scores
from probes.base import arguments
from probes.base.bootstrap import LEVEL, RESAMPLES, draws, percentiles
from probes.base.head_names import Head, label
from probes.base.result import Result, frozen
from workbench.errors import HookError
from workbench.hooks.intervention import Intervention
from workbench.model import Transformer

Target = Callable[[Tensor, Tensor], Tensor]
"""logits [prompt, pos, vocab] and tokens [prompt, pos] to one number per prompt, [prompt]."""

Replacement = Literal["zero", "mean"]


def copy_loss(block: int) -> Target:
    """The loss on the second copy of repeated blocks, without its first token, which cannot be predicted.

    Shapes: the target's logits [prompt, pos, vocab], tokens [prompt, pos] -> [prompt]
    Units:  nats per token.
    Source: arXiv 2209.11895.
    """

    def target(logits: Tensor, tokens: Tensor) -> Tensor:
        log_probs = logits[:, -block:-1].log_softmax(-1)
        return -log_probs.gather(-1, tokens[:, -block + 1 :, None]).squeeze(-1).mean(-1)

    return target


@dataclass(frozen=True)
class AblationEffect(Result):
    """A target with all heads, `base` [prompt], and without each set of heads, `without` [set, prompt]."""

    AXES = {"base": ("prompt",), "without": ("set", "prompt"), "effect": ("set", "prompt")}
    FIGURE = "probes.patching.ablation_figures.ablation_effect"
    UNITS = "units of the target, mean over prompts"

    sets: tuple[tuple[Head, ...], ...]
    base: np.ndarray
    without: np.ndarray
    replacement: Replacement

    @property
    def effect(self) -> np.ndarray:
        """How much the target rises without the heads. Shapes: -> [set, prompt]"""
        return self.without - self.base

    def frame(self) -> pd.DataFrame:
        """One row per set: heads, n_heads, base, without, effect, and the effect's 95% interval, low to high."""
        n = len(self.base)
        weights = draws(n, RESAMPLES, 0) / n
        low, high = percentiles(weights @ self.effect.T, LEVEL) if n > 1 else (np.nan, np.nan)
        columns = {
            "heads": [label(heads) for heads in self.sets],
            "n_heads": [len(heads) for heads in self.sets],
            "base": self.base.mean(),
            "without": self.without.mean(1),
            "effect": self.effect.mean(1),
        }
        return pd.DataFrame({**columns, "low": low, "high": high})


@torch.no_grad()
def ablation_effect(
    model: Transformer,
    tokens: Tensor,
    sets: Sequence[Sequence[Head]],
    *,
    target: Target,
    replacement: Replacement = "zero",
) -> AblationEffect:
    """Effect on a target of removing each set of heads from the running model, one run per set.

    A head's output z is set to zero, or to its mean over these prompts and positions, which is nearer to what later
    layers expect.
    Shapes: tokens [prompt, pos] -> effect [set, prompt]
    Units:  the target's own.
    Raises: UnknownHookError or InterventionError for a head that the model does not have; HookError for an empty
            set, or a target that does not give one number per prompt.
    Source: arXiv 2211.00593 (mean ablation), 2209.11895 (zero ablation).
    Exact:  the model is unchanged afterwards.
    """
    arguments.token_batch(tokens)
    if not sets or not all(sets):
        raise HookError("there are no heads to ablate; give sets of (layer, head) pairs, none of them empty.")
    means: dict[int, Tensor] = {}
    if replacement == "mean":
        layers = sorted({layer for heads in sets for layer, _ in heads})
        _, cap = model.run_with_capture(tokens, [f"blocks.{layer}.attn.hook_z" for layer in layers], logits=None)
        means = {layer: cap[f"blocks.{layer}.attn.hook_z"].float().mean((0, 1), keepdim=True) for layer in layers}
    base = _target_values(model, tokens, target)
    without = []
    for heads in sets:
        with model.intervene(*_head_ablations(heads, means)):
            without.append(_target_values(model, tokens, target))
    head_sets = tuple(tuple(heads) for heads in sets)
    return AblationEffect(head_sets, frozen(base), frozen(torch.stack(without)), replacement)


def _head_ablations(heads: Sequence[Head], means: dict[int, Tensor]) -> list[Intervention]:
    interventions: list[Intervention] = []
    for layer in sorted({layer for layer, _ in heads}):
        layer_heads = sorted({head for head_layer, head in heads if head_layer == layer})
        hook = f"blocks.{layer}.attn.hook_z"
        interventions.append(
            wb.Patch(hook, means[layer][:, :, layer_heads], heads=layer_heads)
            if means
            else wb.Ablate(hook, heads=layer_heads)
        )
    return interventions


def _target_values(model: Transformer, tokens: Tensor, target: Target) -> Tensor:
    values = target(model(tokens), tokens)
    if values.shape != tokens.shape[:1]:
        raise HookError(
            f"a target must return one number per prompt, shape ({len(tokens)},); found {tuple(values.shape)}."
        )
    return values.double().cpu()


# --- induction heads against random heads ---------------------------------------------------------------------


@dataclass(frozen=True)
class InductionAblation(Result):
    """The loss on the second copy without the chosen heads, and without as many random other heads.

    `effect` is [prompt], `random` [draw, prompt], both in nats per token above `base` [prompt]. `ratio` is the mean
    effect divided by the mean random effect; `low` to `high` is its 95% bootstrap interval over prompts and draws. It
    is infinite if random heads have no effect on average, NaN if the chosen heads do not have one either.
    """

    AXES = {"base": ("prompt",), "effect": ("prompt",), "random": ("draw", "prompt")}
    FIGURE = "probes.patching.ablation_figures.induction_ablation"
    UNITS = "loss and effect in nats per token; ratio to the mean random effect"

    heads: tuple[Head, ...]
    others: tuple[tuple[Head, ...], ...]
    base: np.ndarray
    effect: np.ndarray
    random: np.ndarray
    ratio: float
    low: float
    high: float
    block: int

    def frame(self) -> pd.DataFrame:
        """The chosen heads, then each random draw: kind, heads, base, effect; ratio, low, high (chosen only)."""
        rows = [("chosen", label(self.heads), self.effect.mean(), self.ratio, self.low, self.high)]
        for heads, effect in zip(self.others, self.random, strict=True):
            rows.append(("random", label(heads), effect.mean(), np.nan, np.nan, np.nan))
        table = pd.DataFrame(rows, columns=["kind", "heads", "effect", "ratio", "low", "high"])
        table.insert(2, "base", self.base.mean())
        return table


def induction_ablation(
    model: Transformer,
    heads: Sequence[Head] | None = None,
    *,
    block: int = 32,
    batch: int = 16,
    n_draws: int = 20,
    seed: int = 0,
    replacement: Replacement = "zero",
    apart_from: Sequence[Head] = (),
) -> InductionAblation:
    """Loss on the second copy of random blocks without the induction heads, compared with random other heads.

    With heads=None the heads are those of the catalogue's induction rule, measured on other random blocks than the
    loss. The others are drawn without replacement from all heads that are neither chosen nor in `apart_from`. A draw
    with the previous-token head, the circuit's other half, costs as much as the chosen heads, so a few such draws can
    dominate the mean.
    Shapes: -> effect [prompt], random [draw, prompt]
    Units:  nats per token of the second copy.
    Raises: HookError if no head satisfies the rule (the message names the strongest), if there are not enough other
            heads, or if two blocks do not fit the model's context; InterventionError for a head that the model does
            not have.
    Source: arXiv 2209.11895.
    """
    if block < 2 or n_draws < 1:
        raise HookError(f"block must be at least 2 and n_draws at least 1; found block={block}, n_draws={n_draws}.")
    chosen = _induction_heads(model, block, batch, seed) if heads is None else sorted(set(heads))
    config = model.config
    all_heads = [(layer, head) for layer in range(config.n_layers) for head in range(config.n_heads)]
    candidates = [head for head in all_heads if head not in {*chosen, *apart_from}]
    if len(candidates) < len(chosen):
        raise HookError(
            f"{len(chosen)} heads were chosen, but only {len(candidates)} others are left to draw from; choose fewer."
        )
    rng = np.random.default_rng(seed)
    others = [
        tuple(sorted(candidates[i] for i in rng.choice(len(candidates), len(chosen), replace=False)))
        for _ in range(n_draws)
    ]
    tokens = repeated_blocks(model, block=block, batch=batch, seed=seed + 1)
    ablated = ablation_effect(model, tokens, [chosen, *others], target=copy_loss(block), replacement=replacement)
    effect, random = ablated.effect[0], ablated.effect[1:]
    ratio, low, high = _ratio(effect, random, seed)
    return InductionAblation(
        tuple(chosen), tuple(others), ablated.base, frozen(effect), frozen(random), ratio, low, high, block
    )


def _induction_heads(model: Transformer, block: int, batch: int, seed: int) -> list[Head]:
    blocks = sorted({max(2, block * part // 8) for part in (4, 5, 6, 8)})
    scores = repeat_scores(model, blocks=blocks, batch=max(1, batch // 4), seed=seed)
    heads = catalogue(scores, rules={"induction": RULES["induction"]}).of("induction")
    if not heads:
        mean = scores.mean("induction")
        strongest = tuple(int(i) for i in np.unravel_index(mean.argmax(), mean.shape))
        raise HookError(
            f"no head's induction score reaches {RULES['induction'].threshold}; the strongest is {label([strongest])} "
            f"with {mean.max():.3f}. Pass the heads to ablate."
        )
    return heads


def _ratio(effect: np.ndarray, random: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Ratio of means, and its interval over prompts and draws. Shapes: effect [prompt], random [draw, prompt]"""

    def quotient(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        undefined = np.where(numerator > 0, np.inf, np.nan)
        return np.divide(numerator, denominator, out=undefined, where=denominator > 0)

    n_draws, n_prompts = random.shape
    prompts = draws(n_prompts, RESAMPLES, seed) / n_prompts
    sets = draws(n_draws, RESAMPLES, seed + 1) / n_draws
    ratios = quotient(prompts @ effect, np.einsum("rd,dp,rp->r", sets, random, prompts))
    # An infinite end cannot be interpolated, so each end is one of the resamples.
    defined = ratios[~np.isnan(ratios)]
    ends = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest") if len(defined) else [np.nan] * 2
    middle = quotient(np.array([effect.mean()]), np.array([random.mean()]))[0]
    return float(middle), float(ends[0]), float(ends[1])
