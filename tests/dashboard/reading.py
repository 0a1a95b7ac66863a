"""What AppTest itself does not read from a page."""

from typing import Any

from streamlit.testing.v1 import AppTest


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
        elif child.type == "plotly_chart":
            drawn, silent, said = drawn + 1, silent + (not said), False
        elif "](https://" in getattr(getattr(child, "proto", None), "help", ""):
            said = True
    return drawn, silent, said


def shape(block: Any) -> list[Any]:
    """What stands where below a block, the place for spinners left out."""
    found = []
    for at, child in sorted(block.children.items()):
        if not hasattr(child, "children"):
            found.append((at, child.type))
        elif not getattr(child.proto, "id", "").endswith("-busy"):
            found.append((at, shape(child)))
    return found
