"""Benchmark questions from local files, as rows: MMLU's CSVs, GSM8K's JSONL, HumanEval's JSONL.gz, the embedded
suites; and the default data folder.

Downloads, copies and caches nothing. Knows nothing of prompts or models.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from evals.results import json_text
from workbench.errors import DataError
from workbench.user_data import home

ASSETS = Path(__file__).parent.parent / "assets"
Row = dict[str, Any]
Splits = dict[str, list[Row]]


def folder(requested: Path | None) -> Path | None:
    """The data folder to read: the requested one, else `home()` if it exists."""
    if requested is not None:
        return requested
    default = home()
    return default if default.is_dir() or "WORKBENCH_DATA" in os.environ else None


def _mmlu_rows(path: Path, subject: str) -> list[Row]:
    rows = []
    with _opened(path, newline="") as file:
        for number, record in enumerate(csv.reader(file), 1):
            if len(record) != 6 or record[5] not in ("A", "B", "C", "D"):
                raise DataError(
                    f"{path}: record {number} must be a question, four choices and a letter A-D; "
                    f"found {len(record)} fields, the last is {record[-1:]}."
                )
            rows.append(
                {
                    "question": record[0],
                    "subject": subject,
                    "choices": record[1:5],
                    "answer": "ABCD".index(record[5]),
                }
            )
    return rows


_PROGRAM = {"task_id": str, "prompt": str, "canonical_solution": str, "test": str, "entry_point": str}


def read_file(path: Path) -> list[Row]:
    """The rows of a file of one of the three benchmarks, recognized by its name.

    Raises: DataError if a line is malformed.
    """
    if path.suffix == ".csv":
        return _mmlu_rows(path, path.stem.rpartition("_")[0])
    if path.name.startswith("HumanEval"):
        return read_jsonl(path, _PROGRAM)
    return read_jsonl(path, {"question": str, "answer": str})


_EMBEDDED: dict[str, dict[str, type]] = {
    "demo_mmlu": {"question": str, "subject": str, "choices": list, "answer": int},
    "demo_gsm8k": {"question": str, "answer": str},
    "demo_humaneval": _PROGRAM,
}


def embedded(name: str) -> Splits:
    """One of the suites that come with the package; `dev` has its few-shot examples, if any."""
    splits = {"test": read_jsonl(ASSETS / f"{name}.jsonl", _EMBEDDED[name])}
    dev = ASSETS / f"{name}_dev.jsonl"
    splits["dev"] = read_jsonl(dev, _EMBEDDED[name]) if dev.is_file() else []
    return splits


def _mmlu(root: Path, subject: str) -> dict[str, Path]:
    """Hendrycks' layout: `{test,dev}/<subject>_{test,dev}.csv`, no header, the answer a letter."""
    folder = _folder(root, "mmlu", Path("test") / f"{subject}_test.csv", "MMLU", ("", "data"))
    return {split: folder / split / f"{subject}_{split}.csv" for split in ("test", "dev")}


def _gsm8k(root: Path, name: str) -> dict[str, Path]:
    folder = _folder(root, "gsm8k", Path("test.jsonl"), "GSM8K")
    return {split: folder / f"{split}.jsonl" for split in ("test", "train")}


def _humaneval(root: Path, name: str) -> dict[str, Path]:
    places = [folder / f"HumanEval.jsonl{end}" for folder in (root / "humaneval", root) for end in (".gz", "")]
    for path in places:
        if path.is_file():
            return {"test": path}
    raise DataError(f"HumanEval is not in {root}: expected {places[0]}. Set its folder with --data.")


# By lm-eval's dataset names; the two copies of MMLU have the same questions.
_PLACES: dict[str, Callable[[Path, str], dict[str, Path]]] = {
    "cais/mmlu": _mmlu,
    "hails/mmlu_no_train": _mmlu,
    "openai/gsm8k": _gsm8k,
    "openai/openai_humaneval": _humaneval,
}


def is_embedded(dataset: str) -> bool:
    """Whether a dataset comes with the package."""
    return dataset in _EMBEDDED


def readable(dataset: str) -> bool:
    """Whether this module can read a dataset."""
    return dataset in _EMBEDDED or dataset in _PLACES


def present(dataset: str, name: str | None, root: Path | None) -> bool:
    """Whether `load` would find its files; they are not read."""
    if dataset in _EMBEDDED or dataset not in _PLACES or root is None:
        return dataset in _EMBEDDED
    try:
        return all(path.is_file() for path in _PLACES[dataset](root, name or "").values())
    except DataError:
        return False


def load(dataset: str, name: str | None, root: Path | None) -> Splits:
    """The rows of a dataset by its lm-eval name, from the user's data folder or from the package.

    Raises: DataError if there is no folder, no such file in it, or a malformed line.
    """
    if dataset in _EMBEDDED:
        return embedded(dataset)
    if dataset not in _PLACES:
        raise DataError(f"the dataset {dataset!r} cannot be read from local files.")
    if root is None:
        raise DataError(
            f"this benchmark reads its questions from local files, and {home()} does not exist: set the folder "
            "with --data, or create one with `workbench eval prepare`. --online downloads them from the hub."
        )
    return {split: read_file(path) for split, path in _PLACES[dataset](root, name or "").items()}


def read_jsonl(path: Path, fields: dict[str, type]) -> list[Row]:
    """The rows of a JSON Lines file, gzipped or not; each must have these fields.

    Raises: DataError with the line's number.
    """
    rows = []
    for number, row in objects(path):
        for name, kind in fields.items():
            if not isinstance(row.get(name), kind):
                raise DataError(f"{path}: line {number} has no field {name!r} of type {kind.__name__}.")
        rows.append({name: row[name] for name in fields})
    return rows


def objects(path: Path) -> Iterator[tuple[int, Row]]:
    """The objects of a JSON Lines file, gzipped or not, each with its line number.

    Raises: DataError with the line number, or if there are none.
    """
    number, any_row = 0, False
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json_text.with_valid_text(json.loads(line))
                    if not isinstance(row, dict):
                        raise DataError(f"{path}: line {number} is not a JSON object.")
                    any_row = True
                    yield number, row
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 after line {number} ({error.reason}).") from error
    except ValueError as error:
        raise DataError(f"{path}: line {number} is not JSON ({error}).") from error
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: truncated or damaged after line {number} ({error}).") from error
    if not any_row:
        raise DataError(f"{path} is empty.")


def rows_sha256(rows: Iterable[Row]) -> str:
    """SHA-256 of rows, to check whether two runs had the same questions."""
    sha = hashlib.sha256()
    for row in rows:
        sha.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return sha.hexdigest()


def _folder(root: Path, name: str, member: Path, title: str, inner: tuple[str, ...] = ("",)) -> Path:
    """The folder of a benchmark: its own folder below the root, or the root itself."""
    for base in (root / name, root):
        for part in inner:
            if (base / part / member).is_file():
                return base / part
    if not root.is_dir():
        raise DataError(f"the data folder {root} does not exist.")
    raise DataError(f"{title} is not in {root}: expected {root / name / member}. Set its folder with --data.")


def _opened(path: Path, newline: str | None = None) -> Any:
    if not path.is_file():
        raise DataError(f"{path} does not exist.")
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8", newline=newline)
