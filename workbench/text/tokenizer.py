"""Byte-level BPE with Llama 3's pattern and special tokens: text to ids and back.

It reads Meta's `tokenizer.model` (tiktoken ranks) and Hugging Face's `tokenizer.json` (the same ranks in another
format). It knows nothing of models, roles or turns: those are in `model.py` and `chat_format.py`.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import tiktoken

from workbench.errors import TokenizerError
from workbench.text.vocabulary_files import (
    LLAMA3_SPECIALS,
    NAMED_SPECIALS,
    Vocabulary,
    read_vocabulary,
    to_hf_json,
    with_meta_specials,
)

# The regex engine of tiktoken overflows its stack on very long input, and merging one very long piece is slow.
# Meta's reference encodes at most this many characters at once, and cuts longer runs of only white space or of none.
_MAX_CHARS = 400_000
_MAX_RUN = 25_000
_RUNS = re.compile(r"\s+|\S+")


class Tokenizer:
    """Encodes and decodes with one vocabulary; `from_file` is the usual constructor."""

    def __init__(self, vocabulary: Vocabulary, *, source: Path | None = None, sha256: str | None = None) -> None:
        self._vocabulary = vocabulary
        self._ranks = vocabulary.ranks
        self._special = vocabulary.special_tokens
        self._pattern = vocabulary.pattern
        self.source = source
        self.sha256 = sha256 or hashlib.sha256(self.to_tiktoken()).hexdigest()
        # Early Llama 3 files call <|eom_id|> and others "reserved"; their ids never changed.
        n = len(self._ranks)
        has_meta_layout = len(self._special) >= len(LLAMA3_SPECIALS) and self._special.get(LLAMA3_SPECIALS[0]) == n
        self._alias = {name: n + i for i, name in enumerate(NAMED_SPECIALS)} if has_meta_layout else {}

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """The tokenizer in a `tokenizer.model` or `tokenizer.json`, or in a directory that holds one.

        Raises: TokenizerError if there is no such file, or it is damaged or of another kind (SentencePiece).
        """
        file = find_tokenizer(path)
        if file is None:
            raise TokenizerError(f"{path}: no tokenizer.model or tokenizer.json in this directory.")
        data = file.read_bytes()
        return cls(read_vocabulary(data, file), source=file, sha256=hashlib.sha256(data).hexdigest())

    @classmethod
    def from_ranks(cls, ranks: dict[bytes, int]) -> Tokenizer:
        """A tokenizer from ranks, with Meta's 256 special tokens after them; its hash is that of `to_tiktoken()`."""
        return cls(with_meta_specials(ranks).check("the ranks"))

    def to_tiktoken(self) -> bytes:
        """The ranks as the content of a Meta `tokenizer.model`."""
        ordered = sorted(self._ranks, key=self._ranks.__getitem__)
        return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ordered))

    def to_hf_json(self) -> dict[str, Any]:
        """The same vocabulary as the content of a Hugging Face `tokenizer.json`."""
        return to_hf_json(self._vocabulary, bos=self.decode([self.bos_id]))

    @property
    def has_meta_specials(self) -> bool:
        """Whether `to_tiktoken` is complete: the special tokens are Meta's 256, directly after the ranks."""
        return bool(self._alias) and len(self._special) == len(LLAMA3_SPECIALS)

    # Built on first use: a model that only gets token ids does not need it.
    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        try:
            return tiktoken.Encoding(
                "workbench", pat_str=self._pattern, mergeable_ranks=self._ranks, special_tokens=self._special
            )
        except ValueError as error:
            raise TokenizerError(f"{self.source}: the split pattern is not valid ({error}).") from error

    @cached_property
    def _special_regex(self) -> re.Pattern[str]:
        names = sorted(self._special, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, names)) + ")")

    @property
    def vocab_size(self) -> int:
        """Number of ranks and special tokens."""
        return len(self._ranks) + len(self._special)

    @property
    def special_tokens(self) -> dict[str, int]:
        """Every special token's id, by name."""
        return dict(self._special)

    def special(self, name: str) -> int:
        """The id of a special token, for instance `<|eot_id|>`.

        Raises: TokenizerError if this vocabulary has no such token.
        """
        token = self._special.get(name, self._alias.get(name))
        if token is None:
            raise TokenizerError(f"This vocabulary has no special token {name!r}; it has {len(self._special)} others.")
        return token

    @property
    def bos_id(self) -> int:
        return self.special("<|begin_of_text|>")

    @property
    def eos_id(self) -> int:
        return self.special("<|end_of_text|>")

    @property
    def eot_id(self) -> int:
        return self.special("<|eot_id|>")

    @property
    def eom_id(self) -> int:
        return self.special("<|eom_id|>")

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end generation: end of text, of turn, of message."""
        names = ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>")
        ids = (self._special.get(name, self._alias.get(name)) for name in names)
        return frozenset(token for token in ids if token is not None)

    @property
    def pattern(self) -> str:
        """The regular expression that splits a text before merging."""
        return self._pattern

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, allow_special: bool = False) -> list[int]:
        """Token ids of a text; the text of a special token is plain text unless `allow_special`.

        Exact: equal to encoding in one piece, except for runs of more than 25,000 characters without white
            space, or of only white space, which are cut as in Meta's reference.
        """
        if not isinstance(text, str):
            raise TokenizerError(f"encode takes text, found {type(text).__name__}; use encode_bytes for bytes.")
        ids = [self.bos_id] if bos else []
        # The split puts plain text at even indices and special tokens at odd ones.
        for i, part in enumerate(self._special_regex.split(text) if allow_special else (text,)):
            if i % 2:
                ids.append(self._special[part])
            else:
                for piece in _chunks(part):
                    ids += self._encoding.encode_ordinary(piece)
        if eos:
            ids.append(self.eos_id)
        return ids

    def encode_bytes(self, data: bytes) -> list[int]:
        """Token ids of any bytes: valid UTF-8 as in `encode`, every other byte as a token of its own."""
        ids: list[int] = []
        while data:
            try:
                return ids + self.encode(data.decode("utf-8"))
            except UnicodeDecodeError as error:
                ids += self.encode(data[: error.start].decode("utf-8"))
                ids += (self._ranks[data[i : i + 1]] for i in range(error.start, error.end))
                data = data[error.end :]
        return ids

    def decode(self, ids: Iterable[int], *, errors: Literal["replace", "strict"] = "replace") -> str:
        """The text of token ids; special tokens appear by name.

        Raises: TokenizerError if an id is not in the vocabulary, or, with "strict", if the bytes are not
            UTF-8 (usually a character is cut in two); "replace" puts U+FFFD there.
        """
        data = self.decode_bytes(ids)
        try:
            return data.decode("utf-8", errors=errors)
        except UnicodeDecodeError as error:
            raise TokenizerError(
                f"The tokens are not UTF-8 at byte {error.start} ({error.reason}); "
                "decode with errors='replace' to see the rest."
            ) from error

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of token ids, joined."""
        return b"".join(self.tokens(ids))

    def tokens(self, ids: Iterable[int]) -> list[bytes]:
        """The bytes of each token; a single token may not be valid UTF-8."""
        return [self.token_bytes(token) for token in ids]

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token.

        Raises: TokenizerError if the id is not in the vocabulary.
        """
        token = int(token)
        if not 0 <= token < self.vocab_size:
            raise TokenizerError(f"Token id {token} is not in the vocabulary, which ends at {self.vocab_size - 1}.")
        return self._bytes[token]

    @cached_property
    def _bytes(self) -> list[bytes]:
        table = [b""] * self.vocab_size
        for token, rank in self._ranks.items():
            table[rank] = token
        for name, i in self._special.items():
            table[i] = name.encode()
        return table

    def __repr__(self) -> str:
        return f"Tokenizer({len(self._ranks)} ranks, {len(self._special)} special tokens, {self.source})"


def find_tokenizer(path: str | Path) -> Path | None:
    """The tokenizer file at a path: the file itself, or the one in a directory, preferring the directory's layout.

    Raises: TokenizerError if the path does not exist.
    """
    path = Path(path)
    if path.is_file():
        return path if path.suffix.lower() != ".gguf" else None
    if not path.is_dir():
        raise TokenizerError(f"{path}: no such file or directory.")
    # A Hugging Face directory may also hold Meta's file, but only its own file has the added tokens.
    names = ["tokenizer.model", "tokenizer.json", "original/tokenizer.model"]
    if (path / "config.json").is_file():
        names = ["tokenizer.json", "tokenizer.model", "original/tokenizer.model"]
    return next((path / name for name in names if (path / name).is_file()), None)


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
