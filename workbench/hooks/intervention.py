"""What an intervention is: a change of a run that subscribes to it and can be written as JSON."""

from __future__ import annotations

from typing import Any, ClassVar

from workbench.config import ModelConfig
from workbench.hooks.hook_points import Subscription, active


class Intervention:
    """What a run can be changed by. A subclass that names its `kind` can be read back from JSON by that name."""

    kind: ClassVar[str] = ""
    kinds: ClassVar[dict[str, type[Intervention]]] = {}

    def __init_subclass__(cls) -> None:
        if cls.kind:
            Intervention.kinds[cls.kind] = cls

    def subscription(self, config: ModelConfig) -> Subscription:
        """This intervention on a model of this shape.

        Raises: WorkbenchError where it does not fit the model.
        """
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """What `interventions.from_json` makes it from again."""
        raise NotImplementedError


def active_interventions(model: object) -> tuple[Intervention | None, ...]:
    """The changes in force on a model in this context, the outermost first; None for one that nothing describes."""
    owners = [
        getattr(s.edit or s.rotary_override, "__self__", None) for s in active(model) if s.edit or s.rotary_override
    ]
    return tuple(owner if isinstance(owner, Intervention) else None for owner in owners)
