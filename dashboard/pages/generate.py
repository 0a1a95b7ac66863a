"""Generate: text as the model writes it, what every token was drawn from, and where each head looked at any step."""

import numpy as np
import streamlit as st
import torch
from streamlit.delta_generator import DeltaGenerator

from dashboard.components.generated_text import generated_text
from dashboard.layout.page import Help, chart, page, show_error
from dashboard.panels import chat_turns, generation_step, prompt_input, text_generation
from dashboard.panels.target_tokens import token_bytes
from dashboard.panels.text_generation import GenerationRequest, Given, Written
from dashboard.session import computed, url_state
from dashboard.token_text import plain, plotly_labels
from probes.generation.token_choices import SamplingTrace
from workbench import model_cost
from workbench.errors import CaptureBudgetError, GenerationError
from workbench.inference.sampling import Sampling
from workbench.model import Transformer

ABOUT = Help(
    "The model continues the prompt, a token at a time. Each token is shaded by the probability that the model gave "
    "it; a dotted line marks those that were not its first choice. Point at a token, or walk with Tab and the arrow "
    "keys, for what else was likely; a click or Enter opens the attention of that step.",
    [
        "**Model** is the softmax of the logits, at temperature 1; **drawn from** is what temperature, top-k and top-p "
        "leave of it, and where the token really came from. Both are of the very step that drew the token.",
        "**Rank** 1 is the model's likeliest token. **Entropy**, in nats: 0 is certain, ln(vocabulary) knows nothing.",
        "**Surprise** is -log p of the token. In a text that is drawn at temperature 1 it is the entropy on average; "
        "tokens far above it were unlikely draws.",
        "**Attention of a step** is that of the query that chose the token: the token before it. It is read from one "
        "run of prompt and text, which gives what the cached steps had, up to rounding.",
        "**KV cache**: the keys and values of every token so far, which the next step reads.",
        "The same settings and seed give the same text. A link opens with them; a small model writes at once.",
        "**Chat** puts the messages into Llama 3's format. A model that was never trained on it has the special tokens "
        "but cannot know what they are for, and the demo checkpoint is such a model.",
    ],
    {
        "top-p": "https://arxiv.org/abs/1904.09751",
        "top-k": "https://arxiv.org/abs/1805.04833",
        "chat format": "https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1/",
    },
)
TEXT, CHAT = "Plain text", "Chat"
MOST_NEW = 2048
# Up to this many parameters a link of a finished text writes it without a press.
SMALL = 300_000_000

ENDS = {
    "stop": "The model ended the text.",
    "length": "The text ends at the number of new tokens that was asked for.",
    None: "Stopped before its end; what was written until then is kept.",
}


def show() -> None:
    with page("Generate", "Text as it is written, and what every token was drawn from.", ABOUT) as head:
        model = computed.model()
        given = _given(model)
        asked, buttons = _settings(model, given)
        place = st.empty()
        if asked is not None:
            try:
                _write(model, asked, buttons, place)
            except GenerationError as error:
                show_error("Nothing can be generated with these settings.", str(error))
                return
        written = text_generation.held(model)
        if written is None:
            if asked is not None:
                place.info("Press Generate: the text appears here as it is written.")
                _meter(model, len(asked.given.ids))
            return
        found = written.found
        with place.container(border=True, key="text_card"):
            st.subheader("Text", anchor=False, help="Shade: the model's probability. Dotted: not its first choice.")
            at = _text(model, written, found)
            _said(model, written, asked, given)
            _meter(model, len(found.prompt) + len(found.tokens) - 1)  # the last token has not been read
        try:
            view = generation_step.attention(model, found, at, written.request.given.changes)
        except CaptureBudgetError as error:
            show_error("The attention of so long a text does not fit. Ask for fewer tokens.", str(error))
            view = generation_step.View(0, 0)
        with st.container(border=True, key="surprise_card"):
            labels = plotly_labels([token_bytes(model, token) for token in found.tokens], start=1)
            chart(found.figure(labels=labels, stamp={"steps": len(found.tokens)}), key="surprise", height=360)
        generation_step.table(model, found)
        head.code(written.request.notebook(len(found.tokens), generation_step.query(found, at), view.layer, view.head))
        head.data(
            {
                "steps": lambda: generation_step.steps(model, found),
                "alternatives": lambda: generation_step.alternatives(model, found),
            }
        )


# --- what is asked for ----------------------------------------------------------------------------------------


def _given(model: Transformer) -> Given | None:
    """The prompt, the conversation, the sample's prompt or the capture's tokens; None where there is nothing (the page
    says why)."""
    refused = chat_turns.refusal(model.tokenizer)
    chat = False
    if prompt_input.typed() and refused is None:
        mode = url_state.url_widget(
            st.segmented_control, "Mode", [TEXT, CHAT], key="mode", default=TEXT, required=True,
            label_visibility="collapsed",
        )  # fmt: skip
        chat = mode == CHAT
    elif refused is not None:
        st.caption(refused)
    above = st.container()
    given = prompt_input.choose(model)
    if given is None:
        return None
    if given.asked is not None:
        st.caption("The sample's prompt is continued; the answer in it is left out.")
        ids = given.ids[: given.asked]
        return Given(ids, str(list(ids)), changes=given.changes)
    if given.text is None:
        st.caption("The capture's tokens are continued.")
    if chat and given.text is not None:
        with above:
            made = chat_turns.choose(model, given.text)
        return Given(*made, said=given.text, changes=given.changes) if made else None
    words = given.text is not None and model.tokenizer is not None
    code = f"model.tokenizer.encode({given.text!r}, bos=True)" if words else str(list(given.ids))
    return Given(given.ids, code, changes=given.changes)


def _settings(model: Transformer, given: Given | None) -> tuple[GenerationRequest | None, DeltaGenerator]:
    """The request, and the place beside the controls where its buttons go."""
    most = min(MOST_NEW, model.config.max_seq_len)
    with st.container(horizontal=True, vertical_alignment="bottom", key="sampling"):
        temperature = url_state.url_widget(
            st.number_input, "Temperature", 0.0, 5.0, 0.8, step=0.1, key="temperature", width=130,
            help="0 always takes the likeliest token; 1 draws from the model's own distribution.",
        )  # fmt: skip
        top_k = url_state.url_widget(
            st.number_input, "Top-k", 0, model.config.vocab_size, 0, key="topk", width=120,
            help="Draws among the k likeliest tokens; 0 leaves all.",
        )  # fmt: skip
        top_p = url_state.url_widget(
            st.number_input, "Top-p", 0.01, 1.0, 1.0, step=0.05, key="topp", width=120,
            help="Draws among the likeliest tokens that together have this probability; 1 leaves all.",
        )  # fmt: skip
        seed = url_state.url_widget(
            st.number_input, "Seed", 0, 2**31 - 1, 0, key="seed", width=140, help="The same seed gives the same text."
        )
        limit = url_state.url_widget(
            st.number_input, "New tokens, at most", 1, most, min(64, most), key="new", width=160,
            help="The text ends here, at an end-of-text token, or where the context is full.",
        )  # fmt: skip
        buttons = st.container(horizontal=True, key="buttons", width="content")
    if given is None:
        return None, buttons
    sampling = Sampling(temperature, top_p, top_k)
    return text_generation.request(model, given, sampling, seed, limit), buttons


# --- writing --------------------------------------------------------------------------------------------------


def _write(model: Transformer, asked: GenerationRequest, buttons: DeltaGenerator, place: DeltaGenerator) -> None:
    """Generate where that is asked for: by the button, or by the link of a text that costs little to write again."""
    with buttons:
        pressed = st.button("Generate", type="primary", key="generate")
        stop = st.empty()
    before = text_generation.held(model)
    if pressed:
        st.session_state["step"] = 1
        url_state.clear_url_param("written")
    linked = url_state.url_param("written") is not None
    if pressed or (linked and before is None and sum(p.numel() for p in model.parameters()) <= SMALL):
        # The press itself stops the script; what it wrote is held.
        stop.button("Stop", key="stop")
        with place.container(border=True, key="text_stream"):
            st.subheader("Text", anchor=False)
            line = st.empty()
        line.caption("Reading the prompt …")
        text_generation.write(model, asked, lambda text: line.text(plain(text)))
        stop.empty()
        url_state.set_url_param("written", 1)
    elif before is not None and before.request != asked and linked:
        url_state.clear_url_param("written")  # the address is no longer that of the text below


def _text(model: Transformer, written: Written, found: SamplingTrace) -> int:
    """The tokens and the slider below them; the step that is open, counted from 0."""
    if not np.isfinite(found.logprobs).all():
        st.error("The model's output holds NaN or infinite numbers: the stream has overflowed. Try float32.")
    above = st.container()
    count = len(found.tokens)
    for key in ("step", "_last_step"):  # of a longer text before this one
        if st.session_state.get(key, 1) > count:
            st.session_state[key] = count
    at = 0
    if count > 1:
        at = url_state.url_widget(
            st.slider, "Step", 1, count, 1, key="step", help="The step whose attention is shown below."
        ) - 1  # fmt: skip
    with above:
        generated_text(
            found,
            id=written.id,
            name=lambda token: token_bytes(model, token),
            chosen=at,
            on_choose=lambda chosen: st.session_state.update(step=chosen + 1),
        )
    return at


def _said(model: Transformer, written: Written, asked: GenerationRequest | None, given: Given | None) -> None:
    """How the text ended, what it took, and how a conversation goes on."""
    found = written.found
    if found.finish_reason == "context":
        st.warning(
            f"The context of {model.config.max_seq_len:,} tokens is full, so the text ends here. Shorten the prompt to "
            "go on."
        )
    count, rate = len(found.tokens), ""
    if count > 1 and written.last > written.first:
        rate = f", {(count - 1) / (written.last - written.first):.0f} a second"
    ended = ENDS.get(found.finish_reason, "")
    with st.container(horizontal=True, vertical_alignment="center", key="after_text"):
        st.caption(f"{ended} {count} tokens, the first after {1000 * written.first:.0f} ms{rate}.")
        if model.tokenizer is not None:
            with st.popover("As text", help="What was written, to copy"):
                st.code(plain(found.text), language=None, wrap_lines=True)
        if given is not None and given.said is not None and asked == written.request:
            if chat_turns.fits(given.said, found.text):
                st.button(
                    "Go on with the conversation", on_click=_go_on, args=(given.said, found.text),
                    help="Puts the message and this answer among the turns.",
                )  # fmt: skip
            else:
                st.caption("The conversation is too long for the address bar: begin a new one.")
    if asked is not None and asked != written.request:
        st.info("This text was made with other settings. Press Generate for those above.")


def _go_on(said: str, answer: str) -> None:
    chat_turns.go_on(said, answer)
    text_generation.forget()


def _meter(model: Transformer, used: int) -> None:
    config = model.config
    each = model_cost.cache_bytes_per_token(config, itemsize=torch.empty(0, dtype=model.dtype).element_size())
    say = model_cost.readable_bytes
    st.progress(
        min(1.0, used / config.max_seq_len),
        text=f"KV cache: {used:,} of {config.max_seq_len:,} positions, {say(used * each)} of "
        f"{say(config.max_seq_len * each)}; {say(each)} a token.",
    )


show()
