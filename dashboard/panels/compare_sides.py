"""The two sides of a comparison: tokens, interventions and dtype of each, from the URL."""

from dataclasses import dataclass

import streamlit as st
import torch

import workbench as wb
from dashboard.data.samples import SMALL
from dashboard.layout.page import card, show_error
from dashboard.panels import capture_card, intervention_editor, prompt_input
from dashboard.panels.prompt_input import Input
from dashboard.session import captures, computed, models, url_state
from dashboard.session.computed import NO_CHANGES, CaptureRef
from dashboard.session.models import ServedModel
from dashboard.session.shared_cache import process_cache
from dashboard.token_text import plain
from probes.attention.head_map import HOOKS as MAP_HOOKS
from probes.comparison.alignment import Align
from probes.comparison.compare_runs import Comparison, compare
from workbench.errors import DataError, WorkbenchError
from workbench.hooks.capture import Capture
from workbench.hooks.interventions import Ablate, from_json, to_json
from workbench.model import Transformer

SAME, OTHER, KEPT = "The same prompt", "Another prompt", "A kept capture"
SHAPE = ("n_layers", "n_heads", "n_kv_heads", "dim", "head_dim", "ffn_dim", "vocab_size")
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
    """Model, tokens and interventions of one side; `changes` is the JSON of `interventions.to_json`.

    path: where the model was loaded from, as `workbench.load_model` takes it.
    """

    model: Transformer
    given: Input
    changes: str
    path: str

    def capture(self) -> CaptureRef:
        """Its capture, cached. Raises: WorkbenchError as `computed.capture`."""
        return computed.capture(self.model, self.given.ids, HOOKS, self.changes)


@dataclass(frozen=True)
class SharedTokens:
    """The tokens that are compared: `count` tokens that both sides begin (or end) with.

    If aligned at their ends, B's position is A's plus `shift`.
    """

    align: Align
    count: int
    shift: int = 0

    @property
    def sentence(self) -> str:
        """One sentence for the page."""
        if self.align == "equal":
            return f"Both sides have the same {self.count} tokens."
        end = "begin" if self.align == "prefix" else "end"
        return f"The prompts differ. The {self.count} tokens that both {end} with are compared, position by position."


def choose(model: Transformer) -> tuple[Side, Side] | None:
    """Draw the controls of both sides; None if one has nothing to run (the page says why)."""
    a_prompt = prompt_input.unchanged(model, HOOKS)
    if a_prompt is None:
        return None
    with card("B differs in", key="sides", help="A is the prompt above with the model as it is, unless changed here."):
        with st.container(horizontal=True, vertical_alignment="bottom", key="side_controls"):
            which = url_state.url_widget(
                st.segmented_control, "B runs on", [SAME, OTHER, KEPT], key="b_of", default=SAME, required=True
            )
            b_served = _b_model()
            b_model = computed.load(b_served)
            if problem := _unlike_shape(model, b_model):
                show_error("B cannot be compared with A. Choose another model.", problem)
                return None
            in_dtypes = _in_dtype(model, "A"), _in_dtype(b_model, "B")
            # The button comes before the text area whose value it sets.
            st.button("Swap interventions", on_click=_swap, help="Exchanges the interventions of A and B.")
        if _unlike_tokenizer(model, b_model):
            st.warning("A and B have different tokenizers. B runs on A's token ids, which may stand for another text.")
        b_prompt = a_prompt
        if which in (OTHER, KEPT):
            b_prompt = {OTHER: _other_prompt, KEPT: _capture_prompt}[which](b_model)
        with st.expander("A's interventions", expanded=_is_changed("a_changes")):
            a_changes = url_state.url_widget(
                st.text_area, "As JSON", NO_CHANGES, key="a_changes", height=68,
                max_chars=intervention_editor.MOST_CHARS,
                help="Usually empty. To build them with the editor, build them for B, then swap.",
            )  # fmt: skip
        try:
            a_interventions = from_json(a_changes)
            for change in a_interventions:
                change.subscription(model.config)
        except WorkbenchError as error:
            show_error("A's interventions do not fit this model. Correct the JSON, or write [].", str(error))
            return None
    with st.expander("Interventions and RoPE scalings of B", expanded=_is_changed("changes")):
        b_interventions = intervention_editor.choose(model)
    if b_prompt is None or b_interventions is None:
        return None
    return (
        Side(in_dtypes[0], a_prompt, a_prompt.with_also(to_json(a_interventions)), computed.model_path()),
        Side(in_dtypes[1], b_prompt, b_prompt.with_also(to_json(b_interventions)), b_served.path),
    )


def _is_changed(key: str) -> bool:
    """Whether there are interventions in the session or the URL."""
    text = st.session_state.get(key, st.query_params.get(key, st.session_state.get(f"_last_{key}", NO_CHANGES)))
    return bool(text != NO_CHANGES)


def show_identical(layer: int, head: int) -> None:
    """Say that B is the same run as A, with a button that makes it another one."""
    st.info("A and B are the same run. Choose another prompt, capture, dtype or model for B, or change the model.")
    change = to_json([Ablate(f"L{layer}H{head}")])
    st.button(f"Set L{layer}H{head} to zero in B", on_click=_set_changes, args=(change,), type="primary")


def _set_changes(changes: str) -> None:
    st.session_state["changes"] = changes


def shared(a: Input, b: Input) -> SharedTokens | None:
    """The tokens that two prompts share at the start or at the end, whichever are more.

    None for fewer than two tokens: all prompts begin with the same first token.
    """
    if a.ids == b.ids:
        return SharedTokens("equal", len(a))
    begin, end = (_common_prefix_length(x, y) for x, y in ((a.ids, b.ids), (a.ids[::-1], b.ids[::-1])))
    if max(begin, end) < 2:
        return None
    return SharedTokens("prefix", begin) if begin >= end else SharedTokens("suffix", end, len(b) - len(a))


def compared(model: Transformer, a: Capture, b: Capture, align: Align) -> Comparison:
    """`probes.comparison.compare_runs.compare`, with the arguments that a cached comparison passes."""
    return compare(a, b, align=align)


def _common_prefix_length(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _other_prompt(model: Transformer) -> Input | None:
    text = url_state.url_widget(
        st.text_area, "B's prompt" if model.tokenizer else "B's token ids", "", key="b_prompt", height=68,
    )  # fmt: skip
    try:
        if not text:
            raise DataError("The prompt is empty. Type something.")
        return prompt_input.from_text(model, text)
    except WorkbenchError as error:
        show_error("B has no prompt to run.", str(error))
        return None


def _capture_prompt(model: Transformer) -> Input | None:
    names = [capture.name for capture in captures.list_captures()]
    if not names:
        capture_card.none_yet(model)
        return None
    name = url_state.url_selectbox("B's capture", names, key="b_capture", width=320, format_func=plain)
    try:
        st.text(plain(f"B: {prompt_input.capture_use(model, name, HOOKS)}"))
        return prompt_input.capture_input(model, name)
    except WorkbenchError as error:
        show_error("B's capture cannot be compared.", str(error))
        return None


def _b_model() -> ServedModel:
    """The model of side B: the page's own, or another one of this server."""
    own = computed.selected_model()
    others = {served.id: served for served in models.served()}
    if len(others) == 1:
        return own
    ids = [own.id, *(name for name in others if name != own.id)]
    return others[
        url_state.url_widget(
            st.selectbox, "B is", ids, key="b_model", width=220, help="The models of this server; Overview adds more."
        )
    ]


def _unlike_shape(a: Transformer, b: Transformer) -> str:
    """Why heads and hooks of two models do not correspond; empty if they do."""
    pairs = {name: (getattr(a.config, name), getattr(b.config, name)) for name in SHAPE}
    unlike = [f"{name} is {x} in A and {y} in B" for name, (x, y) in pairs.items() if x != y]
    return f"The models have different shapes: {', '.join(unlike)}." if unlike else ""


def _unlike_tokenizer(a: Transformer, b: Transformer) -> bool:
    hashes = {model.tokenizer.sha256 if model.tokenizer else None for model in (a, b)}
    return len(hashes) > 1


def _in_dtype(model: Transformer, side: str) -> Transformer:
    """The model of a side in its chosen dtype; large models have only their own dtype."""
    if computed.model_source(model) is None or sum(p.numel() for p in model.parameters()) > SMALL:
        return model
    own = str(model.dtype).removeprefix("torch.")
    options = [own, *(name for name in DTYPES if name != own)]
    name = url_state.url_widget(st.selectbox, f"{side}'s dtype", options, key=f"{side.lower()}_dtype", width=130)
    return model if name == own else _load_in_dtype(f"{computed.fingerprint(model)}/{name}", model, name)


# Arguments that begin with an underscore are not part of the cache key.
@process_cache("Loading the model in another dtype …", max_entries=2)
def _load_in_dtype(key: str, _model: Transformer, name: str) -> Transformer:
    origin = computed.model_source(_model)
    assert origin is not None
    model = wb.load_model(origin.path, dtype=DTYPES[name], device=_model.device)
    model.eval().requires_grad_(False)
    return model


def _swap() -> None:
    values = st.session_state.get("a_changes", NO_CHANGES), st.session_state.get("changes", NO_CHANGES)
    st.session_state["changes"], st.session_state["a_changes"] = values
