"""Generate page: generated text, the distribution of each token, and the attention of each step."""

import streamlit as st
import torch
from streamlit.delta_generator import DeltaGenerator

from dashboard.components.generated_text import generated_text
from dashboard.layout.page import Help, chart, page, show_error
from dashboard.panels import chat_turns, generation_step, prompt_input, text_generation
from dashboard.panels.target_tokens import token_bytes
from dashboard.panels.text_generation import GeneratedText, GenerationPrompt, GenerationRequest
from dashboard.session import computed, url_state
from dashboard.token_text import plain, plotly_labels
from probes.generation.token_choices import SamplingTrace
from workbench import model_cost
from workbench.errors import CaptureBudgetError, GenerationError, NotFiniteError
from workbench.inference.sampling import Sampling
from workbench.model import Transformer

ABOUT = Help(
    "The model continues the prompt, one token at a time. Each token is shaded by the probability that the model "
    "gave it; a dotted line marks tokens that were not the most likely. Hover over a token, or use Tab and the "
    "arrow keys, to see the alternatives; click or press Enter to open the attention of that step.",
    [
        "**Model** is the softmax of the logits at temperature 1. **Drawn from** is the distribution after "
        "repetition penalty, temperature, top-k, top-p and min-p, from which the token was sampled. Both are from the "
        "step that chose the token.",
        "**Rank** 1 is the model's most likely token. **Entropy** is in nats: 0 means certain, ln(vocabulary size) "
        "means that all tokens are equally likely.",
        "**Surprise** is -log p of the token. At temperature 1 it equals the entropy on average; tokens far above "
        "the entropy were unlikely draws.",
        "**Attention of a step** is the attention of the query that chose the token, which is the token before it. "
        "It comes from one run over prompt and text, which matches the cached steps up to rounding.",
        "**KV cache**: the keys and values of every token so far, which the next step reads.",
        "The same settings and seed give the same text. A link contains them; a small model generates the text when "
        "the link is opened.",
        "**Chat** encodes the messages in Llama 3's chat format. A model that was not trained on it, such as the "
        "demo checkpoint, has the special tokens but does not know their meaning.",
    ],
    {
        "top-p": "https://arxiv.org/abs/1904.09751",
        "top-k": "https://arxiv.org/abs/1805.04833",
        "min-p": "https://arxiv.org/abs/2407.01082",
        "chat format": "https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1/",
    },
)
TEXT, CHAT = "Plain text", "Chat"
MOST_NEW = 2048
# Up to this many parameters, a link to a finished text generates it without a click.
SMALL = 300_000_000

ENDS = {
    "stop": "The model ended the text.",
    "length": "The text reached the maximum number of new tokens.",
    None: "Generation was stopped; the text so far is kept.",
}


def show() -> None:
    with page("Generate", "Text generation, with the probabilities and the attention of every token.", ABOUT) as head:
        model = computed.model()
        prompt = _given(model)
        request, buttons = _settings(model, prompt)
        place = st.empty()
        if request is not None:
            try:
                _write(model, request, buttons, place)
            except GenerationError as error:
                show_error("Nothing can be generated with these settings.", str(error))
                return
            except NotFiniteError as error:
                show_error("The model's output is NaN or infinite, so no token can be chosen.", str(error))
                if text_generation.last_text(model) is None:
                    return
        written = text_generation.last_text(model)
        if written is None:
            if request is not None:
                place.info("Press Generate. The text appears here while it is generated.")
                _meter(model, len(request.prompt.ids))
            return
        trace = written.trace
        with place.container(border=True, key="text_card"):
            st.subheader(
                "Text", anchor=False, help="Shading: the model's probability. Dotted line: not the most likely token."
            )
            at = _text(model, written, trace)
            _ending(model, written, request, prompt)
            _meter(model, len(trace.prompt) + len(trace.tokens) - 1)  # the last token has not been read
        try:
            view = generation_step.attention(model, trace, at, written.request.prompt.changes)
        except CaptureBudgetError as error:
            show_error("The attention of this text is too large to capture. Generate fewer tokens.", str(error))
            view = generation_step.View(0, 0)
        with st.container(border=True, key="surprise_card"):
            labels = plotly_labels([token_bytes(model, token) for token in trace.tokens], start=1)
            chart(trace.figure(labels=labels, stamp={"steps": len(trace.tokens)}), key="surprise", height=360)
        generation_step.table(model, trace)
        head.code(written.request.notebook(len(trace.tokens), generation_step.query(trace, at), view.layer, view.head))
        head.data(
            {
                "steps": lambda: generation_step.steps(model, trace),
                "alternatives": lambda: generation_step.alternatives(model, trace),
            }
        )


# --- settings -------------------------------------------------------------------------------------------------


def _given(model: Transformer) -> GenerationPrompt | None:
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
    prompt = prompt_input.choose(model)
    if prompt is None:
        return None
    if prompt.prompt_length is not None:
        st.caption("Continues the sample's prompt, without the stored answer.")
        ids = prompt.ids[: prompt.prompt_length]
        return GenerationPrompt(ids, str(list(ids)), changes=prompt.changes)
    if prompt.text is None:
        st.caption("Continues the capture's tokens.")
    if chat and prompt.text is not None:
        with above:
            made = chat_turns.choose(model, prompt.text)
        return GenerationPrompt(*made, message=prompt.text, changes=prompt.changes) if made else None
    words = prompt.text is not None and model.tokenizer is not None
    code = f"model.tokenizer.encode({prompt.text!r}, bos=True)" if words else str(list(prompt.ids))
    return GenerationPrompt(prompt.ids, code, changes=prompt.changes)


def _settings(model: Transformer, prompt: GenerationPrompt | None) -> tuple[GenerationRequest | None, DeltaGenerator]:
    """The request, and the container for its buttons next to the controls."""
    most = min(MOST_NEW, model.config.max_seq_len)
    with st.container(horizontal=True, vertical_alignment="bottom", key="sampling"):
        temperature = url_state.url_widget(
            st.number_input, "Temperature", 0.0, 5.0, 0.8, step=0.1, key="temperature", width=130,
            help="0 always takes the most likely token; 1 samples from the model's own distribution.",
        )  # fmt: skip
        top_k = url_state.url_widget(
            st.number_input, "Top-k", 0, model.config.vocab_size, 0, key="topk", width=120,
            help="Samples from the k most likely tokens; 0 means all.",
        )  # fmt: skip
        top_p = url_state.url_widget(
            st.number_input, "Top-p", 0.01, 1.0, 1.0, step=0.05, key="topp", width=120,
            help="Samples from the most likely tokens that together have this probability; 1 means all.",
        )  # fmt: skip
        min_p = url_state.url_widget(
            st.number_input, "Min-p", 0.0, 1.0, 0.0, step=0.05, key="minp", width=120,
            help="Leaves out tokens less likely than this share of the most likely one; 0 means none.",
        )  # fmt: skip
        penalty = url_state.url_widget(
            st.number_input, "Repetition penalty", 0.1, 5.0, 1.0, step=0.05, key="penalty", width=150,
            help="Above 1, tokens that occur in the prompt or the text become less likely.",
        )  # fmt: skip
        seed = url_state.url_widget(
            st.number_input, "Seed", 0, 2**31 - 1, 0, key="seed", width=140, help="The same seed gives the same text."
        )
        limit = url_state.url_widget(
            st.number_input, "Max new tokens", 1, most, min(64, most), key="new", width=160,
            help="Generation also stops at an end-of-text token, or when the context is full.",
        )  # fmt: skip
        buttons = st.container(horizontal=True, key="buttons", width="content")
    if prompt is None:
        return None, buttons
    sampling = Sampling(temperature, top_p, top_k, min_p, penalty)
    return text_generation.request(model, prompt, sampling, seed, limit), buttons


# --- generation -----------------------------------------------------------------------------------------------


def _write(model: Transformer, request: GenerationRequest, buttons: DeltaGenerator, place: DeltaGenerator) -> None:
    """Generate if the button was pressed, or if a link asks for a text that is cheap to generate again."""
    with buttons:
        pressed = st.button("Generate", type="primary", key="generate")
        stop = st.empty()
    before = text_generation.last_text(model)
    if pressed:
        st.session_state["step"] = 1
        url_state.clear_url_param("written")
    linked = url_state.url_param("written") is not None
    if pressed or (linked and before is None and sum(p.numel() for p in model.parameters()) <= SMALL):
        # The click itself stops the script; the text so far is kept.
        stop.button("Stop", key="stop")
        with place.container(border=True, key="text_stream"):
            st.subheader("Text", anchor=False)
            line = st.empty()
        line.caption("Reading the prompt …")
        text_generation.write(model, request, lambda text: line.text(plain(text)))
        stop.empty()
        url_state.set_url_param("written", 1)
    elif before is not None and before.request != request and linked:
        url_state.clear_url_param("written")  # the URL no longer describes the text below


def _text(model: Transformer, written: GeneratedText, trace: SamplingTrace) -> int:
    """Draw the tokens and the slider; return the open step, counted from 0."""
    above = st.container()
    count = len(trace.tokens)
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
            trace,
            id=written.id,
            name=lambda token: token_bytes(model, token),
            chosen=at,
            on_choose=lambda chosen: st.session_state.update(step=chosen + 1),
        )
    return at


def _ending(
    model: Transformer, written: GeneratedText, request: GenerationRequest | None, prompt: GenerationPrompt | None
) -> None:
    """Draw how the text ended, its speed, and the button that continues a conversation."""
    trace = written.trace
    if trace.finish_reason == "context":
        st.warning(
            f"The context of {model.config.max_seq_len:,} tokens is full, so the text ends here. Shorten the prompt "
            f"to continue."
        )
    count, rate = len(trace.tokens), ""
    if count > 1 and written.last > written.first:
        rate = f", {(count - 1) / (written.last - written.first):.0f} per second"
    ended = ENDS.get(trace.finish_reason, "")
    with st.container(horizontal=True, vertical_alignment="center", key="after_text"):
        st.caption(f"{ended} {count} tokens, the first after {1000 * written.first:.0f} ms{rate}.")
        if model.tokenizer is not None:
            with st.popover("As text", help="The generated text, for copying"):
                st.code(plain(trace.text), language=None, wrap_lines=True)
        if prompt is not None and prompt.message is not None and request == written.request:
            if chat_turns.fits(prompt.message, trace.text):
                st.button(
                    "Continue the conversation", on_click=_go_on, args=(prompt.message, trace.text),
                    help="Adds the message and this answer to the conversation.",
                )  # fmt: skip
            else:
                st.caption("The conversation is too long for the URL. Start a new one.")
    if request is not None and request != written.request:
        st.info("This text was generated with other settings. Press Generate to use the settings above.")


def _go_on(message: str, answer: str) -> None:
    chat_turns.continue_chat(message, answer)
    text_generation.forget()


def _meter(model: Transformer, used: int) -> None:
    config = model.config
    per_token = model_cost.cache_bytes_per_token(config, itemsize=torch.empty(0, dtype=model.dtype).element_size())
    readable = model_cost.readable_bytes
    st.progress(
        min(1.0, used / config.max_seq_len),
        text=f"KV cache: {used:,} of {config.max_seq_len:,} positions, {readable(used * per_token)} of "
        f"{readable(config.max_seq_len * per_token)}; {readable(per_token)} per token.",
    )


show()
