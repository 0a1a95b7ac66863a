"""Two runs' differences as a document: what they differ in, and the samples that one alone has right.

What it says is decided here; how it is written, in `markup`. Knows of comparisons, nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from evals.compare.compare import Comparison, Sample
from evals.report.document import Document
from evals.report.markup import Report, Table
from evals.report.report import badges, footer
from evals.report.terminal_table import COMPARED, COMPARED_NOTES, besides, compared, sample_title, short
from evals.results.export import flat


def document(found: Comparison, *, samples: int) -> Document:
    """The comparison in every format; `samples` are shown for people and in JSON, tables hold all of them."""
    return Document(
        report=lambda: build(found, samples=samples),
        frame=found.frame,
        values=lambda: values(found, samples=samples),
        more={"samples": lambda: flat(found.samples_frame())},
    )


def build(found: Comparison, *, samples: int) -> Report:
    """The report: differences, what else is not the same, and the first samples that were answered differently."""
    tables = [Table("Differences", COMPARED, tuple(compared(one) for one in found.differences), left=2)]
    if found.origins:
        tables.append(Table("What else is not the same", ("", "A", "B"), besides(found), left=3))
    sides = (("A", found.a), ("B", found.b))
    sure = sum(bool(sample.right) for sample in found.samples)
    notes = (
        "Proportions are in per cent, differences in points; intervals are 95%.",
        *COMPARED_NOTES,
        *found.notes,
        f"{sure} answers are right in one run alone, {len(found.samples) - sure} others differ.",
    )
    models = found.b.model, found.a.model
    title = " compared with ".join(models) if len({*models}) == 2 else f"{models[0]}: run B compared with run A"
    return Report(
        title,
        tuple(badge for side, run in sides for badge in badges(run, f"{side}: ")),
        tuple(tables),
        notes,
        tuple((f"{side}: {run.name}", footer(run)) for side, run in sides),
        tuple((sample_title(sample), tuple(_about(sample))) for sample in found.samples[:samples]),
    )


def values(found: Comparison, *, samples: int) -> dict[str, Any]:
    """The comparison as JSON values."""
    return {
        "a": str(found.a.path),
        "b": str(found.b.path),
        "differences": found.rows(),
        "origins": [{"name": name, "a": x, "b": y} for name, x, y in found.origins],
        "notes": found.notes,
        "samples": [vars(sample) for sample in found.samples[:samples]],
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
    said = ", ".join(f"{value:.3f}" for value in logprobs)
    return f" (log-probabilities {said}" + ("" if margin is None else f"; margin {margin:+.3f} nats") + ")"
