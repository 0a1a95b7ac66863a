"""Base class of interventions: a change of a run, applied by a subscription and written as JSON."""

from __future__ import annotations

from typing import Any, ClassVar

from workbench.config import ModelConfig
from workbench.hooks.hook_points import Subscription, active, clear

OWN_FUNCTION = "own function"


class Intervention:
    """A change of a run. A subclass with a `kind` is registered under it, so that it can be read from JSON.

    One without JSON (`has_json` false) cannot be made again, so no answer under it is stored.
    """

    kind: ClassVar[str] = ""
    has_json: ClassVar[bool] = True
    kinds: ClassVar[dict[str, type[Intervention]]] = {}

    def __init_subclass__(cls) -> None:
        if cls.kind and cls.has_json:
            Intervention.kinds[cls.kind] = cls

    def subscription(self, config: ModelConfig) -> Subscription:
        """This intervention on a model of this shape.

        Raises: WorkbenchError if it does not fit the model.
        """
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The JSON entry from which `interventions.from_json` makes it again."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """An entry for a record of a run: the JSON entry, if there is one."""
        return self.to_dict()


def active_interventions(model: object = None) -> tuple[Intervention | None, ...]:
    """The interventions active on a model (None: on any) in this context, those entered first first.

    An edit that is not an intervention, such as a probe's own, is None.
    """
    owners = [getattr(s.edit or s.rotary_override, "__self__", None) for s in active(model) if s.changes_the_run]
    return tuple(owner if isinstance(owner, Intervention) else None for owner in owners)


def described_interventions(model: object) -> list[dict[str, Any]]:
    """The interventions active on a model, as entries for a record of its run; an edit without JSON is named so."""
    return [{"kind": OWN_FUNCTION} if i is None else i.describe() for i in active_interventions(model)]


def clear_interventions(model: object = None) -> None:
    """End all interventions on a model (None: on any) in this context; leaving their blocks later does nothing.

    For a notebook whose cells entered blocks by hand. A block that another thread entered is not known here.
    """
    clear(model)
