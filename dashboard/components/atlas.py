"""The atlas as a widget: one square for each head, a ring around the open one, a click opens another.

A heatmap reports no clicks, so the figure carries an invisible marker over each cell and the browser itself draws the
ring around the clicked one. The figure is not sent again for that: it only changes with its numbers, or when the
open head was changed by something other than a click. The downloads have it with the ring where it is now.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from dashboard.frame import PLOTLY_CONFIG, offer, readable
from probes.figures import drawing
from workbench.config import ModelConfig

Cell = tuple[int, int]

_RING, _TURN = "_atlas_ring", "_atlas_turn"  # the ring as the browser has it; how often the chart was mounted anew
_ROOM = 360  # pixels that the longer side of the grid may take


def atlas(
    values: np.ndarray,
    *,
    id: str,
    unit: str,
    config: ModelConfig,
    selected: Cell,
    on_choose: Callable[[int, int], None],
) -> None:
    """Draw it; `on_choose` gets the layer and head of a clicked square. `id` names the numbers that are shown.

    Shapes: values [layer, head] of every layer and head of the model
    """
    drawn = st.session_state.get(_RING)
    if drawn is None or drawn["id"] != id or drawn["now"] != selected:
        drawn = {"id": id, "first": selected, "now": selected}
        st.session_state[_RING] = drawn
        st.session_state[_TURN] = st.session_state.get(_TURN, 0) + 1
    key = f"atlas_{st.session_state[_TURN]}"

    def clicked() -> None:
        cell = _cell(st.session_state[key], config.n_heads)
        if cell is None:  # a second click took the ring away: mount the chart anew, with the ring
            st.session_state.pop(_RING)
        else:
            drawn["now"] = cell
            on_choose(*cell)

    st.plotly_chart(
        readable(_figure(values, unit, config, drawn["first"], id)),
        key=key,
        on_select=clicked,
        selection_mode="points",
        # Else two squares clicked within 300 ms count as a double click, which takes the selection away.
        config={**PLOTLY_CONFIG, "modeBarButtons": [["toImage"]], "doubleClickDelay": 1},
    )
    title = f"{unit[0].upper()}{unit[1:]} of every head"
    offer("atlas", title, lambda: readable(_figure(values, unit, config, selected, id)))


def _cell(state: Any, n_heads: int) -> Cell | None:
    """The clicked cell; the markers stand in rows of heads, layer after layer."""
    points = state["selection"]["points"]
    return divmod(int(points[0]["point_index"]), n_heads) if points else None


def _figure(values: np.ndarray, unit: str, config: ModelConfig, ring: Cell, id: str) -> go.Figure:
    fig = drawing.atlas(
        values,
        title="",
        unit=unit,
        heads=range(config.n_heads),
        layers=range(config.n_layers),
        group_size=config.group_size,
        selected=ring,
        stamp={"id": id},
    )
    side = max(6.0, min(52.0, _ROOM / max(values.shape)))
    height = round(side * values.shape[0]) + 125
    fig.update_layout(height=height, margin={"t": 30, "l": 50, "r": 10, "b": 95})
    fig.update_xaxes(constrain="domain", title={"standoff": 8})
    fig.update_yaxes(constrain="domain", scaleanchor="x")
    bar = {"orientation": "h", "yref": "container", "y": 0.0, "yanchor": "bottom", "thickness": 10, "len": 0.85}
    fig.update_traces(selector={"type": "heatmap"}, colorbar={**bar, "title": None})
    return fig
