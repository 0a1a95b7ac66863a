"""Meta's `tokenizer.model` in tiktoken: byte-level BPE with Llama 3's pattern and special tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property

import tiktoken

from workbench.errors import TokenizerError
from workbench.text.roles import Roles, meta_roles
from workbench.text.vocabulary_files import LLAMA3_PATTERN, Vocabulary

# The regex engine of tiktoken overflows its stack on very long input, and merging one very long piece is slow.
# Meta's reference encodes at most this many characters at once, and cuts longer runs of only white space or of none.
_MAX_CHARS = 400_000
_MAX_RUN = 25_000
_RUNS = re.compile(r"\s+|\S+")


class TiktokenEngine:
    """Equal to encoding in one piece, except for runs of more than 25,000 characters without white space, or of only
    white space, which are cut as in Meta's reference."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.special_tokens = vocabulary.special_tokens

    @property
    def roles(self) -> Roles:
        return meta_roles(self.special_tokens)

    @cached_property
    def ids(self) -> frozenset[int]:
        return frozenset((*self.vocabulary.ranks.values(), *self.special_tokens.values()))

    @property
    def splits_at_lines(self) -> bool:
        return self.vocabulary.pattern == LLAMA3_PATTERN

    # Built on first use: a model that only gets token ids does not need it.
    @cached_property
    def encoding(self) -> tiktoken.Encoding:
        try:
            return tiktoken.Encoding(
                "workbench",
                pat_str=self.vocabulary.pattern,
                mergeable_ranks=self.vocabulary.ranks,
                special_tokens=self.special_tokens,
            )
        except ValueError as error:
            raise TokenizerError(f"the split pattern of this vocabulary is not valid ({error}).") from error

    @cached_property
    def _special_regex(self) -> re.Pattern[str]:
        names = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, names)) + ")" if names else "(?!)")

    def encode(self, text: str, allow_special: bool) -> list[int]:
        ids: list[int] = []
        # The split puts plain text at even indices and special tokens at odd ones.
        for i, part in enumerate(self._special_regex.split(text) if allow_special else (text,)):
            if i % 2:
                ids.append(self.special_tokens[part])
            else:
                for piece in _chunks(part):
                    ids += self.encoding.encode_ordinary(piece)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self._bytes[token] for token in ids).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes | None:
        return self._bytes.get(token)

    def name(self, token: int) -> str:
        return self._bytes[token].decode("utf-8", "replace")

    def token_id(self, name: str) -> int | None:
        return self.special_tokens.get(name)

    def byte_id(self, byte: int) -> int | None:
        return self.vocabulary.ranks[bytes([byte])]

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        names = {token: name.encode() for name, token in self.special_tokens.items()}
        return {rank: token for token, rank in self.vocabulary.ranks.items()} | names


def _chunks(text: str) -> Iterator[str]:
    """Cut a text into chunks that are short enough for tiktoken."""
    start = 0
    while len(text) - start > _MAX_CHARS:
        stop = _safe_cut(text, start, start + _MAX_CHARS)
        yield from _cut_runs(text[start:stop])
        start = stop
    yield from _cut_runs(text[start:])


def _safe_cut(text: str, start: int, stop: int) -> int:
    """The last index before `stop` where the pattern always splits, or `stop` if there is none.

    No alternative of Llama 3's pattern matches a space after a character that is not white space, or a line
    break after a letter or digit.
    """
    for i in range(stop - 1, start, -1):
        before = text[i - 1]
        if (text[i] == " " and not before.isspace()) or (text[i] == "\n" and before.isalnum()):
            return i
    return stop


def _cut_runs(text: str) -> Iterator[str]:
    if len(text) <= _MAX_RUN:
        yield text
        return
    start = 0
    for run in _RUNS.finditer(text):
        for cut in range(run.start() + _MAX_RUN, run.end(), _MAX_RUN):
            yield text[start:cut]
            start = cut
    yield text[start:]
