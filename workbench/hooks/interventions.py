"""Interventions: declarative, composable changes of a run, written as JSON.

An intervention names a target: a head (`L5H3`), a sublayer (`L5.attn`, `L5.mlp`) or any hook name or pattern
(`blocks.2.hook_mlp_out`, `blocks.*.attn.hook_z`), completely or only some heads and positions. It does not depend on
the model's code: the hook points apply it. Positions are absolute, also with a key/value cache.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from workbench.config import ModelConfig
from workbench.errors import InterventionError, WorkbenchError
from workbench.hooks import values
from workbench.hooks.hook_points import SCORES, SUMMARIES, HookPoint, Site, Subscription, expand, point_of
from workbench.hooks.intervention import OWN_FUNCTION, Intervention
from workbench.hooks.specification import from_stored, number, target_name, tensor_of, to_stored, whole_numbers
from workbench.hooks.values import Activations, position_axis

_HEAD = re.compile(r"L(\d+)H(\d+)")
_PART = re.compile(r"L(\d+)\.(attn|mlp)")


@dataclass(frozen=True, eq=False)
class Targeted(Intervention):
    """An intervention at hook points, with the heads and positions that it changes.

    heads: global head numbers; None for all. positions: absolute token positions; None for all.
    Raises: InterventionError for a field that is not what it should be. What depends on the model is checked by
            `subscription`, which `model.intervene` calls.
    """

    target: str
    heads: Sequence[int] | None = field(default=None, kw_only=True)
    positions: Sequence[int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        target_name(self.target)
        for name in ("heads", "positions"):
            numbers = getattr(self, name)
            if numbers is not None:
                object.__setattr__(self, name, whole_numbers(numbers, name))
        if _HEAD.fullmatch(self.target) and self.heads is not None:
            raise InterventionError(f"{self.target} already names a head; remove heads={list(self.heads)}.")

    @property
    def hook(self) -> str:
        """The hook name or pattern that the target stands for."""
        if head := _HEAD.fullmatch(self.target):
            return f"blocks.{head.group(1)}.attn.hook_z"
        if part := _PART.fullmatch(self.target):
            return f"blocks.{part.group(1)}.hook_{part.group(2)}_out"
        return self.target

    @property
    def chosen_heads(self) -> Sequence[int] | None:
        head = _HEAD.fullmatch(self.target)
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
            rows=self._rows,
        )

    @property
    def _position_independent(self) -> bool:
        """Whether it makes the same change at every position."""
        return self.positions is None

    @property
    def _rows(self) -> int:
        """Number of batch rows that it has values for; 1 if it treats all alike."""
        return 1

    def _check(self, name: str, point: HookPoint, config: ModelConfig) -> None:
        heads = self.chosen_heads
        if name.endswith(SUMMARIES):
            raise InterventionError(f"{name} is a statistic; change attn.hook_pattern instead.")
        if heads is not None:
            width = point.width("head", config) if "head" in point.axes else None
            if width is None:
                raise InterventionError(f"{name} has no heads; its axes are {' '.join(point.axes)}.")
            values.check_heads(name, heads, width)

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

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "factor", number(self.factor, "factor"))

    def change(self, site: Site, x: Tensor) -> Tensor:
        scaled = x * self.factor
        return torch.where(x == float("-inf"), x, scaled) if site.name.endswith(SCORES) else scaled

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "factor": self.factor}


@dataclass(frozen=True, eq=False)
class _Valued(Targeted):
    """An intervention with a tensor: a vector along the last axis, or one value for each position.

    A capture of another run stands for what it holds of the hook: its own heads and positions are changed, or those of
    them that `heads` and `positions` name. What it does not hold is refused.
    Shapes: value [last axis]; or the hook's axes with heads narrowed to those chosen (the head axis may be left out
            for a single head), batch and positions 1 or as in the run. Position p of the value goes to absolute
            position p; with `positions`, its i-th entry goes to the i-th of them. Keys after the last query, which
            the mask hides, may be missing or too many.
    """

    value: Tensor | Activations | Sequence[float] | float

    def __post_init__(self) -> None:
        super().__post_init__()
        value = self.value
        if isinstance(value, Activations):
            held = values.held_by(value, self.hook, heads=self.chosen_heads, positions=self.positions)
            value = held.value
            object.__setattr__(self, "positions", tuple(held.positions))
            if held.heads is not None and self.chosen_heads is None:
                object.__setattr__(self, "heads", tuple(held.heads))
        object.__setattr__(self, "value", tensor_of(value))
        for name in ("heads", "positions"):
            numbers = getattr(self, name) or ()
            if len(set(numbers)) < len(numbers):
                raise InterventionError(f"{name} of a value must differ, found {list(numbers)}.")

    @property
    def tensor(self) -> Tensor:
        assert isinstance(self.value, Tensor)
        return self.value

    @property
    def _position_independent(self) -> bool:
        return super()._position_independent and self.tensor.dim() < 2

    @property
    def _rows(self) -> int:
        return self.tensor.shape[0] if self.tensor.dim() > 1 else 1

    def _check(self, name: str, point: HookPoint, config: ModelConfig) -> None:
        super()._check(name, point, config)
        heads, positions = self.chosen_heads, self.positions
        values.check_shape(self.tensor, name, heads=heads, positions=positions, config=config)

    def value_at(self, site: Site, x: Tensor) -> Tensor:
        """The value at the positions of x. Shapes: -> as x"""
        return values.value_at(self.tensor, site, x, heads=self.chosen_heads, positions=self.positions)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "value": to_stored(self.tensor)}


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


def to_json(interventions: Iterable[Intervention]) -> str:
    """Interventions as JSON, bit-exact: `from_json` gives them back."""
    return json.dumps([i.to_dict() for i in interventions], sort_keys=True)


def from_json(text: str) -> tuple[Intervention, ...]:
    """Read interventions from JSON.

    Raises: InterventionError for anything but a list of interventions, and for a field that is not what it should be.
    """
    try:
        entries = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise _not_a_list(f"{type(error).__name__}: {error}") from error
    if not isinstance(entries, list):
        raise _not_a_list(f"found {type(entries).__name__}")
    interventions = []
    for i, entry in enumerate(entries):
        try:
            interventions.append(_from_entry(entry))
        except WorkbenchError as error:
            raise _not_a_list(f"entry {i + 1}: {error}") from error
    return tuple(interventions)


def _from_entry(entry: Any) -> Intervention:
    kinds = Intervention.kinds
    if not isinstance(entry, dict):
        raise InterventionError(f"expected an object, found {type(entry).__name__}")
    kind = entry.get("kind")
    if kind == OWN_FUNCTION:
        raise InterventionError("your own function (Hook) is not written as JSON; pass it in Python")
    if not isinstance(kind, str) or kind not in kinds:
        raise InterventionError(f"kind is one of {', '.join(sorted(kinds))}; found {reprlib.repr(kind)}")
    parameters = {f.name: f for f in fields(kinds[kind])}  # type: ignore[arg-type]  # each kind is a dataclass
    unknown = sorted(set(entry) - {"kind", *parameters})
    if unknown:
        raise InterventionError(f"{kind} has no field {unknown[0]!r}; its fields are {', '.join(parameters)}")
    needed = [name for name, f in parameters.items() if f.default is MISSING and name not in entry]
    if needed:
        raise InterventionError(f"{kind} needs {needed[0]!r}")
    values_by_name = {name: value for name, value in entry.items() if name != "kind"}
    if "value" in values_by_name:
        values_by_name["value"] = from_stored(values_by_name["value"])
    return kinds[kind](**values_by_name)


def _not_a_list(reason: str) -> InterventionError:
    return InterventionError(
        f'not a list of interventions ({reason}); an example is [{{"kind": "ablate", "target": "L5H3"}}].'
    )
