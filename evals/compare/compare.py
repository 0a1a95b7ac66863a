"""Comparison of two runs: paired differences of scores, significance tests, and the questions answered differently.

Only questions that both runs answered are counted. Reads results; does not use models.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from evals.compare import matching
from evals.compare.difference import Difference, Part, holm_adjusted, paired_difference
from evals.compare.matching import MatchedSamples
from evals.results import provenance
from evals.results.runs import Run, leaves_of
from workbench.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Sample:
    """A question that two runs answered differently. `right` is the run with the better answer, A or B; "" if the
    answers are equally good.

    Units: logprobs of the choices, and margins (right choice minus the best other choice), in nats; None for answers
    that are not multiple choice.
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
        """The text of the question, or the whole document if it has no field `question` or `prompt`."""
        doc = self.doc
        if not isinstance(doc, dict):
            return doc
        return next((doc[key] for key in ("question", "prompt") if key in doc), doc)


@dataclass(frozen=True)
class Comparison:
    """The differences between two runs. Differences are b minus a, groups before tasks. Samples that only one run
    answered correctly come first. `origins` has the settings that can change scores and are not the same, as
    (name, value in a, value in b)."""

    a: Run
    b: Run
    differences: tuple[Difference, ...]
    samples: tuple[Sample, ...]
    origins: tuple[tuple[str, Any, Any], ...]
    notes: tuple[str, ...]

    def frame(self) -> pd.DataFrame:
        """One row per metric: task, metric, filter, average, n, both scores with intervals and shots, and the
        difference with its interval, tests and minimum detectable effect."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `frame`, with None for unknown values."""
        return [_row(difference) for difference in self.differences]

    def samples_frame(self) -> pd.DataFrame:
        """One row per sample, with the fields of `Sample` as columns."""
        import pandas as pd

        return pd.DataFrame([vars(sample) for sample in self.samples], columns=[field.name for field in fields(Sample)])


def compare(a: Run, b: Run, *, cluster: str | None = None, seed: int = 0) -> Comparison:
    """Compare b with a on the questions that both answered.

    cluster: a field of the questions' documents that several questions share, for example a passage. In tasks that
    have the field, intervals and tests count passages instead of questions.

    p values are adjusted with Holm's method within families: all tasks and groups at the top level are one family, the
    members of each group another. Macro averages are separate families.

    Raises: DataError if both runs are the same run, if they have no task or question in common, or if no task has the
            cluster field.
    """
    if a.path.resolve() == b.path.resolve():
        raise DataError(f"{a.path} was given twice; name two different runs.")
    pairs, notes = _matched_tasks(a, b)
    notes += _drop_non_means(a, b, pairs)
    differences = list(_differences(a, b, pairs, cluster, seed))
    if cluster is not None and not any(difference.test == "clustered" for difference in differences):
        known = sorted({key for paired in pairs.values() for key in _document_fields(paired)})
        raise DataError(
            f"no task has the field {cluster!r} in all of its documents; the fields are: {', '.join(known) or 'none'}."
        )
    lower = {task for task, better in (a.data.get("higher_is_better") or {}).items() if not all(better.values())}
    samples = [sample for paired in pairs.values() for sample in _samples(paired, -1 if paired.task in lower else 1)]
    samples.sort(key=lambda sample: sample.right == "")  # stable: tasks and questions keep their order
    families = _families(a)
    differences = holm_adjusted(
        differences, [(families[paired.a.task], paired.a.average == "macro") for paired in differences]
    )
    return Comparison(a, b, tuple(differences), tuple(samples), provenance.differences(a, b), tuple(notes))


def _matched_tasks(a: Run, b: Run) -> tuple[dict[str, MatchedSamples], list[str]]:
    notes: list[str] = []
    refused: list[str] = []
    for name, mine, theirs in (("A", a, b), ("B", b, a)):
        if alone := [task for task in mine.tasks if task not in theirs.tasks]:
            notes.append(f"only {name} has {', '.join(alone)}")
    pairs: dict[str, MatchedSamples] = {}
    for task in (task for task in a.tasks if task in b.tasks):
        try:
            pairs[task] = matching.match_samples(a, b, task)
        except DataError as error:
            refused.append(str(error))
    if not pairs:
        raise DataError(refused[0] if refused else f"the runs have no task in common: {'; '.join(notes)}.")
    return pairs, [*notes, *refused, *(note for paired in pairs.values() for note in paired.notes)]


def _drop_non_means(a: Run, b: Run, pairs: dict[str, MatchedSamples]) -> list[str]:
    """Notes on metrics whose score is not the mean over its questions, as a perplexity. Removes them from the pairs."""
    notes = []
    for run, side in ((a, 0), (b, 1)):
        for score in run.scores:
            if score.average == "group_rule":
                notes.append(f"{score.task}: {score.label} is averaged by the group's own rule and is not compared")
            key = score.metric, score.filter
            mean = pairs[score.task].means[side].get(key) if score.task in pairs else None
            if mean is None or abs(mean - score.value) <= 1e-6 * max(1.0, abs(mean)):
                continue
            notes.append(
                f"{score.task}: {score.label} is not the mean over its samples (score {score.value:.6g} in "
                f"{run.path.name}, mean {mean:.6g}) and is not compared"
            )
            for row in (*pairs[score.task].a, *pairs[score.task].b):
                if row["filter"] == score.filter:
                    row["scores"].pop(score.metric, None)
    return list(dict.fromkeys(notes))


def _differences(
    a: Run, b: Run, pairs: Mapping[str, MatchedSamples], cluster: str | None, seed: int
) -> Iterable[Difference]:
    children: dict[str, list[str]] = a.data.get("group_subtasks") or {}
    others = {(score.task, score.metric, score.filter, score.average): score for score in b.scores}
    for score in (score for score in a.scores if score.average != "group_rule"):
        parts = []
        for task in (task for task in leaves_of(score.task, children) if task in pairs):
            first, second, rows = pairs[task].values(score.metric, score.filter)
            if len(first):
                parts.append(Part(first, second, None if cluster is None else matching.clusters(rows, cluster)))
        other = others.get((score.task, score.metric, score.filter, score.average))
        if parts and other is not None:
            yield paired_difference(score, other, parts, seed=seed)


def _families(run: Run) -> dict[str, Hashable]:
    """The family of comparisons of each task and group: the top level, or the tasks or the groups of one root group."""
    children: dict[str, list[str]] = run.data.get("group_subtasks") or {}
    parents = {child: name for name, under in children.items() for child in under}
    families: dict[str, Hashable] = {}
    for name in {score.task for score in run.scores}:
        root = name
        while root in parents:
            root = parents[root]
        families[name] = "" if root == name else (root, bool(children.get(name)))
    return families


def _samples(paired: MatchedSamples, sign: int) -> Iterable[Sample]:
    """The questions answered differently; `sign` is -1 for metrics where lower is better."""
    for a, b in zip(paired.a, paired.b, strict=True):
        metric = next((name for name in a["scores"] if name in b["scores"]), None)
        if metric is None:
            continue
        better = sign * (b["scores"][metric] - a["scores"][metric])
        if better or a["answer"] != b["answer"]:
            yield Sample(
                task=paired.task, filter=a["filter"], metric=metric, doc_id=int(a["doc_id"]),
                right="B" if better > 0 else "A" if better else "",
                doc=a["doc"], target=_target(a), same_prompt=a["prompt"] == b["prompt"],
                answer_a=_answer(a), answer_b=_answer(b), logprobs_a=_logprobs(a), logprobs_b=_logprobs(b),
                margin_a=matching.margin(a), margin_b=matching.margin(b),
            )  # fmt: skip


def _target(row: Mapping[str, Any]) -> str:
    """The right answer: the text of a choice as `_answer` gives it, or the task's target."""
    number = matching.gold(dict(row))
    return str(row["target"]) if number is None else str(row["choices"][number]).strip()


def _answer(row: Mapping[str, Any]) -> Any:
    """The answer given: the text of a choice, or the answer after the filter."""
    if row.get("not_finite") is True:
        return None
    choices = row.get("choices")
    return choices[row["answer"]].strip() if isinstance(choices, list) else row["answer"]


def _logprobs(row: Mapping[str, Any]) -> list[float] | None:
    return list(row["logprobs"]) if isinstance(row.get("choices"), list) else None


def _document_fields(paired: MatchedSamples) -> set[str]:
    return set(paired.a[0]["doc"]) if isinstance(paired.a[0]["doc"], Mapping) else set()


def _row(difference: Difference) -> dict[str, Any]:
    names = {name: getattr(difference.a, name) for name in ("task", "metric", "filter", "average", "n")}
    sides: dict[str, Any] = {}
    for side, score in (("a", difference.a), ("b", difference.b)):
        sides |= {f"shots_{side}": score.shots, side: score.value, f"{side}_low": score.low, f"{side}_high": score.high}
    others = {name: value for name, value in vars(difference).items() if name not in ("a", "b", "value")}
    return {**names, **sides, "difference": difference.value, **others}
