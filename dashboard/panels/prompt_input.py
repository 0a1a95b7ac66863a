"""Which tokens a page looks at: a prompt that is typed, or a benchmark sample that a link names."""

from dataclasses import dataclass, replace

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dashboard.data import runs
from dashboard.layout.page import show_error
from dashboard.session import captures, computed, url_state
from dashboard.session.computed import NO_CHANGES
from dashboard.token_text import plain
from evals.interventions import described
from workbench.errors import DataError, TokenizerError, WorkbenchError
from workbench.hooks.interventions import Ablate, from_json, to_json
from workbench.model import Transformer

# The second half repeats the first, so heads that continue a repetition (induction) show themselves.
DEFAULT_PROMPT = (
    "The capital of Peru is Lima. The capital of Spain is Madrid. The capital of Peru is Lima. The capital of Spain is"
)
MAX_CHARS = 8000
UNDER = "under"


@dataclass(frozen=True)
class Input:
    """Token ids with the bytes of each, and the Python expression that makes the ids in a notebook.

    Of a benchmark sample, `asked` tokens are its prompt, and `sample` is there if the ids are those that it ran on.
    `changes` are the interventions that its run, or the capture, was made under, as `interventions.to_json` writes
    them. `text` is what was typed; None of a sample or a capture.
    """

    ids: tuple[int, ...]
    tokens: tuple[bytes, ...]
    code: str
    asked: int | None = None
    sample: runs.Sample | None = None
    changes: str = NO_CHANGES
    text: str | None = None

    @property
    def running(self) -> str:
        """How a notebook's run of it begins: the contexts that it stands in."""
        return running(self.changes)

    def with_also(self, changes: str) -> str:
        """Its own interventions and then these, both as `workbench.hooks.interventions.to_json` writes them."""
        return to_json([*from_json(self.changes), *from_json(changes)])

    def __len__(self) -> int:
        return len(self.ids)


def typed() -> bool:
    """Whether the page looks at a prompt that is typed, and not at a sample or a capture."""
    return url_state.url_param("sample") is None and url_state.url_param("capture") is None


def running(changes: str) -> str:
    """The first lines of a notebook's run under these interventions, given as `interventions.to_json` writes them."""
    if changes == NO_CHANGES:
        return "with torch.no_grad():"
    imports = "from workbench.hooks.interventions import from_json"
    return f"{imports}\nwith torch.no_grad(), model.intervene(*from_json({changes!r})):"


def choose(model: Transformer, hooks: tuple[str, ...] | None = None) -> Input | None:
    """Draw what the page looks at, as `unchanged` does, and under which interventions, where its address names some;
    None where there is nothing to run (the page says why)."""
    given = unchanged(model, hooks)
    if given is None or under() == NO_CHANGES:
        return given
    try:
        return _changed(model, given, under())
    except WorkbenchError as error:
        show_error("The interventions in the address do not fit this model. Take them off.", str(error))
        return None


def under() -> str:
    """The interventions that the address puts on top of the prompt's own.

    They stand in the address alone: nobody finds a model changed who did not ask for it there. Their name is not that
    of the builder's JSON, which the browser takes away with its control when its page is left.
    """
    return str(st.query_params.get(UNDER, NO_CHANGES))


def carried(changes: str) -> dict[str, str]:
    """What a link carries so that its page looks at the model under these interventions."""
    return {} if changes == NO_CHANGES else {UNDER: changes}


def without(head: str, changes: str) -> dict[str, str]:
    """What a link to Intervene carries: these interventions, and a head (as "L5H3") ablated besides."""
    return {"changes": to_json([*from_json(changes), Ablate(head)])}


def along(*names: str) -> dict[str, str]:
    """What a link carries of the address. A typed prompt follows its user by itself, and may be long."""
    return {name: st.query_params[name] for name in names if name in st.query_params}


def _changed(model: Transformer, given: Input, changes: str) -> Input:
    with st.container(border=True, horizontal=True, vertical_alignment="center", key="changed"):
        said = st.empty()
        st.page_link("dashboard/pages/intervene.py", label="In Intervene →", query_params={"changes": changes})
        if st.button("Take it off", key="unchange"):
            del st.query_params[UNDER]
            st.rerun()
    said.text("The model is changed.")
    made = from_json(changes)
    for change in made:
        change.subscription(model.config)
    said.text(plain(f"The model is changed: {described(made)}."))
    return replace(given, changes=given.with_also(changes))


def unchanged(model: Transformer, hooks: tuple[str, ...] | None = None) -> Input | None:
    """Draw the prompt box or the sample's banner; None where there is nothing to run (the page says why).

    hooks: what the page needs of a capture, so that it is said whether one that is kept has it.
    """
    sample, capture = url_state.url_param("sample"), url_state.url_param("capture")
    try:
        if sample is not None:
            return _sample(model, sample)
        if capture is not None:
            return _capture(model, capture, hooks)
        return _prompt(model)
    except WorkbenchError as error:
        show_error("There is nothing to run on.", str(error))
        return None


def _prompt(model: Transformer) -> Input:
    plain_ids = model.tokenizer is None
    text = url_state.url_widget(
        st.text_area,
        "Token ids" if plain_ids else "Prompt",
        "1 2 3 4 5 6 7 8 1 2 3 4 5 6 7 8" if plain_ids else DEFAULT_PROMPT,
        key="prompt",
        height=68,
        max_chars=MAX_CHARS,
        help="This checkpoint has no tokenizer: give token ids, separated by spaces."
        if plain_ids
        else "Ctrl+Enter runs it. Every page looks at the same prompt, and the address bar holds it.",
    )
    return replace(from_text(model, text), text=text)


def from_text(model: Transformer, text: str) -> Input:
    """What a text, or token ids where the model has no tokenizer, is made of. Raises: WorkbenchError as `make`."""
    ids = _parse_ids(text) if model.tokenizer is None else model.tokenizer.encode(text, bos=True)
    return make(model, tuple(ids), f"torch.tensor([model.tokenizer.encode({text!r}, bos=True)])")


def _banner(key: str) -> DeltaGenerator:
    """Where it is said what replaces the prompt, and the way back to one.

    Drawn before anything can fail: a link to something that is gone must not be a dead end.
    """
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        said = st.empty()
        if st.button("Back to a prompt"):
            url_state.clear_url_param(key)
            st.rerun()
    return said


def _capture(model: Transformer, name: str, hooks: tuple[str, ...] | None) -> Input:
    said = _banner("capture")
    given = kept(model, name)
    about = f"Capture {name}: {len(given)} tokens, {captures.find(name).hooks} hook points{_under(given.changes)}"
    said.text(plain(about + ("" if hooks is None else f"; {read(model, name, hooks)}")))
    return given


def read(model: Transformer, name: str, hooks: tuple[str, ...]) -> str:
    """Whether what a page needs is read from a capture's file, or why the model is run for it."""
    short = computed.why_capture_unusable(model, name, hooks)
    return f"{short}, so the model was run on its tokens" if short else "read from its file"


def kept(model: Transformer, name: str) -> Input:
    """What a capture on disk was made of. Raises: WorkbenchError if it is gone, damaged, or of another model."""
    found = captures.find(name)
    own = computed.fingerprint(model)
    if found.checkpoint not in (None, own) or captures.load(found, model.device).config != model.config:
        raise DataError(
            f"The capture {name!r} is of another model, {found.model}. Look at that one, or at another capture."
        )
    ids = tuple(captures.load(found, model.device).tokens[0].tolist())
    changes = to_json(from_json(f"[{', '.join(found.interventions)}]"))
    return replace(make(model, ids, f"torch.tensor([{list(ids)}])"), changes=changes)


def _under(changes: str) -> str:
    return "" if changes == NO_CHANGES else f"; under {described(from_json(changes))}"


def _sample(model: Transformer, reference: str) -> Input:
    said = _banner("sample")
    sample = runs.find_sample(reference)
    said.text(
        plain(f"Sample {sample.doc_id} of {sample.task}, run {sample.run}: prompt and answer replayed")
        + plain(_under(sample.changes))
    )
    own = computed.model_source(model)
    if own is not None and sample.checkpoint not in (None, own.checkpoint_sha256):
        st.warning("Another checkpoint gave this answer. What follows is how the model of this server reads the text.")
    # Token ids mean nothing to another vocabulary.
    same_words = own is None or sample.tokenizer in (None, own.tokenizer_sha256)
    if sample.ids is not None and same_words:
        ids, asked = sample.ids, len(sample.prompt_ids)
    elif model.tokenizer is None:
        raise TokenizerError(
            "This checkpoint has no tokenizer, and the run's token ids do not fit. Serve the run's model."
        )
    else:
        ids = tuple(model.tokenizer.encode(sample.prompt + sample.output, bos=True))
        asked = min(len(ids), len(model.tokenizer.encode(sample.prompt, bos=True)))
    made = make(model, ids, f"torch.tensor([{list(ids)}])")
    for change in from_json(sample.changes):
        change.subscription(model.config)
    return replace(made, asked=asked, sample=sample if ids == sample.ids else None, changes=sample.changes)


def make(model: Transformer, ids: tuple[int, ...], code: str) -> Input:
    """Token ids that fit the model, with their bytes.

    Raises: WorkbenchError if there are none, more than the model or the dashboard takes, or others than it knows.
    """
    most = min(computed.MAX_TOKENS, model.config.max_seq_len)
    if not ids:
        raise DataError("The prompt is empty. Type something.")
    if len(ids) > most:
        raise DataError(f"{len(ids)} tokens are more than the {most} that fit here. Shorten the text.")
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
        raise DataError("Token ids are whole numbers, separated by spaces; something else was found.") from None
