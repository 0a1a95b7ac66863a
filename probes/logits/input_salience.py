"""Input salience: how much each input token contributes to some logits, from gradients at the embeddings.

Two methods. Gradient x input takes one gradient: the first-order change if a token's embedding were removed. Integrated
gradients take the mean gradient on the straight line from a baseline to the prompt; their sum is the whole change of
the logit, up to an error that the result states.

The usual baseline of zeros does not suit Llama: RMSNorm divides by the length, so that near an embedding of length 0
every layer multiplies the slope by hundreds, and no number of steps suffices. The default is the mean embedding.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.base import arguments, gradients, weights
from probes.base.result import Result, frozen
from probes.logits.logit_attribution import Target, flat_ids, target_table
from probes.logits.logit_lens import check_token_ids, token_text
from workbench.errors import HookError, WorkbenchWarning
from workbench.hooks import hook_points
from workbench.hooks.hook_points import Site, Subscription
from workbench.model import Transformer

Baseline = int | Tensor | Literal["zero", "mean"]
"""Embeddings to start from: the mean of the embedding table, one token's, [dim] or [pos, dim], or zeros."""

MAX_TOKENS = 2048
"""Tokens in one forward and backward pass; at least one copy of the prompt."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(6)  # exact for polynomials of degree 11 on each interval
_FIRST = (0.0, 0.1, 0.4, 1.0)  # ends of the first intervals

_Part = tuple[float, float, np.ndarray]  # an interval, and its part of the integral [token, pos]


@dataclass(frozen=True)
class InputSalience(Result):
    """Contribution of each input token to the logits of some tokens at one position. `values` is [token, pos].

    `logits` and `baseline_logits` [token] are the model's own at the prompt and at the baseline. `error` is the largest
    difference between the sum over positions and the change from one to the other: the method's whole error for
    gradient x input, the error of the integral for integrated gradients. `converged` says whether it is within the
    `tolerance` that was asked for, a share of the change; gradient x input asks for none. `n_gradients` counts the
    points at which a gradient was taken. `prompt` [pos] are the tokens up to `position`; later ones have no influence.
    """

    method: Literal["gradient_x_input", "integrated_gradients"]
    position: int
    tokens: tuple[Target, ...]
    prompt: tuple[int, ...]
    values: np.ndarray
    logits: np.ndarray
    baseline_logits: np.ndarray
    tolerance: float | None
    n_gradients: int
    text: dict[int, str] = field(default_factory=dict)

    AXES = {"values": ("token", "pos"), "logits": ("token",), "baseline_logits": ("token",), "errors": ("token",)}
    FIGURE = "probes.logits.figures.input_salience"
    UNITS = "logits"

    @property
    def errors(self) -> np.ndarray:
        """The sum over positions minus the change of the logit from the baseline. Shapes: -> [token]"""
        return frozen(self.values.sum(-1) - (self.logits - self.baseline_logits))

    @property
    def error(self) -> float:
        """The largest of `errors`."""
        return float(np.abs(self.errors).max())

    @property
    def converged(self) -> bool:
        """Whether every error is within `tolerance` of the change of its logit; True if no tolerance was asked for."""
        if self.tolerance is None:
            return True
        return bool((np.abs(self.errors) <= self.tolerance * np.abs(self.logits - self.baseline_logits)).all())

    def frame(self) -> pd.DataFrame:
        """One row per token and position: token, minus, pos, input (its id), salience, error (of the sum), text."""
        errors = np.broadcast_to(self.errors[:, None], self.values.shape)
        columns = {"salience": self.values, "error": errors}
        table = target_table(self.tokens, {"pos": range(len(self.prompt))}, columns)
        table.insert(3, "input", np.array(self.prompt)[table["pos"]])
        return table.assign(text=table["input"].map(lambda token: self.text.get(token, "")))


def gradient_x_input(
    model: Transformer, ids: Sequence[int] | Tensor, tokens: Sequence[Target], *, position: int = -1
) -> InputSalience:
    """Gradient of a logit with respect to each token's embedding, times the embedding.

    A pair of tokens gives the difference of their logits. Interventions act as in any run, and `no_grad` or
    `inference_mode` of the caller does not matter.
    Shapes: ids [pos], tokens [token] -> [token, pos up to `position`]; position is absolute, or negative from the last
    Units:  logits.
    Raises: HookError for an unknown token or position, an empty prompt, or a model that is split over processes.
    Source: Shrikumar et al. 2016, arXiv 1605.01713.
    Exact:  for a logit that is linear in the embeddings; `error` is the distance from that, with zeros as the baseline.
    """
    run = _Run.of(model, ids, tokens, position=position, baseline="zero")
    outputs = run.outputs([0.0, 1.0])
    return run.result("gradient_x_input", run.slopes([1.0])[0], outputs, tolerance=None, n_gradients=1)


def integrated_gradients(
    model: Transformer,
    ids: Sequence[int] | Tensor,
    tokens: Sequence[Target],
    *,
    position: int = -1,
    baseline: Baseline = "mean",
    tolerance: float = 0.01,
    max_gradients: int = 1200,
) -> InputSalience:
    """Integral of the gradient from a baseline to the prompt's embeddings, times their difference.

    The line is divided where the sum misses the change of the logit most, until the errors of all parts together are
    within `tolerance` of the change, or `max_gradients` points are used; then `converged` is False, with a
    WorkbenchWarning. In half precision the logits are too coarse for a small tolerance: use `model.float()`.
    Shapes: ids [pos], tokens [token] -> [token, pos up to `position`]; position is absolute, or negative from the last
    Units:  logits.
    Raises: HookError for an unknown token or position, an empty prompt, a baseline that does not fit, or a model that
            is split over processes.
    Source: arXiv 1703.01365.
    Exact:  completeness: the values sum to the logit at the prompt minus the one at the baseline, up to `error`.
    """
    if not tolerance > 0 or max_gradients < len(_NODES) * (len(_FIRST) - 1):
        least = len(_NODES) * (len(_FIRST) - 1)
        raise HookError(
            f"integrated gradients need a tolerance above 0 and at least {least} gradients; "
            f"found {tolerance} and {max_gradients}."
        )
    run = _Run.of(model, ids, tokens, position=position, baseline=baseline)
    ends = list(_FIRST)
    outputs = dict(zip(ends, run.outputs(ends), strict=True))
    parts = {(a, b): part for a, b, part in run.integrals(list(pairwise(ends)))}
    n_gradients = len(_NODES) * len(parts)
    change = np.abs(outputs[1.0] - outputs[0.0])  # [token]
    while True:
        errors = {(a, b): np.abs(part.sum(-1) - (outputs[b] - outputs[a])) for (a, b), part in parts.items()}
        total = np.sum(list(errors.values()), 0)
        if not np.isfinite(total).all() or (total <= tolerance * change).all():
            break
        share = {part: float((error / np.maximum(total, 1e-30)).max()) for part, error in errors.items()}
        room = (max_gradients - n_gradients) // (2 * len(_NODES))
        worst = sorted((part for part in share if share[part] > 0.5 / len(parts)), key=lambda part: -share[part])[:room]
        worst = [(a, b) for a, b in worst if a < (a + b) / 2 < b]
        if not worst:
            break
        halves = [half for a, b in worst for half in ((a, (a + b) / 2), ((a + b) / 2, b))]
        middles = [(a + b) / 2 for a, b in worst]
        outputs |= dict(zip(middles, run.outputs(middles), strict=True))
        for part in worst:
            del parts[part]
        parts |= {(a, b): part for a, b, part in run.integrals(halves)}
        n_gradients += len(_NODES) * len(halves)
    ends_of_line = np.stack([outputs[0.0], outputs[1.0]])
    values = np.sum(list(parts.values()), 0)
    result = run.result("integrated_gradients", values, ends_of_line, tolerance=tolerance, n_gradients=n_gradients)
    if not result.converged:
        warnings.warn(
            f"integrated gradients: after {n_gradients} gradients the sum is off by {result.error:.3g} logits, "
            f"more than {tolerance:g} of the change. "
            "Choose another baseline than zeros, float32, or more max_gradients=.",
            WorkbenchWarning,
            stacklevel=2,
        )
    return result


# --- runs on the line from the baseline to the prompt -------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """A prompt, the logits that are asked for, and the embeddings to start from. Shapes: tokens [1, pos]"""

    model: Transformer
    tokens: Tensor
    targets: tuple[Target, ...]
    baseline: Tensor

    @classmethod
    def of(
        cls,
        model: Transformer,
        ids: Sequence[int] | Tensor,
        targets: Sequence[Target],
        *,
        position: int,
        baseline: Baseline,
    ) -> "_Run":
        weights.whole(model)
        if not targets:
            raise HookError("no token to attribute to; give token ids or pairs of token ids.")
        check_token_ids(model, flat_ids(targets))
        prompt = arguments.prompt_ids(ids)
        check_token_ids(model, prompt)
        if not -len(prompt) <= position < len(prompt):
            raise HookError(f"the prompt has positions 0 to {len(prompt) - 1}, not {position}.")
        end = position % len(prompt) + 1
        tokens = torch.tensor([prompt[:end]], device=model.device)
        return cls(model, tokens, tuple(targets), _embeddings(model, baseline, end))

    def outputs(self, at: Sequence[float]) -> np.ndarray:
        """The logits at points of the line, 0 for the baseline and 1 for the prompt. Shapes: -> [point, token]"""
        with torch.no_grad():
            return np.concatenate([self._run(part)[0].double().cpu().numpy() for part in self._batches(at)])

    def slopes(self, at: Sequence[float]) -> np.ndarray:
        """d logit / d embedding times (embedding - baseline). Shapes: -> [point, token, pos]"""
        parts = []
        for batch in self._batches(at):
            with gradients.enabled(self.model):
                logits, points, difference = self._run(batch)
                # An intervention may replace all that the embeddings lead to: then there is no graph, and no influence.
                anchor = 0.0 * points.sum()
                last = len(self.targets) - 1
                by_target = []
                for i in range(len(self.targets)):
                    grad = torch.autograd.grad(logits[:, i].sum() + anchor, points, retain_graph=i < last)[0]
                    by_target.append((grad.double() * difference).sum(-1))  # [point, pos]
            parts.append(torch.stack(by_target, 1).cpu().numpy())
        return np.concatenate(parts)

    def integrals(self, pairs: Sequence[tuple[float, float]]) -> list[_Part]:
        """Each interval's part of the integral, by Gauss-Legendre quadrature."""
        nodes = [(a + b) / 2 + (b - a) / 2 * node for a, b in pairs for node in _NODES]
        slopes = self.slopes(nodes).reshape(len(pairs), len(_NODES), len(self.targets), -1)
        sums = np.einsum("n,intp->itp", _WEIGHTS / 2, slopes)
        return [(a, b, (b - a) * part) for (a, b), part in zip(pairs, sums, strict=True)]

    def result(
        self,
        method: Literal["gradient_x_input", "integrated_gradients"],
        values: np.ndarray,
        outputs: np.ndarray,
        *,
        tolerance: float | None,
        n_gradients: int,
    ) -> InputSalience:
        """Shapes: values [token, pos], outputs [2, token]: at the baseline and at the prompt"""
        prompt = self.tokens[0].tolist()
        text = token_text(self.model, {*prompt, *flat_ids(self.targets)})
        return InputSalience(
            method, len(prompt) - 1, self.targets, tuple(prompt), frozen(values), frozen(outputs[1]),
            frozen(outputs[0]), tolerance, n_gradients, text,
        )  # fmt: skip

    def _batches(self, at: Sequence[float]) -> list[Sequence[float]]:
        rows = max(1, MAX_TOKENS // self.tokens.shape[1])
        return [at[i : i + rows] for i in range(0, len(at), rows)]

    def _run(self, at: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
        """The targets' logits at points of the line, the embeddings there, and those of the prompt minus the baseline.

        Shapes: -> [point, token], [point, pos, dim] twice
        """
        inputs: list[Tensor] = []

        def move(_: Site, x: Tensor) -> Tensor:
            wide, share = x.detach().double(), torch.tensor(at, dtype=torch.float64, device=x.device)[:, None, None]
            difference = wide - self.baseline.double()
            points = (wide - (1 - share) * difference).to(x.dtype)  # at 1 the prompt, to the last bit
            inputs.extend((points.requires_grad_(torch.is_grad_enabled()), difference))
            return inputs[0]

        with hook_points.subscribe(self.model, Subscription(frozenset(["hook_embed"]), edit=move)):
            normed = self.model.hidden(self.tokens.repeat(len(at), 1))
        logits = self.model.unembed(normed[:, -1:], start=normed.shape[1] - 1)[:, 0]
        chosen = [logits[:, t] if isinstance(t, int) else logits[:, t[0]] - logits[:, t[1]] for t in self.targets]
        return torch.stack(chosen, 1), inputs[0], inputs[1]


def _embeddings(model: Transformer, baseline: Baseline, end: int) -> Tensor:
    """Shapes: -> float32 or the baseline's own dtype, broadcasts to [1, pos, dim]"""
    table: Tensor = model.tok_embeddings.weight.detach()  # type: ignore[union-attr,operator]
    dim = model.config.dim
    named: dict[str, Callable[[], Tensor]] = {
        "zero": lambda: table.new_zeros(dim),
        "mean": lambda: table.double().mean(0),
    }
    if isinstance(baseline, str) and baseline in named:
        return named[baseline]()[None, None]
    if isinstance(baseline, int) and not isinstance(baseline, bool):
        check_token_ids(model, [baseline])
        return table[baseline][None, None]
    if isinstance(baseline, Tensor) and baseline.is_floating_point() and tuple(baseline.shape) in ((dim,), (end, dim)):
        return baseline.detach().to(model.device).reshape(1, -1, dim)
    found = tuple(baseline.shape) if isinstance(baseline, Tensor) else repr(baseline)
    raise HookError(
        f"a baseline is 'zero', 'mean', a token id, or embeddings of shape ({dim},) or ({end}, {dim}); found {found}."
    )
