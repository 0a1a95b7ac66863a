"""Values of `Add` and `Patch`: what a capture holds, whether a tensor fits a hook, its part for the tokens of a run.

Axes are the hook's; heads and positions of a value are those that the intervention changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from workbench.config import ModelConfig
from workbench.errors import InterventionError
from workbench.hooks.hook_points import SUMMARIES, HookPoint, Site, known, point_of
from workbench.hooks.specification import ranges


@runtime_checkable
class Activations(Protocol):
    """The part of `Capture` that a value is taken from."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def tokens(self) -> Tensor: ...
    @property
    def start(self) -> int: ...
    @property
    def heads(self) -> Sequence[int] | None: ...
    @property
    def positions(self) -> Sequence[int] | None: ...
    def __getitem__(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Held:
    """An activation from a capture, with its heads (None: every one, or the hook has none) and its positions."""

    value: Tensor
    heads: Sequence[int] | None
    positions: Sequence[int]


def held_by(
    capture: Activations, name: str, *, heads: Sequence[int] | None = None, positions: Sequence[int] | None = None
) -> Held:
    """What a capture holds at a hook point: the chosen heads and positions, in this order, or all that it holds.

    Shapes: -> the hook's axes, with heads and positions narrowed
    Raises: InterventionError for heads or positions that the capture does not hold, or a pattern of names;
            MissingHookError for a hook that was not captured.
    """
    if not known(name):
        raise InterventionError(f"a value from a capture needs the name of one hook, found {name!r}.")
    point = point_of(name)
    if name.endswith(SUMMARIES):
        raise InterventionError(f"{name} is a statistic; change attn.hook_pattern instead.")
    value = capture[name]
    held = tuple(range(capture.start, capture.start + capture.tokens.shape[1]))
    held = held if capture.positions is None else tuple(capture.positions)
    if positions is not None:
        value = _pick(value, position_axis(point), held, positions, f"positions {ranges(held)} of {name}")
    if "head" not in point.axes or (heads is None and capture.heads is None):
        return Held(value, heads, held if positions is None else positions)
    n_heads, width = capture.config.n_heads, point.width("head", capture.config)
    assert width is not None
    held_heads: Sequence[int] = range(width)
    if capture.heads is not None:
        group = n_heads // width
        held_heads = sorted({head // group for head in capture.heads})
    if heads is not None:
        check_heads(name, heads, width)
        what = f"heads {ranges(held_heads)} of {name}"
        value = _pick(value, point.axes.index("head"), held_heads, heads, what)
    return Held(value, held_heads if heads is None else heads, held if positions is None else positions)


def _pick(value: Tensor, axis: int, held: Sequence[int], chosen: Sequence[int], what: str) -> Tensor:
    index = {n: i for i, n in enumerate(held)}
    missing = sorted(set(chosen) - set(held))
    if missing:
        raise InterventionError(
            f"the capture holds {what}, not {ranges(missing)}. Capture these too, or leave them out."
        )
    return value.index_select(axis, torch.tensor([index[n] for n in chosen], device=value.device))


def check_heads(name: str, heads: Sequence[int], width: int) -> None:
    """Raises: InterventionError for heads that a hook point with `width` heads does not have."""
    if not heads or min(heads) < 0 or max(heads) >= width:
        raise InterventionError(f"{name} has heads 0 to {width - 1}, found {list(heads)}.")


def check_shape(
    value: Tensor, name: str, *, heads: Sequence[int] | None, positions: Sequence[int] | None, config: ModelConfig
) -> None:
    """Check a value's shape against a hook of a model, as far as the shape does not depend on the tokens.

    Raises: InterventionError
    """
    point = point_of(name)
    widths = {axis: point.width(axis, config) for axis in point.axes}
    if heads is not None:
        widths["head"] = len(heads)
    if positions is not None:
        widths[point.axes[position_axis(point)]] = len(positions)
    axes = [axis for axis in point.axes if axis != "head" or value.dim() == len(point.axes) or not _one(heads)]
    if value.dim() == 1:
        axes = [point.axes[-1]]
    elif value.dim() not in (0, len(axes)):
        raise _wrong_axes(value, name)
    for size, axis in zip(value.shape, axes, strict=False):
        width = widths[axis]
        if size != 1 and width is not None and size != width:
            raise InterventionError(
                f"the value for {name} has shape {tuple(value.shape)}, which does not fit: {axis} is {width} here."
            )


def _one(heads: Sequence[int] | None) -> bool:
    return heads is not None and len(heads) == 1


def _wrong_axes(value: Tensor, name: str) -> InterventionError:
    return InterventionError(
        f"the value for {name} has shape {tuple(value.shape)}; the hook's axes are {' '.join(point_of(name).axes)}. "
        "Pass all of these axes, or one vector along the last."
    )


def value_at(
    value: Tensor, site: Site, x: Tensor, *, heads: Sequence[int] | None, positions: Sequence[int] | None
) -> Tensor:
    """The value at the positions of x, which is the part of an activation that heads and positions select.

    Shapes: -> as x
    Raises: InterventionError if it does not cover the tokens of the run.
    """
    value = value.to(x.device)
    axes, axis = site.point.axes, position_axis(site.point)
    if 2 <= value.dim() == x.dim() - 1 and _one(heads):
        value = value.unsqueeze(axes.index("head"))
    if value.dim() == 1:
        value = value.view(*[1] * (x.dim() - 1), -1)
    if value.dim() not in (0, x.dim()):
        raise _wrong_axes(value, site.name)
    rows = None if positions is None else {p: i for i, p in enumerate(positions)}
    changed = [p for p in site.positions.tolist() if rows is None or p in rows]
    if value.dim() and value.shape[axis] != 1:
        index = changed if rows is None else [rows[p] for p in changed]
        if max(index) >= value.shape[axis]:
            raise InterventionError(
                f"the value for {site.name} covers {value.shape[axis]} positions, but this run is at "
                f"position {max(changed)}. Pass positions= to say which ones to change."
            )
        value = value.index_select(axis, torch.tensor(index, device=x.device))
    if value.dim() and axes[-1] == "key_pos" and value.shape[-1] != 1:
        value = _with_keys(value, site, x.shape[-1], max(changed))
    try:
        return value.expand_as(x)
    except RuntimeError:
        raise InterventionError(
            f"the value for {site.name} has shape {tuple(value.shape)}, which does not fit {tuple(x.shape)}."
        ) from None


def _with_keys(value: Tensor, site: Site, n_keys: int, last_query: int) -> Tensor:
    """The value over as many keys as the run has: keys after the last query are masked, so they are cut or added."""
    if value.shape[-1] < min(n_keys, last_query + 1):
        raise InterventionError(
            f"the value for {site.name} covers {value.shape[-1]} keys, but this run is at position {last_query}. "
            "Pass positions= to say which queries to change."
        )
    missing = n_keys - value.shape[-1]
    return value[..., :n_keys] if missing <= 0 else torch.nn.functional.pad(value, (0, missing))


def position_axis(point: HookPoint) -> int:
    """Index of a hook point's position axis: `pos`, or `query_pos` for scores and pattern."""
    return point.axes.index("pos" if "pos" in point.axes else "query_pos")
