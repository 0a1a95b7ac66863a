"""Commands on finished runs: compare, report."""

from __future__ import annotations

import importlib.util
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evals.cli.find_run import find
from evals.cli.options import AsJson, Cluster, Results
from evals.runtime.printing import echo
from workbench.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from evals.report.document import Document

Figure = Annotated[Path | None, typer.Option(help="Also write a forest plot to this .html file.")]


class Format(StrEnum):
    md = "md"
    latex = "latex"
    html = "html"
    csv = "csv"
    parquet = "parquet"
    json = "json"


FormatOption = Annotated[
    Format | None,
    typer.Option("--format", help="Output format; default: from the suffix of --output."),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="File to write; default: stdout.")]


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Run A: a results file, a folder, or part of a run's name.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Run B; differences are B minus A.")],
    samples: Annotated[
        int, typer.Option(min=0, help="Number of samples to show; samples that only one run has right come first.")
    ] = 5,
    cluster: Cluster = None,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    format: FormatOption = None,
    output: Output = None,
    figure: Figure = None,
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Compare two runs on the questions that both answered: differences with intervals and tests, and samples.

    Without --format and --output the result is plain text. CSV and Parquet files have the differences; all samples are
    written to a second file, for example NAME.samples.csv.
    """
    from evals.compare.compare import compare as compared
    from evals.report import comparison_report, terminal_table

    _check_figure(figure)
    output_format = _output_format(Format.json if as_json else format, output)
    comparison = compared(find(a, results), find(b, results), cluster=cluster, seed=seed)
    if figure is not None:
        from evals.report import forest_plots

        forest_plots.save(forest_plots.differences(comparison), figure)
        echo(f"written to {figure}", err=True)
    if output_format is None:
        echo(terminal_table.render_comparison(comparison, samples=samples))
    else:
        _write_document(comparison_report.document(comparison, samples=samples), output_format, output)


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Results files, folders, or parts of run names.")],
    format: FormatOption = None,
    output: Output = None,
    published: Annotated[
        list[str] | None, typer.Option(help="Also show the published scores of this model; can be repeated.")
    ] = None,
    cluster: Cluster = None,
    figure: Figure = None,
    results: Results = Path("results"),
) -> None:
    """Report one run, or several side by side, as Markdown, LaTeX, HTML, CSV, Parquet or JSON."""
    from evals.compare import published as cards
    from evals.report import report as reporting

    _check_figure(figure)
    output_format = _output_format(format, output) or "md"
    selected = [find(run, results, cluster=cluster) for run in runs]
    figures = [score for name in published or () for score in cards.scores_of_model(name)]
    for run in selected if not figures else ():
        if names := cards.models_of_size((run.data.get("config") or {}).get("model_num_parameters")):
            echo(
                f"{run.name} has as many parameters as {', '.join(names)}; --published NAME shows their scores.",
                err=True,
            )
    if figure is not None:
        from evals.report import forest_plots

        forest_plots.save(forest_plots.forest(selected, figures=figures), figure)
        echo(f"written to {figure}", err=True)
    _write_document(reporting.document(selected, figures=figures), output_format, output)


def _output_format(format: Format | None, output: Path | None) -> str | None:
    """The format of --format, otherwise of the file's suffix; None if neither is given."""
    from evals.report.document import format_from_name

    name = format.value if format is not None else format_from_name(output)
    if name is None and output is not None:
        raise DataError(f"--output {output} does not end in a known suffix; pass --format {', '.join(Format)}.")
    if name == Format.parquet and output is None:
        raise DataError("Parquet cannot be printed to a terminal; name a file with --output.")
    return name


def _write_document(document: Document, format: str, output: Path | None) -> None:
    if output is None:
        echo(document.text(format), end="")
        return
    for path in document.save(format, output):
        echo(f"written to {path}", err=True)


def _check_figure(figure: Path | None) -> None:
    """Check --figure before the work starts."""
    if figure is None:
        return
    if figure.suffix != ".html":
        raise DataError(f"--figure {figure}: the figure is an HTML page; use a name that ends in .html.")
    if importlib.util.find_spec("plotly") is None:
        raise MissingExtraError("plotly", "probe")


COMMANDS = (
    ("compare", compare, "results/plain results/ablated --samples 3 --output differences.html"),
    ("report", report, "results/demo --format html --output report.html"),
)
