"""How the same benchmark is asked in different places: lm-eval's own way, and the way of Meta's published figures.

Data, and functions that look it up: knows nothing of task objects or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evals.tasks import known_datasets
from workbench.errors import DataError

_DETAILS = "Meta, llama-models, models/llama3_1/eval_details.md"


@dataclass(frozen=True)
class Rule:
    """How a preset asks one benchmark, and which of its scores it calls the result.

    task: lm-eval's task that asks so. shots, tokens: examples and longest answer; None leaves the task's own.
    metric, filter, average: the score that stands for the benchmark, as `results.Score` names it.
    Units: tokens generated at most.
    """

    task: str
    metric: str
    source: str
    filter: str = "none"
    average: str = ""
    shots: int | None = None
    tokens: int | None = None


LM_EVAL = {
    "mmlu": Rule("mmlu", "acc", "lm-eval 0.4.13, tasks/mmlu: no examples, mean over questions", average="micro"),
    "gsm8k": Rule("gsm8k", "exact_match", "lm-eval 0.4.13, tasks/gsm8k: 5 examples", "strict-match"),
    "humaneval": Rule("humaneval", "pass@1", "lm-eval 0.4.13, tasks/humaneval: no examples", "create_test"),
}
"""What the three benchmarks are where nothing is said: lm-eval's definitions as they stand.

Source: lm-eval 0.4.13.
"""

META = {
    "mmlu": Rule(
        "mmlu",
        "acc",
        f"{_DETAILS}: 5-shot, likelihood of the choice characters, macro average",
        average="macro",
        shots=5,
    ),
    "gsm8k": Rule(
        "gsm8k_cot",
        "exact_match",
        f"{_DETAILS}: 8-shot with the chains of thought of Wei et al. 2022, at most 1024 tokens",
        "strict-match",
        shots=8,
        tokens=1024,
    ),
    "humaneval": Rule(
        "humaneval",
        "pass@1",
        f"{_DETAILS}: 0-shot, pass@1, at most 1024 tokens",
        "create_test",
        shots=0,
        tokens=1024,
    ),
}
"""Meta's figures of pre-trained models.

Source: meta-llama/llama-models, models/llama3_1/eval_details.md; model cards of Llama 3, 3.1 and 3.2.
"""

META_CHAT = {
    "mmlu": Rule(
        "mmlu_llama",
        "exact_match",
        f"{_DETAILS}: 5-shot, the choice is generated, at most 10 tokens, macro average",
        "strict_match",
        "macro",
        shots=5,
        tokens=10,
    ),
    "mmlu_cot": Rule(
        "mmlu_cot_llama",
        "exact_match",
        f"{_DETAILS}: 0-shot with a chain of thought, at most 1024 tokens, macro average",
        "strict_match",
        "macro",
        shots=0,
        tokens=1024,
    ),
    "gsm8k": Rule(
        "gsm8k_llama",
        "exact_match",
        f"{_DETAILS}: 8-shot with the chains of thought of Wei et al. 2022, at most 1024 tokens",
        "strict_match",
        shots=8,
        tokens=1024,
    ),
    "arc_challenge": Rule(
        "arc_challenge_llama",
        "exact_match",
        f"{_DETAILS}: 0-shot, the choice is generated, at most 100 tokens",
        "strict_match",
        shots=0,
        tokens=100,
    ),
    "humaneval": Rule(
        "humaneval_instruct",
        "pass@1",
        f"{_DETAILS}: 0-shot, pass@1, at most 1024 tokens",
        "create_test",
        shots=0,
        tokens=1024,
    ),
}
"""Meta's figures of instruction-tuned models, asked in the chat format with the examples as turns.

Source: meta-llama/llama-models, models/llama3_1/eval_details.md; model cards of Llama 3, 3.1 and 3.2.
"""

PRESETS = {"lm-eval": (LM_EVAL, LM_EVAL), "meta": (META, META_CHAT)}
"""By name: the rules without and with the chat format."""

_GROUPS = ("stem", "humanities", "social_sciences", "other")


def rules(preset: str, *, chat: bool) -> dict[str, Rule]:
    """The rules of a preset.

    Raises: DataError if there is no such preset.
    """
    if preset not in PRESETS:
        raise DataError(f"there is no preset {preset!r}; there are {' and '.join(PRESETS)}.")
    return PRESETS[preset][chat]


def tasks(preset: str, asked: Sequence[str], *, chat: bool) -> tuple[str, ...]:
    """The tasks by which a preset asks these benchmarks: `mmlu_anatomy` becomes `mmlu_llama_anatomy` in Meta's chats.

    A name that the preset says nothing of stays.
    """
    table = rules(preset, chat=chat)
    found = []
    for name in asked:
        benchmark, part = _split(name, table)
        found.append(table[benchmark].task + part if benchmark else name)
    return tuple(dict.fromkeys(found))


def rule(preset: str, task: str, *, chat: bool) -> Rule | None:
    """What a preset says of a task, by the name that lm-eval has for it; None where it says nothing."""
    by_task = {rule.task: rule for rule in rules(preset, chat=chat).values()}
    return by_task.get(_split(task, by_task)[0])


def _split(name: str, table: dict[str, Any]) -> tuple[str, str]:
    """A benchmark of the table and what follows in the name: a subject of MMLU, a group of subjects, or nothing."""
    for benchmark in sorted(table, key=len, reverse=True):
        part = name.removeprefix(benchmark)
        if part != name and (not part or part[1:] in known_datasets.MMLU_TEST or part[1:] in _GROUPS):
            return benchmark, part
    return "", ""
