"""The run beside a run: the plain one that an intervention is compared with, and the command that makes either.

Knows of results and the store; runs nothing.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evals.explain.replay import changes_of, entry_of
from evals.results.provenance import basis
from evals.results.runs import Run, read_run
from evals.store.store import Store, StoredRun
from workbench.errors import DataError
from workbench.hooks.intervention import Intervention
from workbench.hooks.interventions import Ablate, Scale
from workbench.hooks.rope_scaling import RopeScaling

if TYPE_CHECKING:
    from evals.compare.difference import Difference

_FREE = ("output", "batch_size", "interventions")  # of the settings, what makes no other questions of them

_DEFAULTS = {"seed": 1234, "preset": "lm-eval"}


def plain_of(run: Run) -> Run | None:
    """The newest finished run of the same store that asked the same on the same basis without interventions."""
    try:
        mine = entry_of(run)
        with Store.open(run.path.parent, create=False) as store:
            known = store.runs()
    except DataError:
        return None
    for other in known:
        if other.status != "finished" or other.results is None or other.settings["settings"]["interventions"]:
            continue
        if other.id == mine.id or _asked(other) != _asked(mine):
            continue
        try:
            found = read_run(run.path.parent / other.results)
        except DataError:
            continue
        mine_is, its = ((basis(one.provenance), one.provenance.get("dtype")) for one in (run, found))
        if mine_is == its:
            return found
    return None


def _asked(run: StoredRun) -> dict[str, Any]:
    settings = {key: value for key, value in run.settings["settings"].items() if key not in _FREE}
    return {**run.settings, "settings": settings}


def command(run: Run, changes: Sequence[Intervention] = ()) -> str | None:
    """The command that asks the same under other interventions; None where it cannot be given as a command."""
    try:
        asked = entry_of(run).settings
        options = _options(changes)
    except DataError:
        return None
    if asked["model"] is None:
        return None
    settings = asked["settings"]
    words = ["--model", asked["model"], "--tasks", ",".join(settings["tasks"]), "--output", str(run.path.parent)]
    for name in ("device", "dtype"):
        words += [f"--{name}", asked[name]] if asked[name] != "auto" else []
    for name in ("data", "limit", "num_fewshot", "batch_size", "seed", "preset", "samples"):
        given = settings.get(name)
        words += [f"--{name}", f"{given}"] if given is not None and given != _DEFAULTS.get(name) else []
    words += ["--online"] if settings.get("online") else []
    words += ["--apply_chat_template"] if settings.get("chat") else []
    if settings.get("multiturn") is not None:
        words.append("--fewshot_as_multiturn" if settings["multiturn"] else "--no_fewshot_as_multiturn")
    words += ["--system_instruction", settings["system"]] if settings.get("system") else []
    for name in ("gen_kwargs", "limits"):
        words += [f"--{name}", json.dumps(settings[name])] if settings.get(name) else []
    return shlex.join(["workbench", "eval", "run", *words, *options])


def without(run: Run, *heads: tuple[int, int]) -> str | None:
    """The command that asks the same with these heads (layer, head) ablated besides the run's own interventions.

    It compares the two: with a plain run by itself, with any other because it names it.
    """
    own = changes_of(run)
    made = command(run, (*own, *(Ablate(f"L{layer}H{head}") for layer, head in heads)))
    against = ["--against", str(run.provenance["run"])] if own else []
    return None if made is None else " ".join([made, *against])


def _options(changes: Sequence[Intervention]) -> list[str]:
    """Interventions as options. Raises: DataError for one that only a file can hold."""
    parts: dict[str, list[str]] = {"--ablate": [], "--scale": [], "--rope-scaling": []}
    for change in changes:
        given = change.to_dict()
        if isinstance(change, Ablate) and given.keys() == {"kind", "target"}:
            parts["--ablate"].append(change.target)
        elif isinstance(change, Scale) and given.keys() == {"kind", "target", "factor"}:
            parts["--scale"].append(f"{change.target}={_number(change.factor)}")
        elif isinstance(change, RopeScaling) and not parts["--rope-scaling"] and len(given) == 2 and not change.llama3:
            ((name, value),) = ((key, value) for key, value in given.items() if key != "kind")
            parts["--rope-scaling"].append(f"{name}={_number(value)}")
        else:
            raise DataError(f"{given['kind']} cannot be given as an option.")
    return [word for option, values in parts.items() if values for word in (option, ",".join(values))]


def _number(value: float) -> str:
    """All of its digits, and no more."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def compared(plain: Run, changed: Run) -> list[str]:
    """The paired differences that an intervention made, one line a score."""
    from evals.compare.compare import compare

    found = compare(plain, changed)
    return [*(_line(one) for one in found.differences), *(f"note: {note}" for note in found.notes)]


def _line(found: Difference) -> str:
    scale, unit = (1.0, "") if found.only_a is None else (100.0, " points")  # right and wrong answers make per cents
    a, b, value = (scale * x for x in (found.a.value, found.b.value, found.value))
    interval = ""
    if found.low is not None and found.high is not None:
        interval = f" (95% {scale * found.low:+.2f} to {scale * found.high:+.2f})"
    p = "" if found.p is None else f", p {found.p:.2g} by {found.test}"
    counts = ""
    if found.only_a is not None:
        counts = f", {found.only_b} became right and {found.only_a} wrong"
    label = f"{found.a.task} {found.a.label}"
    return f"{label}: {a:.2f} plain, {b:.2f} changed, {value:+.2f}{unit}{interval}{p}, n {found.a.n}{counts}"
