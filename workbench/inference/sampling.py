"""Sampling of the next token: greedy, or from the distribution left by temperature, top_k and top_p.

The token is a function of a sequence's logits and one uniform number, so it is the same on any device, in any batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.errors import GenerationError

NEAR = 256  # most likely tokens to try first: sorting the whole vocabulary is far slower and rarely needed


@dataclass(frozen=True)
class Sampling:
    """Sampling settings. Temperature 0 is greedy; top_k 0 and top_p 1 do not truncate the distribution."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise GenerationError(
                f"sampling needs temperature >= 0, 0 < top_p <= 1 and top_k >= 0, found {self.temperature}, "
                f"{self.top_p} and {self.top_k}."
            )

    def choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """One token per sequence: the first, from the most likely down, whose cumulative probability exceeds `uniform`.

        Shapes: logits [batch, vocab] float32, uniform [batch] in [0, 1) -> [batch] int64
        """
        if self.temperature == 0:
            return logits.argmax(-1)
        probs = (logits / self.temperature).softmax(-1)
        chosen, certain = self._choose_among_likely(probs, uniform, min(probs.shape[1], NEAR + self.top_k))
        undecided = (~certain).nonzero().squeeze(-1)
        if len(undecided):
            chosen[undecided] = self._choose_among_likely(probs[undecided], uniform[undecided], probs.shape[1])[0]
        return chosen

    def _choose_among_likely(self, probs: Tensor, uniform: Tensor, near: int) -> tuple[Tensor, Tensor]:
        """The choice among the `near` most likely tokens (ties by token id), and whether it is the choice among all.

        Shapes: probs [batch, vocab], uniform [batch] -> [batch] int64, [batch] bool
        """
        whole = near == probs.shape[1]
        if whole:
            values, order = probs.sort(dim=-1, descending=True, stable=True)
        else:
            order = probs.topk(near).indices.sort(-1).values
            values, by = probs.gather(-1, order).sort(dim=-1, descending=True, stable=True)
            order = order.gather(-1, by)
        probabilities = values[:, : self.top_k] if self.top_k else values
        # top_p keeps a token while the mass before it is below top_p: always at least one.
        probabilities = probabilities.masked_fill(probabilities.cumsum(-1) - probabilities >= self.top_p, 0.0)
        cumulative = probabilities.cumsum(-1)
        total = cumulative[:, -1] if self.top_k or self.top_p < 1 else probs.sum(-1)
        target = uniform * total
        index = (cumulative <= target.unsqueeze(-1)).sum(-1)
        index = index.minimum((probabilities > 0).sum(-1) - 1)
        chosen = order.gather(-1, index.unsqueeze(-1)).squeeze(-1)
        if whole:
            return chosen, torch.ones_like(chosen, dtype=torch.bool)
        if self.top_k:
            ended = values[:, self.top_k - 1] > values[:, -1]
        elif self.top_p < 1:
            ended = probabilities[:, -1] == 0
        else:
            ended = cumulative[:, -1] > target
        # If the chosen token is as likely as the last one, some tokens of the same probability were left out.
        return chosen, ended & (values.gather(-1, index.unsqueeze(-1)).squeeze(-1) > values[:, -1])
