"""Answers from another program: reads them from a file and matches each to its question.

Formats: human-eval's lines of `task_id` and `completion`, lm-eval's own sample logs, and plain lines of `doc_id`,
`task_id` or `question` with `response`. Computes no scores.
"""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evals.results import json_text
from workbench.errors import DataError

QuestionKey = tuple[str, int]  # a task's name and a question's number in it
Choices = tuple[tuple[float, bool], ...]  # for each choice: nats, and whether it was the greedy answer
_SAMPLE_LOG = re.compile(r"samples_(?P<task>.+)_\d{4}-\d\d-\d\dT[^/]*\.jsonl(\.gz)?$")
_NAMES = ("doc_id", "task_id", "question")  # a line names its question by the first of these that it has
_CHECKED_FIELDS = ("task_id", "question", "prompt")  # if a line has one of these, it must equal the question's


@dataclass(frozen=True)
class Answer:
    """One line of a file: an answer, or several, as text or as a log-probability for each choice; neither for a line
    without one, such as null. `repaired` if it held characters that are none, such as half an emoji.
    """

    where: str
    record: Mapping[str, Any]
    task: str | None
    texts: tuple[str, ...] = ()
    choices: Choices = ()
    repaired: bool = False


@dataclass
class Answers:
    """The answers of a file by question, and the lines that were not used, as "file: line 3"."""

    texts: dict[QuestionKey, list[str]] = field(default_factory=dict)
    choices: dict[QuestionKey, Choices] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    empty: dict[QuestionKey, str] = field(default_factory=dict)
    lines: int = 0

    @property
    def answered(self) -> set[QuestionKey]:
        return set(self.texts) | set(self.choices)


def files(path: Path) -> list[Path]:
    """The file itself, or the sample logs in a folder.

    Raises: DataError if there is none.
    """
    if path.is_dir():
        logs = sorted(file for file in path.iterdir() if _SAMPLE_LOG.match(file.name))
        if not logs:
            raise DataError(f"{path} has no samples_TASK_TIME.jsonl; give a file of answers or a folder of such logs.")
        return logs
    if not path.is_file():
        raise DataError(f"the answers file {path} does not exist.")
    return [path]


def read(path: Path) -> Iterator[Answer]:
    """The lines of a file, gzipped or not.

    Raises: DataError with the number of the first line that is not an answer.
    """
    log = _SAMPLE_LOG.match(path.name)
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        # Bytes that are not UTF-8 become lone surrogates, which are replaced: one of them does not cost the file.
        with opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _answer(line, f"{path.name}: line {number}", log["task"] if log else None)
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}); is it complete, and a text file?") from error


def _answer(line: str, where: str, task: str | None) -> Answer:
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        encoding = "; the file must be UTF-8 text" if "\0" in line else ""
        raise DataError(f"{where} is not JSON ({error}){encoding}.") from error
    record = json_text.with_valid_text(raw)
    if not isinstance(record, dict):
        raise DataError(f"{where} is not a JSON object, but {type(record).__name__}.")
    if all(record.get(key) is None for key in _NAMES):
        raise DataError(f"{where} does not say which question it answers; expected doc_id, task_id or question.")
    answer_key = next((key for key in ("resps", "completion", "response", "logprobs") if key in record), None)
    if answer_key is None:
        raise DataError(f"{where} has no answer; expected completion, response, logprobs or lm-eval's resps.")
    task = next((str(record[key]) for key in ("task", "subject") if key in record), task)
    texts, choices = (
        _from_lm_eval_log(record[answer_key]) if answer_key == "resps" else _from_plain_value(record[answer_key])
    )
    if any(math.isnan(nats) for nats, _ in choices):
        choices = ()
    return Answer(where, record, task, texts, choices, repaired=record is not raw)


def _from_plain_value(value: Any) -> tuple[tuple[str, ...], Choices]:
    if isinstance(value, Mapping) and isinstance(value.get("content"), str):
        value = value["content"]  # a message of a chat
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return (str(value),), ()
    if isinstance(value, Mapping):
        value = [value[name] for name in sorted(value)]
        if any(isinstance(item, str) for item in value):
            return (), ()
    if isinstance(value, list) and all(isinstance(item, str | None) for item in value):
        return tuple(item for item in value if item is not None), ()
    if isinstance(value, list) and len(value) > 1 and all(type(item) in (int, float) for item in value):
        best = max(value)
        return (), tuple((float(item), item == best) for item in value)
    return (), ()


def _from_lm_eval_log(value: Any) -> tuple[tuple[str, ...], Choices]:
    """lm-eval's list of requests, each a list of answers: texts of one request, or (nats, greedy) per choice."""
    try:
        firsts = [request[0] for request in value]
        if all(isinstance(first, list) and len(first) == 2 for first in firsts):
            return (), tuple((float(nats), str(greedy) == "True") for nats, greedy in firsts)
        if len(value) == 1 and all(isinstance(text, str | None) for text in value[0]):
            return tuple(text for text in value[0] if text is not None), ()
    except (TypeError, KeyError, IndexError, ValueError):
        pass
    return (), ()


def match(
    answers: Iterable[Answer],
    docs: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    choices: Callable[[str, Mapping[str, Any]], int],
    sampled: bool = False,
) -> Answers:
    """Match each answer to its question.

    docs: the questions of each task. choices: how many choices a question has, 0 for one that is answered with text.
    sampled: whether several answers to a question are samples of one model (programs); otherwise the first counts,
    which is lm-eval's rule, and the others are duplicates.
    Raises: DataError with the line's number if it matches several questions, contradicts its question, has a
    different number of choices, or is of a different kind than the lines before it.
    """
    questions = _Questions(docs)
    matched = Answers()
    filters: dict[QuestionKey, str] = {}  # the filter of each answer: lm-eval logs an answer once per filter
    for answer in answers:
        matched.lines += 1
        question = questions.find(answer)
        if question is None:
            matched.unknown.append(answer.where)
            continue
        questions.check_fields(answer, question)
        if answer.repaired:
            matched.repaired.append(answer.where)
        if not answer.texts and not answer.choices:
            matched.empty.setdefault(question, answer.where)
            continue
        expected = choices(question[0], docs[question[0]][question[1]])
        if answer.choices and len(answer.choices) != expected:
            expectation = f"{expected} choices" if expected else "a text answer"
            raise DataError(f"{answer.where} has {len(answer.choices)} numbers for a question with {expectation}.")
        filter_name = str(answer.record.get("filter", ""))
        repeated = question in filters
        if repeated and filters[question] != filter_name:
            continue
        filters[question] = filter_name
        if repeated and (answer.choices or not sampled):
            matched.duplicates.append(answer.where)
        elif answer.choices:
            matched.choices[question] = answer.choices
        else:
            matched.texts.setdefault(question, []).extend(answer.texts)
        if matched.texts and matched.choices:
            raise DataError(
                f"{answer.where} has {'numbers' if answer.choices else 'text'}, "
                f"but the lines before it have {'text' if answer.choices else 'numbers'}."
            )
    matched.empty = {question: where for question, where in matched.empty.items() if question not in filters}
    if not matched.answered:
        names = ", ".join(list(docs)[:5])
        if matched.empty:
            raise DataError(
                f"no line has an answer to a question of {names}: {next(iter(matched.empty.values()))} has neither "
                "text nor a number for each choice."
            )
        expectation = f"the first is {matched.unknown[0]}" if matched.unknown else "the file has no lines"
        raise DataError(f"no line answers a question of {names}; {expectation}.")
    return matched


def _number(doc_id: Any) -> int:
    """A question's number, which programs also write as "3" or 3.0; -1 if it is none."""
    if isinstance(doc_id, float) and doc_id.is_integer():
        return int(doc_id)
    if isinstance(doc_id, str) and re.fullmatch(r"\s*[0-9]{1,18}\s*", doc_id):
        return int(doc_id)
    return doc_id if isinstance(doc_id, int) and not isinstance(doc_id, bool) else -1


class _Questions:
    """The questions of some tasks, indexed by the names that a line may use for them."""

    def __init__(self, docs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        self.docs = docs
        self.named: dict[tuple[str, str], list[QuestionKey]] = {}
        for task, rows in docs.items():
            for number, doc in enumerate(rows):
                for key in ("task_id", "question"):
                    if key in doc:
                        self.named.setdefault((key, str(doc[key]).strip()), []).append((task, number))

    def find(self, answer: Answer) -> QuestionKey | None:
        tasks = self._tasks(answer)
        key = next(name for name in _NAMES if answer.record.get(name) is not None)
        if key == "doc_id":
            number = _number(answer.record["doc_id"])
            candidates = [(task, number) for task in tasks if 0 <= number < len(self.docs[task])]
        else:
            same_text = self.named.get((key, str(answer.record[key]).strip()), [])
            candidates = [candidate for candidate in same_text if candidate[0] in tasks]
        if len(candidates) > 1:
            examples = " and ".join(f"{task} {number}" for task, number in candidates[:2])
            raise DataError(
                f"{answer.where} matches {len(candidates)} questions, such as {examples}; add task and doc_id."
            )
        return candidates[0] if candidates else None

    def _tasks(self, answer: Answer) -> list[str]:
        if answer.task is None:
            return list(self.docs)
        suffix = answer.task.strip().lower().replace(" ", "_")
        return [task for task in self.docs if task == suffix or task.endswith(f"_{suffix}")]

    def check_fields(self, answer: Answer, question: QuestionKey) -> None:
        task, number = question
        doc = self.docs[task][number]
        logged_doc = answer.record.get("doc")
        for fields in (answer.record, logged_doc if isinstance(logged_doc, Mapping) else {}):
            for key in _CHECKED_FIELDS:
                if fields.get(key) is not None and key in doc and str(fields[key]).strip() != str(doc[key]).strip():
                    raise DataError(
                        f"{answer.where}: its {key} does not match question {number} of {task}. "
                        "Is this a different version of the data?"
                    )
