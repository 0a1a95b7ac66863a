"""Compare page: two captures or two benchmark runs, A and B, and their differences."""

import numpy as np
import pandas as pd
import streamlit as st

from dashboard.components.head_grid import head_grid
from dashboard.components.head_inputs import head_inputs
from dashboard.layout.figure_help import FIGURE_HELP
from dashboard.layout.page import Head, Help, card, chart, draw_figure, heading, page
from dashboard.layout.tables import Column, metric_row, plain_table
from dashboard.panels import compare_runs, compare_sides
from dashboard.panels.compare_sides import SharedTokens, Side
from dashboard.panels.target_tokens import token_bytes
from dashboard.session import computed, url_state
from dashboard.session.computed import CaptureRef
from dashboard.token_text import plotly_labels, short
from probes.attention.head_map import HeadMap, head_map
from probes.attention.pair_figures import SIDE, side_by_side
from probes.comparison.compare_runs import Comparison, HeadDifferences
from probes.comparison.figures import logits as logit_figure
from workbench.hooks.hook_points import PATTERN, layer_of

ABOUT = Help(
    "Compares two captures: A is the prompt above; B is the same or another prompt, optionally with interventions, "
    "another RoPE scaling or another dtype. Or compares two benchmark runs in the results folder, question by "
    "question.",
    [
        "**KL** is KL(A ‖ B) in nats: for a head's attention, the mean over queries; for predictions, at each "
        "position.",
        "**Relative difference** is |A − B| / |A| over all values of a hook; **cosine** is the mean over tokens. "
        "For a head, both are of its output (z).",
        "A and B share one colour scale from 0; the difference is B minus A, blue below 0 and red above. Cells after "
        "the query are blank.",
        "Different prompts are compared over the tokens that they share at the start or at the end. After a "
        "different start, the same position is a different key, so patterns are shown side by side and not "
        "subtracted.",
        "**Runs** are compared on the questions that both answered. For right and wrong answers, p is from "
        "McNemar's exact test, otherwise from a bootstrap; it is adjusted with Holm's method. **MDE** is the "
        "smallest difference detectable with 80% power at 5%.",
    ],
    {
        "McNemar": "https://doi.org/10.1007/BF02295996",
        "paired evaluation": "https://arxiv.org/abs/2411.00640",
        "ablation": "https://arxiv.org/abs/2211.00593",
    },
)
CAPTURES, RUNS = "Captures", "Runs"
MEASURES = {
    "Attention KL": ("kl", PATTERN, "KL(A ‖ B) of attention, nats"),
    "Relative difference": ("relative", "attn.hook_z", "|A − B| / |A| of head outputs"),
    "Cosine": ("cosine", "attn.hook_z", "cosine of head outputs"),
}
TOP = 8


def show() -> None:
    with page("Compare", "Two captures or two runs: A, B and their difference on one scale.", ABOUT) as head:
        what = url_state.url_widget(
            st.segmented_control, "Compare", [CAPTURES, RUNS], key="compare", default=CAPTURES, required=True
        )
        if what == RUNS:
            compare_runs.show(head)
        else:
            _captures(head)


def _captures(head: Head) -> None:
    model = computed.model()
    chosen = compare_sides.choose(model)
    if chosen is None:
        return
    a, b = chosen
    common = compare_sides.shared(a.given, b.given)
    if common is None:
        st.error("The prompts do not share their first two or their last two tokens, so they cannot be aligned. Let "
                 "B begin or end with the same tokens as A.")  # fmt: skip
        return
    if (a.model is b.model) and (a.given.ids, a.changes) == (b.given.ids, b.changes):
        compare_sides.show_identical(st.session_state.get("_last_layer", 0), st.session_state.get("_last_head", 0))
        return
    st.text(common.sentence)
    before, after = a.capture(), b.capture()
    comparison = computed.cached_pair_probe(
        compare_sides.compared, common.align, model=model, before=before, after=after
    )
    position = _summary(a, comparison, common)
    left, right = st.columns([0.41, 0.59])
    with left, card("All heads", key="atlas_card", height="stretch", help=FIGURE_HELP["compared_heads"]):
        layer, number = _heads(a, comparison, before, after)
    with right, card("Likeliest next tokens", key="top_card", height="stretch",
                     help="After the chosen position, at temperature 1."):  # fmt: skip
        _top(a, before, after, position, position + common.shift)
        if comparison.logits is not None:
            fig = logit_figure(comparison.logits, stamp={"pair": f"{before.id}/{after.id}"})
            chart(fig, key="logit_differences", height=300)
    with st.container(border=True, key="patterns_card"):
        maps = _patterns(a, b, before, after, common, layer, number)
    with card("By hook", key="hooks_card", help="Every hook that both sides have, in the order of a forward pass."):
        _hooks(comparison)
    _take_away(head, a, b, common, comparison, maps)


def _summary(a: Side, comparison: Comparison, common: SharedTokens) -> int:
    logits = comparison.logits
    assert logits is not None and comparison.by_head is not None  # compare_sides.HOOKS has them
    first, last = int(logits.positions[0]), int(logits.positions[-1])
    with st.container(border=True, horizontal=True, vertical_alignment="bottom", gap="large", key="summary"):
        requested = url_state.url_widget(
            st.number_input, "Position", -1, None, -1, key="position",
            help="Position in A; -1 is the last one compared.",
            width=180,
        )  # fmt: skip
        position = last if requested < 0 else min(max(requested, first), last)
        url_state.note_shown("position", requested if requested >= 0 else None, position)
        metric_row(
            {
                f"KL after position {position} (nats)": f"{logits.kl[0, position - first]:.3g}",
                "Mean KL (nats)": f"{logits.kl.mean():.3g}",
                "Same first choice": f"{logits.agreement:.0%}",
                "The runs diverge at": comparison.part() or "nowhere",
            },
            help={"The runs diverge at": "The first hook with a relative difference over 0.1%."},
        )
    if not np.isfinite(logits.kl).all():
        st.error("The logits of A or B contain NaN or infinite values.")
    return position


def _heads(a: Side, comparison: Comparison, before: CaptureRef, after: CaptureRef) -> tuple[int, int]:
    config, heads = a.model.config, comparison.by_head
    assert heads is not None
    options = [name for name, (measure, _, _) in MEASURES.items() if measure != "kl" or len(heads.layers)]
    name = url_state.url_widget(
        st.segmented_control, "Colour heads by", options, key="measure", default=options[0], required=True
    )
    measure, point, unit = MEASURES.get(name, MEASURES[options[0]])
    values = by_head(heads, measure, point)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        worst = np.unravel_index(int(np.nanargmax(_apart(values, measure))), values.shape)
        default = int(worst[0]), int(worst[1])
        layer, number = head_inputs(config, default, keys=("at_layer", "at_head"), width=130)
    st.caption(f"{unit}, over the shared tokens. Click a square to open the head.")
    id = f"{before.id}/{after.id}/{measure}"
    head_grid(values, id=id, unit=unit, config=config, selected=(layer, number), on_choose=_choose_head)
    order = np.argsort(-_apart(values, measure), axis=None, kind="stable")[:5]
    at = np.unravel_index(order, values.shape)
    plain_table(
        pd.DataFrame({"head": [f"L{x}H{y}" for x, y in zip(*at, strict=True)]}
                     | {key: by_head(heads, m, p)[at] for key, (m, p, _) in MEASURES.items() if key in options}),
        columns={"head": "Most changed"}
        | {key: Column(key, ".3g") for key in options},
    )  # fmt: skip
    return layer, number


def _choose_head(layer: int, head: int) -> None:
    st.session_state["at_layer"], st.session_state["at_head"] = layer, head


def by_head(heads: HeadDifferences, measure: str, point: str) -> np.ndarray:
    """One measure of one hook for all heads. Shapes: -> [layer, head]"""
    if measure == "kl":
        return heads.kl
    return np.asarray(getattr(heads, measure)[[hook.endswith(point) for hook in heads.hooks]])


def _apart(values: np.ndarray, measure: str) -> np.ndarray:
    """The values, negated for cosine, so that larger means more different; undefined ones last."""
    return np.nan_to_num(-values if measure == "cosine" else values, nan=-np.inf)


def _top(a: Side, before: CaptureRef, after: CaptureRef, at_a: int, at_b: int) -> None:
    rows = [capture_ref.capture["hook_logits"][0, at].float() for capture_ref, at in ((before, at_a), (after, at_b))]
    first, second = (row.softmax(-1).cpu().numpy() for row in rows)
    tokens = np.unique(np.concatenate([np.argsort(-side, kind="stable")[:TOP] for side in (first, second)]))
    tokens = tokens[np.argsort(-np.maximum(first, second)[tokens], kind="stable")]
    raw = [row.cpu().numpy()[tokens] for row in rows]
    plain_table(
        pd.DataFrame(
            {
                "token": [short(token_bytes(a.model, token), 24) for token in tokens.tolist()],
                "id": tokens,
                "a": first[tokens],
                "b": second[tokens],
                "logit_a": raw[0],
                "logit_b": raw[1],
                "change": raw[1] - raw[0],
            }
        ),
        max_height=600,
        columns={
            "token": "Token",
            "id": "Id",
            "a": Column("A", ".3f", bar=1),
            "b": Column("B", ".3f", bar=1),
            "logit_a": Column("Logit A", ".2f"),
            "logit_b": Column("Logit B", ".2f"),
            "change": Column("B − A", "+.2f"),
        },
    )


def _patterns(
    a: Side, b: Side, before: CaptureRef, after: CaptureRef, common: SharedTokens, layer: int, head: int
) -> tuple[HeadMap, HeadMap]:
    shortest = min(len(a.given), len(b.given))
    start = 0
    if max(len(a.given), len(b.given)) > SIDE:
        start = url_state.url_widget(
            st.number_input, "Patterns from position", 0, shortest - 1, 0, step=64, key="from", width=200,
            help=f"{SIDE} positions are shown at a time.",
        )  # fmt: skip
    maps = tuple(
        computed.cached_probe(
            head_map, layer, head, capture=capture_ref, window=(start, min(start + SIDE, len(side.given)))
        )
        for side, capture_ref in ((a, before), (b, after))
    )
    # Keys at the same positions can be compared, although some of the tokens differ.
    shared = common.count if common.align != "suffix" else 0 if common.shift else len(a.given)
    labels = [plotly_labels(side.given.tokens, limit=10) for side in (a, b)]
    stamp = {"layer": layer, "head": head, "pair": f"{before.id}/{after.id}"}
    fig = side_by_side(*maps, *labels, shared=shared, stamp=stamp)
    heading(fig.layout.title.text, "side_by_side")
    fig.update_layout(title=None, margin={"t": 28})
    draw_figure(fig, key="patterns")
    if common.align == "suffix" and not common.shift:
        st.caption(f"Compared position by position: some tokens before the last {common.count} differ.")
    elif common.align == "suffix":
        st.caption("No difference is shown: after a different start, the same position is a different key.")
    elif common.align == "prefix":
        st.caption(f"The difference covers the first {common.count} tokens, which both share.")
    return maps[0], maps[1]


def _hooks(comparison: Comparison) -> None:
    table = comparison.frame()
    plain_table(
        table,
        max_height=300,
        columns={
            "hook": "Hook",
            "layer": "Layer",
            "largest": Column("Largest |A − B|", ".3g"),
            "relative": Column("Relative", ".3g"),
            "cosine": Column("Cosine", ".6f"),
        },
    )
    for reason in dict.fromkeys(comparison.left_out.values()):
        left = {layer_of(hook) for hook, why in comparison.left_out.items() if why == reason}
        st.caption(f"Not compared in {len(left)} layers: {reason}.")


def _take_away(
    head: Head, a: Side, b: Side, common: SharedTokens, comparison: Comparison, maps: tuple[HeadMap, HeadMap]
) -> None:
    lines = [
        "import torch, workbench as wb",
        "from probes.comparison.compare_runs import compare",
        "from workbench.hooks.interventions import from_json",
        "",
        f"HOOKS = {list(compare_sides.HOOKS)!r}",
        "caps = []",
        "for path, dtype, prompt, changes in (",
        *(
            f"    ({side.path!r}, {side.model.dtype}, lambda model: {side.given.code}, {side.changes!r}),"
            for side in (a, b)
        ),
        "):",
        "    model = wb.load_model(path, dtype=dtype)",
        "    with torch.no_grad(), model.intervene(*from_json(changes)):",
        "        caps.append(model.run_with_capture(prompt(model), HOOKS)[1])",
        f"comparison = compare(*caps, align={common.align!r})",
        "comparison.frame()",
        "comparison.by_head.frame()",
    ]
    head.code("\n".join(lines))
    tables = {"hooks": comparison.frame}
    tables |= {} if comparison.by_head is None else {"heads": comparison.by_head.frame}
    tables |= {} if comparison.logits is None else {"predictions": comparison.logits.frame}
    tables |= {f"pattern_{name}": side.frame for name, side in zip("ab", maps, strict=True)}
    head.data(tables)


show()
