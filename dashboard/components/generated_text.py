"""A generated text as tokens shaded by probability; one that is pointed at or focused says what else was likely."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import streamlit as st

from dashboard.token_text import short
from probes.generation.token_choices import SamplingTrace

PROMPT_SHOWN = 40
"""Tokens of the prompt's end that stand before the text: enough to read on from."""

_FILES = Path(__file__).with_suffix("")
_HTML = """
<div class="choices">
  <div class="text" role="group" aria-label="Generated tokens: arrow keys move, Enter chooses a step"></div>
  <div class="about" role="status"></div>
</div>
"""

# Registered once for the process: naming a component anew on each run would replace it under other users.
_component = st.components.v2.component(
    "workbench.choices",
    html=_HTML,
    css=_FILES.with_suffix(".css").read_text(encoding="utf-8"),
    js=_FILES.with_suffix(".js").read_text(encoding="utf-8"),
)


def generated_text(
    trace: SamplingTrace, *, id: str, name: Callable[[int], bytes], chosen: int, on_choose: Callable[[int], None]
) -> None:
    """Draw it with one step marked; `on_choose` gets the step, counted from 0, that a click or Enter chose.

    id: names the text; `name` gives a token's bytes.
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
    """Five digits are more than is shown; what is not finite has no place in JSON, and the page says so itself."""
    return [float(f"{value:.5g}") for value in np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)]
