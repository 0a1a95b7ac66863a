"""Values of URL parameters: parsing, comparison with widget values, and the size limit of a URL. Draws nothing."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import streamlit as st

MAX_BYTES = 48_000
"""Limit for all parameters, URL-encoded. The server accepts 65,536 for these, the browser's headers and cookies."""


@dataclass(frozen=True)
class UnavailableValue:
    """A URL parameter whose requested value is not available, the value shown instead, and advice for the user."""

    key: str
    requested: str
    shown: Any
    advice: str = ""

    def __str__(self) -> str:
        what = f"{self.key}={_short(self.requested)} is not available here; showing {_describe(self.shown)}."
        return f"{what} {self.advice}".strip()


def fits_in_url(parameters: Mapping[str, object]) -> bool:
    """Whether the server would accept a URL with these parameters."""
    return len(urlencode(parameters, errors="replace")) <= MAX_BYTES


def default(widget: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """The value that a Streamlit widget shows before the user has chosen one."""
    if widget is st.selectbox:
        return args[0][0]
    if widget in (st.segmented_control, st.multiselect):
        return options["default"]
    if widget in (st.number_input, st.slider):
        return args[2]
    return False if widget is st.toggle else args[0] if args else ""


def parse_count(text: str | None) -> int | None:
    """A parameter as a non-negative integer; None if it has other characters than digits, or more than 18 digits."""
    return int(text) if text is not None and text.isdecimal() and len(text) < 19 else None


def matches(requested: Sequence[str], value: object) -> bool:
    """Whether a widget's value is the one that its parameter requests; a parameter may occur several times."""
    if isinstance(value, list):
        return [text for text in requested if text] == value
    text = requested[-1]
    if isinstance(value, bool) or value is None:
        return text.lower() == ("" if value is None else str(value).lower())
    if isinstance(value, str):
        return text == value
    try:
        return float(text) == value
    except ValueError:
        return False


def rejected_by_streamlit(widget: Callable[..., Any], text: str | None) -> bool:
    """Whether Streamlit itself would fail on this parameter: a number that is not finite, or an empty choice."""
    if widget is st.segmented_control:
        return text == ""
    try:
        return widget is st.number_input and text is not None and not math.isfinite(float(text))
    except ValueError:
        return False


def clamp(value: float, low: float | None = None, high: float | None = None) -> float:
    """The number, limited to the widget's range."""
    value = value if low is None else max(value, low)
    return value if high is None else min(value, high)


def _describe(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "nothing"
    text = str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
    return "nothing" if value in (None, "") else _short(text)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:60]}…"
