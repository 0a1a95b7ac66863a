"""Retrieval heads: heads that attend to a passage while the model copies it from a long context.

The model generates greedily. Only tokens are compared, so any prompt that asks for a needle of tokens can be used.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from probes.attention.head_metrics import HOOKS as HOOKS
from probes.attention.head_metrics import PATTERN
from probes.attention.head_types import HeadScores
from probes.base import capture_access
from probes.base.result import Result, frozen, tidy
from workbench.errors import DataError
from workbench.layers.kv_cache import KVCache
from workbench.model import Transformer
from workbench.text.tokenizer import Tokenizer

THRESHOLD = 0.1
"""A head is a retrieval head when its mean score is at least this (arXiv 2404.15574)."""


@dataclass(frozen=True)
class Haystack:
    """A prompt with a needle at positions `start` to `stop` - 1."""

    tokens: Sequence[int]
    start: int
    stop: int


@dataclass(frozen=True)
class RetrievalScores(Result):
    """Retrieval score of each head, and the recall of each needle.

    `scores` is [prompt, layer, head], NaN if too little of the needle was generated; `recall` is [prompt], the share
    of the needle's distinct tokens that were generated. `group_size` query heads share a key/value head.
    """

    scores: np.ndarray
    recall: np.ndarray
    group_size: int

    AXES = {"scores": ("prompt", "layer", "head"), "recall": ("prompt",)}
    FIGURE = "probes.flow.figures.retrieval_scores"
    UNITS = "shares from 0 to 1"

    @property
    def as_head_scores(self) -> HeadScores:
        """The scores under the name "retrieval", with bootstrap intervals, for `head_types.catalogue`."""
        return HeadScores({"retrieval": self.scores})

    @property
    def mean(self) -> np.ndarray:
        """Mean over the prompts with a retrieved needle. Shapes: -> [layer, head], NaN if there is none"""
        return self.as_head_scores.mean("retrieval")

    def frame(self) -> pd.DataFrame:
        """One row per head: layer, head, mean, low, high, retrieval_head, recall, n_retrieved (prompts), n_prompts.

        `recall` is the mean over all prompts. If it is low, nothing was retrieved and the scores mean nothing.
        """
        mean, (low, high) = self.mean, self.as_head_scores.interval("retrieval")
        columns = {"mean": mean, "low": low, "high": high, "retrieval_head": mean >= THRESHOLD}
        table = tidy({"layer": range(mean.shape[0]), "head": range(mean.shape[1])}, columns)
        retrieved = int((~np.isnan(self.scores).all((1, 2))).sum())
        return table.assign(recall=self.recall.mean(), n_retrieved=retrieved, n_prompts=len(self.scores))


def haystack(tokenizer: Tokenizer, text: str, needle: str, question: str, *, depth: float = 0.5) -> Haystack:
    """A prompt with a needle between two sentences of a text, and a question at the end that asks for it.

    Units:  depth is 0 for before the text, 1 for after it; the needle goes to the nearest end of a sentence or line.
    Raises: DataError for an empty needle or question, or a depth outside 0 to 1.
    """
    if not needle.strip() or not question.strip():
        raise DataError("the needle or the question is empty; give both.")
    if not 0 <= depth <= 1:
        raise DataError(f"depth must be between 0 (before the text) and 1 (after it); found {depth:g}.")
    ends = [0, *(match.start() for match in re.finditer(r"(?<=[.!?])\s|\n", text)), len(text)]
    cut = min(ends, key=lambda end: abs(end - depth * len(text)))
    before = tokenizer.encode(text[:cut], bos=True)
    hidden = tokenizer.encode_continuation(f" {needle.strip()}")
    after = tokenizer.encode_continuation(text[cut:] if cut else f" {text}")
    after += tokenizer.encode_continuation(f" {question.strip()}")
    return Haystack([*before, *hidden, *after], len(before), len(before) + len(hidden))


@torch.no_grad()
def retrieval_scores(
    model: Transformer,
    haystacks: Sequence[Haystack],
    *,
    max_new_tokens: int | None = None,
    least_recall: float = 0.5,
) -> RetrievalScores:
    """Share of the needle that each head attends to most strongly at the step that generates it.

    A position of the needle counts for a head if it is the head's top key at the query that predicts a token, and has
    that token. By default as many tokens are generated as the needle has (`max_new_tokens`). The score is undefined
    (NaN) for a prompt where the model generates less than `least_recall` of the needle's distinct tokens: without
    retrieval, retrieval heads cannot be measured.
    Shapes: -> scores [prompt, layer, head], between 0 and 1, and recall [prompt]
    Units:  shares of the needle's positions, and of its distinct tokens.
    Raises: DataError for no prompts, a needle outside its prompt, or a prompt too long for the model's context.
    Source: arXiv 2404.15574, whose threshold is 0.1.
    """
    if not haystacks:
        raise DataError("there are no haystacks; give at least one, and two or more for intervals.")
    scores, recalls = [], []
    for number, hay in enumerate(haystacks):
        length = len(hay.tokens)
        if not 0 <= hay.start < hay.stop <= length:
            raise DataError(
                f"haystack {number}: the needle must be within the prompt's {length} tokens and not empty; "
                f"found {hay.start} to {hay.stop}."
            )
        steps = hay.stop - hay.start if max_new_tokens is None else max_new_tokens
        if steps < 1 or length + steps > model.config.max_seq_len:
            context = model.config.max_seq_len
            raise DataError(
                f"haystack {number}: {length} prompt tokens plus {steps} new ones (at least 1) must fit the model's "
                f"context of {context}."
            )
        prompt_scores, recall = _scores_and_recall(model, hay, steps)
        scores.append(prompt_scores if recall >= least_recall else np.full_like(prompt_scores, np.nan))
        recalls.append(recall)
    return RetrievalScores(frozen(np.stack(scores)), frozen(np.array(recalls)), model.config.group_size)


def _scores_and_recall(model: Transformer, hay: Haystack, steps: int) -> tuple[np.ndarray, float]:
    """One prompt's scores [layer, head], and the share of the needle's distinct tokens that was generated."""
    config, device = model.config, model.device
    prompt = torch.tensor([list(hay.tokens)], device=device)
    needle = hay.tokens[hay.start : hay.stop]
    cache = KVCache.empty(config, 1, prompt.shape[1] + steps, dtype=model.dtype, device=device)
    if prompt.shape[1] > 1:
        model(prompt[:, :-1], cache)
    token, written = prompt[:, -1:], []
    seen = np.zeros((config.n_layers, config.n_heads, len(needle)), bool)
    for _ in range(steps):
        logits, cap = model.run_with_capture(token, HOOKS, cache=cache, logits="last")
        token = logits[:, -1:].argmax(-1)
        written.append(int(token))
        for layer in capture_access.layers(cap, PATTERN):
            top = cap.pattern(layer)[0, :, -1].argmax(-1).cpu().numpy()  # [head]
            for head, key in enumerate(top):
                if hay.start <= key < hay.stop and hay.tokens[key] == written[-1]:
                    seen[layer, head, key - hay.start] = True
    return seen.mean(-1), len(set(needle) & set(written)) / len(set(needle))
