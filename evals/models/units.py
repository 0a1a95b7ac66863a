"""Sizes of units: the requests that are computed and saved together. A killed run loses the unit that it works on.

They depend on nothing that differs between a run and its continuation, so that both compute the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence

TEXTS_PER_UNIT = 16
# Scored answers share prefixes with others of their unit, so that a small unit computes more.
_FEWEST_SCORES, _MOST_SCORES, _SCORES_S = 128, 512, 60
_FEWEST_GENERATIONS, _MOST_GENERATIONS, _GENERATIONS_S = 4, 32, 300
_CPU_FLOPS = 60e9  # per second, of a few cores
_GPU_BATCHES = 4  # a GPU computes them in seconds; a finished answer is replaced by a waiting one of the same unit


def scores_per_unit(device: str, flops: float) -> int:
    """Scored answers per unit: about a minute's work of a CPU. flops: of one answer, infinity if unknown."""
    if device != "cpu":
        return _MOST_SCORES
    return _affordable(_SCORES_S, flops, _FEWEST_SCORES, _MOST_SCORES)


def generations_per_unit(device: str, flops: float, batch_size: int | None = None) -> int:
    """Generated answers per unit: 32, of a large model on a CPU fewer; at least one batch of a size that the user set.

    A CPU is limited by arithmetic, so that smaller batches of a large model are not slower.
    """
    if device != "cpu":
        return max(_GPU_BATCHES * (batch_size or _MOST_GENERATIONS), 2 * _MOST_GENERATIONS)
    return max(batch_size or 0, _affordable(_GENERATIONS_S, flops, _FEWEST_GENERATIONS, _MOST_GENERATIONS))


def _affordable(seconds: float, flops: float, fewest: int, most: int) -> int:
    """A power of two, so that a small difference in the prompts, as with another --limit, changes nothing."""
    number = int(seconds * _CPU_FLOPS / max(1.0, flops))
    return min(most, max(fewest, 1 << max(0, number.bit_length() - 1)))


def new_tokens(contexts: Sequence[Sequence[int]]) -> int:
    """The number of tokens of these contexts that are not a prefix of the one before."""
    total, before = 0, contexts[0][:0] if contexts else []
    for context in contexts:
        low, high = 0, min(len(context), len(before))
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if context[:middle] == before[:middle] else (low, middle - 1)
        total, before = total + len(context) - low, context
    return total
