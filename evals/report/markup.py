"""Report renderers: Markdown, LaTeX and HTML. All text is escaped; the output loads nothing from the network."""

from __future__ import annotations

import html as _html
import re
from collections.abc import Iterable
from dataclasses import dataclass

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "[": "{[}", "*": "{*}",  # after \\ LaTeX reads [ and * as arguments
}  # fmt: skip
_SAMPLES = "Answered differently"
_ROWS = 40  # rows of one tabular: one page
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a;
  background: #fff; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap; }
th { border-bottom-color: #777; }
.prose td { white-space: normal; overflow-wrap: anywhere; }
.r { text-align: right; }
.badge { background: #8a5300; color: #fff; border-radius: .25rem; padding: .15rem .5rem; }
ul.badges { list-style: none; padding: 0; line-height: 2; }
footer { color: #555; font-size: .85rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; margin: 0; }
dt, dd { margin: 0; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #e6e6e6; } footer { color: #aaa; }
  th, td { border-bottom-color: #3a3d44; } }
"""


@dataclass(frozen=True)
class Table:
    """A table of text cells. The first `left` columns are words, the others numbers; if all are words, lines may break.

    Shapes: head [column], rows [row, column]
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int

    @property
    def prose(self) -> bool:
        return self.left == len(self.head)


Entry = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Report:
    """The content of a report: badges are warnings, notes explain the tables, origins go to the footer.

    Shapes: samples and origins [entry] of (title, [term] of (name, value))
    """

    title: str
    badges: tuple[str, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    origins: tuple[Entry, ...]
    samples: tuple[Entry, ...] = ()


def markdown(report: Report) -> str:
    """Markdown with pipe tables, for GitHub and Pandoc."""
    lines = [f"# {_md(report.title)}", "", *(f"> **{_md(badge)}**" for badge in report.badges)]
    for table in report.tables:
        rule = ["---" if i < table.left else "---:" for i in range(len(table.head))]
        lines += ["", f"## {_md(table.title)}", ""]
        lines += ["| " + " | ".join(cells) + " |" for cells in (map(_md, table.head), rule)]
        lines += ["| " + " | ".join(map(_md, row)) + " |" for row in table.rows]
    lines += ["", *(f"{_md(note)}\n" for note in report.notes)]
    if report.samples:
        lines += [f"## {_SAMPLES}", ""]
    for title, about in (*report.samples, *report.origins):
        lines += [f"**{_md(title)}**\n", *(f"- {_md(name)}: {_md(value)}" for name, value in about), ""]
    return "\n".join(lines).rstrip() + "\n"


def latex(report: Report) -> str:
    """A LaTeX fragment for \\input: plain tabulars with \\hline, no packages; a long table becomes several tabulars."""
    lines = [r"% Needs no packages. Include it with \input.", rf"\section*{{{_tex(report.title)}}}"]
    boxed = (rf"\parbox{{.95\linewidth}}{{\textbf{{{_tex(badge)}}}}}" for badge in report.badges)
    lines += [rf"\noindent\fbox{{{badge}}}\par\smallskip" for badge in boxed]
    for table in report.tables:
        lines += ["", rf"\subsection*{{{_tex(table.title)}}}"]
        for first in range(0, max(1, len(table.rows)), _ROWS):
            right = "r" * (len(table.head) - table.left)
            columns = "l" + r"p{.38\linewidth}" * (table.left - 1) if table.prose else "l" * table.left + right
            # Seven columns of numbers fit on a page; wider tables are set in small type.
            small = r"{\footnotesize\setlength{\tabcolsep}{3pt}" if len(table.head) > 7 else "{"
            lines += [rf"{small}\noindent\begin{{tabular}}{{{columns}}}", r"\hline"]
            lines += [_tex_row(table.head), r"\hline"]
            lines += [_tex_row(row, prose=table.prose) for row in table.rows[first : first + _ROWS]]
            lines += [r"\hline", r"\end{tabular}\par}\medskip"]
    lines += ["", *(rf"\noindent {_tex(note)}\par" for note in report.notes)]
    if report.samples:
        lines += ["", rf"\subsection*{{{_SAMPLES}}}"]
    for title, about in report.samples:
        terms = "".join(rf"\\ \emph{{{_tex(name)}}}: {_broken(value)}" for name, value in about)
        lines += [rf"\noindent\textbf{{{_tex(title)}}}{terms}\par\medskip"]
    for run, about in report.origins:
        terms = "; ".join(f"{_tex(name)}: {_broken(value)}" for name, value in about)
        lines += [rf"\noindent{{\footnotesize \textbf{{{_tex(run)}}} {terms}\par}}"]
    return "\n".join(lines) + "\n"


def html(report: Report) -> str:
    """One static HTML page without scripts or external files."""
    body = [f"<h1>{_e(report.title)}</h1>"]
    if report.badges:
        badges = "".join(f'<li><span class="badge">{_e(badge)}</span></li>' for badge in report.badges)
        body.append(f'<ul class="badges">{badges}</ul>')
    for table in report.tables:
        body.append(f"<h2>{_e(table.title)}</h2>")
        rows = "\n".join(_html_row(row, "td", table.left) for row in table.rows)
        head = _html_row(table.head, "th", table.left)
        kind = ' class="prose"' if table.prose else ""
        body.append(f'<div class="wide"><table{kind}>\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody></table></div>')
    body += [f"<p>{_e(note)}</p>" for note in report.notes]
    if report.samples:
        body += [f"<h2>{_SAMPLES}</h2>", *map(_html_entry, report.samples)]
    body += ["<footer>", *map(_html_entry, report.origins), "</footer>"]
    head = f'<meta charset="utf-8"><title>{_e(report.title)}</title>\n<style>{_STYLE}</style>'
    head += '\n<meta name="viewport" content="width=device-width">'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def line(text: str) -> str:
    """The text as one line; control characters and other unprintable characters become spaces."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def _e(text: str) -> str:
    return _html.escape(line(text), quote=True)


def _md(text: str) -> str:
    """The text as one line with Markdown and HTML markup escaped."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", line(text))


def _tex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in line(text))


def _broken(value: str) -> str:
    """A long value with allowed line breaks, because a hash has none."""
    return " ".join(
        r"\allowbreak{}".join(_tex(word[i : i + 16]) for i in range(0, len(word), 16)) for word in value.split()
    )


def _tex_row(cells: Iterable[str], *, prose: bool = False) -> str:
    return " & ".join(map(_broken if prose else _tex, cells)) + r" \\"


def _html_entry(entry: Entry) -> str:
    title, about = entry
    terms = "".join(f"<dt>{_e(name)}</dt><dd>{_e(value)}</dd>" for name, value in about)
    return f"<h3>{_e(title)}</h3><dl>{terms}</dl>"


def _html_row(cells: Iterable[str], tag: str, left: int) -> str:
    marked = ((cell, "" if i < left else ' class="r"') for i, cell in enumerate(cells))
    return "<tr>" + "".join(f"<{tag}{mark}>{_e(cell)}</{tag}>" for cell, mark in marked) + "</tr>"
