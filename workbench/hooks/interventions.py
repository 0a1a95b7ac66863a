"""Interventions: declarative, composable changes of a run, written as JSON.

An intervention names a target: a head (`L5H3`), a sublayer (`L5.attn`, `L5.mlp`) or any hook name or pattern
(`blocks.2.hook_mlp_out`, `blocks.*.attn.hook_z`), completely or only some heads and positions. It does not depend on
the model's code: the hook points apply it. Positions are absolute, also with a key/value cache.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from workbench.config import ModelConfig
from workbench.errors import InterventionError
from workbench.hooks.hook_points import SCORES, SUMMARIES, HookPoint, Site, Subscription, expand, point_of
from workbench.hooks.intervention import Intervention

_HEAD = re.compile(r"^L(\d+)H(\d+)$")
_PART = re.compile(r"^L(\d+)\.(attn|mlp)$")


class Activations(Protocol):
    """The part of `Capture` that a patch reads: tensors by hook name, and their heads and positions."""

    @property
    def heads(self) -> Sequence[int] | None: ...
    @property
    def positions(self) -> Sequence[int] | None: ...
    def __getitem__(self, name: str) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Targeted(Intervention):
    """An intervention at hook points, with the heads and positions that it changes.

    heads: global head numbers; None for all. positions: absolute token positions; None for all.
    """

    target: str
    heads: Sequence[int] | None = field(default=None, kw_only=True)
    positions: Sequence[int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("heads", "positions"):
            numbers = getattr(self, name)
            if numbers is not None:
                object.__setattr__(self, name, tuple(int(n) for n in numbers))
        head = _HEAD.match(self.target)
        if head and self.heads is not None:
            raise InterventionError(f"{self.target} already names a head; remove heads={self.heads}.")
        if self.positions is not None and min(self.positions, default=0) < 0:
            raise InterventionError(f"positions are counted from 0, found {min(self.positions)}.")

    @property
    def hook(self) -> str:
        """The hook name or pattern that the target stands for."""
        if head := _HEAD.match(self.target):
            return f"blocks.{head.group(1)}.attn.hook_z"
        if part := _PART.match(self.target):
            return f"blocks.{part.group(1)}.hook_{part.group(2)}_out"
        return self.target

    @property
    def chosen_heads(self) -> Sequence[int] | None:
        head = _HEAD.match(self.target)
        return (int(head.group(2)),) if head else self.heads

    def change(self, site: Site, x: Tensor) -> Tensor:
        """The replacement of x, which is the part that heads and positions select.

        Shapes: x as the hook's axes, the head and position axes narrowed; -> the same, or broadcastable to it.
        """
        raise NotImplementedError

    def subscription(self, config: ModelConfig) -> Subscription:
        """This intervention as an editor of a model of this shape.

        Raises: UnknownHookError, InterventionError for a target, heads or an axis that the model does not have.
        """
        names = expand(self.hook, config)
        for name in names:
            self._check(name, point_of(name), config)
        positions = None if self.positions is None else frozenset(self.positions)
        return Subscription(
            frozenset(names),
            edit=self._edit,
            position_independent=self._position_independent,
            positions=positions,
        )

    @property
    def _position_independent(self) -> bool:
        """Whether it makes the same change at every position."""
        return self.positions is None

    def _check(self, name: str, point: HookPoint, config: ModelConfig) -> None:
        heads = self.chosen_heads
        if name.endswith(SUMMARIES):
            raise InterventionError(f"{name} is a statistic; change attn.hook_pattern instead.")
        if heads is not None:
            width = point.width("head", config) if "head" in point.axes else None
            if width is None:
                raise InterventionError(f"{name} has no heads; its axes are {' '.join(point.axes)}.")
            if not heads or min(heads) < 0 or max(heads) >= width:
                raise InterventionError(f"{name} has heads 0 to {width - 1}, found {list(heads)}.")

    def _edit(self, site: Site, x: Tensor) -> Tensor:
        # Narrow to the chosen heads and positions, change that part, and put it back into a copy.
        index: list[Tensor] = [torch.arange(n, device=x.device) for n in x.shape]
        axes = site.point.axes
        if (heads := self.chosen_heads) is not None:
            index[axes.index("head")] = torch.tensor(heads, device=x.device)
        if self.positions is not None:
            axis = position_axis(site.point)
            positions = torch.tensor(self.positions, device=x.device)
            index[axis] = torch.isin(site.positions, positions).nonzero().squeeze(-1)
            if not len(index[axis]):
                return x
        if heads is None and self.positions is None:
            return self.change(site, x).expand_as(x)
        selected = torch.meshgrid(*index[: len(axes) - 1], indexing="ij")
        part = x[selected]
        return x.index_put(selected, self.change(site, part).to(x.dtype).expand_as(part))

    def to_dict(self) -> dict[str, Any]:
        entry: dict[str, Any] = {"kind": self.kind, "target": self.target}
        if self.heads is not None:
            entry["heads"] = list(self.heads)
        if self.positions is not None:
            entry["positions"] = list(self.positions)
        return entry


@dataclass(frozen=True, eq=False)
class Ablate(Targeted):
    """Set the target to zero (zero ablation). For mean ablation, `Patch` it with its mean."""

    kind: ClassVar[str] = "ablate"

    def change(self, site: Site, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@dataclass(frozen=True, eq=False)
class Scale(Targeted):
    """Multiply the target by a number. Scores of -inf (keys that are not attended to) stay as they are."""

    factor: float
    kind: ClassVar[str] = "scale"

    def change(self, site: Site, x: Tensor) -> Tensor:
        scaled = x * self.factor
        return torch.where(x == float("-inf"), x, scaled) if site.name.endswith(SCORES) else scaled

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "factor": self.factor}


@dataclass(frozen=True, eq=False)
class _Valued(Targeted):
    """An intervention with a tensor: a vector along the last axis, or one value for each position.

    Shapes: value [last axis]; or the hook's axes with heads narrowed to those chosen (the head axis may be left out
            for a single head), batch and positions 1 or as in the run. Position p of the value goes to absolute
            position p; with `positions`, its i-th entry goes to the i-th of them.
    """

    value: Tensor | Activations | Sequence[float] | float

    def __post_init__(self) -> None:
        super().__post_init__()
        value = self.value
        if isinstance(value, int | float | list | tuple):
            value = torch.tensor(value, dtype=torch.float32)
        elif not isinstance(value, Tensor):
            value = self._from_capture(value)  # type: ignore[arg-type]
        object.__setattr__(self, "value", value.detach())

    @property
    def tensor(self) -> Tensor:
        assert isinstance(self.value, Tensor)
        return self.value

    @property
    def _position_independent(self) -> bool:
        return super()._position_independent and self.tensor.dim() < 2

    def _from_capture(self, capture: Activations) -> Tensor:
        if capture.heads is not None:
            raise InterventionError("the capture has only some heads; capture all heads, or pass a tensor.")
        value = capture[self.hook]
        axes = point_of(self.hook).axes
        if (heads := self.chosen_heads) is not None:
            value = value.index_select(axes.index("head"), torch.tensor(heads, device=value.device))
        if self.positions is not None and capture.positions is None:
            chosen = torch.tensor(self.positions, device=value.device)
            value = value.index_select(position_axis(point_of(self.hook)), chosen)
        return value

    def value_at(self, site: Site, x: Tensor) -> Tensor:
        """The value at the positions of x, broadcastable to x."""
        value = self.tensor.to(x.device)
        if value.dim() < 2:
            return value
        heads = self.chosen_heads
        if value.dim() == x.dim() - 1 and heads is not None and len(heads) == 1:
            value = value.unsqueeze(site.point.axes.index("head"))
        if value.dim() != x.dim():
            raise InterventionError(
                f"the value for {site.name} has shape {tuple(self.tensor.shape)}; the hook's axes are "
                f"{' '.join(site.point.axes)}. Pass all of these axes, or one vector along the last."
            )
        axis = position_axis(site.point)
        if value.shape[axis] != 1:
            index = self._value_index(site)
            if int(index.max()) >= value.shape[axis]:
                raise InterventionError(
                    f"the value for {site.name} covers {value.shape[axis]} positions, but this run is at "
                    f"position {int(index.max())}. Pass positions= to say which ones to change."
                )
            value = value.index_select(axis, index)
        try:
            return value.expand_as(x)
        except RuntimeError:
            raise InterventionError(
                f"the value for {site.name} has shape {tuple(self.tensor.shape)}, which does not fit {tuple(x.shape)}."
            ) from None

    def _value_index(self, site: Site) -> Tensor:
        """Index into the value for each position that this run changes."""
        if self.positions is None:
            return site.positions
        changed = [p for p in site.positions.tolist() if p in self.positions]
        return torch.tensor([self.positions.index(p) for p in changed], device=site.positions.device)

    def to_dict(self) -> dict[str, Any]:
        value = self.tensor.cpu().contiguous()
        data = base64.b64encode(value.reshape(-1).view(torch.uint8).numpy().tobytes()).decode()
        stored = {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape), "base64": data}
        return {**super().to_dict(), "value": stored}


@dataclass(frozen=True, eq=False)
class Add(_Valued):
    """Add a value to the target, for instance a steering vector to the stream."""

    kind: ClassVar[str] = "add"

    def change(self, site: Site, x: Tensor) -> Tensor:
        return x + self.value_at(site, x).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Patch(_Valued):
    """Replace the target by a value, or by the activation in a capture of another run."""

    kind: ClassVar[str] = "patch"

    def change(self, site: Site, x: Tensor) -> Tensor:
        return self.value_at(site, x).to(x.dtype)


def position_axis(point: HookPoint) -> int:
    """Index of a hook point's position axis: `pos`, or `query_pos` for scores and pattern."""
    return point.axes.index("pos" if "pos" in point.axes else "query_pos")


def to_json(interventions: Iterable[Intervention]) -> str:
    """Interventions as JSON, bit-exact: `from_json` gives them back."""
    return json.dumps([i.to_dict() for i in interventions], sort_keys=True)


def from_json(text: str) -> tuple[Intervention, ...]:
    """Read interventions from JSON. Raises: InterventionError for JSON that is not a list of interventions."""
    try:
        interventions = []
        for entry in json.loads(text):
            entry = dict(entry)
            cls: Callable[..., Intervention] = Intervention.kinds[entry.pop("kind")]
            if "value" in entry:
                entry["value"] = _tensor(entry["value"])
            interventions.append(cls(**entry))
        return tuple(interventions)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InterventionError(
            f'not a list of interventions ({type(error).__name__}: {error}); an example is [{{"kind": "ablate", '
            '"target": "L5H3"}].'
        ) from error


def _tensor(stored: dict[str, Any]) -> Tensor:
    data = bytearray(base64.b64decode(stored["base64"]))
    return torch.frombuffer(data, dtype=getattr(torch, stored["dtype"])).reshape(stored["shape"])
