"""Explanation of answers: the parts of the model that decided one sample, and the heads behind a task's wrong answers.

The explanation function is a plugin of the entry-point group `workbench.explain`, so that benchmarks do not depend on
probes. It is called with (model, ids, token=, contrast_token=, other_tokens=); its result has `difference`, `residual`,
`frame()` and `lens()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

from evals import stats
from evals.compare import matching
from evals.compare.matching import Row
from evals.explain.decision import Decision, check_decidable, decision
from evals.explain.replay import ReplayedSample, replay_row, sample, under_interventions
from evals.results.runs import Run, leaves_of
from workbench.errors import DataError, MissingExtraError
from workbench.model import Transformer

if TYPE_CHECKING:
    import pandas as pd

ENTRY_POINT_GROUP = "workbench.explain"


class Explained(Protocol):
    """The result of an explanation plugin: a difference of two logits by part, and both tokens by layer.

    `frame()` has one row per part: kind (embed, head, mlp, ...), layer, head, contribution, removed, frozen_error. The
    contributions and `residual` sum to `difference`. `lens()` has one row per layer and token: layer, token, logprob,
    rank, text.
    """

    @property
    def difference(self) -> float: ...

    @property
    def residual(self) -> float: ...

    def frame(self) -> pd.DataFrame: ...

    def lens(self) -> pd.DataFrame: ...


@dataclass(frozen=True)
class Explanation:
    """The explanation of a sample's answer: its replay, the deciding token, and the attribution at that token.

    It explains the stored answer only if `replayed.agrees`.
    """

    replayed: ReplayedSample
    decision: Decision
    attribution: Explained

    def heads(self) -> pd.DataFrame:
        """The heads, those with the largest contribution to `decision.contrast_token` first: layer, head, ..."""
        table = self.attribution.frame()
        return table[table["kind"] == "head"].sort_values("contribution", kind="stable").reset_index(drop=True)


@dataclass(frozen=True)
class HeadRanking:
    """Mean contribution of each part of a model to (right logit minus given logit), over a task's wrong answers.

    `table` has one row per part: kind, layer, head, mean, low, high, against (the share of answers with a negative
    contribution), n; the most harmful first. Low and high bound the 95% interval of the mean over questions, NaN for
    one question. The top parts were selected from many: to test a head, run the benchmark without it.
    """

    task: str
    table: pd.DataFrame
    doc_ids: tuple[int, ...]
    difference: float
    left_out: tuple[str, ...]

    def heads(self) -> pd.DataFrame:
        return self.table[self.table["kind"] == "head"].reset_index(drop=True)


def explainer() -> Callable[..., Explained]:
    """The installed explanation plugin.

    Raises: MissingExtraError if its packages are not installed, DataError if there is no plugin.
    """
    points = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)
    if not points:
        raise DataError("no explanation plugin is installed; run: pip install -e '.[probe]' -c constraints.txt")
    try:
        function: Callable[..., Explained] = points[0].load()
    except ModuleNotFoundError as error:
        raise MissingExtraError((error.name or str(error)).partition(".")[0], "probe") from error
    return function


def explain(
    model: Transformer, run: Run, task: str, doc_id: int, *, position: int | None = None, filter: str | None = None
) -> Explanation:
    """Replay a sample under its run's interventions and explain its answer.

    Raises: DataError if the model is not the run's, the sample is unknown, or the deciding token cannot be found (pass
            `position` to explain the token after it).
    """
    explainer_function = explainer()
    with under_interventions(model, run):
        return _explained(model, sample(run, task, doc_id, filter=filter), task, explainer_function, position)


def _explained(
    model: Transformer, row: Row, task: str, explainer_function: Callable[..., Explained], position: int | None = None
) -> Explanation:
    if position is None:
        check_decidable(row)  # before the model runs
    replayed = replay_row(model, row, task)
    decided = decision(model, replayed, position=position)
    explained = explainer_function(
        model,
        decided.ids,
        token=decided.token,
        contrast_token=decided.contrast_token,
        other_tokens=decided.other_tokens,
    )
    return Explanation(replayed, decided, explained)


def wrong_answers(run: Run, task: str) -> list[Row]:
    """The wrong answers of a task or of all tasks of a group, in the order of the questions.

    For a question with several filters, the first filter counts.
    """
    samples = []
    for name in tasks_of(run, task):
        rows = run.samples(name).drop_duplicates("doc_id").to_dict("records")
        samples += [{**row, "task": name} for row in rows if row["correct"] == 0]
    return samples


def tasks_of(run: Run, task: str) -> list[str]:
    """The tasks of a name, which may be a group. Raises: DataError if the run does not have it."""
    children: dict[str, list[str]] = run.data.get("group_subtasks") or {}
    names = [name for name in leaves_of(task, children) if name in run.tasks]
    if not names:
        raise DataError(f"{run.path.name} has no task {task!r}; it has {', '.join(run.tasks[:8])}.")
    return names


def rank_heads_behind_errors(
    model: Transformer,
    run: Run,
    task: str,
    *,
    limit: int | None = None,
    done: Callable[[int, int], None] = lambda now, total: None,
) -> HeadRanking:
    """Rank the parts of the model by their contribution to a task's wrong answers.

    limit: use only the first wrong answers.
    done: called after each answer with the number of answers processed and the total.
    Answers are left out, and listed in `left_out`, if their replay differs from the stored answer or if the deciding
    token cannot be found.
    Raises: DataError if the model is not the run's, the task is unknown, or no wrong answer can be explained.
    """
    import pandas as pd

    explainer_function = explainer()
    rows = wrong_answers(run, task)[:limit]
    tables, doc_ids, differences, left_out = [], [], [], []
    with under_interventions(model, run):
        for at, row in enumerate(rows):
            name = f"{row['task']}/{row['doc_id']}"
            try:
                explanation = _explained(model, row, row["task"], explainer_function)
            except DataError as error:
                left_out.append(f"{name}: {error}")
            else:
                if explanation.replayed.agrees:
                    tables.append(explanation.attribution.frame())
                    doc_ids.append(int(row["doc_id"]))
                    differences.append(explanation.attribution.difference)
                else:
                    left_out.append(f"{name}: {explanation.replayed}")
            done(at + 1, len(rows))
    if not tables:
        first_reason = f"; {left_out[0]}" if left_out else ""
        raise DataError(f"{task}: no wrong answer of {len(rows)} can be explained{first_reason}.")
    table = pd.DataFrame(_mean_contributions(pd.concat(tables)))
    order = table["mean"].argsort(kind="stable")
    return HeadRanking(
        task,
        table.iloc[order].reset_index(drop=True),
        tuple(doc_ids),
        sum(differences) / len(differences),
        tuple(left_out),
    )


def _mean_contributions(parts: pd.DataFrame) -> Iterable[dict[str, Any]]:
    for (kind, layer, head), group in parts.groupby(["kind", "layer", "head"], sort=False):
        values = [float(value) for value in group["contribution"]]
        mean = sum(values) / len(values)
        many = len(values) > 1
        low, high = stats.normal(mean, stats.mean_stderr(values)) if many else (float("nan"), float("nan"))
        against = sum(value < 0 for value in values) / len(values)
        yield {
            "kind": kind, "layer": int(layer), "head": int(head), "mean": mean, "low": low, "high": high,
            "against": against, "n": len(values),
        }  # fmt: skip


def right_answer(row: Row) -> str:
    """The right answer of a sample as text."""
    number = matching.gold(row)
    return str(row["target"]) if number is None else str(row["choices"][number]).strip()
