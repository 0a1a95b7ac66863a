"""Request for a benchmark run: validated before it starts, and converted to a command line.

Does not import Streamlit, and starts no processes.
"""

import importlib.util
import re
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.checkpoint import read_config
from workbench.errors import DataError, MissingExtraError
from workbench.hooks.intervention_options import InterventionOptions, described
from workbench.provenance import display_name

WORKBENCH = (sys.executable, "-P", "-m", "workbench")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class EvalRequest:
    """A benchmark run as entered on the page; `checked` validates it.

    `ablate` and `rope_scaling` have the syntax of the command's options, such as "L5H3,L2.mlp" and "yarn=4". None means
    the default.
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
        """The request with a name and without surrounding spaces, and notes to show before it starts.

        Raises: DataError, CheckpointError, InterventionError and others for a request that would fail later.
        """
        need_lm_eval()
        from evals import sandbox
        from evals.tasks import presets, registry

        name = self.name.strip() or f"{display_name(Path(self.model))}-{time.strftime('%Y%m%d-%H%M%S')}"
        if not _NAME.fullmatch(name):
            raise DataError(
                f"the name {name!r} is not a valid folder name: use at most 64 letters, digits and _.-, and start with "
                "a letter or a digit."
            )
        if not self.tasks:
            raise DataError("no benchmark is selected; select one under Benchmarks.")
        if self.limit is not None and (self.limit <= 0 or (self.limit > 1 and self.limit != int(self.limit))):
            raise DataError(f"the limit must be a number of questions or a fraction below 1; found {self.limit}.")
        changes = InterventionOptions(None, self.ablate.strip(), "", self.rope_scaling.strip())
        changes.interventions(read_config(self.model))
        tasks = presets.tasks(self.preset, self.tasks, chat=self.chat)
        why_not = {listed.name: listed.missing for listed in benchmarks()}
        for task in tasks:
            if reason := why_not.get(task, "there is no benchmark with this name"):
                raise DataError(f"{task} cannot be run: {reason}.")
        programs = [task for task in tasks if registry.runs_code(task)]
        reason = sandbox.why_unavailable() if programs else None
        if reason and programs == list(tasks):
            raise DataError(f"{', '.join(programs)} runs generated code, but no sandbox is available: {reason}")
        notes = [f"{', '.join(programs)} will be skipped: no sandbox is available ({reason})."] if reason else []
        return replace(self, name=name, ablate=changes.ablate, rope_scaling=changes.rope_scaling), notes

    def command(self, output: Path) -> list[str]:
        """The argument vector. Each value is joined to its option with =, so that it cannot be read as an option."""
        options: dict[str, object] = {
            "--model": self.model, "--tasks": ",".join(self.tasks), "--output": output,
            "--limit": None if self.limit is None else f"{self.limit:g}", "--num_fewshot": self.num_fewshot,
            "--preset": self.preset, "--ablate": self.ablate or None, "--rope_scaling": self.rope_scaling or None,
            "--seed": self.seed,
        }  # fmt: skip
        words = [f"{option}={value}" for option, value in options.items() if value is not None]
        return [*WORKBENCH, "eval", "run", *words, *(["--apply_chat_template"] if self.chat else [])]

    def settings(self) -> dict[str, Any]:
        """The settings that the page shows for a job."""
        changes = InterventionOptions(None, self.ablate, "", self.rope_scaling).interventions(read_config(self.model))
        options = {key: getattr(self, key) for key in ("model", "limit", "num_fewshot", "preset", "chat", "seed")}
        return options | {"tasks": list(self.tasks), "changes": described(changes)}


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, and what is missing to run it: None if its dataset is available."""

    name: str
    missing: str | None


def need_lm_eval() -> None:
    """Raises: MissingExtraError if benchmarks cannot be run in this environment."""
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError("lm_eval", "eval")


def benchmarks() -> list[Benchmark]:
    """Every known benchmark; those whose datasets are available come first."""
    from evals.tasks import availability, local_data

    folder = local_data.folder(None)
    searched = local_data.home() if folder is None else folder
    listed = [Benchmark(row.name, _missing(row.data, row.source, searched)) for row in availability.benchmarks(folder)]
    return sorted(listed, key=lambda benchmark: (benchmark.missing is not None, benchmark.name))


def _missing(state: str, source: str, folder: Path) -> str | None:
    if state in ("embedded", "here"):
        return None
    from evals.tasks import local_data

    sources = source.split(", ")
    argument = "FOLDER" if all(map(local_data.readable, sources)) else f"{sources[0]}=FOLDER"
    part = "a part of " if state == "partly" else ""
    return f"{part}{source} is not in {folder}; add it with `workbench eval prepare {argument}`"
