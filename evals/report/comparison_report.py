"""Comparison report: the differences between two runs, and the samples that only one of them answered correctly.

The content is chosen here; `markup` renders it. Does not use models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from evals.compare.compare import Comparison, Sample
from evals.report.document import Document
from evals.report.markup import Report, Table
from evals.report.report import badges, footer
from evals.report.terminal_table import (
    COMPARED,
    COMPARED_NOTES,
    difference_cells,
    other_differences,
    sample_title,
    short,
)
from evals.results.export import flat


def document(comparison: Comparison, *, samples: int) -> Document:
    """The comparison in every format. Text formats and JSON have the first `samples` samples, tables have all."""
    return Document(
        report=lambda: build(comparison, samples=samples),
        frame=comparison.frame,
        values=lambda: values(comparison, samples=samples),
        extra_tables={"samples": lambda: flat(comparison.samples_frame())},
    )


def build(comparison: Comparison, *, samples: int) -> Report:
    """The report: score differences, other differences, and the first samples that were answered differently."""
    tables = [
        Table(
            "Differences",
            COMPARED,
            tuple(difference_cells(difference) for difference in comparison.differences),
            left=2,
        )
    ]
    if comparison.origins:
        tables.append(Table("Other differences", ("", "A", "B"), other_differences(comparison), left=3))
    sides = (("A", comparison.a), ("B", comparison.b))
    one_sided = sum(bool(sample.right) for sample in comparison.samples)
    notes = (
        "Proportions are in per cent, differences in points; intervals are 95%.",
        *COMPARED_NOTES,
        *comparison.notes,
        f"{one_sided} answers are right in only one run; {len(comparison.samples) - one_sided} others differ.",
    )
    models = comparison.b.model, comparison.a.model
    title = " compared with ".join(models) if len({*models}) == 2 else f"{models[0]}: run B compared with run A"
    return Report(
        title,
        tuple(badge for side, run in sides for badge in badges(run, f"{side}: ")),
        tuple(tables),
        notes,
        tuple((f"{side}: {run.name}", footer(run)) for side, run in sides),
        tuple((sample_title(sample), tuple(_about(sample))) for sample in comparison.samples[:samples]),
    )


def values(comparison: Comparison, *, samples: int) -> dict[str, Any]:
    """The comparison as JSON values."""
    return {
        "a": str(comparison.a.path),
        "b": str(comparison.b.path),
        "differences": comparison.rows(),
        "origins": [{"name": name, "a": x, "b": y} for name, x, y in comparison.origins],
        "notes": comparison.notes,
        "samples": [vars(sample) for sample in comparison.samples[:samples]],
    }


def _about(sample: Sample) -> Iterator[tuple[str, str]]:
    yield "question", short(sample.question)
    choices = sample.doc.get("choices") if isinstance(sample.doc, dict) else None
    if isinstance(choices, list):
        yield "choices", short("; ".join(map(str, choices)))
    yield "target", short(sample.target)
    if not sample.same_prompt:
        yield "prompts", "differ"
    for side in "ab":
        logprobs, margin = (getattr(sample, f"{name}_{side}") for name in ("logprobs", "margin"))
        yield f"run {side.upper()}", short(getattr(sample, f"answer_{side}")) + _nats(logprobs, margin)


def _nats(logprobs: Iterable[float] | None, margin: float | None) -> str:
    if logprobs is None:
        return ""
    numbers = ", ".join(f"{value:.3f}" for value in logprobs)
    return f" (log-probabilities {numbers}" + ("" if margin is None else f"; margin {margin:+.3f} nats") + ")"
