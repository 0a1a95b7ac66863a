"""Converts one line of lm-eval's sample files to a table row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def row(sample: dict[str, Any]) -> dict[str, Any]:
    """The columns of a sample, with the names of `Run.samples`.

    Raises: KeyError and other errors if it is not a sample.
    """
    columns = _columns(sample)
    given = {name: columns[name] for name in _FORM if name == "doc_id" or columns.get(name) is not None}
    if wrong := [name for name, value in given.items() if not _FORM[name](value)]:
        raise TypeError(f"its {wrong[0]} does not have the expected form")
    if "choices" in columns and len(columns["choices"]) != len(columns["logprobs"]):
        raise ValueError("it does not have one log-probability for each choice")
    return columns


def _is(kind: type | tuple[type, ...]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


def _all(kind: type | tuple[type, ...]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(part, kind) for part in value)


# Samples may come from anywhere, and readers of a column expect one type.
_FORM: dict[str, Callable[[Any], bool]] = {
    "doc_id": lambda value: isinstance(value, int) and abs(value) < 2**53,
    **dict.fromkeys(("filter", "prompt", "metric", "finish_reason", "verdict", "message", "stderr"), _is(str)),
    **dict.fromkeys(("prompt_ids", "generated_ids"), _all(int)),
    "cut": _is(int),
    "choices": _all(str),
    "choice_ids": lambda value: isinstance(value, list) and all(part is None or _all(int)(part) for part in value),
    "generated_logprobs": _all((int, float, type(None))),
    "seconds": _is((int, float)),
}


def _columns(sample: dict[str, Any]) -> dict[str, Any]:
    arguments = list(sample["arguments"].values())
    # A metric that is not a mean over questions, as BLEU, does not have a number here.
    scores = {name: value for name in sample.get("metrics") or () if (value := _number(sample[name])) is not None}
    metric = next(iter(scores), None)
    columns: dict[str, Any] = {
        "doc_id": sample["doc_id"],
        "filter": sample.get("filter", "none"),
        "doc": sample["doc"],
        "prompt": arguments[0]["arg_0"],
        "target": sample["target"],
        "metric": metric,
        "correct": None if metric is None else scores[metric],
        "scores": scores,
    }
    if sample.get("not_finite"):
        columns["not_finite"] = True
    replay = sample.get("replay") or {}
    columns |= {key: replay.get(key) for key in ("prompt_ids", "cut")}
    responses = sample["filtered_resps"]
    if isinstance(arguments[0].get("arg_1"), str):
        # The filtered responses of a question that is not scored are no numbers; its `answer` means nothing.
        pairs = [response[0] for response in sample["resps"]] if sample.get("not_finite") else responses
        logprobs = [float(pair[0]) for pair in pairs]
        columns |= {"choices": [part["arg_1"] for part in arguments], "logprobs": logprobs}
        columns |= {"answer": max(range(len(logprobs)), key=logprobs.__getitem__)}
        columns |= {"choice_ids": replay.get("choice_ids")}
        return columns
    response = sample["resps"][0][0]
    answer = responses[0]
    while isinstance(answer, list):
        answer = answer[0]
    columns |= {"answer": answer, "response": response}
    columns |= {key: (replay.get(key) or [None])[0] for key in ("generated_ids", "finish_reason")}
    columns |= {"generated_logprobs": (replay.get("logprobs") or [None])[0]}
    if execution := sample.get("execution"):
        columns |= {key: execution[0].get(key) for key in ("verdict", "message", "stderr", "seconds")}
    return columns


def _number(value: object) -> float | None:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
