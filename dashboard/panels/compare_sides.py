"""The two sides of a comparison: for each its tokens, its interventions and its type of numbers, from the address."""

from dataclasses import dataclass

import streamlit as st
import torch

import workbench as wb
from dashboard.data.samples import SMALL
from dashboard.layout.page import card, show_error
from dashboard.panels import capture_card, intervention_editor, prompt_input
from dashboard.panels.prompt_input import MAX_CHARS, Input
from dashboard.session import captures, computed, url_state
from dashboard.session.computed import NO_CHANGES, CaptureRef
from dashboard.session.shared_cache import process_cache
from dashboard.token_text import plain
from probes.attention.head_map import HOOKS as MAP_HOOKS
from probes.comparison.alignment import Align
from probes.comparison.compare_runs import Comparison, compare
from workbench.errors import DataError, WorkbenchError
from workbench.hooks.capture import Capture
from workbench.hooks.interventions import from_json, to_json
from workbench.model import Transformer

SAME, OTHER, KEPT = "The same prompt", "Another prompt", "A kept capture"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HOOKS = (
    *MAP_HOOKS,
    "blocks.*.attn.hook_z",
    "blocks.*.hook_attn_out",
    "blocks.*.hook_mlp_out",
    "blocks.*.hook_resid_post",
    "hook_logits",
)


@dataclass(frozen=True)
class Side:
    """What one side runs on; `changes` are all its interventions, as `interventions.to_json` writes them."""

    model: Transformer
    given: Input
    changes: str

    def capture(self) -> CaptureRef:
        """Its run, or the one that is already held. Raises: WorkbenchError as `state.capture`."""
        return computed.capture(self.model, self.given.ids, HOOKS, self.changes)


@dataclass(frozen=True)
class Shared:
    """Which tokens of both sides are compared: `count` of them, which begin (or end) both.

    Aligned by their ends, a position of B is A's and `shift`.
    """

    align: Align
    count: int
    shift: int = 0

    @property
    def said(self) -> str:
        """One sentence for the page."""
        if self.align == "equal":
            return f"Both sides hold the same {self.count} tokens."
        end = "begin" if self.align == "prefix" else "end"
        return f"The prompts differ. Compared are the {self.count} tokens that both {end} with, position by position."


def choose(model: Transformer) -> tuple[Side, Side] | None:
    """Draw the controls of both sides; None where one has nothing to run, and the page says why."""
    mine = prompt_input.unchanged(model, HOOKS)
    if mine is None:
        return None
    with card("B differs in", key="sides", help="A is the prompt above with the model as it is, unless changed here."):
        with st.container(horizontal=True, vertical_alignment="bottom", key="side_controls"):
            which = url_state.url_widget(
                st.segmented_control, "B runs on", [SAME, OTHER, KEPT], key="b_of", default=SAME, required=True
            )
            models = _models(model)
            # Before the text that it writes is drawn.
            st.button("Swap interventions", on_click=_swap, help="A's become B's, and B's become A's.")
        theirs = {OTHER: _other, KEPT: _kept}[which](model) if which in (OTHER, KEPT) else mine
        a_changes = url_state.url_widget(
            st.text_area, "A's interventions, as JSON", NO_CHANGES, key="a_changes", height=68,
            max_chars=intervention_editor.MOST_CHARS,
            help="A's are empty as a rule. Build them below for B, then swap.",
        )  # fmt: skip
        try:
            first = from_json(a_changes)
            for change in first:
                change.subscription(model.config)
        except WorkbenchError as error:
            show_error("A's interventions do not fit this model. Correct the JSON, or write [].", str(error))
            return None
    st.caption("Interventions and RoPE scalings of B:")
    second = intervention_editor.choose(model)
    if theirs is None or second is None or models is None:
        return None
    return (
        Side(models[0], mine, mine.with_also(to_json(first))),
        Side(models[1], theirs, theirs.with_also(to_json(second))),
    )


def shared(a: Input, b: Input) -> Shared | None:
    """The tokens that two prompts have in common, by their beginnings or their ends, whichever are more.

    None where it is one token or none: a first token that begins every prompt is no beginning in common.
    """
    if a.ids == b.ids:
        return Shared("equal", len(a))
    begin, end = (_alike(x, y) for x, y in ((a.ids, b.ids), (a.ids[::-1], b.ids[::-1])))
    if max(begin, end) < 2:
        return None
    return Shared("prefix", begin) if begin >= end else Shared("suffix", end, len(b) - len(a))


def compared(model: Transformer, a: Capture, b: Capture, align: Align) -> Comparison:
    """`probes.comparison.compare_runs.compare`, in the form that `computed.cached_pair_probe` calls."""
    return compare(a, b, align=align)


def _alike(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _other(model: Transformer) -> Input | None:
    text = url_state.url_widget(
        st.text_area, "B's prompt" if model.tokenizer else "B's token ids", "", key="b_prompt", height=68,
        max_chars=MAX_CHARS,
    )  # fmt: skip
    try:
        if not text:
            raise DataError("The prompt is empty. Type something.")
        return prompt_input.from_text(model, text)
    except WorkbenchError as error:
        show_error("B has nothing to run on.", str(error))
        return None


def _kept(model: Transformer) -> Input | None:
    names = [one.name for one in captures.list_captures()]
    if not names:
        capture_card.none_yet(model)
        return None
    name = url_state.url_selectbox("B's capture", names, key="b_capture", width=320, format_func=plain)
    try:
        st.text(plain(f"B: {prompt_input.read(model, name, HOOKS)}"))
        return prompt_input.kept(model, name)
    except WorkbenchError as error:
        show_error("B's capture cannot be compared.", str(error))
        return None


def _models(model: Transformer) -> tuple[Transformer, Transformer] | None:
    """The model of each side, in the type that its control names; one type alone where another would not be cheap."""
    if computed.model_source(model) is None or sum(p.numel() for p in model.parameters()) > SMALL:
        return model, model
    own = str(model.dtype).removeprefix("torch.")
    options = [own, *(name for name in DTYPES if name != own)]
    found = []
    for side in "AB":
        name = url_state.url_widget(st.selectbox, f"{side}'s type", options, key=f"{side.lower()}_dtype", width=130)
        found.append(model if name == own else _in_type(f"{computed.fingerprint(model)}/{name}", model, name))
    return found[0], found[1]


# Arguments with an underscore are left out of the key.
@process_cache("Loading the model in another type …", max_entries=2)
def _in_type(key: str, _model: Transformer, name: str) -> Transformer:
    origin = computed.model_source(_model)
    assert origin is not None
    model = wb.load_model(origin.path, dtype=DTYPES[name], device=_model.device)
    model.eval().requires_grad_(False)
    return model


def _swap() -> None:
    values = st.session_state.get("a_changes", NO_CHANGES), st.session_state.get("changes", NO_CHANGES)
    st.session_state["changes"], st.session_state["a_changes"] = values
