"""A generated text as tokens shaded by probability; hovering or focusing a token shows its likely alternatives."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import streamlit as st

from dashboard.token_text import short
from probes.generation.token_choices import SamplingTrace

PROMPT_SHOWN = 40
"""Last tokens of the prompt that are shown before the generated text."""

_FILES = Path(__file__).with_suffix("")
_HTML = """
<div class="choices">
  <div class="text" role="group" aria-label="Generated tokens: arrow keys move, Enter chooses a step"></div>
  <div class="about" role="status"></div>
</div>
"""

# Registered once per process: to register it again on each run would replace it while other users have it open.
_component = st.components.v2.component(
    "workbench.choices",
    html=_HTML,
    css=_FILES.with_suffix(".css").read_text(encoding="utf-8"),
    js=_FILES.with_suffix(".js").read_text(encoding="utf-8"),
)


def generated_text(
    trace: SamplingTrace, *, id: str, name: Callable[[int], bytes], chosen: int, on_choose: Callable[[int], None]
) -> None:
    """Draw the text with the step `chosen` marked.

    id: identifies the text. name: gives a token's bytes. on_choose: called with the step that a click or Enter chose,
    counted from 0.
    """

    def chose() -> None:
        step = st.session_state["choices"].get("chosen")
        if isinstance(step, int) and 0 <= step < len(trace.tokens):
            on_choose(step)

    _component(
        key="choices",
        data={
            "id": id,
            "before": [short(name(token), 40) for token in trace.prompt[-PROMPT_SHOWN:]],
            "cut": len(trace.prompt) > PROMPT_SHOWN,
            "start": len(trace.prompt),
            "tokens": [short(name(token), 40) for token in trace.tokens],
            "ids": list(trace.tokens),
            "p": _rounded(np.exp(trace.logprobs)),
            "logp": _rounded(trace.logprobs),
            "rank": trace.ranks.tolist(),
            "entropy": _rounded(trace.entropy),
            "share": _rounded(trace.shares),
            "shareEntropy": _rounded(trace.share_entropy),
            "kept": trace.kept.tolist(),
            "others": [
                [[short(name(token), 24), p, share] for token, p, share in zip(*row, strict=True)]
                for row in zip(
                    trace.other_tokens.tolist(),
                    map(_rounded, np.exp(trace.other_logprobs)),
                    map(_rounded, trace.other_shares),
                    strict=True,
                )
            ],
            "chosen": chosen,
        },
        on_chosen_change=chose,
    )


def _rounded(values: np.ndarray) -> list[float]:
    """The values with five digits, more than are shown. JSON has no infinite numbers, so they become 0."""
    return [float(f"{value:.5g}") for value in np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)]
