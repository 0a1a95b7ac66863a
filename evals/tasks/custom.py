"""The user's own suites: JSON Lines files in the formats of the three embedded ones.

    {"question": ..., "choices": [...], "answer": 2 or "C"[, "subject": ...]}      multiple choice, like MMLU
    {"question": ..., "answer": "... #### 7" or "7" or 7}                          a numeric answer, like GSM8K
    {"task_id": ..., "prompt": ..., "test": ..., "entry_point": ...[, "canonical_solution": ...]}   a program

A file is a suite, and its name is the suite's name; `<name>_dev.jsonl` next to it has the few-shot examples. Of lm-eval
it uses only the names of settings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from evals.store.foreign_code import YAML
from evals.tasks.local_data import Row, Splits, objects
from workbench.errors import DataError

_DEV = "_dev.jsonl"
_NUMBER = re.compile(r"-?\$?[\d.,]*\d\.?%?")


def is_path(name: str) -> bool:
    """Whether a name is the path of a file or folder, not the name of a task."""
    return "/" in name or "\\" in name or name.endswith((".jsonl", *YAML)) or name in (".", "..")


def files(path: str | Path) -> list[Path]:
    """The suites of a folder, or the file itself.

    Raises: DataError if there are none, or a file's name is not valid as a task name.
    """
    path = Path(path).expanduser()
    suites = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    suites = [file for file in suites if not (path.is_dir() and file.name.endswith(_DEV))]
    if not suites or not all(file.is_file() for file in suites):
        raise DataError(f"{path} is not a suite; expected a JSON Lines file, or a folder of such files.")
    for file in suites:
        if not re.fullmatch(r"[\w.-]+", file.stem):
            raise DataError(
                f"{file}: a suite's name may only have letters, digits and the characters _.-; rename the file."
            )
    return suites


def read(file: Path) -> Splits:
    """The questions of a suite (`test`) and its examples (`dev`), all in one format.

    Raises: DataError with the number of the first line that is not in that format.
    """
    form = form_of(file)
    splits = {"test": _rows(file, form), "dev": []}
    examples = file.with_name(file.stem + _DEV)
    if examples.is_file():
        splits["dev"] = _rows(examples, form)
    return splits


def form_of(file: Path) -> str:
    """The embedded suite with the format of a file's first line: demo_mmlu, demo_gsm8k or demo_humaneval.

    Raises: DataError if none has this format.
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
    """The task definition of a suite: that of the embedded suite with the same format, for other data.

    program: lm-eval's definition of HumanEval, which gives the answer length for a suite of programs.
    """
    form = form_of(file)
    definition = {key: value for key, value in deepcopy(dict(like)).items() if key != "class"}
    definition |= {"task": file.stem, "dataset_path": str(file.absolute())}
    if form == "demo_mmlu":
        # For four choices and a subject the text is MMLU's; a suite may have another number of choices, and no subject.
        definition["description"] = _FOR_ANY_SUBJECT
        definition["doc_to_text"] = _FOR_ANY_CHOICES
        definition["doc_to_choice"] = "letters"
    else:
        # The embedded suites have short answers; other suites get the benchmark's own length.
        definition["generation_kwargs"].pop("max_gen_toks", None)
    if form == "demo_humaneval":
        definition["generation_kwargs"]["max_gen_toks"] = program["generation_kwargs"]["max_gen_toks"]
    if not file.with_name(file.stem + _DEV).is_file():
        # Without a dev file, lm-eval would take the examples from the test questions.
        definition = {key: value for key, value in definition.items() if not key.startswith("fewshot")}
        definition["num_fewshot"] = 0
    return definition


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
            rows.append(_PARSERS[form](row))
        except (KeyError, TypeError, ValueError) as error:
            what = f"has no field {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{file}: line {number} {what}.") from error
    return rows


def _choice(row: Row) -> Row:
    choices = row["choices"]
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(ascii_uppercase):
        raise ValueError("needs a list of 2 to 26 choices")
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
        raise ValueError(f"ends in {final[:40]!r}, which is not a number; answers of this format must be numbers")
    return {"question": _text(row, "question"), "answer": answer}


def _program(row: Row) -> Row:
    fields = {key: _text(row, key) for key in ("prompt", "test", "entry_point")}
    if not fields["entry_point"].isidentifier():
        raise ValueError(f"has the entry point {fields['entry_point']!r}, which is not a valid function name")
    if not re.search(r"^def check\(", fields["test"], re.M):
        raise ValueError("has a test without `def check(candidate)`")
    solution = _text(row, "canonical_solution") if "canonical_solution" in row else ""
    return {"task_id": str(row["task_id"]), **fields, "canonical_solution": solution}


_PARSERS: dict[str, Callable[[Row], Row]] = {"demo_mmlu": _choice, "demo_gsm8k": _number, "demo_humaneval": _program}


def _text(row: Row, key: str) -> str:
    if not isinstance(row[key], str) or not row[key].strip():
        raise ValueError(f"has no text in {key!r}")
    return str(row[key])
