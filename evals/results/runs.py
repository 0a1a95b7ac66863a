"""Finished runs on disk, in lm-eval's file format: atomic writing, finding, reading as tables.

A run is one `results_<time>.json` and, for each task, one `samples_<task>_<time>.jsonl` in the same folder. Runs made
by lm-eval itself can be read too. Does not use models or import lm_eval.
"""

from __future__ import annotations

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
from evals.results import form, json_text, sample_rows
from workbench.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

PROVENANCE = "workbench"  # key of our record in lm-eval's results file
PROPORTIONS = ("acc", "exact_match", "pass@1", "acc_norm", "acc_bytes", "acc_mutual_info")


@dataclass(frozen=True)
class Score:
    """One metric of one task or group.

    Units: value, low and high in the metric's unit (a proportion for acc, exact_match and pass@1). low and high bound
    the 95% interval: Wilson's for proportions, by resampling problems for pass@k of several samples, otherwise from the
    standard error. `average` says how a group's score was averaged: "micro" over questions, "macro" over tasks,
    "group_rule" by another rule of the group; "" for a single task.
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
        """Whether the value is a proportion, shown in per cent."""
        return self.metric in PROPORTIONS or self.metric.startswith("pass@")

    @property
    def label(self) -> str:
        """The metric with its average, and with its filter unless that is a default one."""
        parts = (
            self.metric,
            self.average.replace("_", " "),
            "" if self.filter in ("none", "create_test") else self.filter,
        )
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Run:
    """One finished run. `cluster` and `clustered_scores` are set by `evals.compare.clustered`: a field of the
    questions' documents, and the scores with clustered intervals over that field."""

    path: Path
    data: dict[str, Any]
    cluster: str | None = None
    clustered_scores: tuple[Score, ...] | None = None

    @property
    def stamp(self) -> str:
        """The time in the file names, which links samples to results."""
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
        """Model, hashes, dtype, device, seed, commit, versions; empty for runs made by lm-eval itself."""
        record = self.data.get(PROVENANCE)
        return record if isinstance(record, dict) else {}

    @property
    def model(self) -> str:
        named = self.data.get("model_name") or (self.data.get("config") or {}).get("model")
        return str(named or "unknown")

    @property
    def not_run(self) -> dict[str, str]:
        """Requested tasks that were not run, each with the reason."""
        return {task: str(reason) for task, reason in (self.provenance.get("not_run") or {}).items()}

    @property
    def not_finite(self) -> dict[str, int]:
        """Tasks with questions that are not scored because the logits were not finite, and how many; empty if none."""
        counts = self.provenance.get("not_finite") or {}
        return {str(task): int(count) for task, count in counts.items() if count}

    @property
    def without_score(self) -> list[str]:
        """The tasks of which no question is scored because of that, or because none could be judged."""
        tasks = dict.fromkeys([*self.not_finite, *self.not_judged])
        return [task for task in tasks if question_counts(self, task)[0] == 0]

    @property
    def not_judged(self) -> dict[str, int]:
        """Tasks with questions that are not scored because their tests could not run, and how many; empty if none."""
        counts = self.provenance.get("not_judged") or {}
        return {str(task): int(count) for task, count in counts.items()}

    def not_finite_note(self, task: str) -> str:
        """How many questions of a task with such questions are not scored, and what to do, in one sentence."""
        scored, dtype = question_counts(self, task)[0], self.provenance.get("dtype")
        wider = "bfloat16 or float32" if dtype == "float16" else "float32"
        advice = f"use --dtype {wider}" if dtype != "float32" else "check the weights and the interventions"
        count = self.not_finite[task]
        return (
            f"{task}: {count} of {count + scored} questions are not scored, because the model's logits were not finite "
            f"in {dtype}; {advice}."
        )

    @property
    def tasks(self) -> list[str]:
        """The tasks of the run, without groups."""
        return list(self.data.get("configs") or {})

    @cached_property
    def scores(self) -> list[Score]:
        """Every metric of every group and task, groups first.

        Raises: DataError if the file has no results of the expected form.
        """
        if self.clustered_scores is not None:
            return list(self.clustered_scores)
        try:
            return _scores(self.data)
        except Exception as error:  # the file may come from anywhere
            raise DataError(f"{self.path} is not an lm-eval results file ({type(error).__name__}: {error}).") from error

    def frame(self) -> pd.DataFrame:
        """The scores as a table: task, metric, value, stderr, n, low, high, filter, average, shots, label."""
        import pandas as pd

        columns = ["task", "metric", "value", "stderr", "n", "low", "high", "filter", "average", "shots", "label"]
        rows = [{**vars(score), "label": score.label} for score in self.scores]
        return pd.DataFrame(rows, columns=columns).astype({"shots": "Int64"})

    def samples(self, task: str) -> pd.DataFrame:
        """One row per question and filter: doc, prompt, target, answer, correct (by the first metric), scores (by
        all metrics), and the token ids needed to replay the sample.

        Columns of multiple choice: choices, logprobs (nats), answer (an index). Of generation: answer (the text after
        the filter), response (before the filter), generated_ids, generated_logprobs (nats). Of code, in addition:
        verdict, message, stderr. `prompt_ids` and `choice_ids` are None in runs that did not record them.

        Raises: DataError if there are no samples of this task, or a line is damaged (the message has its number).
        """
        import pandas as pd

        path = self.path.with_name(f"samples_{task}_{self.stamp}.jsonl")
        if not path.is_file():
            raise DataError(f"{self.path.name} has no samples of {task!r}; expected {path.name} in the same folder.")
        rows = []
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    rows.append(sample_rows.row(json_text.loads(line)))
                except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
                    raise DataError(
                        f"{path}: line {number} is not a sample ({type(error).__name__}: {error}); is it incomplete?"
                    ) from error
        return pd.DataFrame(rows)


def read_run(path: Path) -> Run:
    """Read a run from its results file.

    Raises: DataError if the file cannot be read or is not JSON of the expected form.
    """
    try:
        if not path.is_file() and path.exists():
            raise DataError(f"{path} cannot be read: it is not a file.")
        data = json_text.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise DataError(f"{path} is not complete JSON ({error}); delete it, or run the evaluation again.") from error
    if not isinstance(data, dict) or not isinstance(data.get("results"), dict):
        raise DataError(f"{path} does not contain evaluation results.")
    if wrong := form.problem(data, PROVENANCE):
        raise DataError(f"{path} is not an lm-eval results file: its field {wrong!r} does not have the expected form.")
    return Run(path, data)


def scan(root: str | Path) -> tuple[list[Run], list[str]]:
    """All runs below a folder, newest first, and an error message for each file that could not be read."""
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
    """All readable runs below a folder, newest first; empty if the folder does not exist."""
    return scan(root)[0]


def leaves_of(name: str, children: Mapping[str, Iterable[str]]) -> list[str]:
    """The tasks of a group, including those of its subgroups; for a task, the task itself."""
    under = list(children.get(name) or ())
    return [leaf for child in under for leaf in leaves_of(child, children)] if under else [name]


def question_counts(run: Run, name: str) -> tuple[int, int]:
    """How many questions of a task or group were answered, and how many it has in total; (0, 0) if not recorded."""
    counts = run.data.get("n-samples") or {}
    leaves = leaves_of(name, run.data.get("group_subtasks") or {})
    leaf_counts = [counts[leaf] for leaf in leaves if counts.get(leaf)]
    return sum(int(count["effective"]) for count in leaf_counts), sum(int(count["original"]) for count in leaf_counts)


def not_finite_count(run: Run, name: str) -> int:
    """How many questions of a task or group are not scored because the logits were not finite."""
    return sum(run.not_finite.get(leaf, 0) for leaf in leaves_of(name, run.data.get("group_subtasks") or {}))


def write(
    folder: Path,
    data: Mapping[str, Any],
    samples: Mapping[str, Iterable[Mapping[str, Any]]],
    *,
    at: float | None = None,
) -> Run:
    """Write a run's files. Samples are written first, so a results file never exists without them.

    at: the time in the file names, in seconds since 1970, now if None; files of the same time are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    moment = datetime.fromtimestamp(time.time() if at is None else at)
    stamp = moment.isoformat(timespec="microseconds").replace(":", "-")
    for task, rows in samples.items():
        lines = (json_text.dumps(row, ensure_ascii=False, default=_json_default) + "\n" for row in rows)
        _write(folder / f"samples_{task}_{stamp}.jsonl", lines)
    path = folder / f"results_{stamp}.json"
    _write(path, [json_text.dumps(data, indent=2, ensure_ascii=False, default=_json_default)])
    return read_run(path)


def _json_default(value: Any) -> str:
    """JSON text for other objects; functions by their name, which is the same in every process."""
    return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else str(value)


def _write(path: Path, parts: Iterable[str]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _scores(data: dict[str, Any]) -> list[Score]:
    children: dict[str, list[str]] = data.get("group_subtasks") or {}
    results: dict[str, dict[str, Any]] = data["results"]
    shots: dict[str, Any] = data.get("n-shot") or {}
    programs, configs = _programs(data), data.get("configs") or {}
    effective = {name: int(count["effective"]) for name, count in (data.get("n-samples") or {}).items() if count}

    def counted(leaf: str) -> int:
        return effective.get(leaf, int(results[leaf].get("sample_len", 0)))

    # lm-eval lists a group after its members.
    groups = [name for name in reversed(results) if children.get(name)]
    scores: list[Score] = []
    for name in [*groups, *(name for name in results if name not in groups)]:
        leaves = leaves_of(name, children)
        n = sum(map(counted, leaves))
        for key, value in results[name].items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            reported_stderr = results[name].get(f"{metric}_stderr,{filter_name}")
            stderr = float(reported_stderr) if isinstance(reported_stderr, int | float) else None
            several = any(int((configs.get(leaf) or {}).get("repeats") or 1) > 1 for leaf in leaves)
            counts = programs.get(f"{name},{filter_name}", programs.get(name))
            if metric.startswith("pass@") and counts is not None:
                *_, low, high = stats.pass_at_k_score(counts, int(metric.removeprefix("pass@")))
            else:
                low, high = _interval(metric, float(value), stderr, n, several=several)
            shot_counts = {shots.get(leaf) for leaf in leaves}
            shots_used = shot_counts.pop() if len(shot_counts) == 1 else None
            shots_used = shots_used if isinstance(shots_used, int) else None
            score = Score(name, metric, filter_name, "", shots_used, n, float(value), stderr, low, high)
            if name not in groups:
                scores.append(score)
            else:
                having = [leaf for leaf in leaves if isinstance(results[leaf].get(key), int | float)]
                scores += _averages(score, [(counted(leaf), results[leaf]) for leaf in having], several=several)
    return scores


def _averages(score: Score, parts: list[tuple[int, dict[str, Any]]], *, several: bool) -> list[Score]:
    """A group's score as micro and as macro average; lm-eval reports one of the two, and the other is computed.

    If lm-eval's value is neither of them, it is returned alone, as "group_rule".
    parts: the number of questions and the results of every task that has the metric.
    """
    key, error = f"{score.metric},{score.filter}", f"{score.metric}_stderr,{score.filter}"
    pairs = [(part[key], part[error] if isinstance(part.get(error), int | float) else 0.0) for _, part in parts]
    sizes, n = [size for size, _ in parts], sum(size for size, _ in parts)
    micro = sum(size * value for size, (value, _) in zip(sizes, pairs, strict=True)) / n if n else math.nan
    macro, spread = stats.macro(pairs) if pairs else (math.nan, math.nan)
    is_micro, is_macro = (math.isclose(score.value, mean, rel_tol=1e-9, abs_tol=1e-12) for mean in (micro, macro))
    if not is_micro and not is_macro:
        low, high = (None, None) if score.stderr is None else stats.normal(score.value, score.stderr)
        return [replace(score, average="group_rule", low=low, high=high)]
    errors = [size * error for size, (_, error) in zip(sizes, pairs, strict=True)]
    pooled = score.stderr if is_micro else math.hypot(*errors) / n
    low, high = _interval(score.metric, micro, pooled, n, several=several)
    micro_score = replace(score, average="micro", n=n, value=micro, stderr=pooled, low=low, high=high)
    low, high = stats.normal(macro, spread)
    if score.proportion:
        low, high = max(0.0, low), min(1.0, high)
    return [micro_score, replace(micro_score, average="macro", value=macro, stderr=spread, low=low, high=high)]


def _programs(data: Mapping[str, Any]) -> dict[str, list[tuple[int, int]]]:
    """(samples, correct samples) of each problem, for tasks whose answers are programs; empty for lm-eval's runs."""
    kinds = (data.get(PROVENANCE) or {}).get("programs") or {}
    return {
        task: [(n, right) for n, right, problems in counts for _ in range(problems)]
        for task, counts in kinds.items()
        if counts
    }


def _interval(
    metric: str, value: float, stderr: float | None, n: int, *, several: bool
) -> tuple[float | None, float | None]:
    """The 95% interval. With `several` answers per question, pass@1 is a mean of shares, not a proportion."""
    if metric in PROPORTIONS and 0 <= value <= 1 and n > 0 and not (several and metric == "pass@1"):
        return stats.wilson(value * n, n)
    return (None, None) if stderr is None else stats.normal(value, stderr)
