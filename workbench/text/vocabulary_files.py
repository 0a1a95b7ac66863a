"""Vocabulary files: reads Meta's `tokenizer.model` and Hugging Face's `tokenizer.json` into one type.

It knows the formats and their content for Llama 3; encoding is in `tokenizer.py`.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import TokenizerError

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

NAMED_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
)
N_SPECIAL = 256
LLAMA3_SPECIALS: tuple[str, ...] = NAMED_SPECIALS + tuple(
    f"<|reserved_special_token_{i + 2}|>" for i in range(N_SPECIAL - len(NAMED_SPECIALS))
)
"""The 256 special tokens in Meta's order; the first has the id that follows the last rank."""


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


def read_vocabulary(data: bytes, source: Path) -> Vocabulary:
    """The vocabulary in the content of a `tokenizer.model` or `tokenizer.json`.

    Raises: TokenizerError if it is damaged or of another kind; `source` is used only in the message.
    """
    if data[:64].lstrip()[:1] == b"{":
        return _read_hf_json(data, source).check(source)
    return with_meta_specials(_read_tiktoken(data, source)).check(source)


def to_hf_json(vocabulary: Vocabulary, *, bos: str) -> dict[str, Any]:
    """A vocabulary as the content of a `tokenizer.json`, which puts `bos` first as Llama 3's does.

    Every split of a token into two ranked parts is a merge, as in tiktoken; merges are in the order of the result's
    rank.
    """
    ranks = vocabulary.ranks
    spelling = {b: c for c, b in _byte_characters().items()}
    spelled = {token: "".join(spelling[b] for b in token) for token in sorted(ranks, key=ranks.__getitem__)}
    merges = []
    for token in spelled:
        cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
        pairs = sorted((ranks[a], ranks[b], a, b) for a, b in cuts if a in ranks and b in ranks)
        merges += [[spelled[a], spelled[b]] for _, _, a, b in pairs]
    added = [
        {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for name, i in sorted(vocabulary.special_tokens.items(), key=lambda item: item[1])
    ]
    split = {"type": "Split", "pattern": {"Regex": vocabulary.pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    text = [{"Sequence": {"id": "A", "type_id": 0}}]
    first = [{"SpecialToken": {"id": bos, "type_id": 0}}]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": first + text,
            "pair": first + text + [{"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [vocabulary.special_tokens[bos]], "tokens": [bos]}},
        },
        "decoder": byte_level | {"add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": {text: ranks[token] for token, text in spelled.items()},
            "merges": merges,
        },
    }


def _read_tiktoken(data: bytes, source: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    lines = data.splitlines()
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            if number == 1 or b"<unk>" in data[:64]:
                raise TokenizerError(
                    f"{source}: not a tiktoken file (lines of base64 and rank). A SentencePiece file, "
                    "as in Llama 1 and 2, is not supported; use the file that came with Llama 3."
                ) from error
            raise TokenizerError(
                f"{source}: line {number} is not 'base64 rank', found {line[:40]!r}; the file is damaged."
            ) from error
    if len(ranks) != sum(1 for line in lines if line):
        raise TokenizerError(f"{source}: it has the same token twice; the file is damaged.")
    return ranks


def _byte_characters() -> dict[str, int]:
    """GPT-2's mapping of bytes to printable characters, which `tokenizer.json` uses."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _read_hf_json(data: bytes, source: Path) -> Vocabulary:
    try:
        spec = json.loads(data)
        model: dict[str, Any] = spec["model"]
        vocab: dict[str, int] = model["vocab"]
        merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        added = {str(entry["content"]): int(entry["id"]) for entry in spec.get("added_tokens") or []}
    except (ValueError, KeyError, TypeError) as error:
        raise TokenizerError(f"{source}: not a Hugging Face BPE tokenizer.json ({error!r}).") from error
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
        kind = "SentencePiece BPE" if model.get("byte_fallback") else model.get("type")
        raise TokenizerError(f"{source}: Llama 3 has a byte-level BPE vocabulary, found {kind}.")
    if spec.get("normalizer") is not None:
        raise TokenizerError(f"{source}: it has a normalizer; Llama 3 does not normalise text.")
    spelled = _byte_characters()
    ranks: dict[bytes, int] = {}
    for text, i in vocab.items():
        if added.get(text) == i:  # some files also list the special tokens in the vocabulary
            continue
        try:
            ranks[bytes(spelled[c] for c in text)] = i
        except KeyError as error:
            raise TokenizerError(f"{source}: the token {text!r} (id {i}) is not in the byte-level alphabet.") from error
    _check_merges(merges, vocab, source)
    return Vocabulary(ranks, added, _hf_pattern(spec, source))


def _check_merges(merges: list[list[str]], vocab: dict[str, int], source: Path) -> None:
    """tiktoken merges by the rank of the result, Hugging Face by the order of this list: they must agree."""
    previous = -1
    for left, right in merges:
        rank = vocab.get(left + right, -1)
        if rank < previous:
            raise TokenizerError(
                f"{source}: the merge {left!r} + {right!r} gives token {rank}, but the one before it "
                f"gives {previous}; ranks and merges contradict each other."
            )
        previous = rank


def _hf_pattern(spec: Mapping[str, Any], source: Path) -> str:
    pre = spec.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    patterns = [step["pattern"].get("Regex") for step in steps if step.get("type") == "Split"]
    byte_level = [step for step in steps if step.get("type") == "ByteLevel"]
    plain = len(byte_level) == 1 and not any(byte_level[0].get(k, True) for k in ("use_regex", "add_prefix_space"))
    if len(patterns) != 1 or not patterns[0] or not plain:
        kinds = ", ".join(str(step.get("type")) for step in steps)
        raise TokenizerError(f"{source}: expected one Split by a regular expression, then ByteLevel; found {kinds}.")
    return str(patterns[0])
