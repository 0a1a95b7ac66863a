"""Base class of interventions: a change of a run, applied by a subscription and written as JSON."""

from __future__ import annotations

from typing import Any, ClassVar

from workbench.config import ModelConfig
from workbench.hooks.hook_points import Subscription, active


class Intervention:
    """A change of a run. A subclass with a `kind` is registered under it, so that it can be read from JSON."""

    kind: ClassVar[str] = ""
    kinds: ClassVar[dict[str, type[Intervention]]] = {}

    def __init_subclass__(cls) -> None:
        if cls.kind:
            Intervention.kinds[cls.kind] = cls

    def subscription(self, config: ModelConfig) -> Subscription:
        """This intervention on a model of this shape.

        Raises: WorkbenchError if it does not fit the model.
        """
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The JSON entry from which `interventions.from_json` makes it again."""
        raise NotImplementedError


def active_interventions(model: object) -> tuple[Intervention | None, ...]:
    """The interventions active on a model in this context, outermost first; None for an edit that is not one."""
    owners = [
        getattr(s.edit or s.rotary_override, "__self__", None) for s in active(model) if s.edit or s.rotary_override
    ]
    return tuple(owner if isinstance(owner, Intervention) else None for owner in owners)
