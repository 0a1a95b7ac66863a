"""The form of a results file: the types of the fields that are read from it, and what does not fit in a file.

Results may come from anywhere. A file that does not have this form is refused as a whole, so that no reader of a run
has to expect a list where there is a number. Fields that are missing or null are allowed, and so are unknown ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

Check = Callable[[Any], bool]
_LARGEST = 10**12  # of counts
_LONGEST_NAME = 200  # bytes; a task's name is part of a file name
_MOST_LEAVES, _DEEPEST_GROUP = 100_000, 32


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST


def _number(value: Any) -> bool:
    """A number that a float can hold; lm-eval's own files may have NaN."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 1e300)


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | bool) or _number(value)


def _setting(value: Any) -> bool:
    """A scalar whose number, if it is one, fits into the integers of tables."""
    return _scalar(value) and (not _number(value) or abs(value) < 2**53)


def _date(value: Any) -> bool:
    try:
        return _number(value) and math.isfinite(value) and bool(datetime.fromtimestamp(value))
    except (ValueError, OverflowError, OSError):
        return False


def _name(value: Any) -> bool:
    return (
        isinstance(value, str) and 0 < len(value.encode()) <= _LONGEST_NAME and "/" not in value and "\0" not in value
    )


def _any(value: Any) -> bool:
    return True


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _dict_of(check: Check, names: Check = _text) -> Check:
    return lambda value: isinstance(value, dict) and all(names(key) and check(part) for key, part in value.items())


def _fields(**checks: Check) -> Check:
    return lambda value: isinstance(value, dict) and not _wrong_field(value, checks)


def _outcome(value: Any) -> bool:
    """[samples, correct samples, problems] of a code task."""
    return (
        isinstance(value, list) and len(value) == 3 and all(map(_count, value))
        and value[0] >= 1 and value[1] <= value[0] <= 1_000_000 and 1 <= value[2] <= 1_000_000
    )  # fmt: skip


def _outcomes(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_outcome, value))


_RECORD: dict[str, Check] = {
    **dict.fromkeys(("run", "path", "checkpoint_sha256", "tokenizer_sha256", "chat_template_sha256"), _text),
    **dict.fromkeys(("dtype", "device", "commit", "backend", "preset", "adapter"), _text),
    **dict.fromkeys(("limit", "engine", "sampler", "chat"), _setting),
    **dict.fromkeys(("seed", "samples"), lambda value: isinstance(value, int) and _setting(value)),
    "interventions": _list_of(lambda value: isinstance(value, dict)),
    "versions": _dict_of(_scalar),
    "not_run": _dict_of(_text),
    "not_finite": _dict_of(_count),
    "tied": _dict_of(_count),
    "cut_prompts": _dict_of(_count),
    "cut_answers": _dict_of(_count),
    "unreadable": _dict_of(_dict_of(_count)),
    "not_judged": _dict_of(_count),
    "why_not_judged": _dict_of(_text),
    "missing_modules": _dict_of(_dict_of(_count)),
    "notes": _list_of(_text),
    "generation": _dict_of(_fields(tokens=_count)),
    "programs": _dict_of(_outcomes),
    "data_sha256": _dict_of(_scalar),
    "examples_sha256": _dict_of(_scalar),
    "tasks": _list_of(_text),
    "answers": lambda value: isinstance(value, dict),
}
_FILE: dict[str, Check] = {
    "results": _dict_of(_dict_of(_any), _name),
    "group_subtasks": _dict_of(_list_of(_name), _name),
    "configs": _dict_of(_fields(repeats=_count), _name),
    "versions": _dict_of(_scalar),
    "n-shot": _dict_of(_setting),
    "higher_is_better": _dict_of(_dict_of(_scalar)),
    "n-samples": _dict_of(lambda value: isinstance(value, dict) and all(_count(value.get(k)) for k in _SIZES)),
    "config": _fields(model=_scalar, model_num_parameters=_number),
    "date": _date,
    **dict.fromkeys(("git_hash", "lm_eval_version", "model_name", "model_source", "chat_template_sha"), _text),
}
_SIZES = ("original", "effective")


def _wrong_field(values: Mapping[str, Any], checks: Mapping[str, Check]) -> str | None:
    return next((key for key, fits in checks.items() if values.get(key) is not None and not fits(values[key])), None)


def problem(data: Any, record: str) -> str | None:
    """The first field of a results file that does not have the expected form, by name; None if all do.

    record: the key of our own record.
    """
    if not isinstance(data, dict) or not isinstance(data.get("results"), dict):
        return "results"
    if wrong := _wrong_field(data, _FILE):
        return wrong
    if isinstance(ours := data.get(record), dict) and (wrong := _wrong_field(ours, _RECORD)):
        return f"{record}.{wrong}"
    for name, metrics in data["results"].items():
        if "sample_len" in metrics and not _count(metrics["sample_len"]):
            return f"results.{name}"
    return _group_problem(data.get("group_subtasks") or {}, data["results"])


def _group_problem(children: Mapping[str, Any], results: Mapping[str, Any]) -> str | None:
    """A group that contains itself, has too many tasks, or a task without results."""
    sizes: dict[str, int] = {}

    def leaves(name: str, depth: int) -> int:
        if name not in sizes:
            if depth > _DEEPEST_GROUP:
                return _MOST_LEAVES + 1
            sizes[name] = _MOST_LEAVES + 1  # until its members are counted: a group that contains itself keeps it
            under = children.get(name) or ()
            sizes[name] = sum(leaves(child, depth + 1) for child in under) if under else 1
        return sizes[name]

    for name in children:
        if leaves(name, 0) > _MOST_LEAVES:
            return f"group_subtasks.{name}"
    return None
