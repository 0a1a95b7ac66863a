"""Llama 3's vocabulary as ranks: Meta's `tokenizer.model`, and conversion to and from a `tokenizer.json`.

Text is encoded in `tiktoken_engine.py` and `tokenizers_engine.py`.
"""

from __future__ import annotations

import base64
import binascii
import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import TokenizerError
from workbench.text.roles import LLAMA3_SPECIALS

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Vocabulary:
    """Byte strings with ranks 0..n-1, special tokens from n on, and the pattern that splits text before merging."""

    ranks: dict[bytes, int]
    special_tokens: dict[str, int]
    pattern: str = LLAMA3_PATTERN

    def check(self, source: object) -> Vocabulary:
        """Check the vocabulary, and return it.

        Raises: TokenizerError if ranks or special tokens have a gap, or a single byte has no rank.
        """
        n, m = len(self.ranks), len(self.special_tokens)
        if sorted(self.ranks.values()) != list(range(n)):
            raise TokenizerError(f"{source}: the {n} ranks are not 0..{n - 1}, each once; the file is damaged.")
        missing = [b for b in range(256) if bytes([b]) not in self.ranks]
        if missing:
            raise TokenizerError(f"{source}: {len(missing)} of the 256 bytes have no rank (first: {missing[0]}).")
        if sorted(self.special_tokens.values()) != list(range(n, n + m)):
            raise TokenizerError(f"{source}: the ids of the {m} special tokens do not follow the {n} ranks.")
        return self


def with_meta_specials(ranks: dict[bytes, int]) -> Vocabulary:
    """Ranks with Meta's 256 special tokens after them."""
    return Vocabulary(ranks, {name: len(ranks) + i for i, name in enumerate(LLAMA3_SPECIALS)})


def to_hf_json(vocabulary: Vocabulary, *, bos: str) -> dict[str, Any]:
    """A vocabulary as the content of a `tokenizer.json`, which puts `bos` first as Llama 3's does.

    Every split of a token into two ranked parts is a merge, as in tiktoken; merges are in the order of the result's
    rank.
    """
    ranks = vocabulary.ranks
    spelling = {byte: character for character, byte in byte_characters().items()}
    ordered = sorted(ranks, key=ranks.__getitem__)
    vocab = {token.decode("latin-1").translate(spelling): ranks[token] for token in ordered}
    n, names = len(vocab), list(vocab)
    codes: list[int] = []  # of both halves as one number, which is faster than pairs
    for token in names:  # a character is a byte; most tails are no token
        cuts = [i for i in range(1, len(token)) if token[i:] in vocab and token[:i] in vocab]
        codes += sorted([vocab[token[:i]] * n + vocab[token[i:]] for i in cuts])
    with _collector_paused():
        merges = [[names[code // n], names[code % n]] for code in codes]
    added = [
        {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for name, i in sorted(vocabulary.special_tokens.items(), key=lambda item: item[1])
    ]
    split = {"type": "Split", "pattern": {"Regex": vocabulary.pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": begin_template(bos, vocabulary.special_tokens[bos]),
        "decoder": byte_level | {"add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": vocab,
            "merges": merges,
        },
    }


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the garbage collector: it walks through hundreds of thousands of new lists again and again, for nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def begin_template(name: str, token: int) -> dict[str, Any]:
    """The post-processor of a `tokenizer.json` that puts a begin token before a text."""
    single = [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]}},
    }


def read_tiktoken(data: bytes, source: Path) -> dict[bytes, int]:
    """The ranks in the content of Meta's `tokenizer.model`.

    Raises: TokenizerError if it is damaged.
    """
    ranks: dict[bytes, int] = {}
    lines = data.splitlines()
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise TokenizerError(
                f"{source}: line {number} is not 'base64 rank', found {line[:40]!r}; the file is damaged."
            ) from error
    if len(ranks) != sum(1 for line in lines if line):
        raise TokenizerError(f"{source}: it has the same token twice; the file is damaged.")
    return ranks


def byte_characters() -> dict[str, int]:
    """GPT-2's mapping of bytes to printable characters, which `tokenizer.json` uses."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def from_hf_json(spec: Mapping[str, Any], source: object) -> Vocabulary:
    """Ranks that encode exactly as a `tokenizer.json` does, for a conversion to Meta's file.

    Raises: TokenizerError if there are none: it splits, merges or normalises in a way that Meta's file cannot state.
    """
    try:
        return _from_hf_json(spec).check("its vocabulary")
    except TokenizerError as error:
        raise TokenizerError(f"{source}: cannot be written as Meta's tokenizer.model; {error}") from None


def _from_hf_json(spec: Mapping[str, Any]) -> Vocabulary:
    model = spec["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = "SentencePiece BPE" if model.get("byte_fallback") else model.get("type")
        raise TokenizerError(f"Llama 3 has a byte-level BPE vocabulary, found {kind}.")
    if spec.get("normalizer") is not None:
        raise TokenizerError("it has a normalizer; Llama 3 does not normalise text.")
    names = [entry["content"] for entry in spec["added_tokens"] if not entry["special"]]
    if names:
        raise TokenizerError(f"{len(names)} added tokens are not special (first: {names[0][:40]!r}).")
    added = {entry["content"]: entry["id"] for entry in spec["added_tokens"]}
    spelled = byte_characters()
    ranks: dict[bytes, int] = {}
    for text, i in model["vocab"].items():
        if added.get(text) == i:  # some files also list the special tokens in the vocabulary
            continue
        try:
            ranks[bytes(spelled[c] for c in text)] = i
        except KeyError:
            raise TokenizerError(f"the token {text[:40]!r} (id {i}) is not in the byte-level alphabet.") from None
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    _check_merges(merges, model["vocab"])
    if not model.get("ignore_merges"):
        lonely = {text for text in model["vocab"] if len(text) > 1 and text not in added} - {a + b for a, b in merges}
        if lonely:
            raise TokenizerError(f"no merge makes the token {min(lonely)[:40]!r} ({len(lonely)} such tokens).")
    return Vocabulary(ranks, added, _hf_pattern(spec))


def _check_merges(merges: list[list[str]], vocab: dict[str, int]) -> None:
    """tiktoken merges by the rank of the result, Hugging Face by the order of this list: they must agree."""
    previous = -1
    for left, right in merges:
        rank = vocab.get(left + right, -1)
        if rank < previous:
            raise TokenizerError(
                f"the merge {left[:40]!r} + {right[:40]!r} gives token {rank}, but the one before it "
                f"gives {previous}; ranks and merges contradict each other."
            )
        previous = rank


def is_plain_byte_level(step: Mapping[str, Any]) -> bool:
    """Whether a step of a pre-tokenizer writes bytes as characters and does nothing else."""
    more = step.get("use_regex", True) or step.get("add_prefix_space", True)
    return step.get("type") == "ByteLevel" and not more


def _hf_pattern(spec: Mapping[str, Any]) -> str:
    pre = spec.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_PATTERN}, "behavior": "Isolated", "invert": False}
    if len(steps) == 2 and steps[0] == split and is_plain_byte_level(steps[1]):
        return LLAMA3_PATTERN
    kinds = ", ".join(str(step.get("type")) for step in steps)
    raise TokenizerError(f"Llama 3 splits a text by one pattern of its own, then bytes; found other steps ({kinds}).")
