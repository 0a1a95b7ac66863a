"""A plotly figure on a page, drawn by plotly's own code for figures with axes.

Streamlit's element brings all of plotly, maps and scenes in space too: 4.7 MB that the browser reads and runs before it
can draw anything, a second of a first visit. This is the 1.5 MB of it that figures here need, and it is served from
here, so that nothing is asked of another host: `static/` holds the file of npm's `plotly.js-cartesian-dist-min` in the
version that the plotly package has, too, unchanged.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from dashboard.layout import figure_margins
from dashboard.layout.theme import template
from probes.base.drawing import Theme

CODE = "app/static/plotly-cartesian-4.1.1.min.js"  # below the address of the dashboard
HEIGHT = 450  # pixels of a figure that names none
_CONFIG = {"displaylogo": False, "displayModeBar": "hover", "modeBarButtonsToRemove": ["select2d", "lasso2d"]}

# Registered once for the process: naming a component anew on each run would replace it under other users.
_component = st.components.v2.component(
    "workbench.figure",
    html='<div class="workbench-figure" role="figure" aria-busy="true"></div>',
    css=Path(__file__).with_suffix(".css").read_text(encoding="utf-8"),
    js=Path(__file__).with_suffix(".js").read_text(encoding="utf-8"),
    isolate_styles=False,  # plotly puts its own styles into the page
)


def figure(
    fig: go.Figure,
    *,
    key: str,
    title: str,
    stretch: bool = False,
    config: Mapping[str, Any] | None = None,
    chosen: tuple[int, int] | None = None,
    on_choose: Callable[[int, int], None] | None = None,
) -> None:
    """Draw it; `title` names it to who does not see it. `stretch` lets it fill a card that is taller.

    With `on_choose`, which gets x and y, the cells of the first trace can be clicked, a heatmap over whole numbers from
    0 on; the last trace, of one point, stands at x and y of `chosen`. Where only this differs, the figure is not drawn
    again.
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
            "config": {**_CONFIG, **(config or {})},
            "title": title,
            "height": fig.layout.height or HEIGHT,
            "stretch": stretch,
            "chosen": chosen,
        },
        on_chosen_change=chose,
    )


def figure_json(fig: go.Figure, theme: Theme) -> str:
    """The figure's JSON as it is sent, with room for its labels and the page's look."""
    found = json.loads(fig.to_json(validate=False))
    figure_margins.set_margins(found)
    found["layout"]["template"] = template(theme)
    return json.dumps(found, separators=(",", ":"))
