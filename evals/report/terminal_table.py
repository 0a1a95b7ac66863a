"""A run's scores, and two runs' differences, as plain text for a terminal."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from evals.interventions import described
from evals.report.markup import line
from evals.results.runs import Run, Score
from workbench.errors import WorkbenchError
from workbench.hooks.interventions import from_json

if TYPE_CHECKING:
    from evals.compare.compare import Comparison, Sample
    from evals.compare.difference import Difference

_HEAD = ("task", "shots", "metric", "n", "score", "95% interval")
COMPARED = ("task", "metric", "n", "A", "B", "B - A", "95% interval", "only A", "only B", "p", "Holm", "MDE")
COMPARED_NOTES = (
    "p: McNemar's exact test of right and wrong answers, else by resampling; Holm: adjusted for the tasks.",
    "MDE: the smallest difference that these questions detect with 80% power.",
)
_SHOWN = 300  # characters of a question or an answer
_RIGHT = {"shots", "n", "score", "95% interval"}


def render(run: Run, *, tasks: bool = True) -> str:
    """The table, one line a score; without `tasks` the members of a group are left out.

    Units: proportions in per cent, other metrics as they are; the interval as `results.Score` has it.
    """
    members = {name for names in (run.data.get("group_subtasks") or {}).values() for name in names}
    rows = [_row(score) for score in run.scores if tasks or score.task not in members]
    rows += [(task, "", "not run", "", "", "") for task in run.not_run]
    lines = _grid(_HEAD, rows, _RIGHT)
    lines += [f"{task} was not run: {reason}" for task, reason in run.not_run.items()]
    return "\n".join(lines)


def render_comparison(found: Comparison, *, samples: int) -> str:
    """Both runs, their differences, what else differs, and the first samples that they answered differently.

    Units: proportions in per cent and their differences in points, other metrics as they are; margins in nats.
    """
    lines = [f"{side}: {run.name}  {run.model}" for side, run in (("A", found.a), ("B", found.b))]
    lines += ["", *_grid(COMPARED, [compared(one) for one in found.differences], set(COMPARED[2:]))]
    lines += ["", *COMPARED_NOTES]
    if found.origins:
        lines += ["", "differs besides:", *(f"  {name}: {a} | {b}" for name, a, b in besides(found))]
    lines += ["", *found.notes] if found.notes else []
    sure = sum(bool(sample.right) for sample in found.samples)
    lines += ["", f"{sure} answers are right in one run alone, {len(found.samples) - sure} others differ."]
    for sample in found.samples[:samples]:
        lines += ["", *_sample(sample)]
    return "\n".join(lines)


def number(score: Score, value: float | None) -> str:
    """A value in a score's units: per cent for proportions; empty for None."""
    if value is None:
        return ""
    return f"{100 * value:.1f}" if score.proportion else f"{value:.4g}"


def interval(score: Score) -> str:
    """A score's 95% interval in its units; empty where there is none."""
    ends = (score.low, score.high)
    return "" if None in ends else " - ".join(number(score, end) for end in ends)


def _row(score: Score) -> tuple[str, ...]:
    name = f"{score.task} ({score.average} average)" if score.average else score.task
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


def compared(one: Difference) -> tuple[str, ...]:
    """A difference as cells, one for each name of `COMPARED`."""
    ends = (one.low, one.high)
    between = "none" if None in ends else " to ".join(_signed(one.a, end) for end in ends)
    return (
        one.a.task, one.a.label, str(one.a.n), number(one.a, one.a.value), number(one.b, one.b.value),
        _signed(one.a, one.value), between, *(_count(n) for n in (one.only_a, one.only_b)),
        *("" if p is None else f"{p:.2g}" for p in (one.p, one.holm)), number(one.a, one.minimum_detectable_effect),
    )  # fmt: skip


def _signed(score: Score, value: float | None) -> str:
    said = number(score, value)
    return said if not said or said.startswith("-") else f"+{said}"


def _count(n: int | None) -> str:
    return "" if n is None else str(n)


def sample_title(sample: Sample) -> str:
    """Which sample it is, and which run has it right."""
    which = f"only {sample.right} is right" if sample.right else "as good as each other"
    return f"{sample.task}/{sample.doc_id}  {sample.metric}, {sample.filter}: {which}"


def _sample(sample: Sample) -> Iterator[str]:
    yield sample_title(sample) + ("" if sample.same_prompt else ", the prompts differ")
    yield f"  question: {short(sample.question)}"
    yield f"  target: {short(sample.target)}"
    for side in "ab":
        margin, logprobs = (getattr(sample, f"{name}_{side}") for name in ("margin", "logprobs"))
        yield f"  {side.upper()}: {short(getattr(sample, f'answer_{side}'))}"
        if logprobs is not None:
            said = "" if margin is None else f", margin {margin:+.3f}"
            yield f"     log-probabilities {', '.join(f'{value:.3f}' for value in logprobs)}{said}"


def besides(found: Comparison) -> tuple[tuple[str, str, str], ...]:
    """What else two runs differ in, a line each: (name, that of a, that of b)."""
    return tuple((name, _words(name, a), _words(name, b)) for name, a, b in found.origins)


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
    """One line of at most so many characters, with nothing in it that a terminal would obey."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = line(text)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."
