"""Benchmark runs for the pages: read again only when their files change, and found by the names that links carry."""

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

NO_BASELINE = "none"


@dataclass(frozen=True)
class Sample:
    """One question of a run: what was asked and answered, and the token ids that replay it."""

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
    checkpoint: str | None = None  # hash of the weights that answered
    tokenizer: str | None = None
    prompt_ids: tuple[int, ...] = ()
    choice_ids: tuple[tuple[int, ...], ...] = ()
    gold: int | None = None  # number of the right choice
    picked: int | None = None  # and of the likeliest
    changes: str = computed.NO_CHANGES  # interventions that the run was made under, as JSON

    @property
    def reference(self) -> str:
        """What a link carries: `folder/time/task/doc`."""
        return f"{self.run}/{self.task}/{self.doc_id}"


def runs() -> tuple[list[Run], list[str]]:
    """Every readable run below the server's results folder, newest first, and what was wrong with the others."""
    root = Settings.from_env().results
    return _scan(str(root), _file_stats(root.rglob("results_*.json")))


def samples(run: Run, task: str) -> pd.DataFrame:
    """The samples of one task of a run, one row for each question. Not to be changed: it is shared.

    Raises: DataError if there are none, or a line is damaged.
    """
    return _samples(*samples_key(run, task), run, task)


def samples_key(run: Run, task: str) -> tuple[str, tuple[tuple[str, int, int], ...]]:
    """What names a task's samples, and changes when their file does."""
    path = run.path.with_name(f"samples_{task}_{run.stamp}.jsonl")
    return str(path), _file_stats([path])


def select_runs(runs: list[Run], draw_more: Callable[[], object] = lambda: None) -> tuple[Run, Run | None]:
    """Draw the controls for a run and one to compare it with.

    more: draws what a page adds to them.
    """
    names = [run.name for run in runs]
    with st.container(horizontal=True, vertical_alignment="bottom", key="run_controls"):
        name = url_state.url_selectbox("Run", names, key="run", width=420)
        others = [NO_BASELINE, *(other for other in names if other != name)]
        against = url_state.url_selectbox("Compare with", others, key="baseline", follows="run", width=420)
        draw_more()
    by_name = {run.name: run for run in runs}
    return by_name[name], by_name.get(against)


def run_badge(side: str, run: Run) -> None:
    """A side of a comparison: its run in a line, and what of its tasks was not asked."""
    partial = [(task, *question_counts(run, task)) for task in run.tasks]
    missing = [f"{task}: {answered} of {whole} questions" for task, answered, whole in partial if answered < whole]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.badge(f"{side}: partial" if missing else side, color="orange" if missing else "blue")
        about = [run.model, str(run.provenance.get("dtype") or ""), f"{run.date:%Y-%m-%d %H:%M}" if run.date else ""]
        st.text(plain(" · ".join([*filter(None, about), *missing])))


def find_sample(reference: str) -> Sample:
    """The sample that `Sample.reference` names.

    Raises: DataError if there is no such run, task or question.
    """
    name, _, rest = reference.rpartition("/")[0].rpartition("/")
    doc = url_values.parse_count(reference.rpartition("/")[2])
    run = next((run for run in runs()[0] if run.name == name), None)
    if run is None or rest not in run.tasks or doc is None:
        raise DataError(
            f"No sample {reference} in {Settings.from_env().results}. Open one from the Benchmarks page, or give the "
            "server its run's folder with --results."
        )
    table = samples(run, rest)
    rows = table[table["doc_id"] == doc]
    if rows.empty:
        raise DataError(f"Task {rest} of run {name} has no sample {doc}; it has {len(table)}.")
    return as_sample(run, rest, rows.iloc[-1])


def as_sample(run: Run, task: str, row: Mapping[str, Any] | pd.Series) -> Sample:
    """One row of `samples`. Of a multiple choice, the output is the choice that was likeliest."""
    choices = _as_list(row.get("choices"))
    if choices:
        picked = int(row["answer"])
        output, answer = choices[picked], choices[picked].strip()
        target = _target(row["target"], choices)
        answered = _as_list(row.get("choice_ids"))
        tail = answered[picked] if answered else None
    else:
        output, answer, target = str(row.get("response", "")), str(row["answer"]), str(row["target"])
        tail = _as_list(row.get("generated_ids")) or None
    prompt_ids = _as_list(row.get("prompt_ids"))
    named = [choice.strip() for choice in choices]
    ids = (*prompt_ids, *tail) if prompt_ids and tail is not None else None
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
        gold=named.index(target) if target in named else None,
        picked=int(row["answer"]) if choices else None,
        changes=json.dumps(run.provenance.get("interventions") or []),
    )


def _target(target: object, choices: Sequence[str]) -> str:
    """lm-eval gives a choice's text or its number."""
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
            about = path.stat()
        except OSError:  # gone since it was listed, or never there: reading it says so better
            continue
        stats.append((str(path), about.st_mtime_ns, about.st_size))
    return tuple(sorted(stats))


def comparison(run: Run, baseline: Run) -> Comparison:
    """What a run's scores are less another's, on the questions that both answered.

    Raises: DataError if they share none, or samples are missing or damaged.
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
