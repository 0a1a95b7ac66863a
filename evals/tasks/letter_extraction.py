"""Extracts the answer letter from free-text answers to multiple-choice questions, with two of lm-eval's filters.

Works on task objects; knows nothing of models.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workbench.errors import DataError

if TYPE_CHECKING:
    from evals.tasks.registry import LoadedTasks

_LETTERS = "ABCDEFGHIJ"
# lm-eval's letter extraction in `mmlu_generative`, and in `mmlu_pro`.
_LETTER_FILTERS = [
    {
        "name": "get_response",
        "filter": [
            {"function": "regex", "regex_pattern": r"^(.*?)(?=\n|$)"},
            {"function": "remove_whitespace"},
            {"function": "regex", "regex_pattern": r"^(.*?)\s*$"},
            {"function": "take_first"},
        ],
    },
    {
        "name": "custom-extract",
        "filter": [
            {"function": "regex", "regex_pattern": r"answer is \(?([ABCDEFGHIJ])\)?"},
            {"function": "take_first"},
        ],
    },
]


def use_letter_extraction(loaded: LoadedTasks) -> None:
    """Change multiple-choice tasks to extract the letter from text; each filter gives a score.

    Raises: DataError for choices that are not letters.
    """
    for name, task in loaded.tasks.items():
        if task.OUTPUT_TYPE == "generate_until":
            continue
        letters = task.get_config("doc_to_choice")
        if task.OUTPUT_TYPE != "multiple_choice" or letters != list(_LETTERS[: len(letters or "")]):
            raise DataError(f"the choices of {name} are not letters; give a log-probability for each choice.")
        config = task.config.to_dict(keep_callable=True) | {
            "output_type": "generate_until",
            "doc_to_choice": None,
            "doc_to_target": f"{{{{{letters}[{task.get_config('doc_to_target')}]}}}}",
            "generation_kwargs": {"until": []},
            "metric_list": [_exact_match()],
            "filter_list": _LETTER_FILTERS,
        }
        loaded.tasks[name] = text_task = type(task)(config=config)
        for group in loaded.groups.values():
            if name in group:
                group.add(text_task)
    for group in loaded.groups.values():
        metrics = group.aggregate_metric_list or []
        group.aggregate_metric_list = [replace(metric, metric="exact_match", filter_list=None) for metric in metrics]


def _exact_match() -> dict[str, Any]:
    return {
        "metric": "exact_match",
        "aggregation": "mean",
        "higher_is_better": True,
        "ignore_case": True,
        "ignore_punctuation": True,
    }
