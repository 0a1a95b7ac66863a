"""A SentencePiece `tokenizer.model`, as Llama 1 and 2 have, in the library `sentencepiece` with its own rules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

from workbench.errors import MissingExtraError, TokenizerError
from workbench.text.engines.engine import AddedToken
from workbench.text.roles import Roles

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

_UNREADABLE = (
    "neither lines of base64 and rank, as Llama 3 has, nor a whole SentencePiece model, as Llama 1 and 2 have; "
    "download the file again."
)
_SPACE = "\u2581"  # stands for a space in a piece


class SentencePieceEngine:
    """Pieces of a SentencePiece model, and tokens that other files add to it.

    Control pieces such as `<s>` have no text of their own: they are encoded only with `allow_special`, and decoded by
    name.
    """

    def __init__(self, data: bytes, added: Sequence[AddedToken] = ()) -> None:
        """Raises: TokenizerError if the library cannot read it; MissingExtraError without the library."""
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise MissingExtraError("sentencepiece", "formats") from error
        self.model = data
        try:
            self._library: SentencePieceProcessor = SentencePieceProcessor(model_proto=data)
            self._size = int(self._library.vocab_size())
            self._pieces = [str(self._library.id_to_piece(token)) for token in range(self._size)]
        except (RuntimeError, ValueError, TypeError, OSError) as error:
            raise TokenizerError(_UNREADABLE) from error
        if not self._size:
            raise TokenizerError(_UNREADABLE)
        self._added: dict[int, AddedToken] = {}
        control = {self.name(i): i for i in range(self._size) if self._library.is_control(i)}
        self._added = self._beyond(added)
        special = {token.content: i for i, token in self._added.items() if token.special}
        self.special_tokens: Mapping[str, int] = control | special

    def name(self, token: int) -> str:
        return self._added[token].content if token in self._added else self._pieces[token]

    def _piece(self, name: str) -> int | None:
        token = int(self._library.piece_to_id(name))  # the unknown piece's if there is no such piece
        return token if 0 <= token < self._size and self.name(token) == name else None

    def _beyond(self, added: Sequence[AddedToken]) -> dict[int, AddedToken]:
        """Added tokens that the model does not have, by id; those without an id follow the others."""
        tokens: dict[int, AddedToken] = {}
        for token in added:
            if self._piece(token.content) is None:
                last = max((self._size - 1, *tokens))
                tokens[last + 1 if token.id is None else token.id] = token
        return tokens

    @property
    def roles(self) -> Roles:
        bos, eos, unk, pad = (
            None if token < 0 else int(token)
            for token in (
                self._library.bos_id(), self._library.eos_id(), self._library.unk_id(), self._library.pad_id(),
            )
        )  # fmt: skip
        stops = frozenset() if eos is None else frozenset({eos})
        return Roles(bos, eos, unk, pad, adds_bos=bos is not None, stop_ids=stops)

    @cached_property
    def ids(self) -> frozenset[int]:
        pieces = (token for token in range(self._size) if not self._library.is_unused(token))
        return frozenset((*pieces, *self._added))

    splits_at_lines = False  # a text begins with a space of its own

    def encode(self, text: str, allow_special: bool) -> list[int]:
        matched = self._any if allow_special else self._always
        if matched is None:
            return list(self._library.encode(text))
        ids: list[int] = []
        # The split puts text at even indices and tokens at odd ones.
        for i, part in enumerate(matched.split(text)):
            if i % 2:
                ids.append(self._named[part])
            elif part:
                ids += self._library.encode(part)
        return ids

    @cached_property
    def _named(self) -> dict[str, int]:
        return dict(self.special_tokens) | {token.content: i for i, token in self._added.items()}

    @cached_property
    def _any(self) -> re.Pattern[str] | None:
        return _pattern(self._named)

    @cached_property
    def _always(self) -> re.Pattern[str] | None:
        return _pattern([token.content for token in self._added.values() if not token.special])

    def decode(self, ids: Sequence[int]) -> str:
        """As the library decodes, but tokens without text by name."""
        if not self._names.keys() & set(ids):
            return str(self._library.decode(list(ids)))
        texts: list[str] = []
        started = False
        for named, run in groupby(ids, key=self._names.__contains__):
            if named:
                texts += (self._names[token] for token in run)
            else:  # the library removes the space before the first word of a text, not of a later run
                lead = [self._ordinary] if started else []
                text = str(self._library.decode([*lead, *run]))
                texts.append(text[len(self._library.decode(lead)) :] if started else text)
                started = True
        return "".join(texts)

    @cached_property
    def _ordinary(self) -> int:
        """Any piece that has a text of its own."""
        library = self._library
        others = (library.is_control, library.is_unknown, library.is_unused, library.is_byte)
        return next(token for token in range(self._size) if not any(other(token) for other in others))

    @cached_property
    def _names(self) -> dict[int, str]:
        return {token: name for name, token in self._named.items()}

    def token_bytes(self, token: int) -> bytes | None:
        if token in self._names:
            return self._names[token].encode()
        if token not in self.ids:
            return None
        if self._library.is_unknown(token):
            return str(self._library.decode([token])).encode()
        name = self.name(token)
        return bytes([int(name[3:5], 16)]) if self._library.is_byte(token) else name.replace(_SPACE, " ").encode()

    def token_id(self, name: str) -> int | None:
        return self._named.get(name, self._piece(name))

    def byte_id(self, byte: int) -> int | None:
        token = self.token_id(f"<0x{byte:02X}>")
        return token if token is not None and self._library.is_byte(token) else None


def _pattern(names: Mapping[str, int] | Sequence[str]) -> re.Pattern[str] | None:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
