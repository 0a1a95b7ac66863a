"""What the probes ask of every capture: which layers, heads and positions it holds. Computes nothing."""

import torch
from torch import Tensor

from workbench.errors import HookError, MissingHookError
from workbench.hooks.capture import Capture
from workbench.hooks.hook_points import point_of


def layers(cap: Capture, suffix: str) -> tuple[int, ...]:
    """The layers for which `blocks.{l}.<suffix>` was captured.

    Raises: MissingHookError if there is none (says what to add).
    """
    found = cap.layers(suffix)
    if not found:
        raise MissingHookError(f"this capture holds no 'blocks.*.{suffix}'; add it to run_with_capture's names.")
    return found


def heads(cap: Capture) -> tuple[int, ...]:
    """The captured query heads, by their numbers in the model."""
    return tuple(range(cap.config.n_heads)) if cap.heads is None else cap.heads


def positions(cap: Capture) -> Tensor:
    """The captured absolute positions. Shapes: -> [pos] int64, on the CPU"""
    if cap.positions is not None:
        return torch.tensor(cap.positions)
    return torch.arange(cap.start, cap.start + cap.tokens.shape[1])


def of_tokens(name: str) -> bool:
    """Whether a hook holds numbers of each token, and no summary of a pattern, which has NaN where it is undefined."""
    axes = point_of(name).axes
    return ("pos" in axes or "query_pos" in axes) and "stat" not in axes


def whole(cap: Capture, what: str) -> None:
    """Refuse a capture that holds only some positions, or begins after a cache.

    Raises: HookError
    """
    if cap.positions is not None or cap.start:
        raise HookError(f"{what} needs every position from 0; capture without positions= and without a cache.")


def unpadded(cap: Capture) -> None:
    """Refuse a capture of left-padded rows, whose first real token is not at position 0.

    Raises: HookError
    """
    if any(inputs.mask.pad is not None for inputs in cap.inputs.values()):
        raise HookError("this capture holds left-padded rows; capture prompts of unequal length one at a time.")


def own_rotation(cap: Capture) -> None:
    """Refuse a capture whose run turned q and k by other frequencies than its configuration's.

    Raises: HookError
    """
    for change in cap.provenance.get("interventions", ()):
        if change.get("kind") == "rope_scaling":
            raise HookError("this capture was taken under a RopeScaling; its own frequencies are needed: run it plain.")


def row_of(cap: Capture, row: int) -> int:
    """A batch row's number, checked. Raises: HookError for a row that the capture does not hold."""
    if not 0 <= row < cap.tokens.shape[0]:
        raise HookError(f"this capture holds batch rows 0 to {cap.tokens.shape[0] - 1}, not {row}.")
    return row


def head_index(cap: Capture, head: int) -> tuple[int, int]:
    """Where a head's queries and its group's keys stand in the captured head axes.

    Raises: MissingHookError for a head that was not captured.
    """
    held = heads(cap)
    if head not in held:
        raise MissingHookError(f"this capture holds heads {', '.join(map(str, held))}, not {head}.")
    group = cap.config.group_size
    kv_held = sorted({kept // group for kept in held})
    return held.index(head), kv_held.index(head // group)


def place(cap: Capture, position: int) -> int:
    """Index of an absolute position in the captured ones; negative ones count from the last.

    Raises: HookError for a position that was not captured.
    """
    held = positions(cap).tolist()
    if position < 0 and -position <= len(held):
        return len(held) + position
    if position not in held:
        some = "" if held[-1] - held[0] < len(held) else f" ({len(held)} of them)"
        raise HookError(f"this capture holds positions {held[0]} to {held[-1]}{some}, not {position}.")
    return held.index(position)
