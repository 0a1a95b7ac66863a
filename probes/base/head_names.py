"""Heads as (layer, head) pairs, and as text: `L2H3`."""

import re
from collections.abc import Iterable

from workbench.errors import DataError

Head = tuple[int, int]


def label(heads: Iterable[Head]) -> str:
    """Heads in the notation of interventions: `L2H3 L5H1`."""
    return " ".join(f"L{layer}H{head}" for layer, head in heads)


def parse(text: str) -> list[Head]:
    """`L2H3,L5H1` as (layer, head) pairs.

    Raises: DataError for anything else.
    """
    matches = [re.fullmatch(r"L(\d+)H(\d+)", part.strip()) for part in text.split(",")]
    if not all(matches):
        raise DataError(f"{text!r} is not a list of heads; write heads as L2H3,L5H1.")
    return [(int(match[1]), int(match[2])) for match in matches if match]
