"""Two runs of the same questions: how much better one is, whether that can be chance, and where they part.

Only questions that both runs answered count, on both sides. Knows of results, nothing of models.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from evals.compare import matching
from evals.compare.difference import Difference, Part, holm_adjusted, paired_difference
from evals.compare.matching import Paired
from evals.results import provenance
from evals.results.runs import Run, leaves_of
from workbench.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Sample:
    """A question that two runs answered differently. `right` is the run whose answer is better, A or B; "" if
    neither's is.

    Units: logprobs of the choices, and margins (right choice less the best other), in nats; None for other answers.
    """

    task: str
    filter: str
    metric: str
    doc_id: int
    right: str
    doc: Any
    target: str
    same_prompt: bool
    answer_a: Any
    answer_b: Any
    logprobs_a: list[float] | None
    logprobs_b: list[float] | None
    margin_a: float | None
    margin_b: float | None

    @property
    def question(self) -> Any:
        """The question's own words, or its whole document where no field of it is known to hold them."""
        doc = self.doc
        if not isinstance(doc, dict):
            return doc
        return next((doc[key] for key in ("question", "prompt") if key in doc), doc)


@dataclass(frozen=True)
class Comparison:
    """What two runs differ in. Differences are b less a, groups before tasks; of the samples, those that only one run
    has right stand first; origins are what decides scores and is not the same, as (name, of a, of b)."""

    a: Run
    b: Run
    differences: tuple[Difference, ...]
    samples: tuple[Sample, ...]
    origins: tuple[tuple[str, Any, Any], ...]
    notes: tuple[str, ...]

    def frame(self) -> pd.DataFrame:
        """One row a metric: task, metric, filter, average, n, both scores with intervals and shots, and the difference
        with its own, tests and smallest detectable size."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `frame`, with None for what is not known."""
        return [_row(found) for found in self.differences]

    def samples_frame(self) -> pd.DataFrame:
        """One row a sample, with the fields of `Sample` as columns."""
        import pandas as pd

        return pd.DataFrame([vars(sample) for sample in self.samples], columns=[field.name for field in fields(Sample)])


def compare(a: Run, b: Run, *, cluster: str | None = None, seed: int = 0) -> Comparison:
    """Compare b with a on the questions that both answered.

    `cluster` names a field of the questions' documents that several of them share, as a passage: where a task has it,
    intervals and tests count passages instead of questions. p values are adjusted by Holm's method for all tasks and
    groups that stand for themselves, and for the members of each group among themselves; macro averages by themselves.

    Raises: DataError if the runs are one, have no task or question in common, or no task has the cluster's field.
    """
    if a.path.resolve() == b.path.resolve():
        raise DataError(f"{a.path} was given twice; compare two runs.")
    pairs, notes = _pairs(a, b)
    notes += _no_means(a, b, pairs)
    found = list(_differences(a, b, pairs, cluster, seed))
    if cluster is not None and not any(difference.test == "clustered" for difference in found):
        known = sorted({key for one in pairs.values() for key in _fields(one)})
        raise DataError(f"no task's documents all have the field {cluster!r}; there are {', '.join(known) or 'none'}.")
    lower = {task for task, better in (a.data.get("higher_is_better") or {}).items() if not all(better.values())}
    samples = [sample for one in pairs.values() for sample in _samples(one, -1 if one.task in lower else 1)]
    samples.sort(key=lambda sample: sample.right == "")  # stable: tasks and questions keep their order
    families = _families(a)
    found = holm_adjusted(found, [(families[one.a.task], one.a.average == "macro") for one in found])
    return Comparison(a, b, tuple(found), tuple(samples), provenance.differences(a, b), tuple(notes))


def _pairs(a: Run, b: Run) -> tuple[dict[str, Paired], list[str]]:
    notes: list[str] = []
    refused: list[str] = []
    for name, mine, theirs in (("A", a, b), ("B", b, a)):
        if alone := [task for task in mine.tasks if task not in theirs.tasks]:
            notes.append(f"only {name} has {', '.join(alone)}")
    pairs: dict[str, Paired] = {}
    for task in (task for task in a.tasks if task in b.tasks):
        try:
            pairs[task] = matching.pair(a, b, task)
        except DataError as error:
            refused.append(str(error))
    if not pairs:
        raise DataError(refused[0] if refused else f"the runs have no task in common: {'; '.join(notes)}.")
    return pairs, [*notes, *refused, *(note for one in pairs.values() for note in one.notes)]


def _no_means(a: Run, b: Run, pairs: dict[str, Paired]) -> list[str]:
    """Metrics whose score is not the mean over its questions, as a perplexity; they are taken out of the pairs."""
    notes = []
    for run, side in ((a, 0), (b, 1)):
        for score in run.scores:
            if score.average == "own":
                notes.append(f"{score.task}: {score.label} is put together by a rule of its own and is not compared")
            key = score.metric, score.filter
            mean = pairs[score.task].means[side].get(key) if score.task in pairs else None
            if mean is None or abs(mean - score.value) <= 1e-6 * max(1.0, abs(mean)):
                continue
            notes.append(
                f"{score.task}: {score.label} is no mean over its samples ({score.value:.6g} in {run.path.name}, "
                f"{mean:.6g} over them) and is not compared"
            )
            for row in (*pairs[score.task].a, *pairs[score.task].b):
                if row["filter"] == score.filter:
                    row["scores"].pop(score.metric, None)
    return list(dict.fromkeys(notes))


def _differences(a: Run, b: Run, pairs: Mapping[str, Paired], cluster: str | None, seed: int) -> Iterable[Difference]:
    children: dict[str, list[str]] = a.data.get("group_subtasks") or {}
    others = {(score.task, score.metric, score.filter, score.average): score for score in b.scores}
    for score in (score for score in a.scores if score.average != "own"):
        parts = []
        for task in (task for task in leaves_of(score.task, children) if task in pairs):
            first, second, rows = pairs[task].values(score.metric, score.filter)
            if len(first):
                parts.append(Part(first, second, None if cluster is None else matching.clusters(rows, cluster)))
        other = others.get((score.task, score.metric, score.filter, score.average))
        if parts and other is not None:
            yield paired_difference(score, other, parts, seed=seed)


def _families(run: Run) -> dict[str, Hashable]:
    """What each task and group is adjusted with: all that no group holds, or the group's tasks, or its groups."""
    children: dict[str, list[str]] = run.data.get("group_subtasks") or {}
    parents = {child: name for name, under in children.items() for child in under}
    found: dict[str, Hashable] = {}
    for name in {score.task for score in run.scores}:
        root = name
        while root in parents:
            root = parents[root]
        found[name] = "" if root == name else (root, bool(children.get(name)))
    return found


def _samples(one: Paired, sign: int) -> Iterable[Sample]:
    """The questions answered differently; `sign` is -1 where less is better."""
    for a, b in zip(one.a, one.b, strict=True):
        metric = next((name for name in a["scores"] if name in b["scores"]), None)
        if metric is None:
            continue
        better = sign * (b["scores"][metric] - a["scores"][metric])
        if better or a["answer"] != b["answer"]:
            yield Sample(
                task=one.task, filter=a["filter"], metric=metric, doc_id=int(a["doc_id"]),
                right="B" if better > 0 else "A" if better else "",
                doc=a["doc"], target=_target(a), same_prompt=a["prompt"] == b["prompt"],
                answer_a=_answer(a), answer_b=_answer(b), logprobs_a=_logprobs(a), logprobs_b=_logprobs(b),
                margin_a=matching.margin(a), margin_b=matching.margin(b),
            )  # fmt: skip


def _target(row: Mapping[str, Any]) -> str:
    """What was right: a choice's text as `_answer` gives it, or the task's target."""
    number = matching.gold(dict(row))
    return str(row["target"]) if number is None else str(row["choices"][number]).strip()


def _answer(row: Mapping[str, Any]) -> Any:
    """What was said: a choice's text, or the answer after the filter."""
    choices = row.get("choices")
    return choices[row["answer"]].strip() if isinstance(choices, list) else row["answer"]


def _logprobs(row: Mapping[str, Any]) -> list[float] | None:
    return list(row["logprobs"]) if isinstance(row.get("choices"), list) else None


def _fields(one: Paired) -> set[str]:
    return set(one.a[0]["doc"]) if isinstance(one.a[0]["doc"], Mapping) else set()


def _row(found: Difference) -> dict[str, Any]:
    names = {name: getattr(found.a, name) for name in ("task", "metric", "filter", "average", "n")}
    sides: dict[str, Any] = {}
    for side, score in (("a", found.a), ("b", found.b)):
        sides |= {f"shots_{side}": score.shots, side: score.value, f"{side}_low": score.low, f"{side}_high": score.high}
    rest = {name: value for name, value in vars(found).items() if name not in ("a", "b", "value")}
    return {**names, **sides, "difference": found.value, **rest}
