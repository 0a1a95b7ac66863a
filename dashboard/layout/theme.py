"""Plotly template for figures, light and dark, with the page's font and colours."""

from typing import Any

from probes.base.drawing import COLOURS, Theme

# Text, grid lines, background, and borders. Streamlit's own grey on white has a contrast of 3.7 to 1, which is too low
# to be accessible.
_COLOURS: dict[Theme, tuple[str, str, str, str]] = {
    "light": ("#555867", "#e6eaf1", "#ffffff", "#d3d5db"),
    "dark": ("#e6eaf1", "#31333f", "#111319", "#3a404e"),
}


def template(theme: Theme) -> dict[str, Any]:
    """The template as plotly's JSON; it replaces the template of each figure that is sent."""
    ink, grid, paper, edge = _COLOURS[theme]
    small, large = {"color": ink, "size": 12}, {"color": ink, "size": 14}
    axis = {
        "automargin": True,
        "gridcolor": grid,
        "zerolinecolor": grid,
        "zerolinewidth": 2,
        "tickcolor": grid,
        "ticks": "",
        "tickfont": small,
        "title": {"font": large, "standoff": 20},
    }
    bar = {"outlinewidth": 0, "ticks": "", "tickfont": small, "title": {"font": large}}
    layout = {
        "font": {**small, "family": '"Source Sans", sans-serif'},
        "colorway": COLOURS,
        "paper_bgcolor": paper,
        "plot_bgcolor": paper,
        "autotypenumbers": "strict",
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "bgcolor": paper, "bordercolor": edge, "font": small},
        "legend": {"font": small},
        "margin": {"pad": 8},
        "coloraxis": {"colorbar": {**bar, "thickness": 16, "xpad": 24, "len": 0.75, "y": 0.5745}},
        "xaxis": {**axis, "showgrid": False, "zeroline": False},
        "yaxis": axis,
    }
    return {"layout": layout, "data": {"heatmap": [{"colorbar": bar}]}}
