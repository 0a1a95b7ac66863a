"""What a run does differently from what its settings ask, and the generation arguments that take effect."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from evals.models.generation_args import notes
from evals.run.settings import OURS
from evals.runtime.printing import echo

if TYPE_CHECKING:
    from evals.models.lm_eval_backend import Backend
    from evals.models.workbench_lm import WorkbenchLM
    from evals.run.settings import Settings
    from evals.tasks.registry import LoadedTasks

_NAMED = 3  # tasks named in a note


def of_generation(loaded: LoadedTasks, settings: Settings, lm: WorkbenchLM | Backend) -> list[str]:
    """One sentence for each generation argument without effect and each answer length that does not fit.

    A sentence names the tasks that it is true for.
    """
    tasks_of: dict[str, list[str]] = {}
    for name, task in _generating(loaded).items():
        context = lm.max_length if settings.backend == OURS else None
        arguments, repeats = task.get_config("generation_kwargs") or {}, int(task.get_config("repeats") or 1)
        for note in notes(settings.gen_kwargs, arguments, context=context, repeats=repeats):
            tasks_of.setdefault(note, []).append(name)
    return [f"{_names(names)}: {note}" for note, names in tasks_of.items()]


def warn(loaded: LoadedTasks, settings: Settings, lm: WorkbenchLM | Backend) -> None:
    for note in of_generation(loaded, settings, lm):
        echo(note, err=True)


def record(loaded: LoadedTasks, settings: Settings, lm: WorkbenchLM | Backend) -> dict[str, Any]:
    """The notes, and the arguments that each task's answers were generated with, for a run's provenance.

    The arguments are known for the workbench's own model only.
    """
    from evals.models.workbench_lm import generation_args

    effective = {}
    if settings.backend == OURS:
        for name, task in _generating(loaded).items():
            arguments = dict(task.get_config("generation_kwargs") or {})
            effective[name] = generation_args(arguments, lm.max_length or sys.maxsize).key
    return {"notes": of_generation(loaded, settings, lm), "generation": effective}


def _generating(loaded: LoadedTasks) -> dict[str, Any]:
    return {name: task for name, task in loaded.tasks.items() if task.OUTPUT_TYPE == "generate_until"}


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
