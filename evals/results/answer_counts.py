"""Questions whose score may not be the model's: cut prompts, cut answers, and answers in which a filter finds nothing.

Counts questions, each once whatever the number of filters. Reads sample rows and runs; does not use models.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evals.results.runs import Run, leaves_of, question_counts

Rows = Sequence[Mapping[str, Any]]
COLUMNS = {
    "cut_answers": "cut answers",
    "unreadable": "unreadable",
    "cut_prompts": "cut prompts",
    "not_judged": "not judged",
    "tied": "tied",
}
"""The counts with their titles in tables."""
_UNSURE = -1.0  # nats; a token with a higher log-probability was preferred to others
_NAMED = 5  # modules named in a note
_INVALID = "[invalid]"  # what lm-eval's filters return if they find nothing
_LETTER = re.compile(r"\W*[A-Ja-j]\W*")
_MISSING = re.compile(r"ModuleNotFoundError: No module named '([^'.]+)")
_NOT_PYTHON = ("SyntaxError", "IndentationError", "TabError")


def of_samples(samples: Mapping[str, Rows]) -> dict[str, Any]:
    """The counts of a run, from its sample rows by task, for its provenance record.

    cut_prompts: questions that lost the beginning of their prompt. cut_answers: questions with an answer that ended at
    the limit of tokens. unreadable: for each filter, questions in whose answers it found nothing; a program that is
    not Python is unreadable. not_judged: questions whose tests cannot run in the sandbox; they have no score.
    tied: questions whose choices, or whose generated tokens, all have the same log-probability.
    missing_modules: answers with a program that failed because a module is missing, by module. Tasks without any are
    left out, except of cut_prompts.
    """

    def by_task(count: Callable[[Rows], Any]) -> dict[str, Any]:
        return {task: found for task, rows in samples.items() if (found := count(rows))}

    def questions(has: Callable[[Mapping[str, Any]], object]) -> Callable[[Rows], int]:
        return lambda rows: len({row["doc_id"] for row in rows if has(row)})

    is_cut = questions(lambda row: _replay(row, "cut"))
    return {
        "tied": by_task(questions(_is_tied)),
        "cut_prompts": {task: is_cut(rows) for task, rows in samples.items()},
        "cut_answers": by_task(questions(lambda row: "length" in _replay(row, "finish_reason"))),
        "unreadable": by_task(_unreadable),
        "not_judged": by_task(questions(is_not_judged)),
        "missing_modules": by_task(_missing_modules),
        "why_not_judged": by_task(_reasons),
    }


def _is_tied(row: Mapping[str, Any]) -> bool:
    """Whether a model preferred nothing: every choice, or every token of an answer, has the same log-probability.

    Logits that overflow do that. Tokens that the model is sure of all have 0, and do not count.
    """
    if row.get("not_finite") or row.get("missing"):
        return False
    arguments = next(iter((row.get("arguments") or {}).values()), {})
    if isinstance(arguments, Mapping) and isinstance(arguments.get("arg_1"), str):
        values = [str(response[0][0]) for response in row["resps"] if isinstance(response[0], list | tuple)]
        return len(values) > 1 and len(set(values)) == 1
    answers = [logprobs for logprobs in _replay(row, "logprobs") if len(logprobs) > 1]
    return any(len(set(logprobs)) == 1 and logprobs[0] < _UNSURE for logprobs in answers)


def all_tied(run: Run) -> list[str]:
    """The tasks in which the model preferred nothing in any of several questions: their scores mean nothing."""
    tied = run.provenance.get("tied") or {}
    return [task for task, count in tied.items() if count > 1 and count >= question_counts(run, task)[0]]


def is_not_judged(row: Mapping[str, Any]) -> bool:
    """Whether the tests of a sample row could not run for one of its programs, so that it has no score."""
    return any(run["verdict"] == "not judged" for run in row.get("execution") or ())


def _reasons(rows: Rows) -> str:
    """The most frequent reason why questions are not judged; "" if all are."""
    messages = Counter(run["message"] for row in rows if is_not_judged(row) for run in row["execution"])
    return next((message for message, _ in messages.most_common() if message), "")


def _missing_modules(rows: Rows) -> dict[str, int]:
    executions = (run for row in rows for run in row.get("execution") or () if run["verdict"] == "failed")
    found = (_MISSING.match(str(run["message"])) for run in executions)
    return dict(Counter(match[1] for match in found if match).most_common())


def _replay(row: Mapping[str, Any], key: str) -> Sequence[Any]:
    return (row.get("replay") or {}).get(key) or ()


def _unreadable(rows: Rows) -> dict[str, int]:
    letters = all(re.fullmatch(r"\s*\(?[A-J]\)?\s*", str(row.get("target"))) for row in rows)
    docs: dict[str, set[int]] = {}
    for row in rows:
        if row.get("missing") or not row.get("metrics"):  # not answered, or not scored
            continue
        if _finds_nothing(row, letters=letters):
            docs.setdefault(str(row.get("filter", "none")), set()).add(row["doc_id"])
    return {name: len(found) for name, found in docs.items()}


def _finds_nothing(row: Mapping[str, Any], *, letters: bool) -> bool:
    if "execution" in row:
        return all(
            run["verdict"] == "no code" or str(run["message"]).startswith(_NOT_PYTHON) for run in row["execution"]
        )
    arguments = next(iter((row.get("arguments") or {}).values()), {})
    if not isinstance(arguments, Mapping) or not isinstance(arguments.get("arg_1"), Mapping):
        return False  # not generated
    answer: Any = row["filtered_resps"]
    while isinstance(answer, list | tuple):
        if not answer:
            return True
        answer = answer[0]
    text = str(answer).strip()
    return text in ("", _INVALID) or (letters and not _LETTER.fullmatch(text))


def count(run: Run, kind: str, name: str, filter: str = "") -> int:
    """How many questions of a task or group a count has; of one filter if the count is by filter."""
    counts = run.provenance.get(kind) or {}
    values = (counts.get(leaf, 0) for leaf in leaves_of(name, run.data.get("group_subtasks") or {}))
    return sum(int(value.get(filter, 0) if isinstance(value, Mapping) else value) for value in values)


def shown(run: Run) -> list[str]:
    """The counts of a run that are not zero everywhere."""
    tasks = list(run.data.get("configs") or {})
    return [
        kind
        for kind in COLUMNS
        if any(
            count(run, kind, task, filter)
            for task in tasks
            for filter in ("", *((run.provenance.get("unreadable") or {}).get(task) or ()))
        )
    ]


def notes(run: Run) -> list[str]:
    """What was different from what was asked, and each count that is not zero, one sentence each."""
    lines = [str(note) for note in run.provenance.get("notes") or ()]
    for task, number in (run.provenance.get("tied") or {}).items():
        wider = "use --dtype float32, or " if run.provenance.get("dtype") != "float32" else ""
        lines.append(
            f"{task}: in {number} of {_total(run, task)} questions all choices have the same log-probability, so that "
            f"the first one counts as chosen. The numbers may be too large for the model: {wider}check the weights and "
            "the interventions."
        )
    for task, number in (run.provenance.get("cut_answers") or {}).items():
        tokens = ((run.provenance.get("generation") or {}).get(task) or {}).get("tokens")
        limit = f" of {tokens} tokens" if tokens else ""
        lines.append(
            f"{task}: {number} of {_total(run, task)} questions have an answer that was cut at the limit{limit}; "
            "raise it with --gen_kwargs max_gen_toks=N."
        )
    for task, counts in (run.provenance.get("unreadable") or {}).items():
        for name, number in counts.items():
            lines.append(f"{task}: {_reason(run, task, name)} {number} of {_total(run, task)} answers; they are wrong.")
    for task, number in (run.provenance.get("cut_prompts") or {}).items():
        if number:
            lines.append(
                f"{task}: {number} of {_total(run, task)} prompts were longer than the context and "
                "lost their beginning."
            )
    for task, number in run.not_judged.items():
        reason = (run.provenance.get("why_not_judged") or {}).get(task) or "the tests cannot be run here"
        lines.append(f"{task}: {number} of {_total(run, task)} questions are not judged and have no score: {reason}.")
    for task, modules in (run.provenance.get("missing_modules") or {}).items():
        names = ", ".join(list(modules)[:_NAMED])
        lines.append(
            f"{task}: programs that failed because a module is missing in the sandbox: {sum(modules.values())} "
            f"({names}); docs/footguns.md says what programs can import."
        )
    return [*lines, *without_interval(run)]


def without_interval(run: Run) -> list[str]:
    """Why some scores have no interval, in one sentence for each task that has such scores."""
    scores: dict[str, list[str]] = {}
    for score in run.scores:
        if score.low is None and score.n > 1:
            scores.setdefault(score.task, []).append(score.label)
    reason = "not a mean over questions, and lm-eval has no standard error for it"
    return [f"{task}: no interval for {'; '.join(labels)}: {reason}." for task, labels in scores.items()]


def _reason(run: Run, task: str, filter: str) -> str:
    if task in (run.provenance.get("programs") or {}):
        return f"the filter {filter} found no Python program in"
    return "no text is in" if filter == "none" else f"the filter {filter} found nothing in"


def _total(run: Run, task: str) -> int:
    return question_counts(run, task)[0] + run.not_finite.get(task, 0) + run.not_judged.get(task, 0)
