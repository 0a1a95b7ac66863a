"""BPE training against counting from scratch, and the properties of the ranks in a tokenizer."""

import random
from collections import Counter

import regex

from workbench.text.tokenizer import Tokenizer
from workbench.training.demo_data import bpe
from workbench.training.demo_data.corpus import Corpus, Mix, batch_rng


def tokenizer(ranks: list[bytes]) -> Tokenizer:
    return Tokenizer.from_ranks({token: rank for rank, token in enumerate(ranks)})


def recounted(text: str, size: int) -> list[bytes]:
    """The same algorithm without bookkeeping: every pair is counted again after every merge."""
    words = [[bytes([b]) for b in piece.encode()] for piece in regex.findall(bpe.SPLIT, text)]
    ranks = [bytes([b]) for b in range(256)]
    while len(ranks) < size:
        pairs = Counter(pair for word in words for pair in zip(word, word[1:], strict=False))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        ranks.append(b"".join(best))
        for word in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = [b"".join(best)]
                i += 1
    return ranks


def sample(documents: int) -> str:
    shares = {"quiz": 1.0, "statement": 1.0, "problem": 1.0, "function": 1.0}
    stream = Corpus(Mix(shares)).documents(batch_rng(5, 0))
    return "\n".join(next(stream).text for _ in range(documents))


def test_by_hand() -> None:
    # Pieces: "low" 1, " low" 1, " lower" 2. So lo 4, low 4, " low" 3; then two pairs occur twice, the lesser first.
    ranks = bpe.learn("low low lower lower", 261)
    assert ranks[256:] == [b"lo", b"low", b" low", b" lowe", b" lower"]


def test_bookkeeping_equals_recounting() -> None:
    text = sample(40)
    assert bpe.learn(text, 420) == recounted(text, 420)
    repeats = "aaaa aaaaaaa aabaab ababab bbbbb " * 3
    assert bpe.learn(repeats, 290) == recounted(repeats, 290)


def test_it_stops_where_nothing_occurs_twice() -> None:
    assert len(bpe.learn("abc", 300)) == 256


def test_digits_stay_single_under_llamas_own_pattern() -> None:
    learnt = bpe.learn(sample(60), 400)
    assert not [token for token in learnt[256:] if any(48 <= byte <= 57 for byte in token)]
    tok = tokenizer(learnt)  # encodes with \p{N}{1,3}, the ranks were learnt with \p{N}
    ids = tok.encode("The sum of 123 and 4567 is 4690.")
    assert [token for token in tok.tokens(ids) if token.isdigit()] == [b"%d" % int(d) for d in "12345674690"]


def test_any_text_survives() -> None:
    tok = tokenizer(bpe.learn(sample(60), 500))
    rng = random.Random(2)
    noise = "".join(
        chr(rng.choice((rng.randrange(32, 127), rng.randrange(160, 0xD800), 10, 0x1F600))) for _ in range(500)
    )
    for text in (sample(5), noise, "\n\n  \t x", ""):
        assert tok.decode(tok.encode(text), errors="strict") == text
