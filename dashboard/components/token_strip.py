"""The prompt as a strip of tokens, shaded by one head's attention; hovering previews a token, a click selects it."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import streamlit as st

from dashboard.token_text import short

Mode = Literal["looks", "seen"]

_FILES = Path(__file__).with_suffix("")
_HTML = '<div class="readout"></div><div class="strip" tabindex="0" role="group" aria-label="Tokens"></div>'

# Registered once per process: to register it again on each run would replace it while other users have it open.
_component = st.components.v2.component(
    "workbench.token_strip",
    html=_HTML,
    css=_FILES.with_suffix(".css").read_text(encoding="utf-8"),
    js=_FILES.with_suffix(".js").read_text(encoding="utf-8"),
)


@dataclass(frozen=True)
class Strip:
    """Contents of a strip. `pattern` [query_pos, key_pos] is one head's attention within one window of tokens."""

    id: str
    tokens: Sequence[bytes]
    pattern: np.ndarray
    start: int = 0  # position of the first token
    mode: Mode = "looks"


def token_strip(strip: Strip, *, chosen: int, on_choose: Callable[[int], None], key: str = "strip_tokens") -> None:
    """Draw a strip with the token at position `chosen` marked; `on_choose` is called with the clicked position.

    Shapes: strip.pattern [query_pos, key_pos] causal, as long as strip.tokens on both axes
    """

    def chose() -> None:
        position = st.session_state[key].get("chosen")
        if isinstance(position, int) and strip.start <= position < strip.start + len(strip.tokens):
            on_choose(position)

    _component(
        key=key,
        data={
            "id": strip.id,
            "tokens": [short(token, 40) for token in strip.tokens],
            "weights": pack(strip.pattern),
            "start": strip.start,
            "mode": strip.mode,
            "chosen": chosen - strip.start,
        },
        on_chosen_change=chose,
    )


def plain_strip(id: str, tokens: Sequence[bytes], ids: Sequence[int], *, key: str = "plain_tokens") -> None:
    """Draw tokens without shading; hovering shows a token's position and id."""
    _component(
        key=key, data={"id": id, "tokens": [short(token, 40) for token in tokens], "ids": list(ids), "mode": "plain"}
    )


def pack(pattern: np.ndarray) -> str:
    """The causal half of a pattern, row by row, as base64 of little-endian 16-bit integers; 65535 means 1.

    Shapes: [pos, pos] -> pos (pos + 1) / 2 numbers
    """
    rows, columns = np.tril_indices(len(pattern))
    shares = np.rint(np.clip(np.nan_to_num(pattern[rows, columns]), 0, 1) * 65535).astype("<u2")
    return base64.b64encode(shares.tobytes()).decode("ascii")
