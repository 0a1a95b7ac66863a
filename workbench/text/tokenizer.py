"""`Tokenizer`: text to token ids and back, for every kind of tokenizer file.

Behind it is the library that the file was made for: tiktoken for Meta's `tokenizer.model`, `tokenizers` for a
`tokenizer.json`, `sentencepiece` for the `tokenizer.model` of Llama 1 and 2, and one of the last two for a GGUF file.
It knows nothing of models or turns: those are in `model.py` and in the modules of chat.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from workbench.errors import TokenizerError
from workbench.text.engines.engine import Engine
from workbench.text.engines.sentencepiece_engine import SentencePieceEngine
from workbench.text.engines.tiktoken_engine import TiktokenEngine
from workbench.text.engines.tokenizers_engine import TokenizersEngine
from workbench.text.roles import LLAMA3_SPECIALS, Roles, meta_names
from workbench.text.tokenizer_files import find_tokenizer, read_tokenizer
from workbench.text.vocabulary_files import Vocabulary, begin_template, from_hf_json, to_hf_json, with_meta_specials

__all__ = ["Tokenizer", "find_tokenizer"]


class Tokenizer:
    """Encodes and decodes with one vocabulary; `from_file` is the usual constructor."""

    def __init__(
        self, engine: Engine, roles: Roles | None = None, *, source: Path | None = None, sha256: str = ""
    ) -> None:
        self._engine = engine
        self._roles = engine.roles if roles is None else roles
        self._alias = meta_names(engine.special_tokens)
        self.source = source
        self.sha256 = sha256

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """The tokenizer in a `tokenizer.model`, `tokenizer.json` or GGUF file, or in a directory that holds one.

        In a directory the files next to it (tokenizer_config.json, generation_config.json and others) say what the
        tokens are for; a file by itself is read alone.
        Raises: TokenizerError if there is no such file, or it cannot be read; MissingExtraError if its library is
            not installed.
        """
        file = find_tokenizer(path)
        if file is None:
            raise TokenizerError(f"{path}: no tokenizer.model or tokenizer.json in this directory.")
        read = read_tokenizer(file, Path(path) if Path(path).is_dir() else None)
        return cls(read.engine, read.roles, source=file, sha256=read.sha256)

    @classmethod
    def from_vocabulary(cls, vocabulary: Vocabulary) -> Tokenizer:
        """A tokenizer from ranks and special tokens; its hash is that of `to_tiktoken()`."""
        return cls(TiktokenEngine(vocabulary), sha256=hashlib.sha256(_tiktoken_file(vocabulary)).hexdigest())

    @classmethod
    def from_ranks(cls, ranks: dict[bytes, int]) -> Tokenizer:
        """A tokenizer from ranks, with Meta's 256 special tokens after them; its hash is that of `to_tiktoken()`."""
        return cls.from_vocabulary(with_meta_specials(ranks).check("the ranks"))

    # --- conversion

    def to_tiktoken(self) -> bytes:
        """The vocabulary as the content of a Meta `tokenizer.model`, without its special tokens.

        Raises: TokenizerError if that file would encode otherwise.
        """
        return _tiktoken_file(self._vocabulary)

    def to_hf_json(self) -> dict[str, Any]:
        """The tokenizer as the content of a Hugging Face `tokenizer.json`.

        Raises: TokenizerError for a SentencePiece model.
        """
        if isinstance(self._engine, TokenizersEngine):
            content = self._engine.to_json()
            if self.adds_bos and content.get("post_processor") is None:
                bos = self._need("bos_id")
                content["post_processor"] = begin_template(self.name(bos), bos)
            return content
        return to_hf_json(self._vocabulary, bos=self.decode([self._need("bos_id")]))

    @property
    def has_meta_specials(self) -> bool:
        """Whether `to_tiktoken` is complete: the special tokens are Meta's 256, directly after the ranks."""
        if not self._alias or len(self.special_tokens) != len(LLAMA3_SPECIALS):
            return False
        try:
            return len(self._vocabulary.ranks) == self._alias[LLAMA3_SPECIALS[0]]
        except TokenizerError:
            return False

    def to_sentencepiece(self) -> bytes:
        """The content of a SentencePiece model's file. Raises: TokenizerError for any other tokenizer."""
        if not isinstance(self._engine, SentencePieceEngine):
            raise TokenizerError(f"{self.source}: not a SentencePiece model, and cannot be written as one.")
        return self._engine.model

    @property
    def is_sentencepiece(self) -> bool:
        """Whether the file is a SentencePiece model, which has no other form."""
        return isinstance(self._engine, SentencePieceEngine)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        if isinstance(self._engine, TiktokenEngine):
            return self._engine.vocabulary
        if isinstance(self._engine, TokenizersEngine):
            return from_hf_json(self._engine.to_json(), self.source or "this tokenizer")
        raise TokenizerError(f"{self.source}: a SentencePiece model cannot be written as another tokenizer file.")

    # --- tokens and their roles

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id; an id below it may have no token."""
        return 1 + max(self._engine.ids, default=-1)

    def has_token(self, token: int) -> bool:
        """Whether the id has a token; padded rows of the embedding and holes in a vocabulary have none."""
        return token in self._engine.ids

    @property
    def special_tokens(self) -> dict[str, int]:
        """Every special token's id, by name."""
        return dict(self._engine.special_tokens)

    def special(self, name: str) -> int:
        """The id of a special or added token, for instance `<|eot_id|>`.

        Raises: TokenizerError if this vocabulary has no such token.
        """
        token = self._engine.special_tokens.get(name, self._alias.get(name))
        token = self._engine.token_id(name) if token is None else token
        if token is None:
            n = len(self._engine.special_tokens)
            raise TokenizerError(f"This vocabulary has no special token {name!r}; it has {n} others.")
        return token

    def name(self, token: int) -> str:
        """The name of a token in its file: of `<s>`, also where its text is another."""
        return self._engine.name(token)

    @property
    def bos_id(self) -> int | None:
        """The begin token, if the files state one; whether a text starts with it says `adds_bos`."""
        return self._roles.bos_id

    @property
    def eos_id(self) -> int | None:
        return self._roles.eos_id

    @property
    def eot_id(self) -> int | None:
        """The end of a turn, as the chat format writes it."""
        return self._roles.eot_id

    @property
    def eom_id(self) -> int | None:
        """The end of a message that expects a tool's answer."""
        return self._roles.eom_id

    @property
    def unk_id(self) -> int | None:
        return self._roles.unk_id

    @property
    def pad_id(self) -> int | None:
        return self._roles.pad_id

    @property
    def adds_bos(self) -> bool:
        """Whether a text starts with the begin token, by the checkpoint's files."""
        return self._roles.adds_bos and self._roles.bos_id is not None

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end a generated text: those of `eos_token_id`, and the ends of turn."""
        return self._roles.stop_ids

    @property
    def prefix_id(self) -> int:
        """The token that an empty context gets: begin, or end if there is no begin.

        Raises: TokenizerError if there is neither.
        """
        return self._need("bos_id" if self.bos_id is not None else "eos_id")

    @property
    def chat_template(self) -> str | None:
        """The source of the checkpoint's own chat template, None if it has none."""
        return self._roles.chat_template

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """The sources of the checkpoint's chat templates, by name."""
        return self._roles.chat_templates

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of these files, in sentences."""
        return self._roles.notes

    @property
    def splits_at_lines(self) -> bool:
        """Whether a text gives the same tokens if it is cut after a line break and before an ASCII letter."""
        return self._engine.splits_at_lines

    def _need(self, role: Literal["bos_id", "eos_id"]) -> int:
        token = getattr(self._roles, role)
        if token is None:
            name = {"bos_id": "begin", "eos_id": "end"}[role]
            raise TokenizerError(f"The files of this tokenizer do not say which token is the {name} token.")
        return int(token)

    # --- text to ids

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, allow_special: bool = False) -> list[int]:
        """Token ids of a text; the text of a special token is plain text unless `allow_special`.

        bos: put the begin token first, if the checkpoint's files say that a text starts with it (`adds_bos`).
        Exact: equal to the library of the file. Meta's `tokenizer.model` is cut as in Meta's reference: runs of more
            than 25,000 characters without white space, or of only white space.
        """
        if not isinstance(text, str):
            raise TokenizerError(f"encode takes text, found {type(text).__name__}; use encode_bytes for bytes.")
        begin = [self._need("bos_id")] if bos and self.adds_bos else []
        ids = self._engine.encode(_without_surrogates(text), allow_special) if text else []
        return [*begin, *ids, *([self._need("eos_id")] if eos else [])]

    def encode_continuation(self, text: str) -> list[int]:
        """Token ids of a text that follows other text: without the space that some vocabularies put before a text."""
        if not text or not self._adds_space:
            return self.encode(text)
        for before in ("\n", ".", "0"):
            start, whole = self.encode(before), self.encode(before + text)
            if whole[: len(start)] == start:
                return whole[len(start) :]
        return self.encode(text)

    @cached_property
    def _adds_space(self) -> bool:
        return self.decode_bytes(self.encode("a")) == b" a"

    def encode_bytes(self, data: bytes) -> list[int]:
        """Token ids of any bytes: valid UTF-8 as in `encode`, every other byte as a token of its own.

        Like `encode_continuation`, it adds no space.
        Raises: TokenizerError if the vocabulary has no token for such a byte.
        """
        ids: list[int] = []
        while data:
            try:
                return ids + self.encode_continuation(data.decode("utf-8"))
            except UnicodeDecodeError as error:
                ids += self.encode_continuation(data[: error.start].decode("utf-8"))
                for byte in data[error.start : error.end]:
                    token = self._engine.byte_id(byte)
                    if token is None:
                        raise TokenizerError(f"This vocabulary has no token for the byte 0x{byte:02X}.") from None
                    ids.append(token)
                data = data[error.end :]
        return ids

    # --- ids to text

    def decode(self, ids: Iterable[int], *, errors: Literal["replace", "strict"] = "replace") -> str:
        """The text of token ids, as the file's library writes it; special tokens appear by name.

        Raises: TokenizerError if an id is not in the vocabulary, or, with "strict", if the bytes are not
            UTF-8 (usually a character is cut in two); "replace" puts U+FFFD there.
        """
        ids = list(map(int, ids))
        unknown = set(ids) - self._engine.ids
        if unknown:
            raise self._unknown(min(unknown))
        if errors == "strict":
            try:
                b"".join(self.tokens(ids)).decode("utf-8")
            except UnicodeDecodeError as error:
                raise TokenizerError(
                    f"The tokens are not UTF-8 at byte {error.start} ({error.reason}); "
                    "decode with errors='replace' to see the rest."
                ) from error
        return self._engine.decode(ids) if ids else ""

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of token ids, joined; other than in `decode`, a text may start with the space of its first word."""
        return b"".join(self.tokens(ids))

    def tokens(self, ids: Iterable[int]) -> list[bytes]:
        """The bytes of each token; a single token may not be valid UTF-8."""
        return [self.token_bytes(token) for token in ids]

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token adds to a text.

        Raises: TokenizerError if the id is not in the vocabulary.
        """
        data = self._engine.token_bytes(int(token))
        if data is None:
            raise self._unknown(int(token))
        return data

    def _unknown(self, token: int) -> TokenizerError:
        if 0 <= token < self.vocab_size:
            return TokenizerError(f"Token id {token} has no token in this vocabulary.")
        return TokenizerError(f"Token id {token} is not in the vocabulary, which ends at {self.vocab_size - 1}.")

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size} ids, {len(self._engine.special_tokens)} special tokens, {self.source})"


def _tiktoken_file(vocabulary: Vocabulary) -> bytes:
    ordered = sorted(vocabulary.ranks, key=vocabulary.ranks.__getitem__)
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ordered))


def _without_surrogates(text: str) -> str:
    """The text with U+FFFD for half characters, which no library takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
