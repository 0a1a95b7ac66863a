"""What a tokenizer's engine provides: text to ids and back, by one library, with one vocabulary.

An engine knows its own file. What its tokens are for (begin, end, end of turn) is in `roles.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from workbench.text.roles import Roles


@dataclass(frozen=True)
class AddedToken:
    """A token that a file adds to a vocabulary, with the flags of Hugging Face's `tokenizers`.

    A special token is matched in text only if the caller allows it, any other added token always.
    """

    content: str
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    id: int | None = None


class Engine(Protocol):
    """One vocabulary in one library."""

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Tokens that `encode` matches only with `allow_special`, by name."""

    @property
    def roles(self) -> Roles:
        """The roles that the vocabulary's own file states."""

    @property
    def ids(self) -> frozenset[int]:
        """Every id that has a token."""

    @property
    def splits_at_lines(self) -> bool:
        """Whether a text gives the same tokens if it is cut after a line break and before an ASCII letter."""

    def encode(self, text: str, allow_special: bool) -> list[int]:
        """Token ids of a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, all of them in the vocabulary."""

    def token_bytes(self, token: int) -> bytes | None:
        """The bytes of a token; None for an id without one."""

    def name(self, token: int) -> str:
        """The name of a token in the file, the inverse of `token_id`."""

    def token_id(self, name: str) -> int | None:
        """The id of a token by its name in the file; None if there is no such token."""

    def byte_id(self, byte: int) -> int | None:
        """The token of a single byte; None if there is none."""
