"""What an address can say: whether a control shows what was asked for, and how much text fits. Draws nothing."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import streamlit as st

MAX_BYTES = 48_000
"""Of all parameters, as they are sent. A server takes 65,536 for these, the browser's own headers and its cookies."""


@dataclass(frozen=True)
class UnavailableValue:
    """A parameter that could not be shown as it was given, what is shown instead, and what can be done about it."""

    key: str
    requested: str
    shown: Any
    advice: str = ""

    def __str__(self) -> str:
        what = f"{self.key}={_short(self.requested)} is not possible here; shown is {_describe(self.shown)}."
        return f"{what} {self.advice}".strip()


def fits_in_url(parameters: Mapping[str, object]) -> bool:
    """Whether an address of these parameters would be answered."""
    return len(urlencode(parameters, errors="replace")) <= MAX_BYTES


def default(widget: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """What a control of Streamlit's shows before anybody has chosen."""
    if widget is st.selectbox:
        return args[0][0]
    if widget in (st.segmented_control, st.multiselect):
        return options["default"]
    if widget in (st.number_input, st.slider):
        return args[2]
    return False if widget is st.toggle else args[0] if args else ""


def parse_count(text: str | None) -> int | None:
    """The number that a parameter gives, None where it gives none: digits, and no more than could count anything."""
    return int(text) if text is not None and text.isdecimal() and len(text) < 19 else None


def matches(given: Sequence[str], value: object) -> bool:
    """Whether a control with this value shows what its parameter, given once or more often, asks for."""
    if isinstance(value, list):
        return [text for text in given if text] == value
    text = given[-1]
    if isinstance(value, bool) or value is None:
        return text.lower() == ("" if value is None else str(value).lower())
    if isinstance(value, str):
        return text == value
    try:
        return float(text) == value
    except ValueError:
        return False


def rejected_by_streamlit(widget: Callable[..., Any], text: str | None) -> bool:
    """What an address may hold that Streamlit itself fails on: infinite numbers, and a choice of nothing."""
    if widget is st.segmented_control:
        return text == ""
    try:
        return widget is st.number_input and text is not None and not math.isfinite(float(text))
    except ValueError:
        return False


def clamp(value: float, low: float | None = None, high: float | None = None) -> float:
    """The number, or the nearest end of what a control takes."""
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
