"""Plain-text tables for the terminal: the scores of a run, and the differences between two runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from evals.report.markup import line
from evals.results import answer_counts
from evals.results.runs import Run, Score, not_finite_count
from workbench.errors import WorkbenchError
from workbench.hooks.intervention_options import described
from workbench.hooks.interventions import from_json

if TYPE_CHECKING:
    from evals.compare.compare import Comparison, Sample
    from evals.compare.difference import Difference

_HEAD = ("task", "shots", "metric", "n", "score", "95% interval")
COMPARED = ("task", "metric", "n", "A", "B", "B - A", "95% interval", "only A", "only B", "p", "Holm", "MDE")
COMPARED_NOTES = (
    "p: McNemar's exact test for right or wrong answers, otherwise bootstrap; Holm: p adjusted for several tasks.",
    "MDE: the smallest difference detectable with 80% power.",
)
_SHOWN = 300  # characters shown of a question or an answer
_RIGHT = {"shots", "n", "score", "95% interval", "not finite", *answer_counts.COLUMNS.values()}


def render(run: Run, *, tasks: bool = True) -> str:
    """The table, one line per score; with tasks=False without the members of groups.

    Units: proportions in per cent, other metrics in their own unit; the interval is that of `Score`.
    """
    members = {name for names in (run.data.get("group_subtasks") or {}).values() for name in names}
    shown = [score for score in run.scores if tasks or score.task not in members]
    rows = [_row(score) for score in shown]
    rows += [(task, "", "no score", "0", "", "") for task in run.without_score]
    rows += [(task, "", "not run", "", "", "") for task in run.not_run]
    head = _HEAD
    if run.not_finite:
        head = (*head, "not finite")
        names = [*(score.task for score in shown), *run.without_score, *run.not_run]
        rows = [(*row, str(not_finite_count(run, name))) for row, name in zip(rows, names, strict=True)]
    for kind in answer_counts.shown(run):
        head = (*head, answer_counts.COLUMNS[kind])
        cells = [str(answer_counts.count(run, kind, score.task, score.filter)) for score in shown]
        rows = [(*row, cell) for row, cell in zip(rows, [*cells, *[""] * (len(rows) - len(cells))], strict=True)]
    lines = _grid(head, rows, _RIGHT) if rows else []
    lines += [f"{task} was not run: {reason}" for task, reason in run.not_run.items()]
    lines += [run.not_finite_note(task) for task in run.not_finite]
    lines += answer_counts.notes(run)
    lines += unscored(run)
    return "\n".join(lines)


def unscored(run: Run) -> list[str]:
    """For a run that wrote answers without scores, the commands that score them."""
    if not run.provenance.get("predict_only"):
        return []
    about = run.provenance
    data = ["--preset", about["preset"]] if about.get("preset") not in (None, "lm-eval") else []
    lines = ["No scores: the run only wrote answers. Score them with"]
    for task in run.tasks:
        file = run.path.with_name(f"samples_{task}_{run.stamp}.jsonl")
        lines.append("  " + shlex.join(["workbench", "eval", "score", "--task", task, "--samples", str(file), *data]))
    return lines


def render_comparison(comparison: Comparison, *, samples: int) -> str:
    """Both runs, their score differences, other differences, and the first samples that were answered differently.

    Units: proportions in per cent and their differences in points, other metrics in their own unit; margins in nats.
    """
    lines = [f"{side}: {run.name}  {run.model}" for side, run in (("A", comparison.a), ("B", comparison.b))]
    lines += [
        "",
        *_grid(COMPARED, [difference_cells(difference) for difference in comparison.differences], set(COMPARED[2:])),
    ]
    lines += ["", *COMPARED_NOTES]
    if comparison.origins:
        lines += ["", "other differences:", *(f"  {name}: {a} | {b}" for name, a, b in other_differences(comparison))]
    lines += ["", *comparison.notes] if comparison.notes else []
    one_sided = sum(bool(sample.right) for sample in comparison.samples)
    lines += [
        "",
        f"{one_sided} answers are right in only one run; {len(comparison.samples) - one_sided} others differ.",
    ]
    for sample in comparison.samples[:samples]:
        lines += ["", *_sample(sample)]
    return "\n".join(lines)


def number(score: Score, value: float | None) -> str:
    """A value in the score's unit, per cent for proportions; empty for None."""
    if value is None:
        return ""
    return f"{100 * value:.1f}" if score.proportion else f"{value:.4g}"


def interval(score: Score) -> str:
    """The 95% interval in the score's unit; empty if there is none."""
    ends = (score.low, score.high)
    return "" if None in ends else " - ".join(number(score, end) for end in ends)


def _row(score: Score) -> tuple[str, ...]:
    name = f"{score.task} ({score.average.replace('_', ' ')} average)" if score.average else score.task
    metric = score.metric if score.filter in ("none", "create_test") else f"{score.metric}, {score.filter}"
    shots = "" if score.shots is None else str(score.shots)
    return (name, shots, metric, str(score.n), number(score, score.value), interval(score))


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]], right: Container[str]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in (head, ["-" * width for width in widths], *rows):
        cells = zip(row, widths, head, strict=True)
        lines.append(
            "  ".join(c.rjust(width) if name in right else c.ljust(width) for c, width, name in cells).rstrip()
        )
    return lines


def difference_cells(difference: Difference) -> tuple[str, ...]:
    """The cells of a difference, one for each name of `COMPARED`."""
    a, b = difference.a, difference.b
    ends = (difference.low, difference.high)
    between = "none" if None in ends else " to ".join(_signed(a, end) for end in ends)
    return (
        a.task, a.label, str(a.n), number(a, a.value), number(b, b.value), _signed(a, difference.value), between,
        *(_count(n) for n in (difference.only_a, difference.only_b)),
        *("" if p is None else f"{p:.2g}" for p in (difference.p, difference.holm)),
        number(a, difference.minimum_detectable_effect),
    )  # fmt: skip


def _signed(score: Score, value: float | None) -> str:
    text = number(score, value)
    return text if not text or text.startswith("-") else f"+{text}"


def _count(n: int | None) -> str:
    return "" if n is None else str(n)


def sample_title(sample: Sample) -> str:
    """The name of a sample, and which run answered it correctly."""
    verdict = f"only {sample.right} is right" if sample.right else "equally good"
    return f"{sample.task}/{sample.doc_id}  {sample.metric}, {sample.filter}: {verdict}"


def _sample(sample: Sample) -> Iterator[str]:
    yield sample_title(sample) + ("" if sample.same_prompt else ", the prompts differ")
    yield f"  question: {short(sample.question)}"
    yield f"  target: {short(sample.target)}"
    for side in "ab":
        margin, logprobs = (getattr(sample, f"{name}_{side}") for name in ("margin", "logprobs"))
        yield f"  {side.upper()}: {short(getattr(sample, f'answer_{side}'))}"
        if logprobs is not None:
            margin_text = "" if margin is None else f", margin {margin:+.3f}"
            yield f"     log-probabilities {', '.join(f'{value:.3f}' for value in logprobs)}{margin_text}"


def other_differences(comparison: Comparison) -> tuple[tuple[str, str, str], ...]:
    """The other differences between two runs: (name, value in A, value in B)."""
    return tuple((name, _words(name, a), _words(name, b)) for name, a, b in comparison.origins)


def _words(name: str, value: Any) -> str:
    if value is None:
        return "none"
    if name == "interventions":
        try:
            return short(described(from_json(json.dumps(value))))
        except WorkbenchError:  # of another version, or another program
            pass
    return short(value)


def short(value: Any) -> str:
    """One line of limited length, without control characters."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = line(text)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."
