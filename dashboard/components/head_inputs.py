"""The Layer and Head inputs of a page, which travel to the next page as a pair."""

import streamlit as st

from dashboard.session import url_state
from workbench.config import ModelConfig


def head_inputs(
    config: ModelConfig,
    default: tuple[int, int] = (0, 0),
    *,
    keys: tuple[str, str] = ("layer", "head"),
    width: int = 140,
) -> tuple[int, int]:
    """Draw both inputs. Once either is changed, both are kept: a head alone means another head on another page.

    default: layer and head before any choice. keys: names in the URL, if they are not those of the other pages.
    """
    session = st.session_state
    carried = session.get("_last_layer"), session.get("_last_head")
    if keys != ("layer", "head") and None not in carried:
        layers, heads = config.n_layers - 1, config.n_heads - 1
        default = min(int(carried[0]), layers), min(int(carried[1]), heads)  # type: ignore[arg-type]
    layer = url_state.url_widget(st.number_input, "Layer", 0, config.n_layers - 1, default[0], key=keys[0], width=width)
    head = url_state.url_widget(st.number_input, "Head", 0, config.n_heads - 1, default[1], key=keys[1], width=width)
    if (layer, head) != default:
        session["_last_layer"], session["_last_head"] = layer, head
    return int(layer), int(head)
