"""Look-ups and checks on a capture: its layers, heads and positions. Computes nothing."""

import torch
from torch import Tensor

from workbench.errors import HookError, MissingHookError
from workbench.hooks.capture import Capture
from workbench.hooks.hook_points import point_of


def layers(cap: Capture, suffix: str) -> tuple[int, ...]:
    """The layers for which `blocks.{l}.<suffix>` was captured.

    Raises: MissingHookError if there is none; the message says what to add.
    """
    layer_numbers = cap.layers(suffix)
    if not layer_numbers:
        raise MissingHookError(f"this capture has no 'blocks.*.{suffix}'; add it to the names of run_with_capture.")
    return layer_numbers


def heads(cap: Capture) -> tuple[int, ...]:
    """The captured query heads, numbered as in the model."""
    return tuple(range(cap.config.n_heads)) if cap.heads is None else cap.heads


def positions(cap: Capture) -> Tensor:
    """The captured absolute positions. Shapes: -> [pos] int64, on the CPU"""
    if cap.positions is not None:
        return torch.tensor(cap.positions)
    return torch.arange(cap.start, cap.start + cap.tokens.shape[1])


def of_tokens(name: str) -> bool:
    """Whether a hook has values per token. Summaries of a pattern do not count: they are NaN where undefined."""
    axes = point_of(name).axes
    return ("pos" in axes or "query_pos" in axes) and "stat" not in axes


def whole(cap: Capture, what: str) -> None:
    """Refuse a capture of only some positions, or one that begins after a cache.

    Raises: HookError
    """
    if cap.positions is not None or cap.start:
        raise HookError(f"{what} needs every position from 0; capture without positions= and without a cache.")


def unpadded(cap: Capture) -> None:
    """Refuse a capture of left-padded rows: a padding token's numbers are not the prompt's, and positions are shifted.

    Raises: HookError
    """
    if cap.pad is not None and bool(cap.pad.any()):
        raise HookError("this capture has left-padded rows; capture prompts of different lengths one at a time.")


def own_rotation(cap: Capture) -> None:
    """Refuse a capture that was taken with other rotary frequencies than those of its configuration.

    Raises: HookError
    """
    for change in cap.provenance.get("interventions", ()):
        if change.get("kind") == "rope_scaling":
            raise HookError("this capture was taken under a RopeScaling; capture again without it.")


def row_of(cap: Capture, row: int) -> int:
    """The batch row, after a check. Raises: HookError for a row that the capture does not have."""
    if not 0 <= row < cap.tokens.shape[0]:
        raise HookError(f"this capture has batch rows 0 to {cap.tokens.shape[0] - 1}, not {row}.")
    return row


def head_index(cap: Capture, head: int) -> tuple[int, int]:
    """Index of a head in the captured query heads, and of its group in the captured key/value heads.

    Raises: MissingHookError for a head that was not captured.
    """
    captured = heads(cap)
    if head not in captured:
        raise MissingHookError(f"this capture has heads {', '.join(map(str, captured))}, not {head}.")
    group = cap.config.group_size
    captured_kv = sorted({query_head // group for query_head in captured})
    return captured.index(head), captured_kv.index(head // group)


def place(cap: Capture, position: int) -> int:
    """Index of an absolute position among the captured ones; negative positions count from the last.

    Raises: HookError for a position that was not captured.
    """
    captured = positions(cap).tolist()
    if position < 0 and -position <= len(captured):
        return len(captured) + position
    if position not in captured:
        count = "" if captured[-1] - captured[0] < len(captured) else f" ({len(captured)} of them)"
        raise HookError(f"this capture has positions {captured[0]} to {captured[-1]}{count}, not {position}.")
    return captured.index(position)
