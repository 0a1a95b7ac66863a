"""What a benchmark is asked for with: checked before it starts, and turned into an argument vector.

Knows nothing of Streamlit or processes.
"""

import importlib.util
import re
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evals.interventions import InterventionOptions, described
from workbench.checkpoint import read_config
from workbench.errors import DataError, MissingExtraError

WORKBENCH = (sys.executable, "-P", "-m", "workbench")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class EvalRequest:
    """A benchmark as the page asks for it; `checked` makes it one that can be started.

    `ablate` and `rope_scaling` are the command's own texts, as "L5H3,L2.mlp" and "yarn=4". None leaves the default.
    """

    name: str
    model: str
    tasks: tuple[str, ...]
    limit: float | None = None
    num_fewshot: int | None = None
    preset: str = "lm-eval"
    chat: bool = False
    ablate: str = ""
    rope_scaling: str = ""
    seed: int = 1234

    def checked(self) -> tuple["EvalRequest", list[str]]:
        """The request with a name and without needless spaces, and what should be known before it starts.

        Raises: DataError, CheckpointError, InterventionError and others for whatever would fail later.
        """
        need_lm_eval()
        from evals import sandbox
        from evals.tasks import presets, registry

        name = self.name.strip() or f"{Path(self.model).name}-{time.strftime('%Y%m%d-%H%M%S')}"
        if not _NAME.fullmatch(name):
            raise DataError(
                f"the name {name!r} cannot be a folder's here: give at most 64 letters, digits and _.-, "
                "the first a letter or a digit."
            )
        if not self.tasks:
            raise DataError("no benchmark was chosen; choose one under Benchmarks.")
        if self.limit is not None and (self.limit <= 0 or (self.limit > 1 and self.limit != int(self.limit))):
            raise DataError(f"the limit is a number of questions, or a fraction below 1; found {self.limit}.")
        changes = InterventionOptions(None, self.ablate.strip(), "", self.rope_scaling.strip())
        changes.interventions(read_config(self.model))
        asked = presets.tasks(self.preset, self.tasks, chat=self.chat)
        why_not = {listed.name: listed.missing for listed in benchmarks()}
        for task in asked:
            if reason := why_not.get(task, "no benchmark of this name is known"):
                raise DataError(f"{task} cannot be run: {reason}.")
        programs = [task for task in asked if registry.runs_code(task)]
        reason = sandbox.why_unavailable() if programs else None
        if reason and programs == list(asked):
            raise DataError(f"{', '.join(programs)} runs generated code, and there is no sandbox here: {reason}")
        notes = [f"{', '.join(programs)} will be left out: there is no sandbox here ({reason})."] if reason else []
        return replace(self, name=name, ablate=changes.ablate, rope_scaling=changes.rope_scaling), notes

    def command(self, output: Path) -> list[str]:
        """The argument vector. Every value is joined to its option, so that none can be taken for another option."""
        options: dict[str, object] = {
            "--model": self.model, "--tasks": ",".join(self.tasks), "--output": output,
            "--limit": None if self.limit is None else f"{self.limit:g}", "--num_fewshot": self.num_fewshot,
            "--preset": self.preset, "--ablate": self.ablate or None, "--rope_scaling": self.rope_scaling or None,
            "--seed": self.seed,
        }  # fmt: skip
        given = [f"{option}={value}" for option, value in options.items() if value is not None]
        return [*WORKBENCH, "eval", "run", *given, *(["--apply_chat_template"] if self.chat else [])]

    def about(self) -> dict[str, Any]:
        """What is shown of it."""
        changes = InterventionOptions(None, self.ablate, "", self.rope_scaling).interventions(read_config(self.model))
        kept = {key: getattr(self, key) for key in ("model", "limit", "num_fewshot", "preset", "chat", "seed")}
        return kept | {"tasks": list(self.tasks), "changes": described(changes)}


@dataclass(frozen=True)
class Listed:
    """A benchmark, and why it cannot be run: None if its questions are here."""

    name: str
    missing: str | None


def need_lm_eval() -> None:
    """Raises: MissingExtraError if benchmarks cannot be run in this environment."""
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError("lm_eval", "eval")


def benchmarks() -> list[Listed]:
    """Every benchmark that can be named, those whose questions are here first."""
    from evals.tasks import availability, local_data

    place = local_data.folder(None)
    where = local_data.home() if place is None else place
    found = [Listed(row.name, _missing(row.data, row.source, where)) for row in availability.benchmarks(place)]
    return sorted(found, key=lambda one: (one.missing is not None, one.name))


def _missing(state: str, source: str, where: Path) -> str | None:
    if state in ("embedded", "here"):
        return None
    from evals.tasks import local_data

    sources = source.split(", ")
    given = "FOLDER" if all(map(local_data.readable, sources)) else f"{sources[0]}=FOLDER"
    part = "a part of " if state == "partly" else ""
    return f"{part}{source} is not in {where}; `workbench eval prepare {given}` brings it in"
