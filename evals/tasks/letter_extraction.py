"""Multiple choice that was answered in words: the letter is taken out of the text, by two of lm-eval's own rules.

Knows of task objects, nothing of who answered.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workbench.errors import DataError

if TYPE_CHECKING:
    from evals.tasks.registry import Suites

_LETTERS = "ABCDEFGHIJ"
# How lm-eval takes a letter out of text: as its `mmlu_generative` does, and as its `mmlu_pro`.
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


def ask_for_text(loaded: Suites) -> None:
    """Let multiple choice with lettered choices take its letter from text, each rule a score.

    Raises: DataError for choices that are no letters.
    """
    for name, task in loaded.tasks.items():
        if task.OUTPUT_TYPE == "generate_until":
            continue
        letters = task.get_config("doc_to_choice")
        if task.OUTPUT_TYPE != "multiple_choice" or letters != list(_LETTERS[: len(letters or "")]):
            raise DataError(f"the answers of {name} are no letters; give a log-probability for each choice.")
        config = task.config.to_dict(keep_callable=True) | {
            "output_type": "generate_until",
            "doc_to_choice": None,
            "doc_to_target": f"{{{{{letters}[{task.get_config('doc_to_target')}]}}}}",
            "generation_kwargs": {"until": []},
            "metric_list": [_exact_match()],
            "filter_list": _LETTER_FILTERS,
        }
        loaded.tasks[name] = made = type(task)(config=config)
        for group in loaded.groups.values():
            if name in group:
                group.add(made)
    for group in loaded.groups.values():
        metrics = group.aggregate_metric_list or []
        group.aggregate_metric_list = [replace(one, metric="exact_match", filter_list=None) for one in metrics]


def _exact_match() -> dict[str, Any]:
    return {
        "metric": "exact_match",
        "aggregation": "mean",
        "higher_is_better": True,
        "ignore_case": True,
        "ignore_punctuation": True,
    }
