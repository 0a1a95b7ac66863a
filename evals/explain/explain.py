"""From a run's samples to the model's internals: why an answer was given, which heads gave a task's wrong answers.

What explains is found in the entry-point group `workbench.explain`, so that benchmarks and probes stay apart: a
function of (model, ids, token=, contrast_token=, other_tokens=) whose result has `difference`,
`residual`, `frame()` and `lens()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

from evals import stats
from evals.compare import matching
from evals.compare.matching import Row
from evals.explain.decision import Decision, decidable, decision
from evals.explain.replay import Replay, again, sample, under
from evals.results.runs import Run, leaves_of
from workbench.errors import DataError, MissingExtraError
from workbench.model import Transformer

if TYPE_CHECKING:
    import pandas as pd

ENTRY_POINT_GROUP = "workbench.explain"


class Explained(Protocol):
    """What an explaining function returns: the difference of two logits by part, and both tokens by layer.

    `frame()` has a row a part: kind (embed, head, mlp, ...), layer, head, contribution, removed, frozen_error; the
    contributions and `rest` sum to `difference`. `lens()` has a row a layer and token: layer, token, logprob, rank,
    text.
    """

    @property
    def difference(self) -> float: ...

    @property
    def residual(self) -> float: ...

    def frame(self) -> pd.DataFrame: ...

    def lens(self) -> pd.DataFrame: ...


@dataclass(frozen=True)
class Explanation:
    """Why a sample's answer was given: its replay, where it was decided, and what decided there.

    It is of the stored answer only where `replayed.agrees`.
    """

    replayed: Replay
    decision: Decision
    found: Explained

    def heads(self) -> pd.DataFrame:
        """The heads, those first that spoke most for `decision.minus`: layer, head, contribution, removed, ..."""
        table = self.found.frame()
        return table[table["kind"] == "head"].sort_values("contribution", kind="stable").reset_index(drop=True)


@dataclass(frozen=True)
class HeadRanking:
    """What the parts of a model added to the right answer's logit less the given one's, over a task's wrong answers.

    `table` has a row a part: kind, layer, head, mean, low, high, against (the share of answers in which it spoke for
    the wrong one), n; the most harmful first. Low and high bound the 95% interval of the mean over questions, NaN for
    one question. The parts at the top were picked out of all: whether a head is to blame, a run without it says.
    """

    task: str
    table: pd.DataFrame
    doc_ids: tuple[int, ...]
    difference: float
    left_out: tuple[str, ...]

    def heads(self) -> pd.DataFrame:
        return self.table[self.table["kind"] == "head"].reset_index(drop=True)


def explainer() -> Callable[..., Explained]:
    """What explains here.

    Raises: MissingExtraError if its packages are not installed, DataError if nothing was installed that explains.
    """
    points = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)
    if not points:
        raise DataError("nothing is installed that explains: pip install -e '.[probe]' -c constraints.txt")
    try:
        found: Callable[..., Explained] = points[0].load()
    except ModuleNotFoundError as error:
        raise MissingExtraError((error.name or str(error)).partition(".")[0], "probe") from error
    return found


def explain(
    model: Transformer, run: Run, task: str, doc_id: int, *, position: int | None = None, filter: str | None = None
) -> Explanation:
    """Replay a sample under its run's own interventions, and say what decided its answer.

    Raises: DataError for a model that is not the run's, an unknown sample, or an answer of which it cannot be told
            where it was decided (give `position`, whose next token is then explained).
    """
    explaining = explainer()
    with under(model, run):
        return _explained(model, sample(run, task, doc_id, filter=filter), task, explaining, position)


def _explained(
    model: Transformer, row: Row, task: str, explaining: Callable[..., Explained], position: int | None = None
) -> Explanation:
    if position is None:
        decidable(row)  # before the model runs
    replayed = again(model, row, task)
    where = decision(model, replayed, position=position)
    found = explaining(
        model, where.ids, token=where.token, contrast_token=where.contrast_token, other_tokens=where.other_tokens
    )
    return Explanation(replayed, where, found)


def wrong(run: Run, task: str) -> list[Row]:
    """A task's wrong answers, in the order of the questions; a group's are those of its tasks, one after another.

    A question with several filters counts as the first one judges it.
    """
    found = []
    for name in tasks_of(run, task):
        rows = run.samples(name).drop_duplicates("doc_id").to_dict("records")
        found += [{**row, "task": name} for row in rows if row["correct"] == 0]
    return found


def tasks_of(run: Run, task: str) -> list[str]:
    """The tasks of a name, which may be a group's. Raises: DataError if the run has no such task."""
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
    """Which parts of the model spoke for a task's wrong answers; `limit` takes the first ones.

    Answers that their replay does not confirm, or of which it cannot be told where they were decided, are left out and
    named. `done` hears how many answers were looked at, out of how many.
    Raises: DataError for a model that is not the run's, an unknown task, or a task without such an answer.
    """
    import pandas as pd

    explaining = explainer()
    rows = wrong(run, task)[:limit]
    tables, doc_ids, differences, left_out = [], [], [], []
    with under(model, run):
        for at, row in enumerate(rows):
            name = f"{row['task']}/{row['doc_id']}"
            try:
                one = _explained(model, row, row["task"], explaining)
            except DataError as error:
                left_out.append(f"{name}: {error}")
            else:
                if one.replayed.agrees:
                    tables.append(one.found.frame())
                    doc_ids.append(int(row["doc_id"]))
                    differences.append(one.found.difference)
                else:
                    left_out.append(f"{name}: {one.replayed}")
            done(at + 1, len(rows))
    if not tables:
        why = f"; {left_out[0]}" if left_out else ""
        raise DataError(f"{task}: no wrong answer of {len(rows)} can be explained{why}.")
    table = pd.DataFrame(_over(pd.concat(tables)))
    order = table["mean"].argsort(kind="stable")
    return HeadRanking(
        task,
        table.iloc[order].reset_index(drop=True),
        tuple(doc_ids),
        sum(differences) / len(differences),
        tuple(left_out),
    )


def _over(parts: pd.DataFrame) -> Iterable[dict[str, Any]]:
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


def right(row: Row) -> str:
    """The right answer of a sample, for people."""
    number = matching.gold(row)
    return str(row["target"]) if number is None else str(row["choices"][number]).strip()
