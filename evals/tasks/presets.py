"""Prompt presets: lm-eval's own settings of a benchmark, and those of Meta's published model-card numbers.

Data and look-up functions only: knows nothing of task objects or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evals.tasks import custom, known_datasets
from workbench.errors import DataError

_DETAILS = "Meta, llama-models, models/llama3_1/eval_details.md"


@dataclass(frozen=True)
class Rule:
    """A preset's settings for one benchmark, and which score is its result.

    task: the lm-eval task to use. shots, tokens: few-shot examples and answer length; None keeps the task's own.
    metric, filter, average: the score that is the benchmark's result, as in `runs.Score`.
    Units: `tokens` is the maximum number of generated tokens.
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
"""The default preset of the three benchmarks: lm-eval's definitions, unchanged.

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
    "commonsense_qa": Rule(
        "commonsense_qa_meta",
        "acc",
        f"{_DETAILS}: 7-shot with the questions of Wei et al. 2022, likelihood of the choice characters; without the "
        "reasoning of the examples, because Meta's text is not public",
        shots=7,
    ),
    "squad": Rule(
        "squad_meta",
        "exact_match",
        f"{_DETAILS}: SQuAD v2, 1-shot, after the passage's earlier questions and answers, at most 32 tokens; worded "
        "as lm-eval's squadv2, because Meta's text is not public",
        shots=1,
        tokens=32,
    ),
}
"""Settings of Meta's numbers for pre-trained models.

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
"""Settings of Meta's numbers for instruction-tuned models, in the chat format with the examples as turns.

Source: meta-llama/llama-models, models/llama3_1/eval_details.md; model cards of Llama 3, 3.1 and 3.2.
"""

META_CHAT["gsm8k_cot"] = META_CHAT["gsm8k"]  # the model cards' name

NOT_REPRODUCED = {
    "agieval_en": "its 3 to 5 examples are in AGIEval's repository (few_shot_prompts.csv), not in the hub's datasets",
}
"""Benchmarks with a number in the model cards and without a rule here, and the reason."""

PRESETS = {"lm-eval": (LM_EVAL, LM_EVAL), "meta": (META, META_CHAT)}
"""By preset name: the rules without and with the chat format."""

_GROUPS = ("stem", "humanities", "social_sciences", "other")


def rules(preset: str, *, chat: bool) -> dict[str, Rule]:
    """The rules of a preset.

    Raises: DataError if there is no such preset.
    """
    if preset not in PRESETS:
        raise DataError(f"there is no preset {preset!r}; the presets are {' and '.join(PRESETS)}.")
    return PRESETS[preset][chat]


def tasks(preset: str, benchmarks: Sequence[str], *, chat: bool) -> tuple[str, ...]:
    """A preset's tasks for these benchmarks: with Meta's chat preset, `mmlu_anatomy` becomes `mmlu_llama_anatomy`.

    With lm-eval's preset, a name without a rule stays, as do the paths of the user's own tasks.
    Raises: DataError for a name without a rule in Meta's preset: it would be run in another way than Meta's.
    """
    table = rules(preset, chat=chat)
    task_names = []
    for name in benchmarks:
        benchmark, part = _split(name, table)
        if not benchmark and preset == "meta" and not custom.is_path(name) and rule(preset, name, chat=chat) is None:
            raise DataError(_no_rule(name, chat=chat))
        task_names.append(table[benchmark].task + part if benchmark else name)
    return tuple(dict.fromkeys(task_names))


def _no_rule(name: str, *, chat: bool) -> str:
    models = "instruction-tuned" if chat else "pre-trained"
    if name in NOT_REPRODUCED and not chat:
        reason = NOT_REPRODUCED[name]
    elif _split(name, PRESETS["meta"][not chat])[0]:
        reason = f"the preset has it {'without' if chat else 'with'} --apply_chat_template only"
    else:
        reason = f"for {models} models it has {', '.join(PRESETS['meta'][chat])}"
    return f"--preset meta has no rule for {name!r}: {reason}. Run it with --preset lm-eval."


def rule(preset: str, task: str, *, chat: bool) -> Rule | None:
    """A preset's rule for a task, by its lm-eval name; None if there is none."""
    by_task = {rule.task: rule for rule in rules(preset, chat=chat).values()}
    return by_task.get(_split(task, by_task)[0])


def _split(name: str, table: dict[str, Any]) -> tuple[str, str]:
    """Split a name into a benchmark of the table and the rest: a subject of MMLU, a group of subjects, or nothing."""
    for benchmark in sorted(table, key=len, reverse=True):
        part = name.removeprefix(benchmark)
        if part != name and (not part or part[1:] in known_datasets.MMLU_TEST or part[1:] in _GROUPS):
            return benchmark, part
    return "", ""
