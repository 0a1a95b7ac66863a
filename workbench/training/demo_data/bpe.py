"""Byte-level BPE training: learns ranks of byte strings from text.

Text is split with Llama 3's pattern, except that digits stay single. No number is merged, so the ranks encode the same
with Llama 3's own pattern. `Tokenizer.from_ranks` makes a tokenizer from them, and its `tokenizer.model`.
"""

from __future__ import annotations

from collections import Counter

import regex

# Llama 3's pattern with \p{N} instead of \p{N}{1,3}.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def learn(text: str, size: int) -> list[bytes]:
    """`size` byte strings in rank order: the bytes, then merges of the most frequent pair (ties: the lesser pair).

    Returns fewer if no pair is left that occurs twice.
    Source: Sennrich et al. 2016, on bytes as in GPT-2.
    """
    pieces = Counter(regex.findall(SPLIT, text))
    words = [([bytes([b]) for b in piece.encode()], count) for piece, count in sorted(pieces.items())]
    ranks = [bytes([b]) for b in range(256)]
    pairs: Counter[tuple[bytes, bytes]] = Counter()
    where: dict[tuple[bytes, bytes], set[int]] = {}
    for index, (word, count) in enumerate(words):
        _count_pairs(word, count, pairs, where, index)
    while len(ranks) < size and pairs:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < 2:
            break
        merged = best[0] + best[1]
        ranks.append(merged)
        for index in where.pop(best):
            word, count = words[index]
            _count_pairs(word, -count, pairs, where, index)
            words[index] = (_merge(word, best), count)
            _count_pairs(words[index][0], count, pairs, where, index)
        del pairs[best]
    return ranks


def _count_pairs(
    word: list[bytes],
    count: int,
    pairs: Counter[tuple[bytes, bytes]],
    where: dict[tuple[bytes, bytes], set[int]],
    index: int,
) -> None:
    for pair in zip(word, word[1:], strict=False):
        pairs[pair] += count
        if count > 0:
            where.setdefault(pair, set()).add(index)


def _merge(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    merged: list[bytes] = []
    i = 0
    while i < len(word):
        if i + 1 < len(word) and (word[i], word[i + 1]) == pair:
            merged.append(word[i] + word[i + 1])
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return merged
