"""Intervene page: change the running model and compare its predictions before and after."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import streamlit as st

from dashboard.data import intervention_effects
from dashboard.data.intervention_effects import AFTER, BEFORE, Changes
from dashboard.layout.bars import over_tokens
from dashboard.layout.figure_help import FIGURE_HELP
from dashboard.layout.page import Head, Help, card, chart, command_line, draw_figure, page
from dashboard.layout.tables import Column, metric_row, plain_table
from dashboard.panels import intervention_editor, prompt_input, target_tokens, tour
from dashboard.panels.prompt_input import Input
from dashboard.panels.target_tokens import LETTERS, TargetTokens, token_bytes
from dashboard.session import computed, url_state
from dashboard.session.settings import Settings
from dashboard.token_text import plain, plotly_labels, short
from probes.base import drawing
from workbench.hooks.intervention import Intervention
from workbench.hooks.interventions import from_json, to_json
from workbench.model import Transformer

ABOUT = Help(
    "Runs the model with interventions: heads or sublayers are set to zero, scaled or added to, or the rotary "
    "embedding is rescaled. The weights do not change, and the interventions are in the URL.",
    [
        "**KL** is KL(before ‖ after) of the predictions at each position, in nats.",
        "**Loss** is the negative log-probability of the prompt's own next tokens, in nats.",
        "**Change of each head** is the change of the head's output, divided by its size: 0 before the first "
        "intervention, 1 if ablated.",
        "An effect on one prompt does not show an effect on a benchmark; the command below measures that.",
        "A head set to zero is far from what later layers expect; an effect may come from that alone.",
    ],
    {
        "ablation": "https://arxiv.org/abs/2211.00593",
        "caveats": "https://arxiv.org/abs/2404.15255",
        "stretching RoPE": "https://arxiv.org/abs/2309.00071",
    },
)
TOP = 8
CHANGED = ("Attention", "RoPE", "Norms", "Lens", "Neurons", "Generate")
"""Pages that apply the interventions in their URL."""


def show() -> None:
    with page("Intervene", "Change the model while it runs, and compare.", ABOUT) as head:
        model = computed.model()
        tour.show_step(model, "intervene")
        prompt = prompt_input.unchanged(model, intervention_effects.HOOKS)
        made = intervention_editor.choose(model)
        if prompt is None or made is None:
            return
        # A sample's run may have had interventions already; they apply before and after.
        changes = prompt.changes, prompt.with_also(to_json(made))
        before = computed.capture(model, prompt.ids, intervention_effects.HOOKS, changes[BEFORE])
        targets = target_tokens.choose(model, prompt, before, _more)
        if targets is None:
            return
        after = computed.capture(model, prompt.ids, intervention_effects.HOOKS, changes[AFTER])
        moved = computed.cached_pair_probe(intervention_effects.shift, changes, model=model, before=before, after=after)
        logits = computed.cached_pair_probe(
            intervention_effects.logits_at, changes, targets.position, model=model, before=before, after=after
        )
        _summary(model, prompt, moved, logits, targets, changes)
        left, right = st.columns([1, 1])
        with left, card("Likeliest next tokens", help="Before and after, at temperature 1.", height="stretch"):
            _top(model, logits, targets)
        with right, card("Targets", help="Logits before and after, and their change.", height="stretch"):
            _targets(model, logits, targets)
        with st.container(border=True, key="shift_card"):
            chart(
                over_tokens(
                    plotly_labels(prompt.tokens),
                    {
                        "KL": moved.kl,
                        "increase of the next token's loss": np.append(moved.loss[1] - moved.loss[0], np.nan),
                    },
                    kind="shift",
                    title="Change along the prompt",
                    unit="nats",
                    stamp={"changes": changes[AFTER]},
                ),
                key="shift",
            )
        if st.session_state["perhead"]:
            _heads(model, prompt, changes)
        _links(to_json(made))
        _benchmark(from_json(changes[AFTER]), prompt)
        _take_away(head, prompt, changes, moved, logits)


def _links(changes: str) -> None:
    """Links to the other pages, which then show the changed model."""
    with st.container(horizontal=True, vertical_alignment="center", key="onwards"):
        st.page_link(
            "dashboard/pages/compare.py",
            label="Patterns before and after in Compare →",
            query_params={"changes": changes},
        )
        if changes != computed.NO_CHANGES:
            st.text("Open the changed model in", width="content")
            for name in CHANGED:
                page = f"dashboard/pages/{name.lower()}.py"
                st.page_link(page, label=f"{name} →", query_params=prompt_input.changes_param(changes))


def _more() -> None:
    url_state.url_widget(
        st.toggle, "Change of each head", key="perhead", help="Needs two more runs of the model, the first time only."
    )


# --- before and after -----------------------------------------------------------------------------------------


def _summary(
    model: Transformer,
    prompt: Input,
    moved: intervention_effects.Shift,
    logits: np.ndarray,
    targets: TargetTokens,
    changes: Changes,
) -> None:
    loss = moved.loss.mean(-1) if moved.loss.shape[-1] else np.full(2, np.nan)
    rise = "" if changes[BEFORE] == changes[AFTER] else f" ({loss[AFTER] - loss[BEFORE]:+.3f})"
    values = {
        f"KL after position {targets.position} (nats)": f"{moved.kl[targets.position]:.3g}",
        "Mean KL (nats)": f"{moved.kl.mean():.3g}",
        "Loss before (nats per token)": f"{loss[BEFORE]:.3f}",
        "Loss after": f"{loss[AFTER]:.3f}{rise}",
    }
    if prompt.sample is None and target_tokens.is_quiz(prompt):
        best = logits[:, list(target_tokens.letters(model, prompt))].argmax(-1)
        values["Answer (A to D)"] = f"{LETTERS[best[BEFORE]]} → {LETTERS[best[AFTER]]}"
    with st.container(border=True, key="summary"):
        metric_row(values)
    if not np.isfinite(logits).all():
        st.error("The logits contain NaN or infinite values: before, after, or both.")
    if prompt.sample is not None and prompt.sample.choice_ids:
        _answer(model, prompt, changes)


def _answer(model: Transformer, prompt: Input, changes: Changes) -> None:
    """The choices of a sample, scored as the benchmark scores them."""
    sample = prompt.sample
    assert sample is not None
    scored = computed.cached_probe(
        intervention_effects.choice_logprobs,
        model=model,
        prompt=sample.prompt_ids,
        answers=sample.choice_ids,
        changes=changes,
    )
    best = np.array(scored).argmax(0)
    with card("The sample's answer", key="answer_card", help="Log-probability of each choice after the prompt."):
        plain_table(
            pd.DataFrame(
                {
                    "choice": [plain(choice) for choice in sample.choices],
                    "gold": [number == sample.gold for number in range(len(scored))],
                    "before": [pair[BEFORE] for pair in scored],
                    "after": [pair[AFTER] for pair in scored],
                }
            ),
            columns={
                "choice": "Choice",
                "gold": "Gold",
                "before": Column("Before (nats)", ".3f"),
                "after": Column("After (nats)", ".3f"),
            },
        )
        was, now = (sample.choices[number].strip() for number in best)
        st.text(f"Answer before: {plain(was)}\nAnswer after:  {plain(now)}")


def _top(model: Transformer, logits: np.ndarray, targets: TargetTokens) -> None:
    table = top_tokens(model, logits)
    plain_table(
        table,
        max_height=330,
        columns={
            "token": "Token",
            "id": "Id",
            "before": Column("Before", ".3f", bar=1),
            "after": Column("After", ".3f", bar=1),
        },
    )


def top_tokens(model: Transformer, logits: np.ndarray) -> pd.DataFrame:
    """The most likely tokens before or after, sorted by the larger probability: token, id, before, after.

    Shapes: logits [2, vocab]
    """
    wide = logits.astype(np.float64)
    shares = np.exp(wide - wide.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    ids = np.unique(np.argsort(-shares, axis=-1, kind="stable")[:, :TOP])
    ids = ids[np.argsort(-shares[:, ids].max(0), kind="stable")]
    names = [short(token_bytes(model, token), 24) for token in ids.tolist()]
    return pd.DataFrame({"token": names, "id": ids, "before": shares[BEFORE, ids], "after": shares[AFTER, ids]})


def _targets(model: Transformer, logits: np.ndarray, targets: TargetTokens) -> None:
    chosen = list(targets.tokens)
    table = pd.DataFrame(
        {
            "token": [short(token_bytes(model, token), 24) for token in chosen],
            "before": logits[BEFORE, chosen],
            "after": logits[AFTER, chosen],
            "change": logits[AFTER, chosen] - logits[BEFORE, chosen],
        }
    )
    plain_table(
        table,
        columns={
            "token": "Token",
            **{name: Column(name.capitalize(), ".3f") for name in table.columns[1:]},
        },
    )
    if len(chosen) > 1:
        gap = logits[:, chosen[0]] - logits[:, chosen[1]]
        st.caption(f"First minus second: {gap[BEFORE]:.3f} before, {gap[AFTER]:.3f} after.")


def _heads(model: Transformer, prompt: Input, changes: Changes) -> None:
    before, after = (computed.capture(model, prompt.ids, intervention_effects.HEAD_HOOKS, side) for side in changes)
    values = computed.cached_pair_probe(intervention_effects.head_changes, model=model, before=before, after=after)
    with card("Change of each head's output", key="heads_card", help=FIGURE_HELP["head_changes"]):
        fig = drawing.atlas(
            values,
            title="",
            unit="|change| / |before|",
            heads=range(model.config.n_heads),
            layers=range(model.config.n_layers),
            group_size=model.config.group_size,
            stamp={"of": "head_changes"},
        )
        fig.update_layout(margin={"t": 30})
        draw_figure(fig, key="head_changes")


# --- downloads ------------------------------------------------------------------------------------------------


def _benchmark(made: Sequence[Intervention], prompt: Input) -> None:
    with card(
        "Measure it on a benchmark",
        key="benchmark_card",
        help="Runs the benchmark with these interventions, to compare with a run without them.",
    ):
        settings = Settings.from_env()
        task = prompt.sample.task if prompt.sample else "demo_mmlu"
        line = intervention_effects.eval_command(
            made, model=computed.model_path(), task=task, output=settings.results / "changed"
        )
        command_line(line)
        st.download_button(
            "Interventions as JSON", to_json(made), file_name="changes.json", mime="application/json", on_click="ignore"
        )


def _take_away(
    head: Head, prompt: Input, changes: Changes, moved: intervention_effects.Shift, logits: np.ndarray
) -> None:
    head.code(
        f"""
import torch, workbench as wb
from workbench.hooks.interventions import from_json

model = wb.load_model({computed.model_path()!r})
tokens = {prompt.code}
sides = []
for changes in {changes!r}:
    with torch.no_grad(), model.intervene(*from_json(changes)):
        sides.append(model(tokens)[0].log_softmax(-1))
before, after = sides
(before.exp() * (before - after)).sum(-1)  # KL at each position, nats
"""
    )
    position = np.arange(len(moved.kl))
    loss = np.pad(moved.loss, ((0, 0), (0, 1)), constant_values=np.nan)
    by_position = {"position": position, "kl": moved.kl, "loss_before": loss[BEFORE], "loss_after": loss[AFTER]}
    by_token = {"id": np.arange(logits.shape[1]), "logit_before": logits[BEFORE], "logit_after": logits[AFTER]}
    head.data({"by_position": lambda: pd.DataFrame(by_position), "logits": lambda: pd.DataFrame(by_token)})


show()
