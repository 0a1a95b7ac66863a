"""Small Python functions with docstrings and examples, as HumanEval states them.

A function is put together from parts (a test on a number, a change of a number, a way to reduce a list; a change of a
text), each with its words and its code. Training and suite are disjoint by combination: parts whose hash falls in the
held-out share are never put together for training, whatever the function and its argument are called. Results in
examples and tests come from running the code.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.demo.facts import stable_hash

HELD_OUT_PART = 6  # one in so many combinations is kept for the suite


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
    """Words and code of one part; `{x}` is the variable and `{k}` a small constant."""

    words: str
    code: str
    low: int = 2
    high: int = 9

    def fill(self, rng: random.Random) -> tuple[str, str]:
        """The words and the code with a constant put in; the code keeps `{x}` open."""
        k = str(rng.randint(self.low, self.high))
        return self.words.replace("{k}", k), self.code.replace("{k}", k)


TESTS = (
    Part("greater than {k}", "{x} > {k}"),
    Part("less than {k}", "{x} < {k}"),
    Part("not equal to {k}", "{x} != {k}"),
    Part("at least {k}", "{x} >= {k}"),
    Part("at most {k}", "{x} <= {k}"),
    Part("divisible by {k}", "{x} % {k} == 0", 2, 5),
    Part("even", "{x} % 2 == 0"),
    Part("odd", "{x} % 2 == 1"),
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
)
_REDUCERS = (("the sum", "sum"), ("the number", "len"), ("the largest", "max"), ("the smallest", "min"))
TEXT_CHANGES = (
    Part("in upper case", "{x}.upper()"),
    Part("in lower case", "{x}.lower()"),
    Part("reversed", "{x}[::-1]"),
    Part("without the first {k} characters", "{x}[{k}:]", 2, 5),
    Part("without the last {k} characters", "{x}[:-{k}]", 2, 5),
    Part("cut to the first {k} characters", "{x}[:{k}]", 2, 6),
    Part("repeated {k} times", "{x} * {k}", 2, 4),
    Part("without spaces at the ends", "{x}.strip()"),
    Part("with each space replaced by a dash", "{x}.replace(' ', '-')"),
)
_NUMBER_NAMES = ("n", "x", "number", "value")
_LIST_NAMES = ("xs", "numbers", "values", "items")
_TEXT_NAMES = ("text", "s", "word")
_WORDS = ("apple", "Blue Sky", "river", "Green", "old house", "Stone", "paper", "big TREE", " day ", "summer rain")


def _number(rng: random.Random) -> tuple[str, str, list[str], str]:
    """Return one change, or two changes chosen by a test, of a number."""
    change, code = rng.choice(CHANGES).fill(rng)
    if rng.random() < 0.3:
        return f"Return {{x}} {change}.", change, [f"return {code}"], "change"
    test, condition = rng.choice(TESTS).fill(rng)
    if rng.random() < 0.3:
        return f"Return True if {{x}} is {test}, otherwise False.", test, [f"return {condition}"], "check"
    other, other_code = rng.choice(CHANGES).fill(rng)
    while other == change:
        other, other_code = rng.choice(CHANGES).fill(rng)
    words = f"Return {{x}} {change} if {{x}} is {test}, otherwise {{x}} {other}."
    body = [f"if {condition}:", f"    return {code}", f"return {other_code}"]
    return words, f"{change}|{test}|{other}", body, "choose"


def _list(rng: random.Random) -> tuple[str, str, list[str], str]:
    """Select from a list, change each, reduce it: as a comprehension or as a loop."""
    test, condition = rng.choice(TESTS).fill(rng)
    change, code = rng.choice(CHANGES).fill(rng)
    condition, code = condition.replace("{x}", "v"), code.replace("{x}", "v")
    form = rng.randrange(5)
    if form == 0:
        return (
            f"Return the elements of {{x}} that are {test}.",
            test,
            [f"return [v for v in {{x}} if {condition}]"],
            "keep",
        )
    if form == 1:
        return f"Return each element of {{x}} {change}.", change, [f"return [{code} for v in {{x}}]"], "map"
    if form == 2:
        words = f"Return each element of {{x}} that is {test}, {change}."
        return words, f"{test}|{change}", [f"return [{code} for v in {{x}} if {condition}]"], "keep_map"
    if form == 3:
        name, call = rng.choice(_REDUCERS)
        words = f"Return {name} of the elements of {{x}} that are {test}."
        extreme = call in ("max", "min")
        words = words[:-1] + ", or 0 if there are none." if extreme else words
        tail = ", default=0)" if extreme else ")"
        inner = f"[v for v in {{x}} if {condition}]"
        return words, f"{call}|{test}", [f"return {call}({inner}{tail}"], "reduce"
    words = f"Add up each element of {{x}} that is {test}, {change}."
    body = ["total = 0", "for v in {x}:", f"    if {condition}:", f"        total += {code}", "return total"]
    return words, f"total|{test}|{change}", body, "total"


def _text(rng: random.Random) -> tuple[str, str, list[str], str]:
    """Change a text once, or twice in the order of the words."""
    first, code = rng.choice(TEXT_CHANGES).fill(rng)
    if rng.random() < 0.4:
        return f"Return {{x}} {first}.", first, [f"return {code}"], "text"
    second, then = rng.choice(TEXT_CHANGES).fill(rng)
    body = [f"{{x}} = {code}", f"return {then}"]
    return f"Return {{x}} {first}, then {second}.", f"{first}|{second}", body, "edit"


_NAMES = {
    "change": ("change", "compute", "apply"),
    "check": ("check", "is_good", "test"),
    "choose": ("choose", "decide", "step"),
    "keep": ("keep", "select", "pick"),
    "map": ("change_all", "convert", "apply"),
    "keep_map": ("collect", "gather", "pick"),
    "reduce": ("measure", "summary", "find"),
    "total": ("total", "add_up", "count_up"),
    "text": ("edit", "change", "rewrite"),
    "edit": ("edit", "change", "rewrite"),
}


def _numbers(rng: random.Random, count: int) -> list[int]:
    return [rng.randint(0, 12) for _ in range(count)]


def function(rng: random.Random) -> Function:
    """A random function; it may belong to either part, see `Function.held_out`."""
    kind = rng.choice(("number", "list", "list", "text"))
    inputs: Sequence[Any]
    if kind == "number":
        words, key, body, name = _number(rng)
        argument, inputs = rng.choice(_NUMBER_NAMES), rng.sample(range(0, 30), 6)
    elif kind == "list":
        words, key, body, name = _list(rng)
        argument, inputs = rng.choice(_LIST_NAMES), [_numbers(rng, rng.randint(3, 5)) for _ in range(6)]
    else:
        words, key, body, name = _text(rng)
        argument, inputs = rng.choice(_TEXT_NAMES), rng.sample(_WORDS, 6)
    entry_point = rng.choice(_NAMES[name])
    words = words.replace("{x}", argument)
    solution = "".join(f"    {line}\n" for line in body).replace("{x}", argument)
    run = evaluate(f"def {entry_point}({argument}):\n{solution}", entry_point)
    examples = "".join(f"    >>> {entry_point}({value!r})\n    {run(value)!r}\n" for value in inputs[:2])
    prompt = f'def {entry_point}({argument}):\n    """{words}\n\n{examples}    """\n'
    return Function(entry_point, prompt, solution, tuple(inputs[2:]), f"{name}|{key}")


def evaluate(source: str, entry_point: str) -> Callable[[Any], Any]:
    """The function that `source` defines. Only ever given code that this module wrote."""
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    found: Callable[[Any], Any] = namespace[entry_point]
    return found


def drawn_from(rng: random.Random, *, held_out: bool) -> Function:
    """A function of the training part, or of the held-out part."""
    while True:
        candidate = function(rng)
        if candidate.held_out == held_out:
            return candidate


def edge_inputs(item: Function) -> tuple[Any, ...]:
    """Inputs near every constant, and the empty list or text: where a nearly right solution fails."""
    sample = item.inputs[0]
    if isinstance(sample, int):
        return tuple(range(0, 13))
    if isinstance(sample, str):
        return ("", "a", " A b ", "Lower UPPER")
    return ([], [0], list(range(0, 13)), [9, 2, 5, 5, 3])


def hidden_tests(item: Function) -> str:
    """The hidden tests as HumanEval writes them: a `check(candidate)` of assertions."""
    run = evaluate(item.prompt + item.canonical_solution, item.entry_point)
    lines = [f"    assert candidate({value!r}) == {run(value)!r}" for value in (*item.inputs, *edge_inputs(item))]
    return "\n\nMETADATA = {}\n\n\ndef check(candidate):\n" + "\n".join(lines) + "\n"
