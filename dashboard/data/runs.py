"""Benchmark runs for the pages: cached until their files change, and looked up by the names in URLs."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from dashboard.session import computed, url_state, url_values
from dashboard.session.settings import Settings
from dashboard.session.shared_cache import process_cache
from dashboard.token_text import plain
from evals.compare.compare import Comparison, compare
from evals.results.runs import Run, question_counts, scan
from workbench.errors import DataError
from workbench.hooks.intervention_options import described_record

NO_BASELINE = "none"
NOT_FINITE = "not finite"  # shown for the answer to a question whose logits were not finite


@dataclass(frozen=True)
class Sample:
    """One question of a run: prompt, answer and target, and the token ids to run it again."""

    run: str
    task: str
    doc_id: int
    prompt: str
    output: str
    answer: str
    target: str
    correct: float | None
    ids: tuple[int, ...] | None
    finish: str | None = None
    verdict: str | None = None
    message: str | None = None
    stderr: str | None = None
    choices: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()
    checkpoint: str | None = None  # hash of the weights of the run
    tokenizer: str | None = None
    prompt_ids: tuple[int, ...] = ()
    choice_ids: tuple[tuple[int, ...], ...] = ()
    gold: int | None = None  # index of the right choice
    picked: int | None = None  # index of the most likely choice
    changes: str = computed.NO_CHANGES  # interventions of the run, as JSON

    @property
    def reference(self) -> str:
        """The sample's name in URLs: `folder/time/task/doc`."""
        return f"{self.run}/{self.task}/{self.doc_id}"


def runs() -> tuple[list[Run], list[str]]:
    """Every readable run in the results folder, newest first, and the problems of those that cannot be read."""
    root = Settings.from_env().results
    return _scan(str(root), _file_stats(root.rglob("results_*.json")))


def samples(run: Run, task: str) -> pd.DataFrame:
    """The samples of one task of a run, one row per question. The table is shared: do not modify it.

    Raises: DataError if there are none, or a line is damaged.
    """
    return _samples(*samples_key(run, task), run, task)


def samples_key(run: Run, task: str) -> tuple[str, tuple[tuple[str, int, int], ...]]:
    """A cache key for a task's samples; it changes when their file changes."""
    path = run.path.with_name(f"samples_{task}_{run.stamp}.jsonl")
    return str(path), _file_stats([path])


def select_runs(available: list[Run], draw_more: Callable[[], object] = lambda: None) -> tuple[Run, Run | None]:
    """Draw the controls to select a run and a baseline.

    draw_more: draws further controls of the page next to them.
    """
    names = plain_first(available)
    by_name, shown = {run.name: run for run in available}, in_list(available)
    with st.container(horizontal=True, vertical_alignment="bottom", key="run_controls"):
        name = url_state.url_selectbox("Run", names, key="run", **shown)
        others = [NO_BASELINE, *(other for other in names if other != name)]
        against = url_state.url_selectbox("Compare with", others, key="baseline", follows="run", **shown)
        draw_more()
    changed_badge(by_name[name])
    return by_name[name], by_name.get(against)


def change(run: Run) -> str:
    """The interventions of a run as short text; "" for a run of the plain model."""
    return described_record(run.provenance.get("interventions"))


def plain_first(available: Sequence[Run]) -> list[str]:
    """The names of runs, those of the plain model first: the first one is a page's default."""
    return [run.name for run in sorted(available, key=lambda run: bool(change(run)))]


def in_list(available: Sequence[Run]) -> dict[str, Any]:
    """Options of a selectbox of runs: each name with the run's change of the model."""
    changes = {run.name: change(run) for run in available}

    def label(name: str) -> str:
        return plain(f"{name} · {changes[name]}" if changes.get(name) else name)

    return {"format_func": label, "width": 420}


def changed_badge(run: Run) -> None:
    """Say that a run's model was changed, and how; nothing for a plain run."""
    if change(run):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.badge("Changed model", color="orange")
            st.text(plain(change(run)))


def run_badge(side: str, run: Run) -> None:
    """Draw one side of a comparison: its run in one line, with the tasks that answered only some questions."""
    counts = [(task, *question_counts(run, task)) for task in run.tasks]
    partial = [f"{task}: {answered} of {total} questions" for task, answered, total in counts if answered < total]
    with st.container(horizontal=True, vertical_alignment="center"):
        unlike = [*(["changed model"] if change(run) else []), *(["partial"] if partial else [])]
        st.badge(f"{side}: {', '.join(unlike)}" if unlike else side, color="orange" if unlike else "blue")
        about = [
            run.model,
            change(run),
            str(run.provenance.get("dtype") or ""),
            f"{run.date:%Y-%m-%d %H:%M}" if run.date else "",
        ]
        st.text(plain(" · ".join([*filter(None, about), *partial])))


def find_sample(reference: str) -> Sample:
    """The sample that `Sample.reference` names.

    Raises: DataError if there is no such run, task or question.
    """
    name, _, task = reference.rpartition("/")[0].rpartition("/")
    doc = url_values.parse_count(reference.rpartition("/")[2])
    run = next((run for run in runs()[0] if run.name == name), None)
    if run is None or task not in run.tasks or doc is None:
        raise DataError(
            f"There is no sample {reference} in {Settings.from_env().results}. Open a sample from the Benchmarks page, "
            "or start the server with the folder of its run as --results."
        )
    table = samples(run, task)
    rows = table[table["doc_id"] == doc]
    if rows.empty:
        raise DataError(f"Task {task} of run {name} has no sample {doc}; it has {len(table)} samples.")
    return as_sample(run, task, rows.iloc[-1])


def as_sample(run: Run, task: str, row: Mapping[str, Any] | pd.Series) -> Sample:
    """A row of `samples` as a Sample. For multiple choice, the output is the most likely choice."""
    choices = _as_list(row.get("choices"))
    if choices:
        picked = int(row["answer"])
        output, answer = choices[picked], choices[picked].strip()
        target = _target(row["target"], choices)
        if row.get("not_finite") is True:
            answer = NOT_FINITE
        choice_ids = _as_list(row.get("choice_ids"))
        output_ids = choice_ids[picked] if choice_ids else None
    else:
        output, answer, target = str(row.get("response", "")), str(row["answer"]), str(row["target"])
        output_ids = _as_list(row.get("generated_ids")) or None
    prompt_ids = _as_list(row.get("prompt_ids"))
    names = [choice.strip() for choice in choices]
    ids = (*prompt_ids, *output_ids) if prompt_ids and output_ids is not None else None
    correct = row["correct"]
    return Sample(
        run=run.name,
        task=task,
        doc_id=int(row["doc_id"]),
        prompt=str(row["prompt"]),
        output=output,
        answer=answer,
        target=target,
        correct=None if pd.isna(correct) else float(correct),
        ids=None if ids is None else tuple(int(token) for token in ids),
        finish=_text_or_none(row.get("finish_reason")),
        verdict=_text_or_none(row.get("verdict")),
        message=_text_or_none(row.get("message")),
        stderr=_text_or_none(row.get("stderr")),
        choices=tuple(choices),
        logprobs=tuple(_as_list(row.get("logprobs"))),
        checkpoint=_text_or_none(run.provenance.get("checkpoint_sha256")),
        tokenizer=_text_or_none(run.provenance.get("tokenizer_sha256")),
        prompt_ids=tuple(int(token) for token in prompt_ids),
        choice_ids=tuple(tuple(int(token) for token in ids) for ids in _as_list(row.get("choice_ids"))),
        gold=names.index(target) if target in names else None,
        picked=int(row["answer"]) if choices and row.get("not_finite") is not True else None,
        changes=json.dumps(run.provenance.get("interventions") or []),
    )


def _target(target: object, choices: Sequence[str]) -> str:
    """The text of the right choice; lm-eval stores the text or its index."""
    text = str(target).strip()
    if text.isdecimal() and int(text) < len(choices):
        return choices[int(text)].strip()
    return text


def _as_list(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _file_stats(paths: Iterable[Path]) -> tuple[tuple[str, int, int], ...]:
    stats = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:  # the file is missing: reading it gives a better error message
            continue
        stats.append((str(path), status.st_mtime_ns, status.st_size))
    return tuple(sorted(stats))


def comparison(run: Run, baseline: Run) -> Comparison:
    """A run's scores minus the baseline's, on the questions that both answered.

    Raises: DataError if they have no question in common, or samples are missing or damaged.
    """
    keys = [samples_key(side, task) for side in (run, baseline) for task in side.tasks]
    return _comparison(str(run.path), str(baseline.path), keys, run, baseline)


@process_cache("Comparing the runs …", max_entries=8)
def _comparison(path: str, other: str, stamps: object, _run: Run, _baseline: Run) -> Comparison:
    return compare(_baseline, _run)


@process_cache("Reading the runs …", max_entries=4)
def _scan(root: str, stamps: tuple[tuple[str, int, int], ...]) -> tuple[list[Run], list[str]]:
    return scan(Path(root))


@process_cache("Reading the samples …", max_entries=16)
def _samples(path: str, stamps: tuple[tuple[str, int, int], ...], _run: Run, task: str) -> pd.DataFrame:
    return _run.samples(task)
