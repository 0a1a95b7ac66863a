"""The user's own suites: files of JSON lines in the forms of the three embedded ones.

    {"question": ..., "choices": [...], "answer": 2 or "C"[, "subject": ...]}      multiple choice, as MMLU's
    {"question": ..., "answer": "... #### 7" or "7" or 7}                          a number to find, as GSM8K's
    {"task_id": ..., "prompt": ..., "test": ..., "entry_point": ...[, "canonical_solution": ...]}   a program

A file is a suite and gives it its name; `<name>_dev.jsonl` beside it holds its few-shot examples. Knows nothing of
lm-eval but the names of its settings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from evals.tasks.local_data import Row, Splits, objects
from workbench.errors import DataError

_DEV = "_dev.jsonl"
_NUMBER = re.compile(r"-?\$?[\d.,]*\d\.?%?")


def is_path(name: str) -> bool:
    """Whether a name that was asked for is a file's or a folder's, not a task's."""
    return "/" in name or "\\" in name or name.endswith(".jsonl") or name in (".", "..")


def files(path: str | Path) -> list[Path]:
    """The suites of a folder, or the one file.

    Raises: DataError if there are none, or a file's name cannot be a task's.
    """
    path = Path(path).expanduser()
    found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    found = [file for file in found if not (path.is_dir() and file.name.endswith(_DEV))]
    if not found or not all(file.is_file() for file in found):
        raise DataError(f"{path} is no suite; expected a file of JSON lines, or a folder of such files.")
    for file in found:
        if not re.fullmatch(r"[\w.-]+", file.stem):
            raise DataError(f"{file} gives its suite a name with characters other than letters, digits and _.-")
    return found


def read(file: Path) -> Splits:
    """The questions of a suite (`test`) and its examples (`dev`), all of one form.

    Raises: DataError with the number of the first line that is not in that form.
    """
    form = form_of(file)
    splits = {"test": _rows(file, form), "dev": []}
    examples = file.with_name(file.stem + _DEV)
    if examples.is_file():
        splits["dev"] = _rows(examples, form)
    return splits


def form_of(file: Path) -> str:
    """Which embedded suite a file is like, told by its first line: demo_mmlu, demo_gsm8k or demo_humaneval.

    Raises: DataError if it is like none.
    """
    number, first = next(objects(file))
    keys = set(first)
    if {"question", "choices"} <= keys:
        return "demo_mmlu"
    if {"question", "answer"} <= keys:
        return "demo_gsm8k"
    if {"prompt", "test", "entry_point"} <= keys:
        return "demo_humaneval"
    raise DataError(
        f"{file}: line {number} has the fields {', '.join(sorted(keys)) or 'none'}; expected question, choices, "
        "answer; or question, answer; or task_id, prompt, test, entry_point."
    )


def config(file: Path, like: Mapping[str, Any], *, program: Mapping[str, Any]) -> dict[str, Any]:
    """The definition of a suite's task: that of the embedded suite of its form, for other data.

    program: lm-eval's definition of HumanEval, whose length of answers a suite of programs has.
    """
    form = form_of(file)
    made = {key: value for key, value in deepcopy(dict(like)).items() if key != "class"}
    made |= {"task": file.stem, "dataset_path": str(file.absolute())}
    if form == "demo_mmlu":
        # The same text for four choices and a subject; suites may have other numbers of choices, and no subject.
        made["description"] = _FOR_ANY_SUBJECT
        made["doc_to_text"] = _FOR_ANY_CHOICES
        made["doc_to_choice"] = "letters"
    else:
        # The embedded suites' answers are short; the others' are as long as the benchmark's own.
        made["generation_kwargs"].pop("max_gen_toks", None)
    if form == "demo_humaneval":
        made["generation_kwargs"]["max_gen_toks"] = program["generation_kwargs"]["max_gen_toks"]
    if not file.with_name(file.stem + _DEV).is_file():
        # lm-eval would take its examples from the questions themselves.
        made = {key: value for key, value in made.items() if not key.startswith("fewshot")}
        made["num_fewshot"] = 0
    return made


_FOR_ANY_SUBJECT = (
    "The following are multiple choice questions (with answers){% if subject %} about {{subject}}{% endif %}.\n\n"
)
_FOR_ANY_CHOICES = (
    "{{question.strip()}}\n{% for choice in choices %}{{letters[loop.index0]}}. {{choice}}\n{% endfor %}Answer:"
)


def _rows(file: Path, form: str) -> list[Row]:
    rows = []
    for number, row in objects(file):
        try:
            rows.append(_FORMS[form](row))
        except (KeyError, TypeError, ValueError) as error:
            what = f"has no field {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{file}: line {number} {what}.") from error
    return rows


def _choice(row: Row) -> Row:
    choices = row["choices"]
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(ascii_uppercase):
        raise ValueError("has no list of 2 to 26 choices")
    letters = list(ascii_uppercase[: len(choices)])
    answer = row["answer"]
    if isinstance(answer, str) and answer.strip() in letters:
        answer = letters.index(answer.strip())
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise ValueError(f"has the answer {row['answer']!r}, which is neither a letter nor an index of its choices")
    subject = _text(row, "subject") if "subject" in row else ""
    about = {"question": _text(row, "question"), "subject": subject}
    return {**about, "choices": [str(choice) for choice in choices], "answer": answer, "letters": letters}


def _number(row: Row) -> Row:
    answer = row["answer"]
    answer = str(answer) if isinstance(answer, int | float) and not isinstance(answer, bool) else _text(row, "answer")
    final = answer.rpartition("#### ")[2].strip()
    if not _NUMBER.fullmatch(final):
        raise ValueError(f"ends in {final[:40]!r}, which is no number; answers of this form are numbers")
    return {"question": _text(row, "question"), "answer": answer}


def _program(row: Row) -> Row:
    made = {key: _text(row, key) for key in ("prompt", "test", "entry_point")}
    if not made["entry_point"].isidentifier():
        raise ValueError(f"has the entry point {made['entry_point']!r}, which is no function's name")
    if not re.search(r"^def check\(", made["test"], re.M):
        raise ValueError("has a test without `def check(candidate)`")
    solution = _text(row, "canonical_solution") if "canonical_solution" in row else ""
    return {"task_id": str(row["task_id"]), **made, "canonical_solution": solution}


_FORMS: dict[str, Callable[[Row], Row]] = {"demo_mmlu": _choice, "demo_gsm8k": _number, "demo_humaneval": _program}


def _text(row: Row, key: str) -> str:
    if not isinstance(row[key], str) or not row[key].strip():
        raise ValueError(f"has no text in {key!r}")
    return str(row[key])
