"""Small Python functions with docstrings and examples, in the form of HumanEval.

A function is composed of parts (a test of a number, a change of a number, a reduction of a list, a change of a text),
each with words and code. Training and suite are disjoint by combination: a combination whose hash is in the held-out
share is never used for training, for any names of the function and its argument. Results in examples and tests come
from running the code.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.training.demo_data.facts import stable_hash

HELD_OUT_PART = 6  # one in so many combinations is held out for the suite


@dataclass(frozen=True)
class Function:
    """A function with its docstring, its body and inputs to test it on; fields as in HumanEval's records."""

    entry_point: str
    prompt: str
    canonical_solution: str
    inputs: tuple[Any, ...]
    key: str

    @property
    def held_out(self) -> bool:
        return stable_hash("function|" + self.key) % HELD_OUT_PART == 0


@dataclass(frozen=True)
class Part:
    """Words and code of one part; `{x}` is the variable, `{k}` and `{j}` are small constants.

    A `rare` part is infrequent in training and frequent in the suite, so that there are errors to explain.
    """

    words: str
    code: str
    low: int = 2
    high: int = 9
    rare: bool = False

    def fill(self, rng: random.Random) -> tuple[str, str]:
        """The words and the code with constants filled in; `{x}` stays in the code."""
        words, code = self.words, self.code
        for slot in ("{k}", "{j}"):
            constant = str(rng.randint(self.low, self.high))
            words, code = words.replace(slot, constant), code.replace(slot, constant)
        return words, code


TESTS = (
    Part("greater than {k}", "{x} > {k}"),
    Part("less than {k}", "{x} < {k}"),
    Part("not equal to {k}", "{x} != {k}"),
    Part("at least {k}", "{x} >= {k}"),
    Part("at most {k}", "{x} <= {k}"),
    Part("divisible by {k}", "{x} % {k} == 0", 2, 5),
    Part("even", "{x} % 2 == 0"),
    Part("odd", "{x} % 2 == 1"),
    Part("even and greater than {k}", "{x} % 2 == 0 and {x} > {k}"),
    Part("odd or less than {k}", "{x} % 2 == 1 or {x} < {k}"),
    Part("neither {k} nor {j}", "{x} not in ({k}, {j})", rare=True),
    Part("not divisible by {k}", "{x} % {k} != 0", 2, 5, rare=True),
    Part("odd and at most {k}", "{x} % 2 == 1 and {x} <= {k}", rare=True),
    Part("a multiple of {k} or of {j}", "{x} % {k} == 0 or {x} % {j} == 0", 2, 5, rare=True),
)
CHANGES = (
    Part("plus {k}", "{x} + {k}"),
    Part("minus {k}", "{x} - {k}"),
    Part("times {k}", "{x} * {k}"),
    Part("squared", "{x} * {x}"),
    Part("negated", "-{x}"),
    Part("divided by {k} without the remainder", "{x} // {k}"),
    Part("modulo {k}", "{x} % {k}"),
    Part("subtracted from {k}", "{k} - {x}"),
    Part("plus {k} and then times {j}", "({x} + {k}) * {j}"),
    Part("times {k} and then minus {j}", "{x} * {k} - {j}"),
    Part("cubed", "{x} ** 3", rare=True),
    Part("limited to {k}", "min({x}, {k})", rare=True),
    Part("raised to {k} if it is smaller", "max({x}, {k})", rare=True),
    Part("as its distance from {k}", "abs({x} - {k})", rare=True),
    Part("minus {k} and then squared", "({x} - {k}) ** 2", rare=True),
)
_REDUCERS = (("the sum", "sum"), ("the number", "len"), ("the largest", "max"), ("the smallest", "min"))
TEXT_CHANGES = (
    Part("in upper case", "{x}.upper()"),
    Part("in lower case", "{x}.lower()"),
    Part("reversed", "{x}[::-1]"),
    Part("without the first {k} characters", "{x}[{k}:]", 2, 5),
    Part("without the last {k} characters", "{x}[:-{k}]", 2, 5),
    Part("cut to the first {k} characters", "{x}[:{k}]", 2, 6),
    Part("cut to the last {k} characters", "{x}[-{k}:]", 2, 6),
    Part("repeated {k} times", "{x} * {k}", 2, 4),
    Part("without spaces at the ends", "{x}.strip()"),
    Part("with each space replaced by a dash", "{x}.replace(' ', '-')"),
    Part("in title case", "{x}.title()", rare=True),
    Part("with its cases swapped", "{x}.swapcase()", rare=True),
    Part("cut to every second character", "{x}[::2]", rare=True),
    Part("with each e replaced by a star", "{x}.replace('e', '*')", rare=True),
    Part("with its words in reverse order", "' '.join({x}.split()[::-1])", rare=True),
)
RARITY = 0.02  # frequency of a rare part in training, relative to another part
_NUMBER_NAMES = ("n", "x", "number", "value")
_LIST_NAMES = ("xs", "numbers", "values", "items")
_TEXT_NAMES = ("text", "s", "word")
_WORDS = ("apple", "Blue Sky", "river", "Green", "old house", "Stone", "paper", "big TREE", " day ", "summer rain")


@dataclass(frozen=True)
class Draft:
    """A function without names: its words and body with `{x}` for the argument, and its parts."""

    kind: str
    words: str
    parts: tuple[str, ...]
    body: tuple[str, ...]


class Drafter:
    """Composes parts; `rarity` is the frequency of a rare part, relative to another."""

    def __init__(self, rng: random.Random, rarity: float) -> None:
        self.rng, self.rarity = rng, rarity

    def pick(self, parts: Sequence[Part]) -> tuple[str, str]:
        weights = [self.rarity if part.rare else 1.0 for part in parts]
        return self.rng.choices(parts, weights)[0].fill(self.rng)

    def number(self) -> Draft:
        """A function of a number: a change, a test, or two changes chosen by a test."""
        change, code = self.pick(CHANGES)
        if self.rng.random() < 0.25:
            return Draft("change", f"Return {{x}} {change}.", (change,), (f"return {code}",))
        test, condition = self.pick(TESTS)
        if self.rng.random() < 0.25:
            return Draft(
                "check", f"Return True if {{x}} is {test}, otherwise False.", (test,), (f"return {condition}",)
            )
        other, other_code = self.pick(CHANGES)
        while other == change:
            other, other_code = self.pick(CHANGES)
        words = f"Return {{x}} {change} if {{x}} is {test}, otherwise {{x}} {other}."
        body = (f"if {condition}:", f"    return {code}", f"return {other_code}")
        return Draft("choose", words, (change, test, other), body)

    def listing(self) -> Draft:
        """A function of a list: select, change each element, reduce; as a comprehension or a loop."""
        test, condition = self.pick(TESTS)
        change, code = self.pick(CHANGES)
        condition, code = condition.replace("{x}", "v"), code.replace("{x}", "v")
        selection = f"[v for v in {{x}} if {condition}]"
        form = self.rng.choice(("keep", "map", "keep_map", "reduce", "total", "order", "until"))
        if form == "keep":
            return Draft(form, f"Return the elements of {{x}} that are {test}.", (test,), (f"return {selection}",))
        if form == "map":
            body: tuple[str, ...] = (f"return [{code} for v in {{x}}]",)
            return Draft(form, f"Return each element of {{x}} {change}.", (change,), body)
        if form == "keep_map":
            words = f"Return each element of {{x}} that is {test}, {change}."
            return Draft(form, words, (test, change), (f"return [{code} for v in {{x}} if {condition}]",))
        if form == "reduce":
            name, call = self.rng.choice(_REDUCERS)
            words, tail = f"Return {name} of the elements of {{x}} that are {test}", ""
            if call in ("max", "min"):
                words, tail = words + ", or 0 if there are none", ", default=0"
            return Draft(form, words + ".", (call, test), (f"return {call}({selection}{tail})",))
        if form == "order":
            name, end = self.rng.choice((("smallest", ""), ("largest", ", reverse=True")))
            words = f"Return the elements of {{x}} that are {test}, the {name} first."
            return Draft(form, words, (name, test), (f"return sorted({selection}{end})",))
        if form == "total":
            words = f"Add up each element of {{x}} that is {test}, {change}."
            loop = ("total = 0", "for v in {x}:", f"    if {condition}:", f"        total += {code}", "return total")
            return Draft(form, words, (test, change), loop)
        words = f"Return each element of {{x}} {change}, up to the first that is {test}."
        body = ("found = []", "for v in {x}:", f"    if {condition}:", "        break", f"    found.append({code})")
        return Draft(form, words, (test, change), (*body, "return found"))

    def text(self) -> Draft:
        """A function of a text: one change, or two in the order of the words."""
        first, code = self.pick(TEXT_CHANGES)
        if self.rng.random() < 0.3:
            return Draft("text", f"Return {{x}} {first}.", (first,), (f"return {code}",))
        second, then = self.pick(TEXT_CHANGES)
        words = f"Return {{x}} {first}, then {second}."
        return Draft("edit", words, (first, second), (f"{{x}} = {code}", f"return {then}"))


_NAMES = {
    "change": ("change", "compute", "apply"),
    "check": ("check", "is_good", "test"),
    "choose": ("choose", "decide", "step"),
    "keep": ("keep", "select", "pick"),
    "map": ("change_all", "convert", "apply"),
    "keep_map": ("collect", "gather", "pick"),
    "reduce": ("measure", "summary", "find"),
    "total": ("total", "add_up", "count_up"),
    "order": ("sort", "arrange", "ranked"),
    "until": ("until", "first_part", "begin"),
    "text": ("edit", "change", "rewrite"),
    "edit": ("edit", "change", "rewrite"),
}


def _numbers(rng: random.Random, count: int) -> list[int]:
    return [rng.randint(0, 12) for _ in range(count)]


def function(rng: random.Random, *, rarity: float = RARITY) -> Function:
    """A random function; it may belong to either part, see `Function.held_out`."""
    drafter = Drafter(rng, rarity)
    kind = rng.choice(("number", "list", "list", "text"))
    inputs: Sequence[Any]
    if kind == "number":
        draft, argument, inputs = drafter.number(), rng.choice(_NUMBER_NAMES), rng.sample(range(0, 30), 6)
    elif kind == "list":
        draft, argument = drafter.listing(), rng.choice(_LIST_NAMES)
        inputs = [_numbers(rng, rng.randint(3, 5)) for _ in range(6)]
    else:
        draft, argument, inputs = drafter.text(), rng.choice(_TEXT_NAMES), rng.sample(_WORDS, 6)
    entry_point = rng.choice(_NAMES[draft.kind])
    solution = "".join(f"    {line}\n" for line in draft.body).replace("{x}", argument)
    run = evaluate(f"def {entry_point}({argument}):\n{solution}", entry_point)
    examples = "".join(f"    >>> {entry_point}({value!r})\n    {run(value)!r}\n" for value in inputs[:2])
    words = draft.words.replace("{x}", argument)
    prompt = f'def {entry_point}({argument}):\n    """{words}\n\n{examples}    """\n'
    return Function(entry_point, prompt, solution, tuple(inputs[2:]), "|".join((draft.kind, *draft.parts)))


def evaluate(source: str, entry_point: str) -> Callable[[Any], Any]:
    """The function that `source` defines. It is only used with code written by this module."""
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    defined: Callable[[Any], Any] = namespace[entry_point]
    return defined


def drawn_from(rng: random.Random, *, held_out: bool, rarity: float = RARITY) -> Function:
    """A function of the training part, or of the held-out part."""
    while True:
        candidate = function(rng, rarity=rarity)
        if candidate.held_out == held_out:
            return candidate


def edge_inputs(item: Function) -> tuple[Any, ...]:
    """Inputs near every constant, and the empty list or text, for which a nearly correct solution fails."""
    sample = item.inputs[0]
    if isinstance(sample, int):
        return tuple(range(0, 13))
    if isinstance(sample, str):
        return ("", "a", " A b ", "Lower UPPER")
    return ([], list(range(0, 13)), [9, 2, 5, 5, 3], *([n] for n in range(0, 13)))


def hidden_tests(item: Function) -> str:
    """The hidden tests in the form of HumanEval: a function `check(candidate)` of assertions."""
    run = evaluate(item.prompt + item.canonical_solution, item.entry_point)
    lines = [f"    assert candidate({value!r}) == {run(value)!r}" for value in (*item.inputs, *edge_inputs(item))]
    return "\n\nMETADATA = {}\n\n\ndef check(candidate):\n" + "\n".join(lines) + "\n"
