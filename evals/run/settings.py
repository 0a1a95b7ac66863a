"""Settings of an evaluation; can be written as JSON and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.models.generation_args import GenerationArgs, canonical
from evals.store import foreign_code
from evals.tasks import custom
from workbench.errors import DataError
from workbench.hooks import interventions
from workbench.hooks.intervention import Intervention

if TYPE_CHECKING:
    pass


OURS = "workbench"
_LATER: dict[str, Any] = {"adapter": None, "template": None, "questions": {}, "predict_only": False, "include_path": ()}


@dataclass(frozen=True)
class Settings:
    """Settings of an evaluation.

    `limit` takes the first questions of each task, or that fraction of them if it is below 1; None takes all. `chat`
    uses the model's chat format, with examples as separate turns unless `multiturn` is False; `system` is the system
    prompt. `gen_kwargs` override every task's generation arguments, by lm-eval's names. `preset` is the prompt preset,
    see `presets`; `samples` is the number of programs per problem, `limits` the limits of each program, by the field
    names of `evals.sandbox.Limits`; `online` allows downloads from the hub for data that the data folder does not
    have. `interventions` change the model for the whole run. `backend` selects one of lm-eval's models instead of the
    workbench's, created with `model_args`. `adapter` is the folder of a LoRA adapter, merged into the model's weights.
    `template` is the name of one of several chat templates, and needs `chat`. `questions` are the numbers of the only
    questions that a task asks, by task. `predict_only` writes answers without scores, and runs no program.
    `include_path` are folders with the user's own task definitions, whose names `tasks` may have.
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
    adapter: Path | None = None
    template: str | None = None
    questions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    predict_only: bool = False
    include_path: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.limit is not None and not (0 < self.limit <= 1 or (self.limit > 1 and float(self.limit).is_integer())):
            raise DataError(f"--limit must be a number of questions, or a fraction below 1; found {self.limit}.")
        if self.backend != OURS and self.interventions:
            raise DataError(
                f"interventions work with the workbench's own model only, not with the backend {self.backend!r}."
            )
        if self.backend != OURS and self.adapter is not None:
            raise DataError(f"--adapter works with the workbench's own model only, not with {self.backend!r}.")
        if self.questions and self.limit is not None:
            raise DataError("--limit takes the first questions, --samples chosen ones; use one of them.")
        if self.multiturn and not self.chat:
            raise DataError("--fewshot_as_multiturn needs --apply_chat_template.")
        if self.backend == OURS:
            GenerationArgs.check(self.gen_kwargs)
        object.__setattr__(self, "gen_kwargs", canonical(self.gen_kwargs))
        # Absolute paths: a run may be resumed from a different working directory.
        tasks = (str(Path(name).expanduser().absolute()) if custom.is_path(name) else name for name in self.tasks)
        object.__setattr__(self, "tasks", tuple(tasks))
        if self.adapter is not None:
            object.__setattr__(self, "adapter", Path(self.adapter).expanduser().absolute())
        folders = [self.include_path] if isinstance(self.include_path, str | Path) else self.include_path
        object.__setattr__(self, "include_path", tuple(Path(path).expanduser().absolute() for path in folders))

    @property
    def chat_template(self) -> bool | str:
        """As lm-eval's `apply_chat_template`: whether there is one, or its name."""
        return self.template if self.chat and self.template is not None else self.chat

    @property
    def chats_in_turns(self) -> bool:
        return self.chat if self.multiturn is None else self.multiturn

    @property
    def definitions(self) -> tuple[Path, ...]:
        """The files and folders of task definitions, which choose code that runs on this machine."""
        return foreign_code.definitions(self.tasks, self.include_path)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values; `from_dict` reads them back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        paths = {"output": str(self.output), "data": None if self.data is None else str(self.data.absolute())}
        # Settings that are not used are left out, as in the runs that were stored before these existed.
        for name, unused in _LATER.items():
            if values[name] == unused:
                del values[name]
        if self.adapter is not None:
            paths["adapter"] = str(self.adapter)
        if self.include_path:
            values["include_path"] = [str(path) for path in self.include_path]
        return values | paths | {"interventions": [change.to_dict() for change in self.interventions]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        changes = interventions.from_json(json.dumps(values["interventions"]))
        data = None if values["data"] is None else Path(values["data"])
        converted = {**values, "tasks": tuple(values["tasks"]), "output": Path(values["output"]), "data": data}
        return cls(**{**converted, "interventions": changes})
