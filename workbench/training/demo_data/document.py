"""A training document: segments of text, each marked as prompt or answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """A piece of text; `answer` is true if it can be predicted from the text before it."""

    text: str
    answer: bool


@dataclass(frozen=True)
class Document:
    """Segments in order. Each boundary is one where the tokenizer's pattern splits anyway."""

    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)


def prompted(*pairs: tuple[str, str]) -> Document:
    """A document of (prompt, answer) pairs, as in a few-shot prompt."""
    return Document(tuple(Segment(text, k == 1) for pair in pairs for k, text in enumerate(pair)))
