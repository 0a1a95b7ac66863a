"""Widget values and parameters that live in the URL, and which values of a URL were not available."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import streamlit as st

from dashboard.session import url_values
from dashboard.session.url_values import UnavailableValue

T = TypeVar("T")


def begin_page(page: str) -> None:
    """Note whether this run is the session's first on a page; each page begins with it."""
    session = st.session_state
    session["_arrived"] = session.get("_page") != page
    session["_page"], session["_drawn"] = page, {}
    if session["_arrived"]:
        session["_misread"] = {}


def url_widget(widget: Callable[..., T], label: str, *args: Any, key: str, **options: Any) -> T:
    """A widget whose value is in the URL under `key`, and comes back when its user returns from another page.

    A link's value wins; without one, the session's last choice; else the widget's own default. A default that nobody
    chose is not remembered, and changes with what it depends on. What a link asks for in vain is said by the page.
    """
    session, default = st.session_state, url_values.default(widget, args, options)
    memory, before = f"_last_{key}", f"_default_{key}"
    # On arrival the key may still stand for the widget of the page that was left, whose value this one would not take.
    fresh = session.get("_arrived") or key not in session
    given = st.query_params.get_all(key) if fresh else []
    if fresh and memory in session and not given:
        session[key] = session[memory]
    elif fresh:
        session.pop(key, None)
    elif memory not in session and session[key] == session.get(before) != default:
        session[key] = default
    if widget is st.number_input and isinstance(session.get(key), int | float):
        session[key] = url_values.clamp(session[key], *args[:2])  # a larger model had more
    binding = (
        None if url_values.rejected_by_streamlit(widget, st.query_params.get(key)) else _binding(widget, label, key)
    )
    value = widget(label, *args, key=key, bind=binding, **options)
    session[before], session["_drawn"][key] = default, value if binding else ""
    if value != default:
        session[memory] = value
    elif session.get(memory) != value:  # it was set back; one that was chosen where the default is another stays
        session.pop(memory, None)
    if given and not url_values.matches(given, value):
        note_unavailable(key, given[-1], value)
    elif not fresh:
        _clear_unavailable(key, value)
    return value


def _binding(widget: Callable[..., Any], label: str, key: str) -> str | None:
    """Whether a text can be in the URL, beside all that is in it; the page says where it cannot."""
    if widget not in (st.text_area, st.text_input):
        return "query-params"
    session = st.session_state
    text, others = session.get(key, ""), {**st.query_params.to_dict(), **session["_drawn"]}
    long = session.setdefault("_long", {})
    if text and not url_values.fits_in_url({**others, key: text}):
        long[key] = label
        return None
    if long.pop(key, None):  # written again: only what is set here, and not in the browser, is sent there
        session[key] = text
    return "query-params"


def url_selectbox(label: str, options: Sequence[str], *, key: str, follows: str | None = None, **more: Any) -> str:
    """A box whose value is in the URL even where it is the first one: what is first may be another one tomorrow.

    follows: the key of a box whose choice may leave this one without its value; then nobody has to be told.
    """
    given, session = url_param(key), st.session_state
    if given not in options:
        if given is not None and (follows is None or session.get("_chose") != follows):
            note_unavailable(key, given, options[0])
        given = options[0]
        set_url_param(key, given)

    def chose() -> None:
        session["_chose"] = key
        set_url_param(key, session[key])
        session["_misread"].pop(key, None)

    session[key] = given
    return str(st.selectbox(label, options, key=key, on_change=chose, **more))


def note_unavailable(key: str, requested: str, shown: object, advice: str = "") -> None:
    """Have the page say that its address asks for what cannot be shown; the first to say so of a parameter counts."""
    st.session_state["_misread"].setdefault(key, UnavailableValue(key, requested, shown, advice))


def note_shown(key: str, requested: object, shown: object) -> None:
    """As `misread`, on arrival, where a page shows something else than a parameter or control says."""
    if st.session_state["_arrived"] and requested is not None and str(requested) != str(shown):
        note_unavailable(key, str(requested), shown)
    else:
        _clear_unavailable(key, shown)


def _clear_unavailable(key: str, shown: object) -> None:
    """Say no more of a parameter, unless this is what was shown in its place."""
    said = st.session_state["_misread"].get(key)
    if said is not None and shown != said.shown and str(shown) != said.given:
        del st.session_state["_misread"][key]


def unavailable_values() -> tuple[list[UnavailableValue], list[str]]:
    """At a page's end: what its address asked for in vain, and the labels of texts that are too long to be in it."""
    st.session_state.pop("_chose", None)
    long = st.session_state.get("_long", {})
    return list(st.session_state["_misread"].values()), [long[key] for key in long if key in st.session_state["_drawn"]]


def url_param(key: str) -> str | None:
    """A URL parameter that belongs to no widget, kept when its user returns from another page."""
    memory = f"_last_{key}"
    if key not in st.query_params and memory in st.session_state:
        st.query_params[key] = st.session_state[memory]
    value = st.query_params.get(key)
    if value is not None:
        st.session_state[memory] = value
    return value


def clear_url_param(key: str) -> None:
    """Forget a parameter of `linked`."""
    st.session_state.pop(f"_last_{key}", None)
    if key in st.query_params:
        del st.query_params[key]


def set_url_param(key: str, value: object) -> None:
    """Put a parameter of `linked` into the URL."""
    st.query_params[key] = str(value)
    st.session_state[f"_last_{key}"] = str(value)


def preset_widget(key: str, value: object) -> None:
    """Set what `bound` will find under a key when its widget is drawn next, here or on another page."""
    st.session_state[f"_last_{key}"] = value
    st.session_state[key] = value


def forget_widget(key: str) -> None:
    """Let the control or link of this name be as on a first visit."""
    st.session_state.pop(f"_last_{key}", None)
    st.session_state.pop(key, None)
