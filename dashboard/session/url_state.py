"""Widget values and parameters stored in the URL, and the values of a URL that are not available."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import streamlit as st

from dashboard.session import url_values
from dashboard.session.url_values import UnavailableValue

T = TypeVar("T")


def begin_page(page: str) -> None:
    """Record whether this run is the session's first run of a page; each page starts with this call."""
    session = st.session_state
    session["_arrived"] = session.get("_page") != page
    session["_page"], session["_drawn"] = page, {}
    if session["_arrived"]:
        session["_misread"] = {}


def url_widget(widget: Callable[..., T], label: str, *args: Any, key: str, **options: Any) -> T:
    """A widget whose value is stored in the URL under `key`, and restored when the user returns from another page.

    A value from a link comes first, then the session's last choice, then the widget's default. A default that the user
    did not choose is not stored, and changes with the model or data. The page names a value that is not available.
    """
    session, default = st.session_state, url_values.default(widget, args, options)
    memory, before = f"_last_{key}", f"_default_{key}"
    # On the first run of a page, the key may still hold the value of the previous page's widget, not valid here.
    fresh = session.get("_arrived") or key not in session
    requested = st.query_params.get_all(key) if fresh else []
    if fresh and memory in session and not requested:
        session[key] = session[memory]
    elif fresh:
        session.pop(key, None)
    elif memory not in session and session[key] == session.get(before) != default:
        session[key] = default
    if widget is st.number_input and isinstance(session.get(key), int | float):
        session[key] = url_values.clamp(session[key], *args[:2])  # a larger model allows larger numbers
    binding = (
        None if url_values.rejected_by_streamlit(widget, st.query_params.get(key)) else _binding(widget, label, key)
    )
    value = widget(label, *args, key=key, bind=binding, **options)
    session[before], session["_drawn"][key] = default, value if binding else ""
    if value != default:
        session[memory] = value
    elif session.get(memory) != value:  # reset to the default; a choice made under another default stays stored
        session.pop(memory, None)
    if requested and not url_values.matches(requested, value):
        note_unavailable(key, requested[-1], value)
    elif not fresh:
        _clear_unavailable(key, value)
    return value


def _binding(widget: Callable[..., Any], label: str, key: str) -> str | None:
    """Where Streamlit stores a widget's value: in the URL, or nowhere (None) for a text that does not fit in it."""
    if widget not in (st.text_area, st.text_input):
        return "query-params"
    session = st.session_state
    text, others = session.get(key, ""), {**st.query_params.to_dict(), **session["_drawn"]}
    long = session.setdefault("_long", {})
    if text and not url_values.fits_in_url({**others, key: text}):
        long[key] = label
        return None
    if long.pop(key, None):  # set again: Streamlit sends only a value that is set here to the URL
        session[key] = text
    return "query-params"


def url_selectbox(label: str, options: Sequence[str], *, key: str, follows: str | None = None, **more: Any) -> str:
    """A selectbox whose value is always in the URL, even if it is the first option: the first may change later.

    follows: the key of a selectbox that determines the options of this one. If a choice there removes the value here,
    the page does not report it.
    """
    value, session = url_param(key), st.session_state
    if value not in options:
        if value is not None and (follows is None or session.get("_chose") != follows):
            note_unavailable(key, value, options[0])
        value = options[0]
        set_url_param(key, value)

    def chose() -> None:
        session["_chose"] = key
        set_url_param(key, session[key])
        session["_misread"].pop(key, None)

    session[key] = value
    return str(st.selectbox(label, options, key=key, on_change=chose, **more))


def note_unavailable(key: str, requested: str, shown: object, advice: str = "") -> None:
    """Record a URL value that is not available, for the page to report; the first note for a parameter counts."""
    st.session_state["_misread"].setdefault(key, UnavailableValue(key, requested, shown, advice))


def note_shown(key: str, requested: object, shown: object) -> None:
    """`note_unavailable`, if this is the first run of a page and it shows something else than the URL requests."""
    if st.session_state["_arrived"] and requested is not None and str(requested) != str(shown):
        note_unavailable(key, str(requested), shown)
    else:
        _clear_unavailable(key, shown)


def _clear_unavailable(key: str, shown: object) -> None:
    """Drop the note for a parameter, unless its value is still the replacement."""
    noted = st.session_state["_misread"].get(key)
    if noted is not None and shown != noted.shown and str(shown) != noted.requested:
        del st.session_state["_misread"][key]


def unavailable_values() -> tuple[list[UnavailableValue], list[str]]:
    """At the end of a page: the values that are not available, and the labels of texts too long for the URL."""
    st.session_state.pop("_chose", None)
    long = st.session_state.get("_long", {})
    return list(st.session_state["_misread"].values()), [long[key] for key in long if key in st.session_state["_drawn"]]


def url_param(key: str) -> str | None:
    """A URL parameter that does not belong to a widget, restored when the user returns from another page."""
    memory = f"_last_{key}"
    if key not in st.query_params and memory in st.session_state:
        st.query_params[key] = st.session_state[memory]
    value = st.query_params.get(key)
    if value is not None:
        st.session_state[memory] = value
    return value


def clear_url_param(key: str) -> None:
    """Remove a parameter of `url_param` from the URL and the session."""
    st.session_state.pop(f"_last_{key}", None)
    if key in st.query_params:
        del st.query_params[key]


def set_url_param(key: str, value: object) -> None:
    """Put a parameter of `url_param` into the URL."""
    st.query_params[key] = str(value)
    st.session_state[f"_last_{key}"] = str(value)


def preset_widget(key: str, value: object) -> None:
    """Set the value that `url_widget` shows the next time it draws this key, here or on another page."""
    st.session_state[f"_last_{key}"] = value
    st.session_state[key] = value


def forget_widget(key: str) -> None:
    """Reset the widget or parameter of this name to its state before the first visit."""
    st.session_state.pop(f"_last_{key}", None)
    st.session_state.pop(key, None)
