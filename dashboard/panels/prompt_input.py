"""The input of a page: a typed prompt, a benchmark sample, or a saved capture, and the interventions in the URL."""

from dataclasses import dataclass, replace

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dashboard.data import runs
from dashboard.layout.page import show_error
from dashboard.session import captures, computed, url_state
from dashboard.session.computed import NO_CHANGES
from dashboard.token_text import plain
from workbench.errors import DataError, TokenizerError, WorkbenchError
from workbench.hooks.intervention_options import described
from workbench.hooks.interventions import Ablate, from_json, to_json
from workbench.model import Transformer

# The second half repeats the first, so that induction heads are visible.
DEFAULT_PROMPT = (
    "The capital of Peru is Lima. The capital of Spain is Madrid. The capital of Peru is Lima. The capital of Spain is"
)
MAX_CHARS = 100_000  # more than any text of `computed.MAX_TOKENS` tokens
UNDER = "under"


@dataclass(frozen=True)
class Input:
    """Token ids with the bytes of each, and the Python expression that makes the ids in a notebook.

    Of a benchmark sample, the first `prompt_length` tokens are its prompt; `sample` is set if the ids are exactly
    those of its run.
    `changes` are the interventions of its run or of the capture, as `interventions.to_json` writes them. `text` is
    what was typed; None for a sample or a capture.
    """

    ids: tuple[int, ...]
    tokens: tuple[bytes, ...]
    code: str
    prompt_length: int | None = None
    sample: runs.Sample | None = None
    changes: str = NO_CHANGES
    text: str | None = None

    @property
    def running(self) -> str:
        """The first lines of a notebook's run: its context managers."""
        return running(self.changes)

    def with_also(self, changes: str) -> str:
        """Its own interventions and then these, both as `workbench.hooks.interventions.to_json` writes them."""
        return to_json([*from_json(self.changes), *from_json(changes)])

    def __len__(self) -> int:
        return len(self.ids)


def typed() -> bool:
    """Whether the input is a typed prompt, not a sample or a capture."""
    return url_state.url_param("sample") is None and url_state.url_param("capture") is None


def running(changes: str) -> str:
    """The first lines of a notebook's run under these interventions, given as `interventions.to_json` writes them."""
    if changes == NO_CHANGES:
        return "with torch.no_grad():"
    imports = "from workbench.hooks.interventions import from_json"
    return f"{imports}\nwith torch.no_grad(), model.intervene(*from_json({changes!r})):"


def choose(model: Transformer, hooks: tuple[str, ...] | None = None) -> Input | None:
    """Draw the input as `unchanged` does, and the interventions in the URL; None if there is nothing to run (the page
    says why)."""
    prompt = unchanged(model, hooks)
    if prompt is None or url_changes() == NO_CHANGES:
        return prompt
    try:
        return _changed(model, prompt, url_changes())
    except WorkbenchError as error:
        show_error("The interventions in the URL do not fit this model. Remove them.", str(error))
        return None


def url_changes() -> str:
    """The interventions in the URL, which are added to the prompt's own.

    They are only in the URL, so a model is never changed for someone who did not ask for it there. The parameter is
    not that of the editor's JSON, which is removed with its widget when its page is left.
    """
    return str(st.query_params.get(UNDER, NO_CHANGES))


def changes_param(changes: str) -> dict[str, str]:
    """URL parameters with which a page shows the model under these interventions."""
    return {} if changes == NO_CHANGES else {UNDER: changes}


def ablation_params(head: str, changes: str) -> dict[str, str]:
    """URL parameters of a link to Intervene: these interventions, and a head (as "L5H3") ablated in addition."""
    return {"changes": to_json([*from_json(changes), Ablate(head)])}


def current_params(*names: str) -> dict[str, str]:
    """Parameters of the current URL for a link. A typed prompt does not need one: all pages share it."""
    return {name: st.query_params[name] for name in names if name in st.query_params}


def _changed(model: Transformer, prompt: Input, changes: str) -> Input:
    with st.container(border=True, horizontal=True, vertical_alignment="center", key="changed"):
        banner = st.empty()
        st.page_link("dashboard/pages/intervene.py", label="Edit in Intervene →", query_params={"changes": changes})
        if st.button("Remove", key="unchange"):
            del st.query_params[UNDER]
            st.rerun()
    banner.text("The model is changed.")
    made = from_json(changes)
    for change in made:
        change.subscription(model.config)
    banner.text(plain(f"The model is changed: {described(made)}."))
    return replace(prompt, changes=prompt.with_also(changes))


def unchanged(model: Transformer, hooks: tuple[str, ...] | None = None) -> Input | None:
    """Draw the prompt box, or the banner of a sample or capture; None if there is nothing to run (the page says why).

    hooks: what the page needs of a capture, so that the banner says whether a saved capture has it.
    """
    sample, capture = url_state.url_param("sample"), url_state.url_param("capture")
    try:
        if sample is not None:
            return _sample(model, sample)
        if capture is not None:
            return _capture(model, capture, hooks)
        return _prompt(model)
    except WorkbenchError as error:
        show_error("There is no input to run.", str(error))
        return None


def _prompt(model: Transformer) -> Input:
    plain_ids = model.tokenizer is None
    text = url_state.url_widget(
        st.text_area,
        "Token ids" if plain_ids else "Prompt",
        default_ids(model.config.vocab_size) if plain_ids else DEFAULT_PROMPT,
        key="prompt",
        height=68,
        help="This checkpoint has no tokenizer; enter token ids, separated by spaces."
        if plain_ids
        else "Ctrl+Enter runs it. All pages use the same prompt, and the URL contains it.",
    )
    return replace(from_text(model, text), text=text)


def default_ids(vocab_size: int, count: int = 8) -> str:
    """Token ids from the middle of a vocabulary, twice: special tokens stand at its ends, and would show nothing."""
    ids = [vocab_size // 3 + (37 * i * i + 11 * i) % (vocab_size // 3) for i in range(count)]
    return " ".join(map(str, ids * 2))


def from_text(model: Transformer, text: str) -> Input:
    """The input for a text, or for token ids if the model has no tokenizer. Raises: WorkbenchError as `make`."""
    if len(text) > MAX_CHARS:  # Streamlit's own limit would keep the old text without a word
        raise DataError(f"The prompt has {len(text):,} characters; the limit is {MAX_CHARS:,}. Shorten the text.")
    ids = _parse_ids(text) if model.tokenizer is None else model.tokenizer.encode(text, bos=True)
    return make(model, tuple(ids), f"torch.tensor([model.tokenizer.encode({text!r}, bos=True)])")


def _banner(key: str) -> DeltaGenerator:
    """Draw the banner of a sample or capture, with the button that goes back to a prompt.

    It is drawn before anything can fail: a link to something that was deleted must not be a dead end.
    """
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        text = st.empty()
        if st.button("Back to a prompt"):
            url_state.clear_url_param(key)
            st.rerun()
    return text


def _capture(model: Transformer, name: str, hooks: tuple[str, ...] | None) -> Input:
    banner = _banner("capture")
    prompt = capture_input(model, name)
    about = (
        f"Capture {name}: {len(prompt)} tokens, {captures.find(name).hooks} hook points{_changes_note(prompt.changes)}"
    )
    banner.text(plain(about + ("" if hooks is None else f"; {capture_use(model, name, hooks)}")))
    return prompt


def capture_use(model: Transformer, name: str, hooks: tuple[str, ...]) -> str:
    """Whether a page's values are read from the capture's file, or why the model is run instead."""
    short = computed.why_capture_unusable(model, name, hooks)
    return f"{short}, so the model was run on its tokens" if short else "read from its file"


def capture_input(model: Transformer, name: str) -> Input:
    """The input of a saved capture. Raises: WorkbenchError if it is missing, damaged, or of another model."""
    stored = captures.find(name)
    own = computed.fingerprint(model)
    if stored.checkpoint not in (None, own) or captures.load(stored, model.device).config != model.config:
        raise DataError(
            f"The capture {name!r} is of another model, {stored.model}. Select that model, or another capture."
        )
    ids = tuple(captures.load(stored, model.device).tokens[0].tolist())
    changes = to_json(from_json(f"[{', '.join(stored.interventions)}]"))
    return replace(make(model, ids, f"torch.tensor([{list(ids)}])"), changes=changes)


def _changes_note(changes: str) -> str:
    return "" if changes == NO_CHANGES else f"; with {described(from_json(changes))}"


def _sample(model: Transformer, reference: str) -> Input:
    banner = _banner("sample")
    sample = runs.find_sample(reference)
    banner.text(
        plain(f"Sample {sample.doc_id} of {sample.task}, run {sample.run}: prompt and answer replayed")
        + plain(_changes_note(sample.changes))
    )
    own = computed.model_source(model)
    if own is not None and sample.checkpoint not in (None, own.checkpoint_sha256):
        st.warning("This answer is from another checkpoint. This page shows how the server's model processes the text.")
    # Token ids are only valid for the same vocabulary.
    same_words = own is None or sample.tokenizer in (None, own.tokenizer_sha256)
    if sample.ids is not None and same_words:
        ids, prompt_length = sample.ids, len(sample.prompt_ids)
    elif model.tokenizer is None:
        raise TokenizerError(
            "This checkpoint has no tokenizer, and the run's token ids do not fit. Serve the run's model."
        )
    else:
        ids = tuple(model.tokenizer.encode(sample.prompt + sample.output, bos=True))
        prompt_length = min(len(ids), len(model.tokenizer.encode(sample.prompt, bos=True)))
    made = make(model, ids, f"torch.tensor([{list(ids)}])")
    for change in from_json(sample.changes):
        change.subscription(model.config)
    return replace(
        made, prompt_length=prompt_length, sample=sample if ids == sample.ids else None, changes=sample.changes
    )


def make(model: Transformer, ids: tuple[int, ...], code: str) -> Input:
    """Token ids that fit the model, with their bytes.

    Raises: WorkbenchError if there are none, too many for the model or the dashboard, or ids outside the vocabulary.
    """
    most = min(computed.MAX_TOKENS, model.config.max_seq_len)
    if not ids:
        raise DataError("The prompt is empty. Type something.")
    if len(ids) > most:
        raise DataError(f"The prompt has {len(ids)} tokens, but at most {most} fit here. Shorten the text.")
    vocabulary = model.config.vocab_size
    strange = next((token for token in ids if not 0 <= token < vocabulary), None)
    if strange is not None:
        raise DataError(f"Token id {strange} is not in the vocabulary: ids are 0 to {vocabulary - 1}.")
    named = model.tokenizer.tokens(ids) if model.tokenizer else [f"#{token}".encode() for token in ids]
    return Input(ids, tuple(named), code if model.tokenizer else f"torch.tensor([{list(ids)}])")


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise DataError("Token ids must be whole numbers, separated by spaces.") from None
