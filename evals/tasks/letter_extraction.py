"""Extracts the answer letter from free-text answers to multiple-choice questions, with two of lm-eval's filters; and
with a third rule, for the forms in which chat models answer, if an answer needs it.

Works on task objects; knows nothing of models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
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


LETTER_IN_TEXT = "letter-in-text"
"""The name of the third rule's score."""
_MARKS = r"[\s(\[{*_\"'`$:=>-]*"
_END = r"(?=[).\]},:;!?*_\"'`$]|\s*$|\s*\n)"
_BOXED = re.compile(r"\\boxed\s*\{\s*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\s*\(?\s*([A-J])\b", re.I)
# "Answer: X", "the correct answer is (X)", "the best option is X". A and I are also words: text may follow only the
# other letters. "B or C" names none.
_NAMED = re.compile(
    r"(?i:\banswer(?:\s+is)?(?:\s+(?:option|choice|letter))?|\b(?:correct|right|best)\s+(?:option|choice)(?:\s+is)?)"
    rf"{_MARKS}([A-J])(?![\w'])(?!\s+(?i:or|and|nor)\b)(?:{_END}|(?<![AI])(?=\s))"
)
_FIRST = re.compile(rf"^{_MARKS}([A-Ja-j])(?=[).\]}},:;!?*_\"'`$]|\s*$|[ \t]*\n)")


def letter(text: str) -> str:
    """The letter that an answer names; "[invalid]", as in lm-eval's filters, if it names none.

    In this order: the last `\\boxed{X}`; the last "answer: X", "answer is X" or "correct option: X"; a letter at the
    beginning, alone or followed by a mark, as in "X. text" and "(X)".
    """
    for pattern in (_BOXED, _NAMED, _FIRST):
        if found := pattern.findall(text):
            return str(found[-1]).upper()
    return "[invalid]"


def letters_in_texts(resps: Sequence[Sequence[str]], docs: object) -> list[list[str]]:
    """`letter` as one of lm-eval's filters."""
    return [[letter(text) for text in texts] for texts in resps]


def _needs_third(answers: Iterable[str]) -> bool:
    """Whether an answer is not a letter by itself, as `get_response` reads it."""
    return any(not re.fullmatch(r"\W*[A-Ja-j]\W*", text.strip().partition("\n")[0]) for text in answers)


def use_letter_extraction(loaded: LoadedTasks, answers: Iterable[str] = ()) -> None:
    """Change multiple-choice tasks to extract the letter from text; each filter gives a score.

    answers: the answers; if one is not a letter by itself, the third rule gives a score too, `letter-in-text`.
    Raises: DataError for choices that are not letters.
    """
    third: dict[str, Any] = {"function": "custom", "filter_fn": letters_in_texts}
    more = [{"name": LETTER_IN_TEXT, "filter": [third, {"function": "take_first"}]}] if _needs_third(answers) else []
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
            "filter_list": [*_LETTER_FILTERS, *more],
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
