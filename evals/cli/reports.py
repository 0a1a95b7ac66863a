"""Commands on finished runs: compare, report."""

from __future__ import annotations

import importlib.util
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evals.cli.find_run import find
from evals.cli.options import AsJson, Cluster, Results
from workbench.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from evals.report.document import Document

Figure = Annotated[Path | None, typer.Option(help="Also draw a forest plot into this .html file.")]


class Format(StrEnum):
    md = "md"
    latex = "latex"
    html = "html"
    csv = "csv"
    parquet = "parquet"
    json = "json"


Written = Annotated[
    Format | None,
    typer.Option("--format", help="What to write; default what the name of --output says."),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="The file to write; default stdout.")]


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A results file, a folder, or part of a run's name.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The run to compare with it; differences are B less A.")],
    samples: Annotated[int, typer.Option(min=0, help="Samples to show; those that one run alone has right first.")] = 5,
    cluster: Cluster = None,
    seed: Annotated[int, typer.Option(help="Seed of the resampling.")] = 0,
    format: Written = None,
    output: Output = None,
    figure: Figure = None,
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Compare two runs on the questions that both answered: differences with intervals and tests, and the samples.

    Without --format and --output as plain text. CSV and Parquet hold the differences; all samples are in a second file
    beside the first, NAME.samples.csv.
    """
    from evals.compare.compare import compare as compared
    from evals.report import comparison_report, terminal_table

    _check_figure(figure)
    wanted = _format(Format.json if as_json else format, output)
    found = compared(find(a, results), find(b, results), cluster=cluster, seed=seed)
    if figure is not None:
        from evals.report import forest_plots

        forest_plots.save(forest_plots.differences(found), figure)
        typer.echo(f"written to {figure}", err=True)
    if wanted is None:
        typer.echo(terminal_table.render_comparison(found, samples=samples))
    else:
        _deliver(comparison_report.document(found, samples=samples), wanted, output)


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Results files, folders, or parts of names.")],
    format: Written = None,
    output: Output = None,
    published: Annotated[
        list[str] | None, typer.Option(help="Show the published scores of this model beside; may be repeated.")
    ] = None,
    cluster: Cluster = None,
    figure: Figure = None,
    results: Results = Path("results"),
) -> None:
    """Report one run, or several side by side, as Markdown, LaTeX, a static page, CSV, Parquet or JSON."""
    from evals.compare import published as cards
    from evals.report import report as reporting

    _check_figure(figure)
    wanted = _format(format, output) or "md"
    found = [find(run, results, cluster=cluster) for run in runs]
    known = [one for name in published or () for one in cards.named(name)]
    for run in found if not known else ():
        if names := cards.of_size((run.data.get("config") or {}).get("model_num_parameters")):
            typer.echo(
                f"{run.name} has as many parameters as {', '.join(names)}; --published NAME shows theirs.", err=True
            )
    if figure is not None:
        from evals.report import forest_plots

        forest_plots.save(forest_plots.forest(found, figures=known), figure)
        typer.echo(f"written to {figure}", err=True)
    _deliver(reporting.document(found, figures=known), wanted, output)


def _format(format: Format | None, output: Path | None) -> str | None:
    """The format that was asked for, by its name or the file's; None where neither says one."""
    from evals.report.document import format_of

    wanted = format.value if format is not None else format_of(output)
    if wanted is None and output is not None:
        raise DataError(f"--output {output}: its name says no format; give --format {', '.join(Format)}.")
    if wanted == Format.parquet and output is None:
        raise DataError("Parquet is no text for a terminal; name a file with --output.")
    return wanted


def _deliver(made: Document, format: str, output: Path | None) -> None:
    if output is None:
        typer.echo(made.text(format), nl=False)
        return
    for path in made.save(format, output):
        typer.echo(f"written to {path}", err=True)


def _check_figure(figure: Path | None) -> None:
    """What is wrong with --figure is said before the work."""
    if figure is None:
        return
    if figure.suffix != ".html":
        raise DataError(f"--figure {figure}: the figure is a page; use a name that ends in .html.")
    if importlib.util.find_spec("plotly") is None:
        raise MissingExtraError("plotly", "probe")


COMMANDS = (
    ("compare", compare, "results/plain results/ablated --samples 3 --output differences.html"),
    ("report", report, "results/demo --format html --output report.html"),
)
