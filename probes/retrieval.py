"""Retrieval heads: those that look at a passage while the model copies it out of a long context.

The model writes by itself, greedily; nothing here reads its text, so any prompt will do in which a needle of tokens
is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from probes import reading
from probes.attention import HOOKS as HOOKS
from probes.attention import PATTERN
from probes.heads import HeadScores
from probes.results import frozen
from workbench.cache import KVCache
from workbench.errors import DataError
from workbench.model import Transformer


@dataclass(frozen=True)
class Haystack:
    """A prompt and where its needle stands: positions `start` to `stop`, the last left out."""

    tokens: Sequence[int]
    start: int
    stop: int


@torch.no_grad()
def retrieval_scores(
    model: Transformer,
    haystacks: Sequence[Haystack],
    *,
    max_new_tokens: int | None = None,
    least_recall: float = 0.5,
) -> HeadScores:
    """Share of the needle that each head looks at most strongly at the very step that emits it.

    A position of the needle counts for a head when it is the head's top key at the query that predicts a token, and
    holds that token. As many tokens are written as the needle has, unless `max_new_tokens` says otherwise. A
    prompt on which the model writes less than `least_recall` of the needle's different tokens is undefined (NaN):
    where nothing was retrieved, no head can be seen retrieving.
    Shapes: -> [prompt, layer, head] as the score "retrieval", between 0 and 1
    Raises: DataError for no prompts, a needle outside its prompt, or a prompt too long for the model's context.
    Source: arXiv 2404.15574, whose threshold is 0.1.
    """
    if not haystacks:
        raise DataError("no haystacks to search; give at least one, and two or more for intervals.")
    rows = []
    for number, hay in enumerate(haystacks):
        length = len(hay.tokens)
        if not 0 <= hay.start < hay.stop <= length:
            raise DataError(f"haystack {number}: no needle from {hay.start} to {hay.stop} in {length} tokens.")
        steps = hay.stop - hay.start if max_new_tokens is None else max_new_tokens
        if steps < 1 or length + steps > model.config.max_seq_len:
            context = model.config.max_seq_len
            raise DataError(f"haystack {number}: {length} tokens and {steps} new ones; the context is {context}.")
        rows.append(_one(model, hay, steps, least_recall))
    return HeadScores({"retrieval": frozen(np.stack(rows))})


def _one(model: Transformer, hay: Haystack, steps: int, least_recall: float) -> np.ndarray:
    """One prompt's scores. Shapes: -> [layer, head]"""
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
        for layer in reading.layers(cap, PATTERN):
            top = cap.pattern(layer)[0, :, -1].argmax(-1).cpu().numpy()  # [head]
            for head, key in enumerate(top):
                if hay.start <= key < hay.stop and hay.tokens[key] == written[-1]:
                    seen[layer, head, key - hay.start] = True
    recall = len(set(needle) & set(written)) / len(set(needle))
    return seen.mean(-1) if recall >= least_recall else np.full(seen.shape[:2], np.nan)
