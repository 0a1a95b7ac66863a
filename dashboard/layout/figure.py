"""A plotly figure on a page, drawn with plotly's cartesian bundle.

Streamlit's own element loads all of plotly, including maps and 3D: 4.7 MB that the browser must read and run before it
draws anything, one second of a first visit. The cartesian bundle is 1.5 MB. The server serves it itself, so the browser
loads nothing from another host: `static/` contains the unchanged file of npm's `plotly.js-cartesian-dist-min`, in the
version of the installed plotly package.
"""

import json
from collections.abc import Callable
from pathlib import Path

import plotly.graph_objects as go
import streamlit as st

from dashboard.layout import figure_margins
from dashboard.layout.theme import template
from probes.base.drawing import HTML_CONFIG, Theme

CODE = "app/static/plotly-cartesian-4.1.1.min.js"  # relative to the URL of the dashboard
HEIGHT = 450  # default height in pixels
_CONFIG = {**HTML_CONFIG, "displayModeBar": "hover", "modeBarButtonsToRemove": ["select2d", "lasso2d", "toImage"]}

# Registered once per process: to register it again on each run would replace it while other users have it open.
_component = st.components.v2.component(
    "workbench.figure",
    html='<div class="workbench-figure" role="figure" aria-busy="true"></div>',
    css=Path(__file__).with_suffix(".css").read_text(encoding="utf-8"),
    js=Path(__file__).with_suffix(".js").read_text(encoding="utf-8"),
    isolate_styles=False,  # plotly adds its own styles to the page
)


def figure(
    fig: go.Figure,
    *,
    key: str,
    title: str,
    stretch: bool = False,
    file: str = "figure",
    is_grid: bool = False,
    chosen: tuple[int, int] | None = None,
    on_choose: Callable[[int, int], None] | None = None,
) -> None:
    """Draw a figure. `title` names it for screen readers and on saved pictures; `stretch` lets it fill a taller card.

    file: name of a saved picture, without its ending. is_grid: a figure to click on, without zoom.
    on_choose: called with x and y of a clicked cell. The first trace must be a heatmap over whole numbers from 0 on.
    The last trace, a single point, is moved to `chosen`. If only `chosen` changes, the figure is not drawn again.
    """
    name = f"figure_{key}"

    def chose() -> None:
        match st.session_state[name].get("chosen"):
            case [int(x), int(y)] if on_choose and x in fig.data[0].x and y in fig.data[0].y:
                on_choose(x, y)

    _component(
        key=name,
        data={
            "figure": figure_json(fig, "dark" if st.context.theme.type == "dark" else "light"),
            "code": CODE,
            "config": {**_CONFIG, **({"doubleClick": False} if is_grid else {})},
            "only_pictures": is_grid,
            "file": file,
            "title": title,
            "height": fig.layout.height or HEIGHT,
            "stretch": stretch,
            "chosen": chosen,
        },
        on_chosen_change=chose,
    )


def figure_json(fig: go.Figure, theme: Theme) -> str:
    """The figure as JSON for the browser, with margins for its labels and the page's theme."""
    parts = json.loads(fig.to_json(validate=False))
    figure_margins.set_margins(parts)
    parts["layout"]["template"] = template(theme)
    return json.dumps(parts, separators=(",", ":"))
