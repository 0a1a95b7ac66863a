"""Samples: the questions of a run one by one, and for one of them what in the model decided its answer."""

import shlex
from typing import NamedTuple

import numpy as np
import pandas as pd
import streamlit as st

from dashboard import runs, samples, state
from dashboard.frame import Head, Help, card, chart_untitled, empty, page, problem, table_height
from dashboard.runs import Sample
from dashboard.samples import ALL, FIRST, ORDERS, RIGHT, UNPARSED, WRONG, Again
from dashboard.settings import Settings
from dashboard.targets import plotly_names
from dashboard.text import plain
from evals import counterpart
from evals.explain import Explanation
from evals.interventions import described
from evals.replay import changes_of, entry_of
from evals.results import Run
from probes.explain import Explanation as Parts
from probes.figures import drawing
from workbench.errors import DataError
from workbench.intervene import Ablate, to_json
from workbench.model import Transformer

ABOUT = Help(
    "Every question of a finished run: what was asked, what the model wrote, what was read out of it, and what was "
    "expected. Below, one sample is run again on its very tokens, and what decided its answer is split by the parts "
    "of the model.",
    [
        "**Unparsed** answers count as wrong: the filter found no answer in what was written.",
        "**Margin** is the right choice's log-probability less the best other one's, in nats; ordered by it, the "
        "closest decisions come first. **Sure** is the probability of the answer given: among the choices, or of a "
        "written answer the geometric mean over its tokens.",
        "Beside another run, the questions that only one of the two has right come first.",
        "**Attribution**: what every part adds to the right answer's logit less the given one's; below zero it spoke "
        "for the answer given. They are direct contributions, no proof: a run without the head is one.",
        "The explanation is of the stored answer only where the replay finds the stored log-probabilities again.",
    ],
    {
        "direct attribution": "https://arxiv.org/abs/2211.00593",
        "logit lens": "https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens",
        "lm-eval": "https://github.com/EleutherAI/lm-evaluation-harness",
    },
)
KINDS = (ALL, *(kind.capitalize() for kind in (RIGHT, WRONG, UNPARSED)))
MOST_ROWS = 2000
TOP = 6  # heads that have links


class Opened(NamedTuple):
    """A question that was chosen, as shown and as stored."""

    run: Run
    sample: Sample
    row: pd.Series
    other: str | None  # what the other run made of it


def show() -> None:
    with page("Samples", "Every question of a run, and why it was answered so.", ABOUT) as head:
        found, _ = runs.runs()
        if not found:
            root = Settings.from_env().results
            empty(
                "No finished runs in the results folder. Run the embedded suites with this command, then reload.",
                f"workbench eval run --model demo --tasks demo_mmlu,demo_gsm8k,demo_humaneval --output {root / 'demo'}",
            )
            return
        run, baseline = runs.choose(found)
        if not run.tasks:
            empty("This run has no samples. Choose another one.")
            return
        listed = _listed(run, baseline)
        if listed is None:
            return
        task, table = listed
        if table.empty:
            st.info("No sample of this kind. Choose another one under Show.")
            _take_away(head, run, task, table, None, None)
            return
        left, right = st.columns([1.1, 1], gap="medium")
        with left, card("Questions", key="questions"):
            opened = _pick(run, task, table)
        with right, card(f"Sample {opened.sample.doc_id}: {samples.verdict(opened.row.to_dict())}", key="sample"):
            _open(opened)
        with card("What decided the answer", key="why"):
            explained = _why(opened, task)
        _take_away(head, run, task, table, opened, explained)


# --- the list -------------------------------------------------------------------------------------------------


def _listed(run: Run, baseline: Run | None) -> tuple[str, pd.DataFrame] | None:
    """The task, and the rows of its listing that are asked for, in their order; None where they cannot be read."""
    named = st.query_params.get("task")
    if named not in (None, *run.tasks):
        problem("The task that this address names is not in this run. Choose another one.", str(named))
    with st.container(horizontal=True, vertical_alignment="bottom", key="list_controls"):
        task = state.bound(st.selectbox, "Task", run.tasks, key="task", width=260)
        kind = state.bound(st.segmented_control, "Show", KINDS, key="show", default=ALL, required=True)
        order = state.bound(
            st.segmented_control, "Order", ORDERS, key="order", default=ORDERS[0], required=True,
            help="Margin: the closest decisions first. Confident wrong: the wrong answers given most surely.",
        )  # fmt: skip
        try:
            table = samples.listing(run, task)
        except DataError as error:
            problem("This task's samples cannot be read. Choose another task, or run the benchmark again.", str(error))
            return None
        filters = table["filter"].unique().tolist()
        if len(filters) > 1:
            chosen = state.bound(
                st.segmented_control, "Extraction", filters, key="filter", default=filters[0], required=True
            )
            table = table[table["filter"] == chosen]
    other: dict[tuple[int, str], str] = {}
    if baseline is not None:
        try:
            other = samples.discordant(run, baseline, task)
        except DataError as error:
            problem("The other run cannot be compared on this task. Choose another one.", str(error))
    if kind != ALL:
        kept = (WRONG, UNPARSED) if kind.lower() == WRONG else (kind.lower(),)
        table = table[table["state"].isin(kept)]
    return task, samples.ordered(table, order, other)


def _pick(run: Run, task: str, table: pd.DataFrame) -> Opened:
    stored = runs.samples(run, task)
    shown = table.head(MOST_ROWS)
    rows = [stored.loc[at] for at in shown.index]
    listed = [runs.as_sample(run, task, row) for row in rows]
    docs = shown["doc_id"].tolist()

    def chose() -> None:
        picked = st.session_state["sample_rows"]["selection"]["rows"]
        if picked:
            state.link("doc", docs[picked[0]])

    columns = {
        "doc": docs,
        "result": shown["state"].tolist(),
        "other": shown["other"].tolist(),
        "margin": shown["margin"].tolist(),
        "sure": (100 * shown["confidence"]).tolist(),
        "question": [plain(_gist(sample.prompt)) for sample in listed],
        "answer": [plain(_start(sample.verdict or sample.answer)) for sample in listed],
        "target": [plain(_start(sample.target.rpartition("####")[2])) for sample in listed],
    }
    absent = [
        name for name in ("other", "margin", "sure") if shown[{"sure": "confidence"}.get(name, name)].isna().all()
    ]
    st.dataframe(
        pd.DataFrame({name: values for name, values in columns.items() if name not in absent}),
        hide_index=True,
        height=table_height(len(docs), most=470),
        key="sample_rows",
        on_select=chose,
        selection_mode="single-row",
        column_config={
            "doc": st.column_config.NumberColumn("No.", width=45),
            "result": st.column_config.TextColumn("Result", width=70),
            "other": st.column_config.TextColumn("Other run", width=70),
            "margin": st.column_config.NumberColumn("Margin", format="%.2f", width=60),
            "sure": st.column_config.NumberColumn("Sure", format="%.0f%%", width=50),
            "question": st.column_config.TextColumn("Question", width=120),
            "answer": st.column_config.TextColumn("Answer", width=60),
            "target": st.column_config.TextColumn("Target", width=60),
        },
    )
    more = f", the first {MOST_ROWS} listed" if len(table) > MOST_ROWS else ""
    st.caption(f"n = {len(table)}{more}. Choose a row to open it.")
    position = _position(docs, stored)
    return Opened(run, listed[position], rows[position], shown["other"].iloc[position])


def _position(docs: list[int], stored: pd.DataFrame) -> int:
    """Which row is open: the question that the address names, where it is listed; else the first."""
    named = state.linked("doc")
    if named in (None, FIRST):
        return 0
    number = int(named) if named is not None and named.isdecimal() else -1
    if number in docs:
        return docs.index(number)
    if number not in set(stored["doc_id"]):
        what = f"No question {named}; this task has {stored['doc_id'].min()} to {stored['doc_id'].max()}."
        problem("The question that this address names is not in this task. Choose one from the list.", what)
    return 0


def _open(opened: Opened) -> None:
    sample = opened.sample
    if opened.other is not None:
        st.caption(f"The other run's answer is {opened.other}.")
    with st.container(horizontal=True):
        st.page_link("dashboard/pages/attention.py", label="Open in Attention →", query_params=_on(sample))
        st.page_link("dashboard/pages/lens.py", label="Open in Lens →", query_params=_on(sample))
    st.caption("Prompt")
    st.code(plain(sample.prompt), language=None, wrap_lines=True, height=190 if len(sample.prompt) > 300 else "content")
    if sample.choices:
        st.caption("Choices, by log-probability (nats)")
        gold = [number == sample.gold for number in range(len(sample.choices))]
        picked = [number == sample.picked for number in range(len(sample.choices))]
        choices = {"choice": [plain(c) for c in sample.choices], "logprob": sample.logprobs}
        st.dataframe(
            pd.DataFrame({**choices, "gold": gold, "picked": picked}).sort_values("logprob", ascending=False),
            hide_index=True,
            column_config={
                "choice": "Choice",
                "logprob": st.column_config.NumberColumn("Log-probability", format="%.3f"),
                "gold": st.column_config.CheckboxColumn("Right", width=55),
                "picked": st.column_config.CheckboxColumn("Chosen", width=65),
            },
        )
    else:
        # Letters alone cannot be Markdown.
        st.caption("Output" + (f" (ended by: {sample.finish})" if sample.finish and sample.finish.isalpha() else ""))
        st.code(plain(sample.output) or " ", language=None, wrap_lines=True)
    answer, target = st.columns(2)
    with answer:
        st.caption("Extracted answer")
        st.code(plain(sample.answer) or " ", language=None, wrap_lines=True)
    with target:
        st.caption("Target")
        st.code(plain(sample.target) or " ", language=None, wrap_lines=True)
    if sample.verdict:
        st.caption("Sandbox")
        st.code(plain(": ".join(filter(None, [sample.verdict, sample.message]))), language=None, wrap_lines=True)
    if sample.stderr:
        st.caption("Standard error")
        st.code(plain(sample.stderr), language=None, wrap_lines=True, height=150)


# --- the explanation ------------------------------------------------------------------------------------------


def _why(opened: Opened, task: str) -> Explanation | None:
    model = state.model()
    if st.session_state.get("_opened") != opened.sample.reference and not st.session_state["_arrived"]:
        st.session_state["behind"] = None  # it was a position of another sample
    st.session_state["_opened"] = opened.sample.reference
    behind = state.bound(
        st.number_input, "Explain behind position", 0, None, None, key="behind", width=260,
        placeholder="where the answers part",
        help="The position in prompt and output whose next token is explained. Empty: the first token at which the "
        "right answer and the one given part.",
    )  # fmt: skip
    key = samples.again_key(model, opened.run, task, opened.row, behind)
    if sum(p.numel() for p in model.parameters()) > samples.SMALL and st.session_state.get("_explained") != key:
        st.caption("Replays the sample on this server's model, and splits its answer by the parts of the model.")
        if not st.button("Explain this answer", type="primary"):
            return None
        st.session_state["_explained"] = key
    again = samples.run_again(model, opened.run, task, opened.row, behind)
    _replay(again, opened.run)
    if again.explanation is None:
        return None
    found = again.explanation
    st.text(plain(f"Before position {found.decision.position + 1}: {found.decision.says}."))
    if not isinstance(found.found, Parts):
        st.caption("Another package explains here; its table is among the downloads.")
        return found
    _parts(model, opened, task, found, found.found)
    return found


def _replay(again: Again, run: Run) -> None:
    if again.replayed is None:
        problem("This sample cannot be explained here. Start the server with the run's own model.", again.problem)
        command = _serve(run)
        if command:
            st.code(plain(command), language="bash", wrap_lines=True)
        return
    if again.replayed.agrees:
        st.success(f"Replay: {again.replayed}.")
    else:
        st.warning(f"Replay: {again.replayed}.")
    if again.explanation is None:
        problem("Where this answer was decided is not known. Name a position behind which to explain.", again.problem)
    changes = changes_of(run)
    if changes:
        st.text(plain(f"The run was made under {described(changes)}, and so is this replay; Attention and Lens show "
                      "the model without."))  # fmt: skip


def _parts(model: Transformer, opened: Opened, task: str, found: Explanation, parts: Parts) -> None:
    heads = found.heads()
    first, second = _sides(opened.sample)
    names = plotly_names(model, parts.curves.tokens)
    left, right = st.columns([1, 1], gap="medium")
    with left:
        st.markdown(f"**Heads, those first that spoke most for the {second}** (logits)")
        _ranked(opened, heads.head(TOP), found)
        side = "above" if parts.difference > 0 else "below"
        st.caption(
            f"The logit of the {first} is {abs(parts.difference):.3f} {side} that of the {second}; all parts of the "
            f"model sum to the difference within {abs(parts.rest):.1g}."
        )
        _command(opened.run, task, heads.head(TOP))
    with right:
        st.markdown(f"**What every head adds to the logit of the {first}, less that of the {second}**")
        values = np.full((model.config.n_layers, model.config.n_heads), np.nan)
        values[heads["layer"], heads["head"]] = heads["contribution"]
        fig = drawing.atlas(
            values, title="", unit="logits", heads=range(model.config.n_heads), layers=range(model.config.n_layers),
            group_size=model.config.group_size, difference=True, stamp={"sample": opened.sample.doc_id},
        )  # fmt: skip
        fig.update_layout(
            height=360, margin={"t": 30, "l": 50, "r": 10, "b": 40}, meta={**fig.layout.meta, "kind": "heads"}
        )
        chart_untitled(fig, key="head_parts")
    left, right = st.columns([1, 1], gap="medium")
    with left:
        st.markdown("**The largest parts; the bars end at the model's own difference**")
        fig = parts.figure(names=names, stamp={"sample": opened.sample.doc_id})
        fig.update_layout(title=None, height=380, margin={"t": 36})
        chart_untitled(fig, key="all_parts")
    with right:
        what = "choices" if opened.sample.choices and st.session_state["behind"] is None else "two tokens"
        st.markdown(f"**The {what} through the layers**")
        fig = parts.curves.figure(names=names, stamp={"sample": opened.sample.doc_id})
        fig.update_layout(title=None, height=380, margin={"t": 36})
        chart_untitled(fig, key="choices_lens")


def _sides(sample: Sample) -> tuple[str, str]:
    """What the two tokens of an explanation are called."""
    if st.session_state["behind"] is not None:
        return "likeliest other token", "token that was written"
    return "right answer", "likeliest rival" if sample.correct is not None and sample.correct >= 1 else "answer given"


def _ranked(opened: Opened, heads: pd.DataFrame, found: Explanation) -> None:
    place = _at(found)
    for layer, head, value, removed in zip(
        heads["layer"], heads["head"], heads["contribution"], heads["removed"], strict=True
    ):
        name = f"L{layer}H{head}"
        with st.container(horizontal=True, vertical_alignment="center", key=f"head_{name}"):
            st.text(f"{name} adds {value:+.4f}; without it {-removed:+.4f}", width=260)
            st.page_link(
                "dashboard/pages/attention.py",
                label=f"{name} in Attention →",
                query_params=_on(opened.sample)
                | {"layer": str(layer), "head": str(head), "token": str(found.decision.position)},
            )
            st.page_link(
                "dashboard/pages/intervene.py",
                label=f"Without {name} →",
                query_params=_on(opened.sample) | place | {"changes": to_json([Ablate(name)])},
            )
    st.page_link("dashboard/pages/lens.py", label="This decision in Lens →", query_params=_on(opened.sample) | place)


def _command(run: Run, task: str, heads: pd.DataFrame) -> None:
    """The benchmark again without a head: what tells whether it is to blame."""
    names = [f"L{layer}H{head}" for layer, head in zip(heads["layer"], heads["head"], strict=True)]
    if not names:
        return
    st.caption("Whether a head is to blame, a run without it says: the command for the first one.")
    command = None
    if run.provenance.get("run"):
        command = counterpart.without(run, (int(heads["layer"].iloc[0]), int(heads["head"].iloc[0])))
    if command is None:
        given = ["--model", Settings.from_env().model, "--tasks", task, "--ablate", names[0]]
        command = shlex.join(["workbench", "eval", "run", *given, "--output", str(run.path.parent)])
    st.code(plain(command), language="bash", wrap_lines=True)


# --- links and what can be taken away ---------------------------------------------------------------------------


def _on(sample: Sample) -> dict[str, str]:
    return {"sample": sample.reference}


def _at(found: Explanation) -> dict[str, str]:
    where = found.decision
    tokens = " ".join(f"#{token}" for token in (where.token, where.minus))
    return {"position": str(where.position), "targets": tokens}


def _serve(run: Run) -> str | None:
    """The command that serves the model a run was made on; None where the run's store does not say."""
    try:
        path = entry_of(run).settings["model"]
    except (DataError, KeyError):
        return None
    results = Settings.from_env().results
    return path and shlex.join(["workbench", "app", "--model", str(path), "--results", str(results)])


def _gist(text: str) -> str:
    """The last lines of a prompt tell questions apart; the first are the same few examples for all."""
    words = " ".join(text.split())
    return words if len(words) <= 160 else "… " + words[-160:]


def _start(text: str) -> str:
    return " ".join(text[:80].split())


def _take_away(
    head: Head, run: Run, task: str, table: pd.DataFrame, opened: Opened | None, explained: Explanation | None
) -> None:
    settings = Settings.from_env()
    lines = [
        "from evals.results import list_runs",
        "",
        f"run = next(run for run in list_runs({str(settings.results)!r}) if run.name == {run.name!r})",
        f"questions = run.samples({task!r})",
    ]
    tables = {"questions": lambda: runs.samples(run, task).loc[table.index]}
    if opened is not None:
        wanted = f"run, {task!r}, {opened.sample.doc_id}"
        named = f"filter={opened.row['filter']!r}"
        if explained is None:
            lines = ["from evals.replay import sample", *lines, f"row = sample({wanted}, {named})"]
        else:
            behind = f", position={at}" if (at := st.session_state["behind"]) is not None else ""
            lines = ["import workbench as wb", "from evals.explain import explain", *lines]
            lines += [
                f"model = wb.load_model({settings.model!r})",
                f"found = explain(model, {wanted}, {named}{behind})",
                "print(found.replayed)",
                "found.heads()",
                "found.found.lens()",
            ]
            tables |= {"parts": explained.found.frame, "heads": explained.heads, "lens": explained.found.lens}
    head.code("\n".join(lines))
    head.data(tables)


show()
