"""Settings: what is evaluated, on what, and how. A value that can be written as JSON and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.models.generation_args import Decoding
from evals.tasks import custom
from workbench.errors import DataError
from workbench.hooks import interventions
from workbench.hooks.intervention import Intervention

if TYPE_CHECKING:
    pass


OURS = "workbench"


@dataclass(frozen=True)
class Settings:
    """What is evaluated, on what, and how.

    `limit` takes the first questions of each task, or that fraction of them where it is below 1; None takes all.
    `chat` asks in the model's chat format, the examples as turns of their own unless `multiturn` is False; `system` is
    the system prompt. `gen_kwargs` change how every task's text is generated, by lm-eval's names. `preset` is whose way
    of asking, see `presets`; `samples` how many programs a problem gets, `limits` what each may use, by the names of
    `evals.sandbox.Limits`; `online` lets the hub give what the data folder has not. `interventions` change the model
    for the whole run. `backend` is one of lm-eval's models instead of ours, made with `model_args`.
    """

    tasks: tuple[str, ...]
    output: Path
    data: Path | None = None
    limit: float | None = None
    num_fewshot: int | None = None
    batch_size: int | None = None
    seed: int = 1234
    chat: bool = False
    multiturn: bool | None = None
    system: str | None = None
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    preset: str = "lm-eval"
    samples: int | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    online: bool = False
    interventions: tuple[Intervention, ...] = ()
    backend: str = OURS
    model_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.limit is not None and not (0 < self.limit <= 1 or (self.limit > 1 and float(self.limit).is_integer())):
            raise DataError(f"--limit is a number of questions, or a fraction below 1; found {self.limit}.")
        if self.backend != OURS and self.interventions:
            raise DataError(f"interventions change the workbench's own model; {self.backend!r} cannot have any.")
        if self.multiturn and not self.chat:
            raise DataError("--fewshot_as_multiturn needs --apply_chat_template.")
        if self.backend == OURS:
            Decoding.check(self.gen_kwargs)
        # A run that is resumed somewhere else finds its own suites.
        own = (str(Path(name).expanduser().absolute()) if custom.is_path(name) else name for name in self.tasks)
        object.__setattr__(self, "tasks", tuple(own))

    @property
    def chats_in_turns(self) -> bool:
        return self.chat if self.multiturn is None else self.multiturn

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; `from_dict` gives the same settings back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        paths = {"output": str(self.output), "data": None if self.data is None else str(self.data.absolute())}
        return values | paths | {"interventions": [change.to_dict() for change in self.interventions]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        changes = interventions.from_json(json.dumps(values["interventions"]))
        data = None if values["data"] is None else Path(values["data"])
        given = {**values, "tasks": tuple(values["tasks"]), "output": Path(values["output"]), "data": data}
        return cls(**{**given, "interventions": changes})
