"""True facts for the quizzes and statements of the demo checkpoint, with their frequency in training.

A `Relation` maps keys to answers ("France" -> "Paris") and has sentences that state it and wordings of its question;
they are in `facts.toml`. One wording per fact is held out from training (`held_out_wording`), and one per relation for
all its facts (`unseen`): the quiz suite uses these. This module knows nothing of prompts, choices or tokens.
"""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path


def stable_hash(key: str) -> int:
    """A hash that is the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True)
class Fact:
    """One key with its answer."""

    relation: str
    key: str
    answer: str

    @property
    def id(self) -> str:
        return f"{self.relation}|{self.key}"

    @property
    def frequency(self) -> float:
        """Relative frequency in training. Half are common, a quarter rare, so that there are errors to explain."""
        return (1.0, 1.0, 0.25, 0.05)[stable_hash("tier|" + self.id) % 4]


@dataclass(frozen=True)
class Relation:
    """Facts of one kind, with statements of them and wordings of their question."""

    name: str
    subject: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    unseen: str
    facts: tuple[Fact, ...]

    @property
    def answers(self) -> tuple[str, ...]:
        """The distinct answers; wrong choices are drawn from them."""
        return tuple(dict.fromkeys(fact.answer for fact in self.facts))

    def held_out_wording(self, fact: Fact) -> int:
        """Index of the question wording that training never uses for this fact."""
        return stable_hash("wording|" + fact.id) % len(self.questions)


def _read(path: Path) -> tuple[Relation, ...]:
    relations = []
    for entry in tomllib.loads(path.read_text(encoding="utf-8"))["relations"]:
        pairs = (pair.split(":") for pair in entry["facts"].replace("\n", " ").split(","))
        facts = tuple(Fact(entry["name"], key.strip(), answer.strip()) for key, answer in pairs)
        wordings = tuple(entry["statements"]), tuple(entry["questions"]), entry["unseen"]
        relations.append(Relation(entry["name"], entry["subject"], *wordings, facts))
    return tuple(relations)


RELATIONS = _read(Path(__file__).with_name("facts.toml"))
BY_NAME: dict[str, Relation] = {relation.name: relation for relation in RELATIONS}
FACTS: tuple[Fact, ...] = tuple(fact for relation in RELATIONS for fact in relation.facts)
SUBJECTS: tuple[str, ...] = tuple(dict.fromkeys(relation.subject for relation in RELATIONS))
