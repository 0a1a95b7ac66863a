"""Overview page: the model's shape, size and provenance, and its next-token predictions for a prompt."""

import time

import pandas as pd
import streamlit as st
import torch

from dashboard.components.token_strip import plain_strip
from dashboard.data import model_facts
from dashboard.layout.page import Head, Help, card, page, show_error
from dashboard.layout.tables import Column, metric_row, plain_table
from dashboard.panels import capture_card, model_card, prompt_input, tour
from dashboard.panels.prompt_input import Input
from dashboard.session import computed, url_state
from dashboard.token_text import plain, visible
from probes.attention import head_metrics
from probes.norms import rms_norms
from probes.rope import head_scores
from probes.rope.formulas import wavelengths
from workbench import model_cost, provenance
from workbench.errors import WorkbenchError
from workbench.hooks.capture_request import Request
from workbench.hooks.interventions import from_json
from workbench.model import Transformer

ABOUT = Help(
    "The selected model: its shape, its parameters by part, the memory of the key/value cache, and where its files "
    "come from. Below, the prompt that all pages use, and the model's most likely next tokens.",
    [
        "**MHA / MQA** rows show what the cache would cost with one key/value head for each query head, or one for "
        "all.",
        "**Wavelengths beyond the context** are RoPE pairs that do not complete a full turn within the context.",
        "Probabilities are over the whole vocabulary, at temperature 1.",
    ],
    {
        "Llama 3": "https://arxiv.org/abs/2407.21783",
        "GQA": "https://arxiv.org/abs/2305.13245",
        "RoPE": "https://arxiv.org/abs/2104.09864",
    },
)
LAST = ("hook_logits",)  # has the next tokens
WARM_UP = 0.5  # seconds: the first run of a process is slower; if it is faster than this, a second run is timed


def show() -> None:
    with page("Overview", "Model size, memory and provenance, and its predictions for a prompt.", ABOUT) as head:
        model = computed.model()
        _shape(model)
        _notes(model)
        # An example sets the prompt, so its buttons run before the prompt is drawn above them.
        prompt_place = st.container()
        tour.show_examples(model)
        with prompt_place:
            prompt = _prompt(model, head)
        left, middle, right = st.columns([1.15, 1.1, 1.1])
        with left, card("Parameters by part", key="parts", height="stretch"):
            _parts(model)
        with (
            middle,
            card("Key/value cache", help="Keys and values stored for each token.", key="cache", height="stretch"),
        ):
            _cache(model)
        with (
            right,
            card(
                "Provenance",
                help="What is needed to reproduce a result; in full in the CSV.",
                key="origin",
                height="stretch",
            ),
        ):
            _origin(model)
        capture_card.show(model, prompt)
        model_card.show()


def _shape(model: Transformer) -> None:
    config = model.config
    kind = model_facts.attention_kind(config)
    values = {
        "Parameters": model_cost.readable_count(config.n_params),
        "Layers": str(config.n_layers),
        "Width": f"{config.dim:,}",
        f"Heads ({kind})": f"{config.n_heads} / {config.n_kv_heads}",
        "Head size": str(config.head_dim),
        "MLP size": f"{config.ffn_dim:,}",
        "Vocabulary": f"{config.vocab_size:,}",
        "Context": f"{config.max_seq_len:,}",
    }
    with st.container(border=True, key="shape"):
        metric_row(values)


def _notes(model: Transformer) -> None:
    """What a user should know about the checkpoint's files, for example why its tokenizer is not used."""
    if model.notes:
        with card("Notes about this checkpoint", key="notes"):
            for note in model.notes:
                st.text(plain(note))


def _parts(model: Transformer) -> None:
    table = model_facts.parameters_by_part(model.config)
    plain_table(
        table.assign(parameters=table["parameters"].map(model_cost.readable_count)),
        columns={
            "part": "Part",
            "parameters": Column("Count", right=True),
            "share": Column("Share", ".0%", bar=1),
        },
    )
    if model.config.tied_output:
        st.caption("The output layer shares the embedding's weights.")


def _cache(model: Transformer) -> None:
    config = model.config
    itemsize = torch.empty(0, dtype=model.dtype).element_size()
    table = model_facts.cache_bytes(config, itemsize=itemsize)
    shown = pd.DataFrame(
        {
            "kind": [f"{k} (this)" if this else k for k, this in zip(table["kind"], table["this_model"], strict=True)],
            "kv_heads": table["kv_heads"],
            "token": table["bytes_per_token"].map(model_cost.readable_bytes),
            "context": table["bytes_at_context"].map(model_cost.readable_bytes),
        }
    )
    plain_table(
        shown,
        columns={
            "kind": "Attention",
            "kv_heads": "K/V heads",
            "token": Column("Per token", right=True),
            "context": Column(f"{config.max_seq_len:,} tokens", right=True),
        },
    )
    waves = wavelengths(config)
    scaling = f"scaled by {config.rope_scaling.factor:g}" if config.rope_scaling else "unscaled"
    st.caption(
        f"RoPE: theta {config.rope_theta:,.0f}, {scaling}; {waves.longer_than_context} of {config.head_dim // 2} "
        f"pairs "
        f"have wavelengths beyond the context."
    )


def _origin(model: Transformer) -> None:
    table = origin(model)
    shown = table.assign(value=[plain(_brief(name, value)) for name, value in zip(*table.values.T, strict=True)])
    plain_table(
        shown,
        columns={
            "name": "What",
            "value": "Value",
        },
    )


def origin(model: Transformer) -> pd.DataFrame:
    """Where the numbers of this server come from: name, value."""
    about = provenance.describe(computed.model_source(model))
    rows = {
        "Started with": computed.model_path(),
        "Checkpoint": about["checkpoint_sha256"] or "not from a file",
        "Tokenizer": about["tokenizer_sha256"] or "none",
        "Dtype, device": f"{str(model.dtype).removeprefix('torch.')} on {model.device}",
        "Commit": about["commit"] or "not in a checkout",
        **{name.capitalize(): version for name, version in about["versions"].items()},
    }
    return pd.DataFrame({"name": rows.keys(), "value": rows.values()})


def _brief(name: str, value: str) -> str:
    """The start of a hash, or the end of a path; the CSV has the full value."""
    if name in ("Checkpoint", "Tokenizer", "Commit") and len(value) >= 40:
        return value[:16] + " …" + ("+" if value.endswith("+") else "")
    return value if len(value) <= 29 else "… " + value[-27:]


def _prompt(model: Transformer, head: Head) -> Input | None:
    with st.container(border=True, key="prompt_card"):
        prompt = prompt_input.choose(model, LAST)
        _other_sources()
        if prompt is None:
            return None
        table, seconds = likeliest(model, prompt)
        left, right = st.columns([1.25, 1], gap="medium")
        with left:
            st.subheader(
                f"{len(prompt)} tokens", anchor=False, help="As the model receives them; hover over a token for its id."
            )
            plain_strip(f"{computed.fingerprint(model)}/{prompt.ids}", prompt.tokens, prompt.ids)
            _costs(model, len(prompt), seconds)
        with right:
            st.subheader("Likeliest next tokens", anchor=False, help="At temperature 1, over the whole vocabulary.")
            plain_table(
                table,
                columns={
                    "token": "Token",
                    "id": "Id",
                    "probability": Column("Probability", ".3g", bar=1),
                },
            )
    head.code(
        f"""
import torch, workbench as wb
model = wb.load_model({computed.model_path()!r})
tokens = {prompt.code}
{prompt.running}
    probability = model(tokens)[0, -1].softmax(-1)
probability.topk(8)
"""
    )
    head.data(
        {
            "provenance": lambda: origin(model),
            "parameters": lambda: model_facts.parameters_by_part(model.config),
            "next_tokens": lambda: table,
            "tokens": lambda: pd.DataFrame({"id": prompt.ids, "token": [visible(token) for token in prompt.tokens]}),
        }
    )
    return prompt


def _other_sources() -> None:
    """Draw the other sources of a prompt: a file, or a benchmark sample."""
    with st.container(horizontal=True, vertical_alignment="center", key="elsewhere"):
        with st.popover("From a file"):
            st.file_uploader(
                "Text file", key="prompt_file", on_change=_take_file,
                help=f"UTF-8, at most {prompt_input.MAX_CHARS:,} characters; it replaces the prompt.",
            )  # fmt: skip
        st.page_link("dashboard/pages/samples.py", label="From a benchmark sample →")
    refused = st.session_state.pop("_file_refused", None)
    if refused:
        show_error("The file was not used. Choose a shorter file, or one with plain text.", refused)


def _take_file() -> None:
    file = st.session_state["prompt_file"]
    if file is None:  # removed again
        return
    try:
        text = file.getvalue().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        st.session_state["_file_refused"] = f"{file.name} is not UTF-8 text: {error.reason} at byte {error.start}."
        return
    if len(text) > prompt_input.MAX_CHARS:
        most = prompt_input.MAX_CHARS
        st.session_state["_file_refused"] = f"{file.name} has {len(text):,} characters; the limit is {most:,}."
        return
    for other in ("sample", "capture"):
        url_state.clear_url_param(other)
    url_state.preset_widget("prompt", text)


def likeliest(model: Transformer, prompt: Input, *, k: int = 8) -> tuple[pd.DataFrame, float | None]:
    """The k most likely next tokens (token, id, probability), and the seconds that the model needed for the prompt.

    Only the last position is unembedded. If a saved capture has the logits, the model is not run.
    """

    def top(logits: torch.Tensor) -> pd.DataFrame:
        best = logits.softmax(-1).topk(min(k, len(logits)))
        return pd.DataFrame({"id": best.indices.tolist(), "probability": best.values.tolist()})

    def compute(model: Transformer, *, ids: tuple[int, ...], changes: str, k: int) -> tuple[pd.DataFrame, float]:
        seconds: list[float] = []
        while len(seconds) < 2 and sum(seconds) < WARM_UP:
            begin = time.perf_counter()
            with model.intervene(*from_json(changes)):
                hidden = model.hidden(torch.tensor([ids], device=model.device))[:, -1:]
                logits = model.unembed(hidden, start=len(ids) - 1)
            tokens = top(logits[0, 0])
            seconds.append(time.perf_counter() - begin)
        return tokens, min(seconds)

    seconds = None
    opened = computed.open_capture(model, prompt.ids, LAST, prompt.changes)
    if opened is not None:
        table = top(opened.capture[LAST[0]][0, -1].float())
    else:
        table, seconds = computed.cached_probe(compute, model=model, ids=prompt.ids, changes=prompt.changes, k=k)
    table = table.copy()  # the cached table is shared
    table.insert(0, "token", [_name(model, token) for token in table["id"]])
    return table, seconds


def _name(model: Transformer, token: int) -> str:
    try:
        return visible(model.tokenizer.token_bytes(token)) if model.tokenizer else f"#{token}"
    except WorkbenchError:  # some checkpoints pad their vocabulary beyond the tokenizer's
        return f"#{token}"


def _costs(model: Transformer, length: int, seconds: float | None) -> None:
    """Draw the size of the other pages' captures of this prompt, and the time of one run."""
    itemsize = torch.empty(0, dtype=model.dtype).element_size()
    rows = []
    for name, hooks in {"Attention": head_metrics.HOOKS, "RoPE": head_scores.HOOKS, "Norms": rms_norms.HOOKS}.items():
        n_bytes = Request.of(model.config, hooks).n_bytes(model.config, 1, length, 0, itemsize)
        rows.append(f"{model_cost.readable_bytes(sum(n_bytes.values()))} for {name}")
    took = "The model was not run: the capture has these logits."
    if seconds is not None:
        time = f"{1e3 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
        took = f"The model processed this prompt in {time}; a page that captures it runs it once more."
    st.caption(f"{took} A capture takes {', '.join(rows)}.")
    with st.container(horizontal=True):
        for name, title in {"attention": "Attention", "rope": "RoPE", "norms": "Norms"}.items():
            st.page_link(f"dashboard/pages/{name}.py", label=f"Open in {title} →")


show()
