"""Finished evaluations on disk, in lm-eval's own files: writing them whole, finding them again, reading
them as tables.

A run is one `results_<time>.json` with a `samples_<task>_<time>.jsonl` beside it for each task; runs of
lm-eval itself read just as well. Knows nothing of models, and imports no lm_eval.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals import stats
from evals.results import sample_rows
from workbench.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

PROVENANCE = "workbench"  # our own part of lm-eval's result file
PROPORTIONS = ("acc", "exact_match", "pass@1", "acc_norm", "acc_bytes", "acc_mutual_info")


@dataclass(frozen=True)
class Score:
    """One metric of one task or group.

    Units: value, low and high as the metric has them (a proportion for acc, exact_match and pass@1); low
    and high bound the 95% interval: Wilson's for proportions, by resampling problems for pass@k of several
    samples, else from the standard error. `average` says how a group was put together: "micro" over
    questions, "macro" over tasks, "own" otherwise, by the group's own rule; "" for a single task.
    """

    task: str
    metric: str
    filter: str
    average: str
    shots: int | None
    n: int
    value: float
    stderr: float | None
    low: float | None
    high: float | None

    @property
    def proportion(self) -> bool:
        """Whether it is shown in per cent."""
        return self.metric in PROPORTIONS or self.metric.startswith("pass@")

    @property
    def label(self) -> str:
        """The metric with its filter, where the filter tells two of a task's scores apart."""
        parts = (self.metric, self.average, "" if self.filter in ("none", "create_test") else self.filter)
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Run:
    """One finished evaluation. `cluster` and `clustered_scores` are set by `evals.compare.clustered`: a field of the
    questions' documents, and the scores with intervals over the values of that field."""

    path: Path
    data: dict[str, Any]
    cluster: str | None = None
    clustered_scores: tuple[Score, ...] | None = None

    @property
    def stamp(self) -> str:
        """The time in its files' names, which ties samples to results."""
        return self.path.stem.removeprefix("results_")

    @property
    def name(self) -> str:
        return f"{self.path.parent.name}/{self.stamp}"

    @property
    def date(self) -> datetime | None:
        date = self.data.get("date")
        return datetime.fromtimestamp(date) if isinstance(date, int | float) else None

    @property
    def provenance(self) -> dict[str, Any]:
        """Model, hashes, dtype, device, seed, commit, versions; empty for runs of lm-eval's own command."""
        own = self.data.get(PROVENANCE)
        return own if isinstance(own, dict) else {}

    @property
    def model(self) -> str:
        named = self.data.get("model_name") or self.data.get("config", {}).get("model")
        return str(named or "unknown")

    @property
    def not_run(self) -> dict[str, str]:
        """Tasks that were asked for and left out, each with the reason."""
        return dict(self.provenance.get("not_run", {}))

    @property
    def tasks(self) -> list[str]:
        """The tasks that have samples, groups not among them."""
        return list(self.data.get("configs", {}))

    @cached_property
    def scores(self) -> list[Score]:
        """Every metric of every group and task, groups first.

        Raises: DataError if the file has no results of the expected form.
        """
        if self.clustered_scores is not None:
            return list(self.clustered_scores)
        try:
            return _scores(self.data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{self.path}: not lm-eval's results ({type(error).__name__}: {error}).") from error

    def frame(self) -> pd.DataFrame:
        """The scores as a table: task, metric, value, stderr, n, low, high, filter, average, shots, label."""
        import pandas as pd

        columns = ["task", "metric", "value", "stderr", "n", "low", "high", "filter", "average", "shots", "label"]
        rows = [{**vars(score), "label": score.label} for score in self.scores]
        return pd.DataFrame(rows, columns=columns).astype({"shots": "Int64"})

    def samples(self, task: str) -> pd.DataFrame:
        """One row a question and filter: doc, prompt, target, answer, correct (by its first metric), scores (by
        all), and the token ids that replay it.

        Columns of multiple choice: choices, logprobs (nats), answer (its index); of generation: answer (the
        text after the filter), response (before it), generated_ids, generated_logprobs (nats); of code besides:
        verdict, message, stderr. `prompt_ids` and `choice_ids` are None in runs that did not record them.

        Raises: DataError if there are no samples of this task, or a line is damaged (its number is named).
        """
        import pandas as pd

        path = self.path.with_name(f"samples_{task}_{self.stamp}.jsonl")
        if not path.is_file():
            raise DataError(f"{self.path.name} has no samples of {task!r} beside it; expected {path.name}.")
        rows = []
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    rows.append(sample_rows.row(json.loads(line)))
                except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                    raise DataError(
                        f"{path}: line {number} is no sample ({type(error).__name__}: {error}); was it cut short?"
                    ) from error
        return pd.DataFrame(rows)


def read_run(path: Path) -> Run:
    """The run of a results file.

    Raises: DataError if it cannot be read or is not JSON of the expected form.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise DataError(f"{path} is not whole JSON ({error}); delete it, or run the evaluation again.") from error
    if not isinstance(data, dict) or not isinstance(data.get("results"), dict):
        raise DataError(f"{path} holds no results of an evaluation.")
    return Run(path, data)


def scan(root: str | Path) -> tuple[list[Run], list[str]]:
    """Every run below a folder, newest first, and what was wrong with each file that could not be read."""
    runs, problems = [], []
    for path in Path(root).rglob("results_*.json"):
        try:
            run = read_run(path)
            _ = run.scores
            runs.append(run)
        except DataError as error:
            problems.append(str(error))
    return sorted(runs, key=lambda run: run.stamp, reverse=True), problems


def list_runs(root: str | Path) -> list[Run]:
    """Every readable run below a folder, newest first; an absent folder holds none."""
    return scan(root)[0]


def leaves_of(name: str, children: Mapping[str, Iterable[str]]) -> list[str]:
    """The tasks of a group, those of its groups among them; a task is its own."""
    under = list(children.get(name, ()))
    return [leaf for child in under for leaf in leaves_of(child, children)] if under else [name]


def question_counts(run: Run, name: str) -> tuple[int, int]:
    """How many questions of a task or group were asked, and how many it has; as many where a run does not say."""
    counts = run.data.get("n-samples") or {}
    found = [counts[leaf] for leaf in leaves_of(name, run.data.get("group_subtasks") or {}) if leaf in counts]
    return sum(int(one["effective"]) for one in found), sum(int(one["original"]) for one in found)


def write(
    folder: Path,
    data: Mapping[str, Any],
    samples: Mapping[str, Iterable[Mapping[str, Any]]],
    *,
    at: float | None = None,
) -> Run:
    """Write a run's files: samples first, so that a results file never lacks them.

    at: the time in their names, in seconds since 1970, now if None; files of the same time are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    moment = datetime.fromtimestamp(time.time() if at is None else at)
    stamp = moment.isoformat(timespec="microseconds").replace(":", "-")
    for task, rows in samples.items():
        lines = (json.dumps(row, ensure_ascii=False, default=_text) + "\n" for row in rows)
        _write(folder / f"samples_{task}_{stamp}.jsonl", lines)
    path = folder / f"results_{stamp}.json"
    _write(path, [json.dumps(data, indent=2, ensure_ascii=False, default=_text)])
    return read_run(path)


def _text(value: Any) -> str:
    """What JSON has no form for: functions by their name, which is the same in every process."""
    return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else str(value)


def _write(path: Path, parts: Iterable[str]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _scores(data: dict[str, Any]) -> list[Score]:
    children: dict[str, list[str]] = data.get("group_subtasks") or {}
    results: dict[str, dict[str, Any]] = data["results"]
    shots: dict[str, Any] = data.get("n-shot") or {}
    programs, configs = _programs(data), data.get("configs") or {}
    effective = {name: int(count["effective"]) for name, count in (data.get("n-samples") or {}).items()}

    def counted(leaf: str) -> int:
        return effective.get(leaf, int(results[leaf].get("sample_len", 0)))

    # lm-eval puts a group behind its members.
    groups = [name for name in reversed(results) if children.get(name)]
    found: list[Score] = []
    for name in [*groups, *(name for name in results if name not in groups)]:
        leaves = leaves_of(name, children)
        n = sum(map(counted, leaves))
        for key, value in results[name].items():
            metric, comma, rest = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            given = results[name].get(f"{metric}_stderr,{rest}")
            stderr = float(given) if isinstance(given, int | float) else None
            several = any(int(configs.get(leaf, {}).get("repeats") or 1) > 1 for leaf in leaves)
            if metric.startswith("pass@") and name in programs:
                *_, low, high = stats.pass_at_k_score(programs[name], int(metric.removeprefix("pass@")))
            else:
                low, high = _interval(metric, float(value), stderr, n, several=several)
            used = {shots.get(leaf) for leaf in leaves}
            shot = used.pop() if len(used) == 1 else None
            score = Score(name, metric, rest, "", shot, n, float(value), stderr, low, high)
            if name not in groups:
                found.append(score)
            else:
                having = [leaf for leaf in leaves if isinstance(results[leaf].get(key), int | float)]
                found += _averages(score, [(counted(leaf), results[leaf]) for leaf in having], several=several)
    return found


def _averages(own: Score, parts: list[tuple[int, dict[str, Any]]], *, several: bool) -> list[Score]:
    """A group's score as an average over questions and as one over tasks, whichever of the two lm-eval gave.

    parts: of every task that has the metric, its number of questions and its results.
    """
    key, error = f"{own.metric},{own.filter}", f"{own.metric}_stderr,{own.filter}"
    pairs = [(part[key], part[error] if isinstance(part.get(error), int | float) else 0.0) for _, part in parts]
    sizes, n = [size for size, _ in parts], sum(size for size, _ in parts)
    micro = sum(size * value for size, (value, _) in zip(sizes, pairs, strict=True)) / n if n else math.nan
    macro, spread = stats.macro(pairs) if pairs else (math.nan, math.nan)
    is_micro, is_macro = (math.isclose(own.value, mean, rel_tol=1e-9, abs_tol=1e-12) for mean in (micro, macro))
    if not is_micro and not is_macro:
        low, high = (None, None) if own.stderr is None else stats.normal(own.value, own.stderr)
        return [replace(own, average="own", low=low, high=high)]
    errors = [size * error for size, (_, error) in zip(sizes, pairs, strict=True)]
    pooled = own.stderr if is_micro else math.hypot(*errors) / n
    low, high = _interval(own.metric, micro, pooled, n, several=several)
    found = replace(own, average="micro", n=n, value=micro, stderr=pooled, low=low, high=high)
    low, high = stats.normal(macro, spread)
    if own.proportion:
        low, high = max(0.0, low), min(1.0, high)
    return [found, replace(found, average="macro", value=macro, stderr=spread, low=low, high=high)]


def _programs(data: Mapping[str, Any]) -> dict[str, list[tuple[int, int]]]:
    """Samples and right ones of each problem, of the tasks whose answers are programs; runs of lm-eval's have none."""
    kinds = (data.get(PROVENANCE) or {}).get("programs") or {}
    return {task: [(n, right) for n, right, problems in some for _ in range(problems)] for task, some in kinds.items()}


def _interval(
    metric: str, value: float, stderr: float | None, n: int, *, several: bool
) -> tuple[float | None, float | None]:
    """`several` answers to each question make pass@1 a mean of shares, and no proportion of questions."""
    if metric in PROPORTIONS and 0 <= value <= 1 and n > 0 and not (several and metric == "pass@1"):
        return stats.wilson(value * n, n)
    return (None, None) if stderr is None else stats.normal(value, stderr)
