"""Items of the three embedded suites: the held-out parts of the corpus, with the field names of the real benchmarks.

`python -m workbench.training.demo_data.suites DIR` writes them as JSON lines; the same seed gives the same files.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from workbench.training.demo_data import functions, problems
from workbench.training.demo_data.facts import BY_NAME, FACTS, SUBJECTS
from workbench.training.demo_data.quizzes import Quiz, held_out_quiz, training_quiz

T = TypeVar("T")

SEED = 20
SIZES = {"demo_mmlu": 400, "demo_gsm8k": 300, "demo_humaneval": 100}
# Harder than the training text, so that there are wrong answers to explain: more large numbers, more rare parts.
LARGE, RARITY = 1.0, 0.4
DEV_PER_SUBJECT, DEV_PROBLEMS = 5, 8


def mmlu(size: int = SIZES["demo_mmlu"]) -> list[dict[str, Any]]:
    """Held-out quizzes on `size` different facts; every second one has a wording that training uses for no fact."""
    rng = random.Random(f"{SEED}|mmlu")
    facts = enumerate(rng.sample(FACTS, size))
    return [_quiz_item(held_out_quiz(rng, fact, unseen=bool(i % 2))) for i, fact in facts]


def mmlu_dev() -> list[dict[str, Any]]:
    """A few quizzes of each subject with training wordings, as few-shot examples."""
    rng = random.Random(f"{SEED}|mmlu dev")
    items = []
    for subject in SUBJECTS:
        facts = [fact for fact in FACTS if BY_NAME[fact.relation].subject == subject]
        items += [_quiz_item(training_quiz(rng, fact)) for fact in rng.sample(facts, DEV_PER_SUBJECT)]
    return items


def gsm8k(size: int = SIZES["demo_gsm8k"]) -> list[dict[str, Any]]:
    """Held-out word problems; every fourth has a story that training never uses. Plot and numbers are distinct."""
    rng = random.Random(f"{SEED}|gsm8k")
    plots = itertools.cycle((problems.UNTOLD, *[problems.PLOTS] * 3))
    return _problem_items(lambda: problems.drawn_from(rng, held_out=True, large=LARGE, plots=next(plots)), size)


def gsm8k_dev() -> list[dict[str, Any]]:
    """A few word problems of the training part, as few-shot examples."""
    rng = random.Random(f"{SEED}|gsm8k dev")
    return _problem_items(lambda: problems.drawn_from(rng, held_out=False), DEV_PROBLEMS)


def humaneval(size: int = SIZES["demo_humaneval"]) -> list[dict[str, Any]]:
    """Functions with hidden tests, each with different parts."""
    rng = random.Random(f"{SEED}|humaneval")

    def draw() -> functions.Function:
        while True:
            item = functions.drawn_from(rng, held_out=True, rarity=RARITY)
            if item.entry_point != "check":  # the hidden tests define a function of that name
                return item

    items = _distinct(draw, lambda item: item.key, size)
    return [
        {
            "task_id": f"DemoEval/{i}",
            "prompt": item.prompt,
            "canonical_solution": item.canonical_solution,
            "test": functions.hidden_tests(item),
            "entry_point": item.entry_point,
        }
        for i, item in enumerate(items)
    ]


def write(folder: Path) -> None:
    """Write every suite and its few-shot examples as JSON lines."""
    files = {
        "demo_mmlu": mmlu(),
        "demo_mmlu_dev": mmlu_dev(),
        "demo_gsm8k": gsm8k(),
        "demo_gsm8k_dev": gsm8k_dev(),
        "demo_humaneval": humaneval(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, items in files.items():
        temporary = folder / f"{name}.tmp"
        temporary.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
        os.replace(temporary, folder / f"{name}.jsonl")


def _quiz_item(item: Quiz) -> dict[str, Any]:
    return {"question": item.question, "subject": item.subject, "choices": list(item.choices), "answer": item.answer}


def _problem_items(draw: Callable[[], problems.Problem], size: int) -> list[dict[str, Any]]:
    items = _distinct(draw, lambda item: item.key, size)
    return [{"question": item.question, "answer": item.answer} for item in items]


def _distinct(draw: Callable[[], T], key: Callable[[T], str], size: int) -> Iterable[T]:
    items: dict[str, T] = {}
    while len(items) < size:
        item = draw()
        items.setdefault(key(item), item)
    return items.values()


if __name__ == "__main__":
    write(Path(sys.argv[1]))
