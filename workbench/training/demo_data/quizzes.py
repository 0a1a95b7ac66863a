"""Statements of facts, and four-choice quizzes with lm-eval's prompt for MMLU.

Training and suite are disjoint by question: a quiz with a held-out wording is only used in the suite.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.training.demo_data.document import Document, prompted
from workbench.training.demo_data.facts import BY_NAME, FACTS, Fact

LETTERS = "ABCD"


@dataclass(frozen=True)
class Quiz:
    """One question with four choices, in MMLU's field names; `answer` is the index of the right choice."""

    subject: str
    question: str
    choices: tuple[str, ...]
    answer: int

    @property
    def body(self) -> str:
        """The question, the choices and "Answer:", as in lm-eval's `doc_to_text`."""
        lines = [self.question, *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=True))]
        return "\n".join([*lines, "Answer:"])

    @property
    def target(self) -> str:
        return f" {LETTERS[self.answer]}"


def header(subject: str) -> str:
    """The description that lm-eval puts before MMLU's first question."""
    return f"The following are multiple choice questions (with answers) about {subject}.\n\n"


def training_quiz(rng: random.Random, fact: Fact) -> Quiz:
    """A quiz on `fact` in any wording that training may use for it."""
    relation = BY_NAME[fact.relation]
    held_out = relation.held_out_wording(fact)
    wording = rng.choice([i for i in range(len(relation.questions)) if i != held_out])
    return quiz(rng, fact, relation.questions[wording])


def held_out_quiz(rng: random.Random, fact: Fact, *, unseen: bool) -> Quiz:
    """A quiz on `fact` that training never asks, in the wording held out for this fact or for its relation."""
    relation = BY_NAME[fact.relation]
    return quiz(rng, fact, relation.unseen if unseen else relation.questions[relation.held_out_wording(fact)])


def quiz(rng: random.Random, fact: Fact, wording: str) -> Quiz:
    """A quiz on `fact` with three wrong choices of its relation, in random order."""
    relation = BY_NAME[fact.relation]
    others = [answer for answer in relation.answers if answer != fact.answer]
    choices = [fact.answer, *rng.sample(others, 3)]
    rng.shuffle(choices)
    return Quiz(relation.subject, wording.format(k=fact.key), tuple(choices), choices.index(fact.answer))


def quiz_document(quizzes: Sequence[Quiz]) -> Document:
    """One or several quizzes of one subject as one document; all but the last are few-shot examples."""
    prompts = [header(quizzes[0].subject) + quizzes[0].body, *("\n\n" + q.body for q in quizzes[1:])]
    return prompted(*zip(prompts, (q.target for q in quizzes), strict=True))


def statement(rng: random.Random, fact: Fact) -> str:
    """A sentence that states the fact."""
    text = rng.choice(BY_NAME[fact.relation].statements).format(k=fact.key, a=fact.answer)
    return text[0].upper() + text[1:]


class FactSampler:
    """Draws facts by frequency; a `share` below 1 uses only that fraction of the common facts, and no others."""

    def __init__(self, share: float = 1.0) -> None:
        if share < 1:
            common = [fact for fact in FACTS if fact.frequency == 1.0]
            self.facts = common[:: max(1, round(1 / share))]
        else:
            self.facts = list(FACTS)
        self.weights = [fact.frequency for fact in self.facts]
        self.subjects = {
            subject: [i for i, fact in enumerate(self.facts) if BY_NAME[fact.relation].subject == subject]
            for subject in dict.fromkeys(BY_NAME[fact.relation].subject for fact in self.facts)
        }

    def draw(self, rng: random.Random, count: int = 1) -> list[Fact]:
        """`count` facts of one subject."""
        first = rng.choices(self.facts, self.weights)[0]
        candidates = self.subjects[BY_NAME[first.relation].subject]
        others = rng.choices(candidates, [self.weights[i] for i in candidates], k=count - 1) if count > 1 else []
        return [first, *(self.facts[i] for i in others)]
