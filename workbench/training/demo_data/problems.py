"""Word problems of one and two steps, in GSM8K's form: `<<a+b=c>>` in each step and the answer after `####`.

Training and suite are disjoint by numbers: a plot (a story with its operations) with numbers whose hash is in the
held-out part is never generated for training, for any nouns in it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workbench.training.demo_data.document import Document, prompted
from workbench.training.demo_data.facts import stable_hash

HELD_OUT_PART = 16  # one in so many (plot, numbers) combinations is held out for the suite


@dataclass(frozen=True)
class Problem:
    """A question and its worked answer, in GSM8K's field names."""

    question: str
    answer: str
    key: str

    @property
    def prompt(self) -> str:
        """The prompt of lm-eval's gsm8k `doc_to_text`."""
        return f"Question: {self.question}\nAnswer:"

    @property
    def target(self) -> str:
        return " " + self.answer

    @property
    def held_out(self) -> bool:
        return stable_hash("problem|" + self.key) % HELD_OUT_PART == 0


@dataclass(frozen=True)
class Plot:
    """A story with slots for things {n}, a person {p}, holders {h} and numbers {a} {b} {c}; a sentence per step.

    A step is (left, operator, right, sentence); left and right name a number or the last result `r`;
    {e} in the sentence is the step's equation.
    """

    name: str
    story: str
    steps: tuple[tuple[str, str, str, str], ...]
    draw: Callable[[random.Random, float], dict[str, int]]


_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: x // y,
}
_THINGS = ("apples", "eggs", "books", "cups", "coins", "pens", "cards", "shells", "stamps", "plums", "nuts", "cakes")
_PEOPLE = ("farmer", "baker", "teacher", "student", "driver", "painter", "gardener", "cook", "doctor", "child")
_HOLDERS = ("boxes", "bags", "baskets", "crates", "trays", "shelves")


LARGE = 0.3  # fraction of the training problems with large numbers


def _sum(rng: random.Random, large: float) -> dict[str, int]:
    high = 999 if rng.random() < large else 99
    return {"a": rng.randint(5, high), "b": rng.randint(5, high)}


def _difference(rng: random.Random, large: float) -> dict[str, int]:
    a = rng.randint(7, 999 if rng.random() < large else 99)
    return {"a": a, "b": rng.randint(5, a - 1)}


def _product(rng: random.Random, large: float) -> dict[str, int]:
    if rng.random() < large:
        return {"a": rng.randint(3, 12), "b": rng.randint(21, 99)}
    return {"a": rng.randint(2, 9), "b": rng.randint(2, 20)}


def _quotient(rng: random.Random, large: float) -> dict[str, int]:
    b = rng.randint(2, 9)
    return {"a": b * rng.randint(2, 60 if rng.random() < large else 15), "b": b}


def _three_sum(rng: random.Random, large: float) -> dict[str, int]:
    high = 300 if rng.random() < large else 60
    return {"a": rng.randint(5, high), "b": rng.randint(5, high), "c": rng.randint(5, high)}


def _sum_then_less(rng: random.Random, large: float) -> dict[str, int]:
    high = 300 if rng.random() < large else 70
    a, b = rng.randint(10, high), rng.randint(10, high)
    return {"a": a, "b": b, "c": rng.randint(3, a + b - 2)}


def _product_then(rng: random.Random, large: float) -> dict[str, int]:
    a, b = rng.randint(2, 9), rng.randint(2, 50 if rng.random() < large else 15)
    return {"a": a, "b": b, "c": rng.randint(2, a * b - 1)}


def _sum_times(rng: random.Random, large: float) -> dict[str, int]:
    high = 40 if rng.random() < large else 12
    return {"a": rng.randint(2, high), "b": rng.randint(2, high), "c": rng.randint(2, 6)}


def _product_shared(rng: random.Random, large: float) -> dict[str, int]:
    c = rng.randint(2, 6)
    return {"a": c * rng.randint(1, 3), "b": rng.randint(2, 40 if rng.random() < large else 12), "c": c}


PLOTS: tuple[Plot, ...] = (
    Plot(
        "gain",
        "A {p} has {a} {n} and buys {b} more. How many {n} does the {p} have now?",
        (("a", "+", "b", "The {p} has {e} {n} now."),),
        _sum,
    ),
    Plot(
        "join",
        "There are {a} {n} in one room and {b} {n} in another. How many {n} are there in all?",
        (("a", "+", "b", "There are {e} {n} in all."),),
        _sum,
    ),
    Plot(
        "lose",
        "A {p} had {a} {n} and sold {b} of them. How many {n} are left?",
        (("a", "-", "b", "There are {e} {n} left."),),
        _difference,
    ),
    Plot(
        "compare",
        "One {p} has {a} {n}. Another {p} has {b} {n}. How many more {n} does the first {p} have?",
        (("a", "-", "b", "The first {p} has {e} more {n}."),),
        _difference,
    ),
    Plot(
        "packs",
        "There are {a} {h} with {b} {n} in each. How many {n} are there in all?",
        (("a", "*", "b", "There are {e} {n} in all."),),
        _product,
    ),
    Plot(
        "price",
        "A {p} buys {a} {n} at {b} dollars each. How many dollars does the {p} pay?",
        (("a", "*", "b", "The {p} pays {e} dollars."),),
        _product,
    ),
    Plot(
        "share",
        "A {p} puts {a} {n} into {b} {h}, the same number in each. How many {n} are in each of the {h}?",
        (("a", "/", "b", "There are {e} {n} in each."),),
        _quotient,
    ),
    Plot(
        "three days",
        "A {p} found {a} {n} on Monday, {b} on Tuesday and {c} on Friday. How many {n} did the {p} find?",
        (("a", "+", "b", "In two days the {p} found {e} {n}."), ("r", "+", "c", "In all the {p} found {e} {n}.")),
        _three_sum,
    ),
    Plot(
        "gain and lose",
        "A {p} had {a} {n}, bought {b} more and then sold {c}. How many {n} are left?",
        (("a", "+", "b", "First there were {e} {n}."), ("r", "-", "c", "Then {e} {n} were left.")),
        _sum_then_less,
    ),
    Plot(
        "packs and lose",
        "There are {a} {h} with {b} {n} in each. {c} of the {n} are bad. How many {n} are good?",
        (("a", "*", "b", "There are {e} {n} in all."), ("r", "-", "c", "Then {e} {n} are good.")),
        _product_then,
    ),
    Plot(
        "packs and gain",
        "A {p} has {a} {h} with {b} {n} in each and {c} more {n}. How many {n} does the {p} have?",
        (("a", "*", "b", "In the {h} there are {e} {n}."), ("r", "+", "c", "In all the {p} has {e} {n}.")),
        _product_then,
    ),
    Plot(
        "each day",
        "A {p} makes {a} {n} in the morning and {b} at night. How many {n} does the {p} make in {c} days?",
        (("a", "+", "b", "In one day the {p} makes {e} {n}."), ("r", "*", "c", "In {c} days the {p} makes {e} {n}.")),
        _sum_times,
    ),
    Plot(
        "packs shared",
        "There are {a} {h} with {b} {n} in each. They are shared by {c} children. How many {n} does each get?",
        (("a", "*", "b", "There are {e} {n} in all."), ("r", "/", "c", "Each child gets {e} {n}.")),
        _product_shared,
    ),
)


# Stories that training never uses, with any numbers: every fourth problem of the suite is one of them.
UNTOLD: tuple[Plot, ...] = (
    Plot(
        "two places",
        "A {p} had {a} {n} at night and found {b} more in the morning. How many {n} did the {p} have then?",
        (("a", "+", "b", "The {p} had {e} {n}."),),
        _sum,
    ),
    Plot(
        "give away",
        "A {p} bought {a} {n} and gave {b} of the {n} to a child. How many {n} does the {p} have now?",
        (("a", "-", "b", "The {p} has {e} {n} now."),),
        _difference,
    ),
    Plot(
        "some days",
        "A {p} sold {b} {n} each day. How many {n} did the {p} sell in {a} days?",
        (("a", "*", "b", "The {p} sold {e} {n}."),),
        _product,
    ),
    Plot(
        "bought and bad",
        "A {p} bought {a} {n} on Monday and {b} on Friday. {c} of them are bad. How many {n} are good?",
        (("a", "+", "b", "There were {e} {n}."), ("r", "-", "c", "Then {e} {n} are good.")),
        _sum_then_less,
    ),
)


def _work(plot: Plot, numbers: dict[str, int]) -> list[tuple[int, str, int, int]]:
    """The plot's steps with numbers in them: (left, operator, right, result)."""
    steps: list[tuple[int, str, int, int]] = []
    for left, operator, right, _ in plot.steps:
        x, y = steps[-1][-1] if left == "r" else numbers[left], numbers[right]
        steps.append((x, operator, y, _OPERATIONS[operator](x, y)))
    return steps


def equations(rng: random.Random, count: int) -> Document:
    """`count` steps without their stories: only the arithmetic, many in one document."""
    steps: list[tuple[int, str, int, int]] = []
    while len(steps) < count:
        plot = rng.choice(PLOTS)
        steps += _work(plot, plot.draw(rng, LARGE))
    pairs = [(f" <<{x}{operator}{y}=", f"{result}>>") for x, operator, y, result in steps[:count]]
    return prompted((f"Steps:{pairs[0][0]}", pairs[0][1]), *pairs[1:])


def problem(rng: random.Random, *, large: float = LARGE, plots: Sequence[Plot] = PLOTS) -> Problem:
    """A problem of one of the plots; it may belong to either part, see `Problem.held_out`."""
    plot = rng.choice(plots)
    numbers = plot.draw(rng, large)
    words = {"p": rng.choice(_PEOPLE), "n": rng.choice(_THINGS), "h": rng.choice(_HOLDERS)}
    lines: list[str] = []
    result = 0
    for (x, operator, y, result), step in zip(_work(plot, numbers), plot.steps, strict=True):
        equation = f"{x} {operator} {y} = <<{x}{operator}{y}={result}>>{result}"
        lines.append(step[-1].format(**words, **numbers, e=equation))
    key = f"{plot.name}|{sorted(numbers.items())}"
    return Problem(plot.story.format(**words, **numbers), "\n".join([*lines, f"#### {result}"]), key)


def drawn_from(rng: random.Random, *, held_out: bool, large: float = LARGE, plots: Sequence[Plot] = PLOTS) -> Problem:
    """A problem of the training part, or of the held-out part."""
    while True:
        candidate = problem(rng, large=large, plots=plots)
        if candidate.held_out == held_out:
            return candidate
