"""The list of a task's questions on the Samples page, and the rerun and explanation of one of them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dashboard.data import runs
from dashboard.data.runs import Sample
from dashboard.session import computed
from dashboard.session.shared_cache import process_cache
from dashboard.token_text import plain
from evals.compare import matching
from evals.explain.decision import decision
from evals.explain.explain import Explanation, explainer
from evals.explain.replay import ReplayedSample, replay_row, under_interventions
from evals.results.runs import Run
from workbench.errors import DataError, WorkbenchError
from workbench.model import Transformer

RIGHT, WRONG, UNPARSED, UNSCORED = "right", "wrong", "unparsed", "unscored"
ALL = "All"
NUMBER, MARGIN, CONFIDENT = "Number", "Margin", "Confident wrong"
ORDERS = (NUMBER, MARGIN, CONFIDENT)

FIRST = "first"  # URL value instead of a question number: the first one in the list

SMALL = 300_000_000
"""Parameters. A sample is run again automatically only on models up to this size; on larger ones, by a button."""

NO_ANSWER = ("", "[invalid]")  # results of lm-eval's filters if they find no answer in the text


def listing(run: Run, task: str) -> pd.DataFrame:
    """One row per question and filter: doc_id, filter, state, margin, confidence, and the beginnings of question,
    answer and target as safe text. The table is shared: do not modify it.

    `margin` is the log-probability of the right choice minus that of the best other one. `confidence` is the
    probability of the answer: among the choices, or for generated text the geometric mean over its tokens.
    Units:  margin in nats.
    Raises: DataError if there are no samples, or a line is damaged.
    """
    return _listing(*runs.samples_key(run, task), run, task)


def other_verdicts(run: Run, baseline: Run, task: str) -> dict[tuple[int, str], str]:
    """The baseline's verdict (right, wrong, ...) for each question that both runs answered, by doc_id and filter.

    Raises: DataError if they have no question in common, or samples cannot be read.
    """
    return _other_verdicts(*runs.samples_key(run, task), *runs.samples_key(baseline, task), run, baseline, task)


def ordered(table: pd.DataFrame, order: str, other: dict[tuple[int, str], str]) -> pd.DataFrame:
    """The rows of `listing`, sorted by one of `ORDERS`; questions that only one of the two runs got right come first.

    Number: by doc_id. Margin: the closest decisions first. Confident wrong: wrong answers first, the most confident at
    the top. Rows without a margin or confidence come last.
    """
    table = table.copy()
    questions = zip(table["doc_id"], table["filter"], table["state"], strict=True)
    others = [other.get((doc, filter)) for doc, filter, _ in questions]
    table["other"] = pd.Series(others, index=table.index, dtype=object)
    right = table["state"] == RIGHT
    differs = [a is not None and (a == RIGHT) != b for a, b in zip(others, right, strict=True)]
    keys: dict[str, Sequence[Any]] = {"_same": [not differ for differ in differs]}  # False sorts first
    if order == MARGIN:
        keys["_margin"] = table["margin"].abs()
    elif order == CONFIDENT:
        keys |= {"_right": right, "_doubt": -table["confidence"]}
    table = table.assign(**keys)
    return table.sort_values([*keys, "doc_id"], kind="stable", na_position="last").drop(columns=list(keys))


def matching_text(table: pd.DataFrame, stored: pd.DataFrame, text: str) -> pd.DataFrame:
    """The rows of a listing whose question, output, answer or target contains a text, without regard to case.

    A text between slashes, `/.../`, is a regular expression. stored: the run's samples, with the same index.
    Raises: DataError for an expression that is not valid.
    """
    if not text.strip():
        return table
    pattern = text[1:-1] if len(text) > 2 and text[0] == text[-1] == "/" else re.escape(text.strip())
    try:
        expression = re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise DataError(f"{text} is not a regular expression: {error}.") from error
    fields = [name for name in ("prompt", "response", "answer", "target", "choices") if name in stored]
    rows = stored.loc[table.index, fields].itertuples(index=False)
    found = [any(expression.search(_last_part(name, value)) for name, value in zip(fields, row, strict=True))
             for row in rows]  # fmt: skip
    return table[found]


def choice_texts(sample: Sample) -> list[str]:
    """What the letters of a multiple choice stand for, from the lines of its prompt; empty if it has no such lines."""
    question = sample.prompt.rpartition("\n\n")[2]
    texts = []
    for letter in (choice.strip() for choice in sample.choices):
        line = re.search(rf"^\(?{re.escape(letter)}[.):]\s*(.+)$", question, re.MULTILINE)
        if len(letter) != 1 or line is None:
            return []
        texts.append(line[1].strip())
    return texts


def _last_part(name: str, value: object) -> str:
    """A field as text; of a prompt the question alone, because the examples before it are the same for all."""
    return _question(str(value)) if name == "prompt" else str(value)


@dataclass(frozen=True)
class RerunResult:
    """Result of running a sample again. If a part is None, `problem` says why.

    The explanation is valid for the stored answer only if `replayed.agrees`.
    """

    replayed: ReplayedSample | None = None
    explanation: Explanation | None = None
    problem: str = ""


def rerun(model: Transformer, run: Run, task: str, row: pd.Series, position: int | None) -> RerunResult:
    """Replay and explanation of a row of `runs.samples`, cached by sample, position and model."""
    return _rerun(rerun_key(model, run, task, row, position), model, run, task, row, position)


def rerun_key(model: Transformer, run: Run, task: str, row: pd.Series, position: int | None) -> str:
    """The cache key of `rerun`."""
    sample = runs.samples_key(run, task), row["doc_id"], row["filter"], position
    return f"{computed.fingerprint(model)}/{model.dtype}/{model.device}/{sample}"


# Arguments with an underscore are not part of the cache key.
@process_cache("Running the sample again …", max_entries=64)
def _rerun(key: str, _model: Transformer, _run: Run, _task: str, _row: pd.Series, _position: int | None) -> RerunResult:
    row: dict[str, Any] = {str(name): value for name, value in _row.items()}
    replayed = None
    try:
        with under_interventions(_model, _run):
            replayed = replay_row(_model, row, _task)
            if _position is None and isinstance(row.get("verdict"), str):
                # A number in a program is not an answer that could be compared with one in its tests.
                raise DataError("the answer is a program, which is graded as a whole.")
            point = decision(_model, replayed, position=_position)
            attribution = explainer()(
                _model,
                point.ids,
                token=point.token,
                contrast_token=point.contrast_token,
                other_tokens=point.other_tokens,
            )
    except WorkbenchError as error:
        return RerunResult(replayed, None, str(error))
    return RerunResult(replayed, Explanation(replayed, point, attribution))


@process_cache("Reading the samples …", max_entries=16)
def _listing(path: str, stamps: object, _run: Run, _task: str) -> pd.DataFrame:
    rows = [_listing_row(_run, _task, row) for row in runs.samples(_run, _task).to_dict("records")]
    columns = ["doc_id", "filter", "state", "margin", "confidence", "question", "answer", "target"]
    return pd.DataFrame(rows, columns=columns).astype({"margin": float, "confidence": float})


@process_cache("Comparing the runs …", max_entries=16)
def _other_verdicts(
    path: str, stamps: object, other_path: str, other_stamps: object, _run: Run, _baseline: Run, _task: str
) -> dict[tuple[int, str], str]:
    if not other_stamps:
        raise DataError(f"The baseline run has no samples of {_task}.")
    rows = matching.match_samples(_run, _baseline, _task).b
    return {(int(row["doc_id"]), str(row["filter"])): verdict(row) for row in rows}


def _listing_row(run: Run, task: str, row: dict[str, Any]) -> tuple[Any, ...]:
    sample = runs.as_sample(run, task, row)
    answer, target = _start(sample.verdict or sample.answer), _start(sample.target.rpartition("####")[2])
    values = int(row["doc_id"]), str(row["filter"]), verdict(row), matching.margin(row), confidence(row)
    return *values, *map(plain, (_last_paragraph(sample.prompt), answer, target))


def _last_paragraph(text: str) -> str:
    """The beginning of the last paragraph of a prompt."""
    return _question(text)[:160]


def _question(text: str) -> str:
    """The last paragraph of a prompt: it contains the question; the text before it is nearly the same for all."""
    return " ".join(text.strip().rpartition("\n\n")[2].split())


def _start(text: str) -> str:
    return " ".join(text[:80].split())


def verdict(row: dict[str, Any]) -> str:
    """Right, wrong, unparsed (wrong, because no answer was found in the generated text), unscored, or not finite (not
    scored, because the logits were not finite)."""
    if row.get("not_finite") is True:
        return runs.NOT_FINITE
    correct = row["correct"]
    if correct is None or pd.isna(correct):
        return UNSCORED
    if correct >= 1:
        return RIGHT
    written = not isinstance(row.get("choices"), list) and not isinstance(row.get("verdict"), str)
    return UNPARSED if written and str(row["answer"]).strip() in NO_ANSWER else WRONG


def confidence(row: dict[str, Any]) -> float | None:
    """The probability of the answer; None if it was not stored.

    Exact:  softmax over the choices' log-probabilities; for a generated answer, exp of the mean over its tokens.
    """
    if row.get("not_finite") is True:
        return None
    if isinstance(row.get("choices"), list):
        logprobs = [float(value) for value in row["logprobs"]]
        highest = max(logprobs)
        return math.exp(logprobs[int(row["answer"])] - highest) / sum(math.exp(value - highest) for value in logprobs)
    tokens = row.get("generated_logprobs")
    return math.exp(sum(tokens) / len(tokens)) if isinstance(tokens, list) and tokens else None
