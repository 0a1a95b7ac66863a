"""Plain tables and texts: contents of cells, and that no text becomes markup."""

import numpy as np
import pandas as pd
import pytest

from dashboard.layout.tables import Column, metric_row_html, table_html
from dashboard.token_text import html_text
from tests.dashboard.page_text import parse_numbers, parse_tables

NASTY = [
    "<img src=x onerror=alert(1)>",
    "</td></table><script>alert(1)</script>",
    "&amp;",
    '"',
    "$x$ **b** `c`",
    "\u202e",
]


def test_cells_are_written_as_asked() -> None:
    frame = pd.DataFrame(
        {
            "layer": [0, 11],
            "value": [0.12345, np.nan],
            "share": [0.5, 1.0],
            "right": [True, False],
            "token": ["·the", "a"],
            "hidden": [1, 2],
        }
    )
    columns = {"token": "Token", "layer": "Layer", "value": Column("Value", "+.2f"), "share": Column("Share", ".1%"),
               "right": "Right", "absent": "Absent"}  # fmt: skip
    page = table_html(frame, columns)
    assert (
        '<td>·the</td><td class="right" data-value="0">0</td><td class="right" data-value="0.12345">+0.12</td>'
        '<td class="right" data-value="0.5">50.0%</td>'
    ) in page
    assert '<td class="right" data-missing>–</td>' in page and "<td data-value=1>✓</td>" in page
    (read,) = parse_tables(page)
    assert list(read) == ["token", "layer", "value", "share", "right"]  # in this order; the frame has no "absent"
    assert read["layer"].tolist() == [0, 11] and read["share"].tolist() == [0.5, 1.0]
    assert read["right"].tolist() == [True, False] and read["value"].isna().tolist() == [False, True]


@pytest.mark.parametrize("text", NASTY)
def test_text_is_never_markup(text: str) -> None:
    page = table_html(pd.DataFrame({"token": [text]}), {"token": Column(text, help=text)})
    (read,) = parse_tables(page)
    assert read["token"].tolist() == [text.replace("\u202e", "⟨U+202E⟩")]
    assert "<img" not in page and "<script" not in page and page.count("<td") == page.count("<th ") == 1
    assert "<" not in html_text(text) and '"' not in html_text(text)


@pytest.mark.parametrize("text", NASTY)
def test_a_number_and_its_name_are_never_markup(text: str) -> None:
    row = metric_row_html({"Entropy (nats)": "0.52", text: text}, {text: text})
    safe = text.replace("\u202e", "⟨U+202E⟩")
    assert parse_numbers(row) == {"Entropy (nats)": "0.52", safe: safe}
    assert "<img" not in row and "<script" not in row and row.count("<dt") == row.count("<dd>") == 2
    assert row.count(" title=") == 1


@pytest.mark.parametrize(("value", "share"), [(0.0, "0.0%"), (0.25, "12.5%"), (2.0, "100.0%"), (7.0, "100.0%")])
def test_a_bar_is_the_share_of_its_full_value(value: float, share: str) -> None:
    page = table_html(pd.DataFrame({"p": [value]}), {"p": Column("P", ".2f", bar=2)})
    assert f'style="--share:{share}" data-value="{value}">{value:.2f}</td>' in page


def test_what_scrolls_can_be_reached_with_the_keyboard() -> None:
    frame = pd.DataFrame({"a": [1]})
    assert "tabindex" not in table_html(frame, {"a": "A"})
    assert 'max-height:200px" tabindex="0" role="region" aria-label="A"' in table_html(
        frame, {"a": "A"}, max_height=200
    )
