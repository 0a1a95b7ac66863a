"""What AppTest itself does not read from a page."""

from html.parser import HTMLParser
from typing import Any

import pandas as pd
from streamlit.testing.v1 import AppTest

WRITTEN_TO = 6e-4  # how far a number written with three digits behind the point may be from what it was


def read_tables(session: AppTest) -> list[pd.DataFrame]:
    """Every table of a page as it is shown, grids and plain ones: columns by name, numbers as far as they are written.

    A share that is written as a percentage is a share again.
    """
    return [*(frame.value for frame in session.dataframe), *parse_tables("".join(_html(session)))]


def read_table(session: AppTest, *columns: str) -> pd.DataFrame:
    """The first table that has all of these columns."""
    return next(table for table in read_tables(session) if set(columns) <= set(table))


def numbers(session: AppTest) -> dict[str, str]:
    """Every number of a page's rows of numbers, by its name and as it is written."""
    return parse_numbers("".join(_html(session)))


def parse_numbers(page: str) -> dict[str, str]:
    """The numbers in some HTML, by their names."""
    reader = _Reader()
    reader.feed(page)
    return dict(zip(reader.names, reader.numbers, strict=True))


def texts(session: AppTest) -> list[str]:
    """What stands on a page as it was written: code blocks and plain texts."""
    reader = _Reader()
    reader.feed("".join(_html(session)))
    return [*(code.value for code in session.code), *reader.texts]


def _html(session: AppTest) -> list[str]:
    return [element.proto.body for element in session.get("html")]


def parse_tables(page: str) -> list[pd.DataFrame]:
    """The plain tables in some HTML."""
    reader = _Reader()
    reader.feed(page)
    return [
        pd.DataFrame({name: _values([row[i] for row in rows]) for i, name in enumerate(names)})
        for names, rows in reader.tables
    ]


def _values(cells: list[str]) -> list[Any]:
    """Numbers where all cells are some, truth where they are ticks, else text."""
    if set(cells) <= {"✓", ""}:
        return [cell == "✓" for cell in cells]
    try:
        numbers = [_number(cell) for cell in cells]
    except ValueError:
        return cells
    return [int(number) for number in numbers] if all(cell.lstrip("-").isdigit() for cell in cells) else numbers


def _number(cell: str) -> float:
    if cell == "–":
        return float("nan")
    return float(cell[:-1]) / 100 if cell.endswith("%") else float(cell)


class _Reader(HTMLParser):
    """Tables as their columns' names and their rows, the texts of `pre`, and numbers with their names."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[tuple[list[str], list[list[str]]]] = []
        self.texts: list[str] = []
        self.names: list[str] = []
        self.numbers: list[str] = []
        self.into: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append(([], []))
        elif tag == "th":
            self.tables[-1][0].append(str(dict(attrs)["data-name"]))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag == "td":
            self.into = self.tables[-1][1][-1]
            self.into.append("")
        elif tag in ("pre", "dt", "dd"):
            self.into = {"pre": self.texts, "dt": self.names, "dd": self.numbers}[tag]
            self.into.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "pre", "dt", "dd"):
            self.into = None
        elif tag == "thead":
            self.tables[-1][1].clear()

    def handle_data(self, data: str) -> None:
        if self.into is not None:
            self.into[-1] += data


def figures(session: AppTest) -> tuple[int, int]:
    """How many plotly figures a page has, and how many of them have no "?" of their own that says what they show.

    A "?" belongs to the first figure behind it in the same card or column; it carries the link to a source.
    """
    return _figures(session.main, said=False)[:2]


def _figures(block: Any, said: bool) -> tuple[int, int, bool]:
    drawn = silent = 0
    for child in block.children.values():
        if hasattr(child, "children"):
            inner = _figures(child, said)
            drawn, silent, said = drawn + inner[0], silent + inner[1], inner[2]
        elif getattr(getattr(child, "proto", None), "component_name", "") == "workbench.figure":
            drawn, silent, said = drawn + 1, silent + (not said), False
        elif "](https://" in getattr(getattr(child, "proto", None), "help", ""):
            said = True
    return drawn, silent, said


def shape(block: Any) -> list[Any]:
    """What stands where below a block, the place for spinners left out."""
    items = []
    for at, child in sorted(block.children.items()):
        if not hasattr(child, "children"):
            items.append((at, child.type))
        elif not getattr(child.proto, "id", "").endswith("-busy"):
            items.append((at, shape(child)))
    return items
