"""`Hook`: an intervention whose change is one's own function, for what no other one does."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from workbench.errors import InterventionError
from workbench.hooks.hook_points import Site, checked_edit
from workbench.hooks.intervention import OWN_FUNCTION
from workbench.hooks.interventions import Targeted


@dataclass(frozen=True, eq=False)
class Hook(Targeted):
    """Replace the target by what a function returns: `function(activation, site)`.

    The function is called at each hook point of the target, in each run and at each step of a generation. It gets a
    copy, so it may write into it. `site` has the hook's `name`, the `layer` and the absolute `positions`. If the
    function returns None, the copy counts: a function that only reads changes nothing. With `heads` and `positions`,
    it gets these alone. Any floating-point dtype is accepted and cast to the model's. The mask of scores and patterns
    stays in force; these are then computed explicitly, so that bfloat16 rounds a little differently than without.
    Answers under a Hook are not stored, and it has no JSON.
    Shapes: activation as the hook's axes -> the same, or None
    Raises: InterventionError in the run, if the function returns another shape or type.
    Example: wb.Hook("blocks.2.hook_resid_pre", lambda x, site: x - (x @ direction)[..., None] * direction)
    """

    function: Callable[[Tensor, Site], Tensor | None]
    kind: ClassVar[str] = "hook"
    has_json: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.function):
            raise InterventionError(
                f"a Hook needs a function of (activation, site), found {type(self.function).__name__}."
            )
        try:
            inspect.signature(self.function).bind(None, None)
        except TypeError as error:
            raise InterventionError(f"a Hook's function is called with (activation, site): {error}.") from error
        except ValueError:  # a builtin whose signature is not known
            pass

    @property
    def _position_independent(self) -> bool:
        return False  # nobody knows

    def change(self, site: Site, x: Tensor) -> Tensor:
        if self.positions is not None:
            chosen = torch.isin(site.positions, torch.tensor(self.positions, device=x.device))
            site = replace(site, positions=site.positions[chosen])
        copy = x.clone()
        returned = self.function(copy, site)
        return checked_edit(site, x, copy if returned is None else returned)

    def to_dict(self) -> dict[str, Any]:
        raise InterventionError(
            f"a Hook on {self.target} has no JSON, because it is a function. Pass it in Python, or use Ablate, Scale, "
            "Add or Patch."
        )

    def describe(self) -> dict[str, Any]:
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return {**super().to_dict(), "kind": OWN_FUNCTION, "function": name}
