"""Finds a checkpoint's tokenizer file, tells its kind from its first bytes, and reads it with the files next to it."""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import CheckpointError, TokenizerError
from workbench.file_problem import file_problem
from workbench.gguf_file import MAGIC, gguf_metadata
from workbench.small_files import read_bytes
from workbench.text.engines.engine import AddedToken, Engine
from workbench.text.engines.gguf_vocabulary import gguf_sha256, read_gguf_vocabulary
from workbench.text.engines.sentencepiece_engine import SentencePieceEngine
from workbench.text.engines.tiktoken_engine import TiktokenEngine
from workbench.text.engines.tokenizers_engine import TokenizersEngine
from workbench.text.roles import Roles
from workbench.text.side_files import SideFiles
from workbench.text.vocabulary_files import read_tiktoken, with_meta_specials

_RANK = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\s")
_LARGEST = 1 << 28  # bytes


@dataclass(frozen=True)
class ReadTokenizer:
    """A tokenizer file's engine, the roles of its tokens, and its hash."""

    engine: Engine
    roles: Roles
    sha256: str


def find_tokenizer(path: str | Path) -> Path | None:
    """The tokenizer file at a path: the file itself, or the one in a directory, preferring the directory's layout.

    Raises: TokenizerError if the path does not exist.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise TokenizerError(f"{path}: no such file or directory.")
    # A Hugging Face directory may also hold Meta's file, but only its own file has the added tokens.
    names = ["tokenizer.model", "tokenizer.json", "original/tokenizer.model"]
    if (path / "config.json").is_file():
        names = ["tokenizer.json", "tokenizer.model", "original/tokenizer.model"]
    return next((path / name for name in names if (path / name).is_file()), None)


def tokenizer_sha256(path: str | Path) -> str | None:
    """The hash of the tokenizer at a path, without reading it; None if there is none.

    Raises: TokenizerError if the path does not exist.
    """
    file = find_tokenizer(path)
    if file is None:
        return None
    return gguf_sha256(gguf_metadata(file)) if _is_gguf(file) else hashlib.sha256(_content(file)).hexdigest()


def read_tokenizer(file: Path, folder: Path | None) -> ReadTokenizer:
    """Read a tokenizer file, and the files next to it in `folder` if there is one.

    Raises: TokenizerError if a file cannot be read; MissingExtraError if its library is not installed.
    """
    if _is_gguf(file):
        return _read_gguf(file)
    data = _content(file)
    # Meta's file has its roles by name; only in Hugging Face's layout do other files say more.
    alone = folder is None or (_RANK.match(data) and not (folder / "config.json").is_file())
    side = None if folder is None or alone else SideFiles.read(folder)
    engine = _engine(data, file, side.tokens() if side else ())
    try:
        roles = side.roles(engine) if side else engine.roles
    except TokenizerError as error:
        raise TokenizerError(_in(file, error)) from None
    return ReadTokenizer(engine, roles, hashlib.sha256(data).hexdigest())


def _in(file: Path, error: Exception) -> str:
    """The message with the file's name first, if it names no file itself."""
    return str(error) if str(error).startswith(str(file.parent)) else f"{file}: {error}"


def _is_gguf(file: Path) -> bool:
    if problem := file_problem(file):
        raise TokenizerError(f"{file}: {problem}.")
    with file.open("rb") as content:
        return content.read(len(MAGIC)) == MAGIC


def _read_gguf(file: Path) -> ReadTokenizer:
    try:
        return ReadTokenizer(*read_gguf_vocabulary(gguf_metadata(file)))
    except (TokenizerError, CheckpointError) as error:
        raise TokenizerError(_in(file, error)) from None


def _engine(data: bytes, file: Path, added: Sequence[AddedToken]) -> Engine:
    data = data.removeprefix(codecs.BOM_UTF8)
    start = data[:512].lstrip()
    if _RANK.match(start):
        return TiktokenEngine(with_meta_specials(read_tiktoken(data, file)).check(file))
    try:
        if start[:1] == b"{" or file.suffix == ".json":
            return TokenizersEngine.from_json(_utf8(data), added)
        return SentencePieceEngine(data, added)
    except TokenizerError as error:
        raise TokenizerError(_in(file, error)) from None


def _utf8(data: bytes) -> bytes:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"not UTF-8 at byte {error.start}; the file is damaged.") from None
    return data


def _content(file: Path) -> bytes:
    return read_bytes(file, TokenizerError, largest=_LARGEST)
