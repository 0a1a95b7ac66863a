"""Intervention editor: a list of interventions, its JSON in the URL, and controls that add to it."""

from collections.abc import Callable

import streamlit as st

from dashboard.components.head_inputs import head_inputs
from dashboard.layout.page import card, show_error
from dashboard.session import url_state
from dashboard.session.computed import NO_CHANGES
from dashboard.token_text import plain
from workbench.errors import WorkbenchError
from workbench.hooks.intervention import Intervention
from workbench.hooks.intervention_options import described
from workbench.hooks.interventions import Ablate, Add, Scale, from_json, to_json
from workbench.hooks.rope_scaling import scaling_of
from workbench.model import Transformer

KINDS = ("Ablate", "Scale", "Add", "RoPE")
PLACES = ("Head", "Sublayer", "Hook")
SCALINGS = ("yarn", "ntk", "interpolation", "llama3", "theta")
HOOK = "blocks.0.hook_resid_post"
MOST_CHARS = 20_000


def choose(model: Transformer) -> tuple[Intervention, ...] | None:
    """Draw the controls, the list and the JSON; None if the JSON is not valid for this model."""
    with card("Interventions", key="spec_card", help="They are applied in this order."):
        left, right = st.columns([1.5, 1], gap="medium")
        with left:
            _builder(model)
            listed = st.container()
        with right:
            text = url_state.url_widget(
                st.text_area, "As JSON", NO_CHANGES, key="changes", height=130, max_chars=MOST_CHARS,
                help="The list as JSON: edit it, save it, or pass it to `workbench eval run --intervene`.",
            )  # fmt: skip
        try:
            made = from_json(text)
            for change in made:
                change.subscription(model.config)
        except WorkbenchError as error:
            show_error("The interventions do not fit this model. Correct the JSON, or clear it.", str(error))
            st.button("Clear", on_click=_write, args=([],))
            return None
        with listed:
            _list(made)
    return made


def _builder(model: Transformer) -> None:
    config = model.config
    with st.container(horizontal=True, vertical_alignment="bottom", key="builder"):
        kind = st.selectbox("Kind", KINDS, key="kind", width=110)
        if kind == "RoPE":
            name = st.selectbox("Scaling", SCALINGS, key="scaling_name", width=150)
            number = st.number_input("Value", value=2.0, key="scaling_value", width=130)
            make: Callable[[], Intervention] = lambda: scaling_of(f"{name}={number}", config)  # noqa: E731
        else:
            place = st.selectbox("Target", PLACES, key="place", width=120)
            target = _target(model, place)
            number = 0.0
            if kind == "Scale":
                number = st.number_input("Factor", value=0.5, step=0.1, key="factor", width=120)
            elif kind == "Add":
                number = st.number_input("Constant", value=1.0, step=0.1, key="constant", width=120)
            make = lambda: {  # noqa: E731
                "Ablate": lambda: Ablate(target),
                "Scale": lambda: Scale(target, number),
                "Add": lambda: Add(target, number),
            }[kind]()
        st.button("Add to the list", on_click=_append, args=(model, make), type="primary")
    refused = st.session_state.pop("_refused", None)
    if refused:
        show_error("This intervention does not fit the model.", refused)


def _target(model: Transformer, place: str) -> str:
    if place == "Hook":
        return st.text_input("Hook name or pattern", HOOK, key="hook", width=260, max_chars=200).strip()
    if place == "Head":
        layer, head = head_inputs(model.config, width=130)
        return f"L{layer}H{head}"
    layer = url_state.url_widget(st.number_input, "Layer", 0, model.config.n_layers - 1, 0, key="layer", width=130)
    return f"L{layer}.{st.selectbox('Sublayer', ('attn', 'mlp'), key='sublayer', width=110)}"


def _append(model: Transformer, make: Callable[[], Intervention]) -> None:
    try:
        new = make()
        new.subscription(model.config)
        _write([*from_json(st.session_state["changes"]), new])
    except WorkbenchError as error:
        st.session_state["_refused"] = str(error)


def _write(changes: list[Intervention]) -> None:
    st.session_state["changes"] = to_json(changes)


def _list(made: tuple[Intervention, ...]) -> None:
    if not made:
        st.caption("No interventions yet. Add one here, or open a head from the Lens page.")
    for at, change in enumerate(made):
        with st.container(horizontal=True, vertical_alignment="center", key=f"change_{at}"):
            rest = [other for number, other in enumerate(made) if number != at]
            st.button("Remove", key=f"remove_{at}", on_click=_write, args=(rest,))
            st.text(plain(f"{at + 1}. {described([change])}{_constant(change)}"))


def _constant(change: Intervention) -> str:
    if not isinstance(change, Add):
        return ""
    value = change.tensor
    return f" + {value.item():g}" if value.dim() == 0 else f" + values of shape {list(value.shape)}"
