"""Tables, texts and metrics as plain HTML: nothing is cut off, and screen readers and the browser's search work.

Use Streamlit's dataframe only for long lists, and its code blocks only for code: they load 1.2 and 1.5 MB of script,
which delays the first visit to a page.
"""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from dashboard.token_text import html_text

MISSING_VALUE = "–"  # shown for a missing value
WRAP_LENGTH = 40  # longer texts in a cell, in characters, are wrapped


@dataclass(frozen=True)
class Column:
    """How one column is shown: its title and, for numbers, the format as in `format(value, ".3f")`.

    help: tooltip of the title. bar: the value at which the bar in the background of a number is full. right: align text
    right; numbers always are.
    """

    label: str
    format: str = ""
    help: str | None = None
    bar: float | None = None
    right: bool = False


def plain_table(
    frame: pd.DataFrame,
    columns: Mapping[str, Column | str],
    *,
    max_height: int | None = None,
    sortable: bool = True,
) -> None:
    """Draw the named columns of a frame in the given order; above `max_height` pixels the table scrolls.

    sortable: whether a click on a header sorts the rows; not for a table that shows a part of a list.
    Columns that the frame does not have are left out. Text is escaped, so markup in it is shown literally. The style
    sheet comes from `page`.
    """
    st.html(table_html(frame, columns, max_height=max_height, sortable=sortable))


def verbatim(text: str, *, max_height: int | None = None) -> None:
    """Draw a text unchanged, with its line breaks; above `max_height` pixels it scrolls."""
    st.html(_verbatim_html(text, max_height, "Text"))


def text_columns(named: Mapping[str, str], *, max_height: int | None = None) -> None:
    """Draw texts next to each other in the style of `verbatim`, each under its name."""
    parts = (
        f"<figure><figcaption>{html_text(name)}</figcaption>{_verbatim_html(text, max_height, name)}</figure>"
        for name, text in named.items()
    )
    st.html(f'<div class="read-texts">{"".join(parts)}</div>')


def _verbatim_html(text: str, max_height: int | None, name: str) -> str:
    return f'<pre class="verbatim"{_scroll_attributes(max_height, name)}>{html_text(text) or " "}</pre>'


def metric_row(values: Mapping[str, str], *, help: Mapping[str, str] | None = None) -> None:
    """Draw a row of numbers, each under its name, over several lines if needed. help: tooltips of the names."""
    st.html(metric_row_html(values, help or {}))


def metric_row_html(values: Mapping[str, str], help: Mapping[str, str]) -> str:
    """The row of numbers as HTML."""
    parts = (
        f"<div><dt{_title_attribute(help.get(name))}>{html_text(name)}</dt><dd>{html_text(value)}</dd></div>"
        for name, value in values.items()
    )
    return f'<dl class="read-numbers">{"".join(parts)}</dl>'


def table_html(
    frame: pd.DataFrame,
    columns: Mapping[str, Column | str],
    *,
    max_height: int | None = None,
    sortable: bool = True,
) -> str:
    """The table as HTML."""
    named = ((name, columns[name]) for name in columns if name in frame)
    shown = {name: Column(as_) if isinstance(as_, str) else as_ for name, as_ in named}
    parts = [_column(frame[name], column) for name, column in shown.items()]
    sortable = sortable and len(frame) > 1
    head = "".join(
        _header_cell(name, column, right, sortable)
        for (name, column), (_, right) in zip(shown.items(), parts, strict=True)
    )
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in zip(*(cells for cells, _ in parts), strict=True))
    place = _scroll_attributes(max_height, ", ".join(column.label for column in shown.values()))
    place += " data-sortable" if sortable else ""
    return f'<div class="read-table"{place}><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _scroll_attributes(max_height: int | None, name: str) -> str:
    """HTML attributes of an element that scrolls; `tabindex` makes it reachable with the keyboard."""
    if max_height is None:
        return ""
    return f' style="max-height:{max_height}px" tabindex="0" role="region" aria-label="{html.escape(name)}"'


def _header_cell(name: str, column: Column, right: bool, sortable: bool) -> str:
    side, about = _align_attribute(right), _title_attribute(column.help)
    sort = ' tabindex="0" aria-sort="none"' if sortable else ""
    return f'<th scope="col" data-name="{html.escape(name)}"{side}{about}{sort}>{html.escape(column.label)}</th>'


def _title_attribute(help: str | None) -> str:
    return f' title="{html.escape(help)}"' if help else ""


def _column(values: pd.Series, column: Column) -> tuple[list[str], bool]:
    """A column's cells, and whether they are aligned right."""
    numbers = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    right = column.right or numbers
    return [_cell(value, column, right) for value in values], right


def _cell(value: Any, column: Column, right: bool) -> str:
    if isinstance(value, bool | np.bool_):
        return f"<td{_align_attribute(right)} data-value={int(value)}>{'✓' if value else ''}</td>"
    if isinstance(value, str):
        kind = _align_attribute(right) if len(value) <= WRAP_LENGTH else ' class="long"'
        return f"<td{kind}>{html_text(value)}</td>"
    if value is None or pd.isna(value):
        return f"<td{_align_attribute(right)} data-missing>{MISSING_VALUE}</td>"
    text = html_text(format(value, column.format))
    sort = f' data-value="{html.escape(str(value).replace("inf", "Infinity"))}"'  # as JavaScript reads it
    if column.bar is None:
        return f"<td{_align_attribute(right)}{sort}>{text}</td>"
    share = min(max(float(value) / column.bar, 0.0), 1.0)
    return f'<td class="bar" style="--share:{share:.1%}"{sort}>{text}</td>'


def _align_attribute(right: bool) -> str:
    return ' class="right"' if right else ""
