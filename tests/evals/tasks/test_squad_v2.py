"""SQuAD v2's metric against numbers worked out by hand and against the rules of its official script."""

import re
import string
from collections import Counter
from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.metrics import mean

from evals.tasks import squad_v2

METRICS = (*squad_v2.MEANS, "best_exact", "best_f1")


def scores(questions: list[tuple[str, list[str], float]]) -> dict[str, float]:
    """The scores of (prediction, references, probability that there is no answer), by the task's own methods."""
    task = SimpleNamespace(**squad_v2.task_methods(mean))
    rows = [
        task.process_results(task, {"answers": {"text": references}}, [prediction, (log(probability), False)])
        for prediction, references, probability in questions
    ]
    aggregation = task.aggregation(task)
    columns = {metric: [row[metric] for row in rows if metric in row] for metric in METRICS}
    return {metric: aggregation[metric](values) for metric, values in columns.items() if values}


def test_hand_worked_numbers() -> None:
    questions = [
        ("The Normans", ["Normans", "the Norman people"], 0.1),  # the article does not count: exact, F1 1
        ("in France today", ["France"], 0.2),  # 1 of 3 words, all of the reference: F1 = 2 * 1/3 / (1/3 + 1) = 1/2
        ("1066", [], 0.9),  # nothing should be said: wrong
        ("", [], 0.8),  # silent where nothing should be said: right
    ]
    found = scores(questions)
    assert found == pytest.approx(
        {
            "exact": 50.0,
            "f1": 62.5,
            "HasAns_exact": 50.0,
            "HasAns_f1": 75.0,
            "NoAns_exact": 50.0,
            "NoAns_f1": 50.0,
            # With the threshold 0.2, the two questions without answer are silent: 2 + 1 (+ 0.5 for F1) of 4.
            "best_exact": 75.0,
            "best_f1": 87.5,
        }
    )


def test_questions_of_one_kind_have_no_score_of_the_other_kind() -> None:
    assert set(scores([("x", ["x"], 0.5)])) == {"exact", "f1", "HasAns_exact", "HasAns_f1", "best_exact", "best_f1"}
    assert set(scores([("x", [], 0.5)])) == {"exact", "f1", "NoAns_exact", "NoAns_f1", "best_exact", "best_f1"}


def official(questions: list[tuple[str, list[str], float]]) -> dict[str, float]:
    """The official script's rules, as its functions have them."""

    def normalize(s: str) -> str:
        s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
        return " ".join(re.compile(r"\b(a|an|the)\b", re.UNICODE).sub(" ", s).split())

    def f1(gold: str, pred: str) -> float:
        gold_toks, pred_toks = normalize(gold).split(), normalize(pred).split()
        num_same = sum((Counter(gold_toks) & Counter(pred_toks)).values())
        if len(gold_toks) == 0 or len(pred_toks) == 0:
            return int(gold_toks == pred_toks)
        if num_same == 0:
            return 0
        precision, recall = num_same / len(pred_toks), num_same / len(gold_toks)
        return (2 * precision * recall) / (precision + recall)

    preds = {i: question[0] for i, question in enumerate(questions)}
    na_probs = {i: question[2] for i, question in enumerate(questions)}
    has_ans = {i: bool(question[1]) for i, question in enumerate(questions)}
    exact_scores, f1_scores = {}, {}
    for i, (pred, texts, _) in enumerate(questions):
        gold = [text for text in texts if normalize(text)] or [""]
        exact_scores[i] = max(int(normalize(a) == normalize(pred)) for a in gold)
        f1_scores[i] = max(f1(a, pred) for a in gold)
    out: dict[str, float] = {}
    for name, values in (("exact", exact_scores), ("f1", f1_scores)):
        out[name] = 100.0 * sum(values.values()) / len(values)
        for kind, wanted in (("HasAns", True), ("NoAns", False)):
            ids = [i for i in values if has_ans[i] is wanted]
            if ids:
                out[f"{kind}_{name}"] = 100.0 * sum(values[i] for i in ids) / len(ids)
        cur: float = sum(1 for i in has_ans if not has_ans[i])
        best = cur
        for i in sorted(na_probs, key=lambda k: na_probs[k]):
            diff = values[i] if has_ans[i] else (-1 if preds[i] else 0)
            cur += diff
            best = max(best, cur)
        out[f"best_{name}"] = 100.0 * best / len(values)
    return out


TEXT = st.text(alphabet="abTthe 1.,-'é\n\u00a0", max_size=12)
QUESTION = st.tuples(TEXT, st.lists(TEXT, max_size=3), st.floats(0.01, 1.0))


@given(st.lists(QUESTION, min_size=1, max_size=8))
def test_any_answers_score_as_in_the_official_script(questions: list[tuple[str, list[str], float]]) -> None:
    assert scores(questions) == pytest.approx(official(questions))


def test_the_task_scores_offline_with_intervals_where_scores_are_means(tmp_path: Path) -> None:
    import pandas as pd

    from evals.run.evaluate import evaluate
    from evals.run.settings import Settings

    rows: list[dict[str, Any]] = [
        {
            "id": str(i),
            "title": "Iron",
            "context": "It rusts.",
            "question": f"Does what {i}?",
            "answers": {"text": ["rusts"] if i % 2 else [], "answer_start": [3] if i % 2 else []},
        }
        for i in range(6)
    ]
    for split in ("train", "validation"):
        file = tmp_path / "data" / "hub" / "lighteval" / "squad_v2" / "squad_v2" / f"{split}-0.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_parquet(file)
    settings = Settings(tasks=("squadv2",), output=tmp_path / "out", data=tmp_path / "data", limit=6)
    run = evaluate("demo", settings, device="cpu", dtype="float32")
    by_metric = {score.metric: score for score in run.scores}
    assert set(by_metric) == set(METRICS)
    answers = [(row["response"], row["doc"]["answers"]["text"]) for _, row in run.samples("squadv2").iterrows()]
    assert by_metric["f1"].value == pytest.approx(
        mean([100 * squad_v2.f1(answer, references) for answer, references in answers])
    )
    for metric in squad_v2.MEANS:
        assert by_metric[metric].low is not None, metric
