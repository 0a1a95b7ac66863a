"""Checks of arguments that several probes take: token ids and counts. A mistake is refused in words, not by torch."""

from collections.abc import Sequence
from operator import index

import torch
from torch import Tensor

from workbench.errors import HookError


def token_batch(tokens: object, name: str = "tokens") -> None:
    """Refuse anything but a tensor of token ids, [batch, pos], that has some. Raises: HookError"""
    whole = isinstance(tokens, Tensor) and tokens.dtype in (torch.int64, torch.int32)
    if not isinstance(tokens, Tensor) or not whole or tokens.dim() != 2 or not tokens.numel():
        found = f"{tokens.dtype} {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise HookError(f"{name} must be token ids, an int64 tensor of shape [batch, pos], not empty; found {found}.")


def prompt_ids(ids: Sequence[int] | Tensor) -> list[int]:
    """The ids of one prompt. Raises: HookError for anything else."""
    if isinstance(ids, Tensor):
        row = ids[0] if ids.dim() == 2 and len(ids) == 1 else ids
        if row.dim() != 1 or row.dtype not in (torch.int64, torch.int32):
            raise HookError(f"ids must be the token ids of one prompt, [pos]; found {ids.dtype} {tuple(ids.shape)}.")
        ids = row.tolist()
    try:
        prompt = [index(token) for token in ids]
    except TypeError:
        prompt = []
    if not prompt:
        raise HookError(f"ids must be the token ids of one prompt, at least one whole number; found {ids!r:.80}.")
    return prompt


def at_least(least: int, **counts: int) -> None:
    """Refuse counts below `least`, by name. Raises: HookError"""
    for name, count in counts.items():
        if isinstance(count, bool) or not hasattr(count, "__index__") or index(count) < least:
            raise HookError(f"{name} must be a whole number of at least {least}; found {count!r}.")
