"""Baseline run: the run without interventions that a run is compared with, and the commands that make such runs.

Reads results and the store; runs nothing.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evals.explain.replay import interventions_of, stored_run
from evals.results.provenance import basis
from evals.results.runs import Run, read_run
from evals.store.store import Store, StoredRun
from workbench.errors import DataError
from workbench.hooks.intervention import Intervention
from workbench.hooks.interventions import Ablate, Scale
from workbench.hooks.rope_scaling import RopeScaling

if TYPE_CHECKING:
    from evals.compare.difference import Difference

_IRRELEVANT_SETTINGS = ("output", "batch_size", "interventions")  # they do not change the questions

_DEFAULTS = {"seed": 1234, "preset": "lm-eval"}


def find_baseline(run: Run) -> Run | None:
    """The newest finished run of the same store with the same settings and basis but without interventions."""
    try:
        mine = stored_run(run)
        with Store.open(run.path.parent, create=False) as store:
            stored_runs = store.runs()
    except DataError:
        return None
    for other in stored_runs:
        if other.status != "finished" or other.results is None or other.settings["settings"]["interventions"]:
            continue
        if other.id == mine.id or _request_of(other) != _request_of(mine):
            continue
        try:
            candidate = read_run(run.path.parent / other.results)
        except DataError:
            continue
        basis_of_run, basis_of_candidate = (
            (basis(each.provenance), each.provenance.get("dtype")) for each in (run, candidate)
        )
        if basis_of_run == basis_of_candidate:
            return candidate
    return None


def _request_of(run: StoredRun) -> dict[str, Any]:
    settings = {key: value for key, value in run.settings["settings"].items() if key not in _IRRELEVANT_SETTINGS}
    return {**run.settings, "settings": settings}


def run_command(run: Run, changes: Sequence[Intervention] = ()) -> str | None:
    """The command that repeats the run with other interventions; None if they cannot be written as options."""
    try:
        request = stored_run(run).settings
        options = _options(changes)
    except DataError:
        return None
    if request["model"] is None:
        return None
    settings = request["settings"]
    words = ["--model", request["model"], "--tasks", ",".join(settings["tasks"]), "--output", str(run.path.parent)]
    for name in ("device", "dtype"):
        words += [f"--{name}", request[name]] if request[name] != "auto" else []
    for name in ("adapter", "data", "limit", "num_fewshot", "batch_size", "seed", "preset", "samples"):
        value = settings.get(name)
        words += [f"--{name}", f"{value}"] if value is not None and value != _DEFAULTS.get(name) else []
    words += [word for path in settings.get("include_path") or () for word in ("--include_path", path)]
    words += ["--online"] if settings.get("online") else []
    words += ["--apply_chat_template"] if settings.get("chat") else []
    words += [settings["template"]] if settings.get("template") else []
    words += ["--samples", json.dumps(settings["questions"])] if settings.get("questions") else []
    words += ["--predict_only"] if settings.get("predict_only") else []
    if settings.get("multiturn") is not None:
        words.append("--fewshot_as_multiturn" if settings["multiturn"] else "--no_fewshot_as_multiturn")
    words += ["--system_instruction", settings["system"]] if settings.get("system") else []
    for name in ("gen_kwargs", "limits"):
        words += [f"--{name}", json.dumps(settings[name])] if settings.get(name) else []
    return shlex.join(["workbench", "eval", "run", *words, *options])


def ablation_command(run: Run, *heads: tuple[int, int]) -> str | None:
    """The command that repeats the run with these heads (layer, head) ablated in addition to its interventions.

    The new run is compared with this one: automatically if this one has no interventions, otherwise with --against.
    """
    changes = interventions_of(run)
    base_command = run_command(run, (*changes, *(Ablate(f"L{layer}H{head}") for layer, head in heads)))
    against = ["--against", str(run.provenance["run"])] if changes else []
    return None if base_command is None else " ".join([base_command, *against])


def _options(changes: Sequence[Intervention]) -> list[str]:
    """Interventions as command-line options. Raises: DataError for one that only a file can describe."""
    parts: dict[str, list[str]] = {"--ablate": [], "--scale": [], "--rope-scaling": []}
    for change in changes:
        fields = change.to_dict()
        if isinstance(change, Ablate) and fields.keys() == {"kind", "target"}:
            parts["--ablate"].append(change.target)
        elif isinstance(change, Scale) and fields.keys() == {"kind", "target", "factor"}:
            parts["--scale"].append(f"{change.target}={_number(change.factor)}")
        elif isinstance(change, RopeScaling) and not parts["--rope-scaling"] and _is_one_number(change):
            ((name, value),) = ((key, value) for key, value in fields.items() if key not in ("kind", "truncate"))
            parts["--rope-scaling"].append(f"{name}={_number(value)}")
        else:
            raise DataError(f"{fields['kind']} cannot be given as an option.")
    return [word for option, values in parts.items() if values for word in (option, ",".join(values))]


def _is_one_number(change: RopeScaling) -> bool:
    return len(change.to_dict().keys() - {"kind", "truncate"}) == 1 and change.truncate and not change.llama3


def _number(value: float) -> str:
    """The shortest text with full precision."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def difference_lines(plain: Run, changed: Run) -> list[str]:
    """The paired differences between a plain and a changed run, one line per score."""
    from evals.compare.compare import compare

    comparison = compare(plain, changed)
    return [
        *(_line(difference) for difference in comparison.differences),
        *(f"note: {note}" for note in comparison.notes),
    ]


def _line(difference: Difference) -> str:
    # Right or wrong answers are shown in per cent.
    scale, unit = (1.0, "") if difference.only_a is None else (100.0, " points")
    a, b, value = (scale * x for x in (difference.a.value, difference.b.value, difference.value))
    interval = ""
    if difference.low is not None and difference.high is not None:
        interval = f" (95% {scale * difference.low:+.2f} to {scale * difference.high:+.2f})"
    p = "" if difference.p is None else f", p {difference.p:.2g} by {difference.test}"
    counts = ""
    if difference.only_a is not None:
        counts = f", {difference.only_b} became right and {difference.only_a} wrong"
    label = f"{difference.a.task} {difference.a.label}"
    return f"{label}: {a:.2f} plain, {b:.2f} changed, {value:+.2f}{unit}{interval}{p}, n {difference.a.n}{counts}"
