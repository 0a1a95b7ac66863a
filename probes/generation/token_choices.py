"""Sampling trace: each generated token with its probability, its rank and the likely alternatives.

Every step has two distributions. The model's own distribution is the softmax of its logits, at temperature 1. The
sampling distribution is what repetition penalty, temperature, top-k, top-p and min-p leave of it; the token was drawn
from that.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.base.result import Result, frozen
from workbench.errors import DataError
from workbench.inference.generate import candidate_logits, draw
from workbench.inference.generation_state import FinishReason, GenerationState
from workbench.inference.not_finite import not_finite_error
from workbench.inference.sampling import Sampling
from workbench.model import Transformer


@dataclass(frozen=True)
class Choice:
    """One generated token. Log-probabilities and entropies are in nats; rank 1 is the most likely.

    `logprob`, `rank` and `entropy` are of the model's own distribution. `share` is the token's probability in the
    sampling distribution, `share_entropy` the entropy of that, and `kept` its number of possible tokens. `likeliest`
    are the model's top tokens: id, log-probability, share. `text` and `finish_reason` as in `generate.Piece`.
    """

    token: int
    logprob: float
    rank: int
    entropy: float
    share: float
    share_entropy: float
    kept: int
    likeliest: tuple[tuple[int, float, float], ...]
    text: str
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class SamplingTrace(Result):
    """A generated text, step by step. Arrays are [step]; those of the alternatives are [step, rank], most likely first.

    Step s, counted from 0, gave tokens[s]; the query that chose it is at position len(prompt) - 1 + s. `Choice`
    documents the arrays; `finish_reason` is None if generation was stopped early.
    """

    AXES = {
        **dict.fromkeys(("logprobs", "ranks", "entropy", "shares", "share_entropy", "kept"), ("step",)),
        **dict.fromkeys(("other_tokens", "other_logprobs", "other_shares"), ("step", "rank")),
    }
    FIGURE = "probes.generation.figures.surprise"
    UNITS = "log-probabilities and entropies in nats; shares are probabilities in the sampling distribution"

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None
    logprobs: np.ndarray
    ranks: np.ndarray
    entropy: np.ndarray
    shares: np.ndarray
    share_entropy: np.ndarray
    kept: np.ndarray
    other_tokens: np.ndarray
    other_logprobs: np.ndarray
    other_shares: np.ndarray

    def frame(self) -> pd.DataFrame:
        """One row per generated token: step (from 1), position, token, then both distributions' numbers."""
        steps = np.arange(len(self.tokens))
        return pd.DataFrame(
            {
                "step": steps + 1,
                "position": len(self.prompt) + steps,
                "token": self.tokens,
                "probability": np.exp(self.logprobs),
                "logprob": self.logprobs,
                "rank": self.ranks,
                "entropy": self.entropy,
                "drawn_probability": self.shares,
                "drawn_entropy": self.share_entropy,
                "kept": self.kept,
            }
        )

    def alternatives(self) -> pd.DataFrame:
        """One row per step and likely token: step (from 1), rank (from 1), token, probability, drawn_probability."""
        steps, ranks = self.other_tokens.shape
        return pd.DataFrame(
            {
                "step": np.repeat(np.arange(steps) + 1, ranks),
                "rank": np.tile(np.arange(ranks) + 1, steps),
                "token": self.other_tokens.ravel(),
                "probability": np.exp(self.other_logprobs.ravel()),
                "drawn_probability": self.other_shares.ravel(),
            }
        )


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that `sampling` draws from: 0 for excluded tokens, all on one token at temperature 0.

    Shapes: logits [vocab], after the repetition penalty -> [vocab]
    Source: arXiv 1904.09751 (top-p), 1805.04833 (top-k), 2407.01082 (min-p).
    Exact:  `workbench.inference.sampling.Sampling.choose` keeps the same tokens.
    """
    return sampling.probabilities(logits.unsqueeze(0))[0].to(logits.dtype)


def choices(
    model: Transformer,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    seed: int = 0,
    max_new_tokens: int = 64,
    alternatives: int = 8,
) -> Iterator[Choice]:
    """The continuation of token ids, one token at a time, each with the distribution it was drawn from.

    The tokens are those of `workbench.inference.generate.stream` with the same settings, from the logits of each step.
    Shapes: prompt [pos]
    Raises: GenerationError for an empty or over-long prompt, or settings that cannot be used; NotFiniteError.
    """
    row = GenerationState.start(model, list(prompt), max_new_tokens, seed=seed, stop=(), stop_tokens=None)
    return _steps(model, row, sampling, min(alternatives, model.config.vocab_size))


def sampling_trace(
    model: Transformer,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    seed: int = 0,
    max_new_tokens: int = 64,
    alternatives: int = 8,
) -> SamplingTrace:
    """A whole continuation with the distribution that each token was drawn from.

    Shapes: prompt [pos] -> [step], and [step, rank] for the alternatives
    Units:  nats and probabilities.
    Raises: as `choices`.
    Exact:  probabilities are from the cached steps themselves; one run of the whole text gives them up to rounding.
    """
    steps = choices(model, prompt, sampling, seed=seed, max_new_tokens=max_new_tokens, alternatives=alternatives)
    return gathered(prompt, steps)


def gathered(prompt: Sequence[int], choices: Iterable[Choice]) -> SamplingTrace:
    """Steps that have been run, as one result; the text can be unfinished.

    Raises: DataError if there are no steps.
    """
    steps = list(choices)
    if not steps:
        raise DataError("No token has been generated yet.")
    columns = ("logprob", "rank", "entropy", "share", "share_entropy", "kept")
    arrays = (frozen(np.array([getattr(step, name) for step in steps])) for name in columns)
    others = (
        frozen(np.array([[alternative[i] for alternative in step.likeliest] for step in steps])) for i in range(3)
    )
    return SamplingTrace(
        tuple(prompt),
        tuple(step.token for step in steps),
        "".join(step.text for step in steps),
        steps[-1].finish_reason,
        *arrays,
        *others,
    )


def _steps(model: Transformer, row: GenerationState, sampling: Sampling, alternatives: int) -> Iterator[Choice]:
    next_tokens = list(row.prompt)
    cache = model.empty_cache(1, len(next_tokens) + row.room)
    while row.finish_reason is None:
        with torch.no_grad():
            hidden = model.hidden(torch.tensor([next_tokens], device=model.device), cache)
            logits = model.unembed(hidden[:, -1:], start=cache.length - 1)[:, 0]  # [1, vocab]
            share = distribution(candidate_logits(sampling, [row], logits)[0], sampling)
            draw(sampling, [row], logits)
            if row.finish_reason == "not_finite":
                raise not_finite_error(model, row.ids)
            choice = _choice(row, logits[0], share, alternatives)
        yield choice
        next_tokens = [choice.token]


def _choice(row: GenerationState, logits: Tensor, share: Tensor, alternatives: int) -> Choice:
    """The token that was just drawn, in both distributions. Shapes: logits, share [vocab]"""
    token = row.tokens[-1]
    logprobs = logits - logits.logsumexp(-1)
    top = logprobs.topk(alternatives)
    return Choice(
        token,
        row.logprobs[-1],
        int((logprobs > logprobs[token]).sum()) + 1,
        float(torch.special.entr(logprobs.exp()).sum()),
        float(share[token]),
        float(torch.special.entr(share).sum()),
        int((share > 0).sum()),
        tuple(zip(top.indices.tolist(), top.values.tolist(), share[top.indices].tolist(), strict=True)),
        row.new_text(),
        row.finish_reason,
    )
