"""Writes a SentencePiece model of pieces with scores, as the bytes that the library `sentencepiece` reads.

Source: sentencepiece_model.proto, whose numbers of fields and types these are.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

_BPE = 2


@dataclass(frozen=True)
class Piece:
    """A piece of the vocabulary; `kind` is normal 1, unknown 2, control 3, user-defined 4, unused 5 or byte 6."""

    name: str
    score: float
    kind: int


def sentencepiece_model(
    pieces: Sequence[Piece],
    *,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    byte_fallback: bool,
    charsmap: bytes = b"",
) -> bytes:
    """A BPE model. `charsmap` is its normalisation, none if it is empty."""
    written = [
        _field(1, _field(1, piece.name.encode()) + _tag(2, 5) + struct.pack("<f", piece.score) + _number(3, piece.kind))
        for piece in pieces
    ]
    trainer = _number(3, _BPE) + _number(35, byte_fallback)
    normalizer = _field(1, b"identity") + _field(2, charsmap) if charsmap else _field(1, b"identity")
    normalizer += _number(3, add_dummy_prefix) + _number(4, remove_extra_whitespaces) + _number(5, True)
    return b"".join((*written, _field(2, trainer), _field(3, normalizer)))


def _varint(value: int) -> bytes:
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def _tag(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _number(field: int, value: int) -> bytes:
    return _tag(field, 0) + _varint(int(value))


def _field(field: int, content: bytes) -> bytes:
    return _tag(field, 2) + _varint(len(content)) + content
