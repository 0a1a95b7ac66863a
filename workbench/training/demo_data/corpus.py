"""Training text of the demo checkpoint: documents of several kinds in fixed shares, packed into sequences of tokens.

Every batch is a function of (seed, step) only, so training resumes at any step with the same text. No item of the
embedded suites can appear: each kind of document has a held-out part that only `suites.py` uses.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workbench.training.demo_data import functions, problems
from workbench.training.demo_data.document import Document, Segment, prompted
from workbench.training.demo_data.quizzes import FactSampler, quiz_document, statement, training_quiz

KINDS = ("quiz", "statement", "problem", "equation", "function", "repeat")
Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Mix:
    """Composition of the training text of a stage.

    `shares` is each kind's fraction of the documents; `facts` the fraction of the common facts in use (1 adds the
    uncommon and rare ones); `shots` the fraction of quizzes and problems with several items in a document.
    """

    shares: Mapping[str, float]
    facts: float = 1.0
    shots: float = 0.2


@dataclass(frozen=True)
class Rows:
    """A batch: `tokens` [row, pos + 1], and whether each predicted token is in an answer, `answer` [row, pos]."""

    tokens: npt.NDArray[np.int64]
    answer: npt.NDArray[np.bool_]


class Corpus:
    """Documents of one mix."""

    def __init__(self, mix: Mix) -> None:
        unknown = set(mix.shares) - set(KINDS)
        if unknown:
            raise ValueError(f"unknown kinds of document {sorted(unknown)}; the kinds are {KINDS}")
        self.mix = mix
        self.sampler = FactSampler(mix.facts)
        self.kinds, self.weights = list(mix.shares), list(mix.shares.values())

    def document(self, rng: random.Random) -> Document | None:
        """The next document; None for a repeated sequence, which is made of tokens, not of text."""
        kind = rng.choices(self.kinds, self.weights)[0]
        if kind == "quiz":
            count = rng.randint(2, 5) if rng.random() < self.mix.shots else 1
            return quiz_document([training_quiz(rng, fact) for fact in self.sampler.draw(rng, count)])
        if kind == "statement":
            facts = self.sampler.draw(rng, rng.randint(1, 4))
            return Document((Segment(" ".join(statement(rng, fact) for fact in facts), True),))
        if kind == "problem":
            count = 2 if rng.random() < self.mix.shots else 1
            items = [problems.drawn_from(rng, held_out=False) for _ in range(count)]
            return prompted(*(("\n\n" * (i > 0) + item.prompt, item.target) for i, item in enumerate(items)))
        if kind == "equation":
            return problems.equations(rng, rng.randint(4, 16))
        if kind == "function":
            item = functions.drawn_from(rng, held_out=False)
            return prompted((item.prompt, item.canonical_solution))
        return None

    def documents(self, rng: random.Random) -> Iterator[Document]:
        """Endless documents, without repeated sequences."""
        while True:
            document = self.document(rng)
            if document is not None:
                yield document


def repeated(rng: random.Random, vocabulary: int, length: int) -> tuple[list[int], list[bool]]:
    """A random sequence of tokens, repeated up to `length`; only the repetitions can be predicted."""
    period = rng.randint(8, 40)
    first = [rng.randrange(vocabulary) for _ in range(period)]
    ids = [first[i % period] for i in range(length)]
    return ids, [i >= period for i in range(length)]


@dataclass(frozen=True)
class Packer:
    """Packs documents into sequences of tokens: each starts with a document, and only its last document may be cut.

    `bos` and `eos` surround every document; ids below `vocabulary` are ordinary tokens.
    """

    encode: Encode
    bos: int
    eos: int
    vocabulary: int
    length: int

    def rows(self, corpus: Corpus, rng: random.Random, count: int) -> Rows:
        """Shapes: -> tokens [count, length + 1], answer [count, length]."""
        tokens = np.empty((count, self.length + 1), np.int64)
        answer = np.empty((count, self.length + 1), np.bool_)
        for r in range(count):
            ids: list[int] = []
            flags: list[bool] = []
            while len(ids) <= self.length:
                document = corpus.document(rng)
                if document is None:
                    new, known = repeated(rng, self.vocabulary, rng.randint(32, 128))
                    pieces: Sequence[tuple[list[int], list[bool]]] = [(new, known)]
                else:
                    encoded = [(self.encode(segment.text), segment.answer) for segment in document.segments]
                    pieces = [(part, [flag] * len(part)) for part, flag in encoded]
                ids.append(self.bos)
                flags.append(False)
                for part, known in pieces:
                    ids += part
                    flags += known
                ids.append(self.eos)
                flags.append(True)
            tokens[r], answer[r] = ids[: self.length + 1], flags[: self.length + 1]
        return Rows(tokens, answer[:, 1:])


def batch_rng(seed: int, step: int) -> random.Random:
    """The random generator for one step's text."""
    return random.Random(f"{seed}|{step}")
