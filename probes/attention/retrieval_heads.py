"""Retrieval heads: those that look at a passage while the model copies it out of a long context.

The model writes by itself, greedily; nothing here reads its text, so any prompt will do in which a needle of tokens
is asked for.
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
    """A prompt and where its needle stands: positions `start` to `stop`, the last left out."""

    tokens: Sequence[int]
    start: int
    stop: int


@dataclass(frozen=True)
class RetrievalScores(Result):
    """How often each head looks at the needle's token that is being written, and how much was written of each needle.

    `scores` is [prompt, layer, head], NaN where too little was written; `recall` [prompt] the share of the needle's
    different tokens that were. `group_size` query heads share a key/value head.
    """

    scores: np.ndarray
    recall: np.ndarray
    group_size: int

    AXES = {"scores": ("prompt", "layer", "head"), "recall": ("prompt",)}
    FIGURE = "probes.flow.figures.retrieval_scores"
    UNITS = "shares from 0 to 1"

    @property
    def as_head_scores(self) -> HeadScores:
        """The scores by the name "retrieval", with bootstrap intervals, for `head_types.catalogue`."""
        return HeadScores({"retrieval": self.scores})

    @property
    def mean(self) -> np.ndarray:
        """Mean over the prompts on which something was retrieved. Shapes: -> [layer, head], NaN if there is none"""
        return self.as_head_scores.mean("retrieval")

    def frame(self) -> pd.DataFrame:
        """One row per head: layer, head, mean, low, high, retrieval_head, recall, n_retrieved (prompts), n_prompts.

        `recall` is the mean over all prompts: where it is low, nothing was retrieved, and the scores say nothing.
        """
        mean, (low, high) = self.mean, self.as_head_scores.interval("retrieval")
        columns = {"mean": mean, "low": low, "high": high, "retrieval_head": mean >= THRESHOLD}
        table = tidy({"layer": range(mean.shape[0]), "head": range(mean.shape[1])}, columns)
        retrieved = int((~np.isnan(self.scores).all((1, 2))).sum())
        return table.assign(recall=self.recall.mean(), n_retrieved=retrieved, n_prompts=len(self.scores))


def haystack(tokenizer: Tokenizer, text: str, needle: str, question: str, *, depth: float = 0.5) -> Haystack:
    """A needle put into a text between two sentences, with a question at the end that asks for it.

    Units:  depth is 0 for before the text, 1 for after it; the nearest end of a sentence or line is taken.
    Raises: DataError for an empty needle or question, or a depth that is no share.
    """
    if not needle.strip() or not question.strip():
        raise DataError("a haystack needs a needle to hide and a question that asks for it; one of them is empty.")
    if not 0 <= depth <= 1:
        raise DataError(f"a needle's depth is between 0 (before the text) and 1 (after it), found {depth:g}.")
    ends = [0, *(match.start() for match in re.finditer(r"(?<=[.!?])\s|\n", text)), len(text)]
    cut = min(ends, key=lambda end: abs(end - depth * len(text)))
    before = tokenizer.encode(text[:cut], bos=True)
    hidden = tokenizer.encode(f" {needle.strip()}")
    after = tokenizer.encode(text[cut:] if cut else f" {text}") + tokenizer.encode(f" {question.strip()}")
    return Haystack([*before, *hidden, *after], len(before), len(before) + len(hidden))


@torch.no_grad()
def retrieval_scores(
    model: Transformer,
    haystacks: Sequence[Haystack],
    *,
    max_new_tokens: int | None = None,
    least_recall: float = 0.5,
) -> RetrievalScores:
    """Share of the needle that each head looks at most strongly at the very step that emits it.

    A position of the needle counts for a head when it is the head's top key at the query that predicts a token, and
    holds that token. As many tokens are written as the needle has, unless `max_new_tokens` says otherwise. A
    prompt on which the model writes less than `least_recall` of the needle's different tokens is undefined (NaN):
    where nothing was retrieved, no head can be seen retrieving.
    Shapes: -> scores [prompt, layer, head], between 0 and 1, and recall [prompt]
    Units:  shares of the needle's positions, and of its different tokens.
    Raises: DataError for no prompts, a needle outside its prompt, or a prompt too long for the model's context.
    Source: arXiv 2404.15574, whose threshold is 0.1.
    """
    if not haystacks:
        raise DataError("no haystacks to search; give at least one, and two or more for intervals.")
    scores, recalls = [], []
    for number, hay in enumerate(haystacks):
        length = len(hay.tokens)
        if not 0 <= hay.start < hay.stop <= length:
            raise DataError(f"haystack {number}: no needle from {hay.start} to {hay.stop} in {length} tokens.")
        steps = hay.stop - hay.start if max_new_tokens is None else max_new_tokens
        if steps < 1 or length + steps > model.config.max_seq_len:
            context = model.config.max_seq_len
            raise DataError(f"haystack {number}: {length} tokens and {steps} new ones; the context is {context}.")
        prompt_scores, recall = _scores_and_recall(model, hay, steps)
        scores.append(prompt_scores if recall >= least_recall else np.full_like(prompt_scores, np.nan))
        recalls.append(recall)
    return RetrievalScores(frozen(np.stack(scores)), frozen(np.array(recalls)), model.config.group_size)


def _scores_and_recall(model: Transformer, hay: Haystack, steps: int) -> tuple[np.ndarray, float]:
    """One prompt's scores [layer, head], and the share of the needle's different tokens that was written."""
    config, device = model.config, model.device
    prompt = torch.tensor([list(hay.tokens)], device=device)
    needle = hay.tokens[hay.start : hay.stop]
    cache = KVCache.empty(config, 1, prompt.shape[1] + steps, dtype=model.dtype, device=device)
    if prompt.shape[1] > 1:
        model(prompt[:, :-1], cache)
    token, written = prompt[:, -1:], []
    seen = np.zeros((config.n_layers, config.n_heads, len(needle)), bool)
    for _ in range(steps):
        logits, cap = model.run_with_capture(token, HOOKS, cache=cache)
        token = logits[:, -1:].argmax(-1)
        written.append(int(token))
        for layer in capture_access.layers(cap, PATTERN):
            top = cap.pattern(layer)[0, :, -1].argmax(-1).cpu().numpy()  # [head]
            for head, key in enumerate(top):
                if hay.start <= key < hay.stop and hay.tokens[key] == written[-1]:
                    seen[layer, head, key - hay.start] = True
    return seen.mean(-1), len(set(needle) & set(written)) / len(set(needle))
