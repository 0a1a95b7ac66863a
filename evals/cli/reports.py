"""Commands on finished runs: compare, report."""

from __future__ import annotations

import importlib.util
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from evals.cli.given import AsJson, Results
from evals.cli.looking import find
from workbench.errors import DataError, MissingExtraError

Figure = Annotated[Path | None, typer.Option(help="Also draw a forest plot into this .html file.")]


class Format(StrEnum):
    md = "md"
    latex = "latex"
    html = "html"
    csv = "csv"
    parquet = "parquet"


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A results file, a folder, or part of a run's name.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The run to compare with it; differences are B less A.")],
    samples: Annotated[int, typer.Option(min=0, help="Samples to show; those that one run alone has right first.")] = 5,
    cluster: Annotated[
        str | None, typer.Option(help="A field that questions share, as passage: count passages, not questions.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the resampling.")] = 0,
    figure: Figure = None,
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Compare two runs on the questions that both answered: differences with intervals and tests, and the samples."""
    from evals import table
    from evals.compare import compare as compared

    _check_figure(figure)
    found = compared(find(a, results), find(b, results), cluster=cluster, seed=seed)
    if figure is not None:
        from evals import figures

        figures.save(figures.differences(found), figure)
        typer.echo(f"written to {figure}", err=True)
    if not as_json:
        typer.echo(table.render_comparison(found, samples=samples))
        return
    about: dict[str, Any] = {
        "a": str(found.a.path),
        "b": str(found.b.path),
        "differences": found.rows(),
        "origins": [{"name": name, "a": x, "b": y} for name, x, y in found.origins],
        "notes": found.notes,
        "samples": [vars(sample) for sample in found.samples[:samples]],
    }
    typer.echo(json.dumps(about, indent=2, default=str))


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Results files, folders, or parts of names.")],
    format: Annotated[Format, typer.Option(help="What to write.")] = Format.md,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write; default stdout.")] = None,
    published: Annotated[
        list[str] | None, typer.Option(help="Show the published scores of this model beside; may be repeated.")
    ] = None,
    figure: Figure = None,
    results: Results = Path("results"),
) -> None:
    """Report one run, or several side by side, as Markdown, LaTeX, a static page, CSV or Parquet."""
    from evals import published as cards
    from evals import report as reporting

    _check_figure(figure)
    if format is Format.parquet and output is None:
        raise DataError("Parquet is no text for a terminal; name a file with --output.")
    found = [find(run, results) for run in runs]
    known = [one for name in published or () for one in cards.named(name)]
    for run in found if not known else ():
        if names := cards.of_size((run.data.get("config") or {}).get("model_num_parameters")):
            typer.echo(
                f"{run.name} has as many parameters as {', '.join(names)}; --published NAME shows theirs.", err=True
            )
    if figure is not None:
        from evals import figures

        figures.save(figures.forest(found, figures=known), figure)
        typer.echo(f"written to {figure}", err=True)
    if output is None:
        typer.echo(reporting.text(found, format.value, figures=known), nl=False)
        return
    reporting.save(found, format.value, output, figures=known)
    typer.echo(f"written to {output}", err=True)


def _check_figure(figure: Path | None) -> None:
    """What is wrong with --figure is said before the work."""
    if figure is None:
        return
    if figure.suffix != ".html":
        raise DataError(f"--figure {figure}: the figure is a page; use a name that ends in .html.")
    if importlib.util.find_spec("plotly") is None:
        raise MissingExtraError("plotly", "probe")


COMMANDS = (
    ("compare", compare, "results/plain results/ablated --samples 3"),
    ("report", report, "results/demo --format html --output report.html"),
)
