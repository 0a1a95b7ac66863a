"""A training document: text in segments, each marked as given (a prompt) or as something to be answered."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """A stretch of text; `answer` is true where a reader could have predicted it."""

    text: str
    answer: bool


@dataclass(frozen=True)
class Document:
    """Segments in order. Each boundary lies where the tokenizer's split pattern breaks anyway."""

    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)


def prompted(*pairs: tuple[str, str]) -> Document:
    """A document of (prompt, answer) pairs, as in a few-shot prompt."""
    return Document(tuple(Segment(text, k == 1) for pair in pairs for k, text in enumerate(pair)))
