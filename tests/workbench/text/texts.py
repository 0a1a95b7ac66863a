"""Texts that tokenizers disagree on, and vocabularies made for tests."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# First and last characters of blocks of many scripts, of signs, spaces and characters outside the first plane.
BLOCKS = (
    (0x20, 0x7E), (0xA0, 0x17F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F),
    (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x2000, 0x206F), (0x2150, 0x218F), (0x2580, 0x25FF), (0x3000, 0x30FF),
    (0x4E00, 0x4FFF), (0xAC00, 0xACFF), (0xFB00, 0xFB4F), (0xFE00, 0xFE0F), (0x1D400, 0x1D4FF), (0x1F300, 0x1F64F),
    (0x20000, 0x200FF),
)  # fmt: skip
WORDS = (
    "the",
    "The",
    "can't",
    "I'LL",
    "they'Ve",
    "123",
    "4567890",
    "3.14",
    "½",
    "Ⅷ",
    "x1y2",
    "naïve",
    "e\u0301",
    "\r\n",
)
SPACES = (" ", "  ", "   ", "\n", "\n\n", "\t", " \n", "\n ", "\u00a0", "\u2028", "\u3000", "▁", "\u200b")


def texts(count: int, seed: int, names: tuple[str, ...] = ()) -> Iterator[str]:
    """Random texts of scripts, words, digits, spaces and the names of tokens, of 0 to 30 parts."""
    rng = random.Random(seed)
    for _ in range(count):
        block = rng.choice(BLOCKS)
        parts = []
        for _ in range(rng.randrange(31)):
            kind = rng.random()
            if kind < 0.35:
                parts.append(chr(rng.randint(*(block if kind < 0.25 else rng.choice(BLOCKS)))))
            elif kind < 0.6:
                parts.append(rng.choice(SPACES))
            elif kind < 0.93 or not names:
                parts.append(rng.choice(WORDS))
            else:
                parts.append(rng.choice(names))
        yield "".join(parts)


def train_sentencepiece(lines: list[str], folder: Path, vocab_size: int = 1500) -> Path:
    """A SentencePiece model with the settings of Llama 2's: byte fallback, digits apart, no normalisation."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=vocab_size,
        character_coverage=0.99995,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


def byte_fallback_json(model: Path) -> dict[str, Any]:
    """The `tokenizer.json` of TinyLlama's kind with the pieces of a SentencePiece model."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    names = [pieces.id_to_piece(i) for i in range(pieces.vocab_size())]
    vocab = {name: i for i, name in enumerate(names)}
    merges = []
    for name in names[259:]:
        pairs = [(name[:i], name[i:]) for i in range(1, len(name))]
        merges += [(vocab[a + b], *sorted((vocab[a], vocab[b])), a, b) for a, b in pairs if a in vocab and b in vocab]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": names[i]} | flags for i in range(3)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [[a, b] for *_, a, b in sorted(merges)],
        },
    }


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path
