"""One line of lm-eval's sample files as a row of a table. Knows of no file and no task."""

from __future__ import annotations

from typing import Any


def row(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample's columns, as `Run.samples` names them.

    Raises: KeyError and others where it is no sample.
    """
    arguments = list(sample["arguments"].values())
    # A metric that is no mean over questions, as BLEU, has something else than a number here.
    scores = {name: value for name in sample.get("metrics") or () if (value := _number(sample[name])) is not None}
    metric = next(iter(scores), None)
    found: dict[str, Any] = {
        "doc_id": sample["doc_id"],
        "filter": sample.get("filter", "none"),
        "doc": sample["doc"],
        "prompt": arguments[0]["arg_0"],
        "target": sample["target"],
        "metric": metric,
        "correct": None if metric is None else scores[metric],
        "scores": scores,
    }
    replay = sample.get("replay") or {}
    found |= {key: replay.get(key) for key in ("prompt_ids", "cut")}
    responses = sample["filtered_resps"]
    if isinstance(arguments[0].get("arg_1"), str):
        logprobs = [float(pair[0]) for pair in responses]
        found |= {"choices": [part["arg_1"] for part in arguments], "logprobs": logprobs}
        found |= {"answer": max(range(len(logprobs)), key=logprobs.__getitem__)}
        found |= {"choice_ids": replay.get("choice_ids")}
        return found
    response = sample["resps"][0][0]
    answer = responses[0]
    while isinstance(answer, list):
        answer = answer[0]
    found |= {"answer": answer, "response": response}
    found |= {key: (replay.get(key) or [None])[0] for key in ("generated_ids", "finish_reason")}
    found |= {"generated_logprobs": (replay.get("logprobs") or [None])[0]}
    if execution := sample.get("execution"):
        found |= {key: execution[0].get(key) for key in ("verdict", "message", "stderr", "seconds")}
    return found


def _number(value: object) -> float | None:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
