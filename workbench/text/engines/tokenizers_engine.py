"""Hugging Face's `tokenizer.json` in the library `tokenizers`: all of its normalisers, splittings and models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from workbench.errors import TokenizerError
from workbench.text.engines.engine import AddedToken
from workbench.text.roles import Roles, meta_names, meta_roles
from workbench.text.vocabulary_files import LLAMA3_PATTERN, byte_characters, is_plain_byte_level

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

_BYTE_NAME = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ADDED_TOKENS = re.compile(rb'"added_tokens"\s*:\s*\[')
_MAX_ID = (1 << 32) - 1  # the library's ids have 32 bits


class TokenizersEngine:
    """A `tokenizers.Tokenizer` behind the interface of an engine."""

    def __init__(self, library: Library, notes: tuple[str, ...] = ()) -> None:
        self._plain, self._notes = library, notes
        library.no_truncation()
        library.no_padding()
        library.encode_special_tokens = True
        self.added = {i: token for i, token in sorted(library.get_added_tokens_decoder().items())}
        self.special_tokens = {token.content: i for i, token in self.added.items() if token.special}

    @classmethod
    def from_json(cls, data: bytes, added: Sequence[AddedToken] = ()) -> TokenizersEngine:
        """The tokenizer in the content of a `tokenizer.json`, with tokens that other files add to it.

        Raises: TokenizerError if the library cannot read it.
        """
        from tokenizers import Tokenizer as Library

        with library_errors("the library tokenizers cannot read it"):
            library = Library.from_buffer(data)
            notes = _other_ids(library, data)
            _add(library, added)
            return cls(library, notes)

    # The switch is part of the library's object: two objects, so that threads do not see each other's.
    @cached_property
    def _parsing(self) -> Library:
        from tokenizers import Tokenizer as Library

        library = Library.from_str(self._plain.to_str())
        library.encode_special_tokens = False
        return library

    @property
    def roles(self) -> Roles:
        meta = meta_roles(self.special_tokens)
        begin = self._begin
        return Roles(
            meta.bos_id if begin is None else begin,
            meta.eos_id,
            self._unknown,
            meta.pad_id if meta_names(self.special_tokens) else None,
            meta.eot_id,
            meta.eom_id,
            begin is not None,
            meta.stop_ids,
            notes=self._notes,
        )

    @cached_property
    def _begin(self) -> int | None:
        """The token that the post-processor puts before a text."""
        state = _state(self._plain.post_processor)
        for step in state.get("processors") or [state]:
            if step.get("type") == "TemplateProcessing" and step.get("single"):
                first = step["single"][0].get("SpecialToken")
                if first is not None:
                    ids = step["special_tokens"].get(first["id"], {}).get("ids") or [-1]
                    return self._existing(int(ids[0]))
            if step.get("type") in ("BertProcessing", "RobertaProcessing"):
                return self._existing(int(step["cls"][1]))
        return None

    def _existing(self, token: int) -> int:
        if self.token_bytes(token) is None:
            raise TokenizerError("the post-processor puts a token before a text that the vocabulary does not have.")
        return token

    @property
    def _unknown(self) -> int | None:
        name = getattr(self._plain.model, "unk_token", None)
        return None if name is None else self.token_id(name)

    @cached_property
    def ids(self) -> frozenset[int]:
        return frozenset(self._plain.get_vocab(with_added_tokens=True).values())

    @cached_property
    def splits_at_lines(self) -> bool:
        steps = list(_steps(_state(self._plain.pre_tokenizer), "pretokenizers"))
        split = {"type": "Split", "pattern": {"Regex": LLAMA3_PATTERN}, "behavior": "Isolated", "invert": False}
        return (
            len(steps) == 2
            and steps[0] == split
            and is_plain_byte_level(steps[1])
            and self._plain.normalizer is None
            and not any(token.lstrip or token.rstrip or "\n" in token.content for token in self.added.values())
        )

    def encode(self, text: str, allow_special: bool) -> list[int]:
        with library_errors("the text cannot be encoded"):
            library = self._parsing if allow_special else self._plain
            # The batch without offsets takes two thirds of the time of `encode`.
            return list(library.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def decode(self, ids: Sequence[int]) -> str:
        with library_errors("the tokens cannot be decoded"):
            return str(self._plain.decode(ids, skip_special_tokens=False))

    def to_json(self) -> dict[str, Any]:
        """The content of its `tokenizer.json`."""
        content: dict[str, Any] = json.loads(self._plain.to_str())
        return content

    def name(self, token: int) -> str:
        return str(self._plain.id_to_token(token))

    def token_id(self, name: str) -> int | None:
        return self._plain.token_to_id(name)

    def byte_id(self, byte: int) -> int | None:
        names = [self._characters[byte]] if self._byte_level else [f"<0x{byte:02X}>", f"<0x{byte:02x}>"]
        return next((token for name in names if (token := self._plain.token_to_id(name)) is not None), None)

    def token_bytes(self, token: int) -> bytes | None:
        added = self.added.get(token)
        if added is not None:
            return str(added.content).encode()
        name = self._plain.id_to_token(token) if 0 <= token <= _MAX_ID else None
        if name is None:
            return None
        if self._byte_level:
            data = [self._bytes.get(character) for character in name]
            return name.encode() if None in data else bytes(byte for byte in data if byte is not None)
        if self._byte_fallback and (match := _BYTE_NAME.fullmatch(name)):
            return bytes([int(match[1], 16)])
        return self._middle(name).encode()

    def _middle(self, name: str) -> str:
        """What a token adds to a text between two others, by the library's own decoder."""
        decoder = self._plain.decoder
        if decoder is None:
            return f" {name}"
        with library_errors("the tokens cannot be decoded"):
            before, both = decoder.decode(["a"]), decoder.decode(["a", "a"])
            return str(decoder.decode(["a", name, "a"])[len(before) : len(before) - len(both) or None])

    @cached_property
    def _decoder_kinds(self) -> set[str]:
        return {step.get("type", "") for step in _steps(_state(self._plain.decoder), "decoders")}

    @cached_property
    def _byte_level(self) -> bool:
        if self._plain.decoder is not None:
            return "ByteLevel" in self._decoder_kinds
        steps = _steps(_state(self._plain.pre_tokenizer), "pretokenizers")
        return any(step.get("type") == "ByteLevel" for step in steps)

    @cached_property
    def _byte_fallback(self) -> bool:
        return "ByteFallback" in self._decoder_kinds

    _bytes = byte_characters()
    _characters = {byte: character for character, byte in _bytes.items()}


@contextmanager
def library_errors(problem: str) -> Iterator[None]:
    """Raise a TokenizerError for whatever the library raises, its panics included, which are no `Exception`."""
    try:
        yield
    except (TokenizerError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split()).removeprefix("Cannot instantiate Tokenizer from buffer: ")[:160]
        reason = reason or type(error).__name__
        raise TokenizerError(f"{problem} ({reason}).") from None


def _other_ids(library: Library, data: bytes) -> tuple[str, ...]:
    """A note on added tokens that the library numbers otherwise than the file: it leaves no holes."""
    start = _ADDED_TOKENS.search(data)
    if start is None:
        return ()
    entries, _ = json.JSONDecoder().raw_decode(data[start.end() - 1 :].decode())
    others = [
        f"{entry['content'][:40]!r}, {token} for {entry['id']}"
        for entry in entries
        if (token := library.token_to_id(entry["content"])) != entry["id"]
    ]
    if not others:
        return ()
    return (
        f"{len(others)} added tokens have another id than the file says (first: {others[0]}); the library tokenizers, "
        "and with it transformers, numbers them so.",
    )


def _add(library: Library, tokens: Sequence[AddedToken]) -> None:
    """Add tokens of other files as transformers does: those that differ from what the library has, in order of id."""
    from tokenizers import AddedToken as LibraryToken

    present = {repr(token) for token in library.get_added_tokens_decoder().values()}
    names = {token.content for token in library.get_added_tokens_decoder().values()}
    for token in tokens:
        entry = LibraryToken(
            token.content, single_word=token.single_word, lstrip=token.lstrip, rstrip=token.rstrip,
            normalized=token.normalized, special=token.special,
        )  # fmt: skip
        if repr(entry) in present or (token.id is None and token.content in names):
            continue
        (library.add_special_tokens if token.special else library.add_tokens)([entry])


def _state(part: Any) -> dict[str, Any]:
    """A part of the library's tokenizer as `tokenizer.json` has it; empty if there is none."""
    if part is None:
        return {}
    state: dict[str, Any] = json.loads(part.__getstate__())
    return state


def _steps(state: dict[str, Any], key: str) -> Iterator[dict[str, Any]]:
    """The steps of a part, also of a sequence in a sequence."""
    if state.get("type") == "Sequence":
        for step in state.get(key) or []:
            yield from _steps(step, key)
    elif state:
        yield state
