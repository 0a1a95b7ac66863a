"""First divergence: the first token at which the given answer and the right answer differ.

Works on samples and token ids. Runs the model only to find the most likely other token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from evals.compare import matching
from evals.compare.matching import Row
from evals.explain.replay import ReplayedSample
from workbench.errors import DataError
from workbench.model import Transformer
from workbench.text.tokenizer import Tokenizer

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Decision:
    """Two tokens that could follow `ids`: `token` of the right answer, and `contrast_token` of the given answer.

    If the given answer is right, `contrast_token` is that of the most likely other answer. `other_tokens` are those of
    the other choices. `description` is the decision in words.
    """

    ids: tuple[int, ...]
    token: int
    contrast_token: int
    other_tokens: tuple[int, ...]
    description: str

    @property
    def position(self) -> int:
        return len(self.ids) - 1


def decision(model: Transformer, replayed: ReplayedSample, *, position: int | None = None) -> Decision:
    """The token at which a replayed answer was decided. With `position`: the token after it and the most likely other.

    Multiple choice: the first token at which the right choice and the chosen one differ. A generated number: the first
    token at which it differs from the target's number. The model runs with the interventions that are active now.
    Raises: DataError if there is no such token, for example for a program; pass a position then.
    """
    tokenizer = model.tokenizer
    assert tokenizer is not None, "benchmarks need a tokenizer"
    if position is not None:
        return _at_position(model, tokenizer, replayed, position)
    check_decidable(replayed.row)
    size = model.config.max_seq_len
    decided = _of_choice(replayed) if replayed.choice_ids is not None else _of_number(model, tokenizer, replayed)
    # A prompt that fills the context is truncated on the left, as in scoring.
    return decided if len(decided.ids) <= size else replace(decided, ids=decided.ids[-size:])


def check_decidable(row: Row) -> None:
    """Check that an answer can be decided at one token.

    Raises: DataError for a program: it fails as a whole, and a number in it is not its answer.
    """
    if isinstance(row.get("verdict"), str) or str(row.get("metric")).startswith("pass@"):
        raise DataError(
            f"question {row['doc_id']}: its answer is a program, which is not decided by a single token; "
            "pass --position to explain the token after that position."
        )


def right_choice(row: Row) -> int:
    """Index of the right choice of a sample. Raises: DataError if its target is not one of the choices."""
    right = matching.gold(row)
    if right is None:
        raise DataError(f"question {row['doc_id']}: its target {row['target']!r} is not one of the choices.")
    return right


def _of_choice(replayed: ReplayedSample) -> Decision:
    row, choices = replayed.row, replayed.choice_ids or ()
    right, other = right_choice(row), int(row["answer"])
    correct = right == other
    if correct:
        rivals = [i for i in range(len(choices)) if i != right]
        other = max(rivals, key=lambda i: float(row["logprobs"][i]))
    names = [str(choice).strip() for choice in row["choices"]]
    first, second = choices[right], choices[other]
    at = _first_difference(first, second)
    if at is None or at >= min(len(first), len(second)):
        raise DataError(
            f"choices {names[right]!r} and {names[other]!r} do not differ at any token; pass --position instead."
        )
    others = [choice[at] for choice in choices if choice[:at] == first[:at] and len(choice) > at]
    others = [token for token in dict.fromkeys(others) if token not in (first[at], second[at])]
    if correct:
        words = f"the right choice {names[right]!r} was chosen; the most likely other is {names[other]!r}"
    else:
        words = f"the right choice is {names[right]!r}, but {names[other]!r} was chosen"
    ids = (*replayed.prompt_ids, *first[:at])
    return Decision(ids, first[at], second[at], tuple(others), words)


def _of_number(model: Transformer, tokenizer: Tokenizer, replayed: ReplayedSample) -> Decision:
    """The decision of a generated answer: at the number that was extracted from it."""
    row, generated = replayed.row, replayed.generated_ids or ()
    response, start, answer = _number(row)
    target = _target(str(row["target"]))
    plain = {token for token in generated if token not in set(tokenizer.special_tokens.values())}
    pieces = [tokenizer.token_bytes(token) if token in plain else b"" for token in generated]
    # A response is decoded alone, and then some vocabularies drop the space before its first word.
    spaced = next((i for i, piece in enumerate(pieces) if piece[:1] == b" " and not response.startswith(" ")), None)
    if spaced is not None and not any(pieces[:spaced]):
        pieces[spaced] = pieces[spaced][1:]
    if not b"".join(pieces).startswith(response.encode()):
        raise DataError(
            f"question {row['doc_id']}: its tokens do not match the stored response text; was the file changed?"
        )
    ends = list(accumulate(map(len, pieces)))
    index = next(i for i, end in enumerate(ends) if end > len(response[:start].encode()))
    if answer.replace(",", "") == target.replace(",", ""):
        ids = (*replayed.prompt_ids, *generated[:index])
        rival = _likeliest(model, ids, generated[index])
        words = f"the answer {answer!r} is right: token {_text(tokenizer, generated[index])}"
        return Decision(
            ids, generated[index], rival, (), f"{words} against the most likely other, {_text(tokenizer, rival)}"
        )
    # The same text with the target's number instead of the given one, from the token that contains its start.
    before = b"".join(pieces[:index])
    middle = (b" " if index == spaced else b"") + response[:start].encode()[len(before) :]
    target_tokens = tokenizer.encode_bytes(middle + target.encode() + response[start + len(answer) :].encode())
    at = _first_difference(target_tokens, generated[index:])
    if at is None or at >= min(len(target_tokens), len(generated) - index):
        raise DataError(
            f"question {row['doc_id']}: {answer!r} and {target!r} do not differ at any token; pass --position instead."
        )
    ids = (*replayed.prompt_ids, *generated[: index + at])
    token, contrast_token = target_tokens[at], generated[index + at]
    words = f"the right answer is {target!r}, the given one was {answer!r}: "
    words += f"token {_text(tokenizer, token)} against {_text(tokenizer, contrast_token)}"
    first = re.search(rf"(?<![\d.,]){re.escape(answer)}(?![\d])", response)
    if first is not None and first.start() < start:
        # The last one may be a copy of this one; then the mistake was made here.
        earlier = next(i for i, end in enumerate(ends) if end > len(response[: first.start()].encode()))
        words += f"; {answer!r} first appears after position {len(replayed.prompt_ids) + earlier - 1}"
    return Decision(ids, token, contrast_token, (), words)


def _number(row: Row) -> tuple[str, int, str]:
    """The response, the start of the number that is its answer, and that number."""
    response, answer = str(row["response"]), str(row["answer"])
    number = _NUMBER.search(answer)
    if number is None or answer not in response or _NUMBER.search(str(row["target"])) is None:
        raise DataError(
            f"question {row['doc_id']}: could not find the token that decided the answer {answer[:40]!r}; "
            "pass --position to explain the token after that position."
        )
    # A filter extracts the number after the mark, otherwise the last one.
    marked = response.find(f"#### {answer}")
    start = marked + 5 if marked >= 0 else response.rfind(answer)
    return response, start + number.start(), number.group()


def _target(text: str) -> str:
    """The number of a target: after the mark "####" if it has one, otherwise the last number."""
    numbers: list[str] = _NUMBER.findall(text.rpartition("####")[2])
    return numbers[-1] if numbers else text.strip()


def _at_position(model: Transformer, tokenizer: Tokenizer, replayed: ReplayedSample, position: int) -> Decision:
    ids = (*replayed.prompt_ids, *(replayed.generated_ids or ()))
    if not 0 <= position < len(ids) - 1:
        raise DataError(f"--position must be 0 to {len(ids) - 2} in this sample; found {position}.")
    written = ids[position + 1]
    rival = _likeliest(model, ids[: position + 1], written)
    words = f"the token after position {position} is {_text(tokenizer, written)}"
    return Decision(
        ids[: position + 1], rival, written, (), f"{words}; the most likely other was {_text(tokenizer, rival)}"
    )


@torch.no_grad()
def _likeliest(model: Transformer, ids: Sequence[int], but: int) -> int:
    """The most likely next token other than `but`."""
    hidden = model.hidden(torch.tensor([list(ids)], device=model.device))[:, -1:]
    logits = model.unembed(hidden, start=len(ids) - 1)[0, -1]
    logits[but] = -torch.inf
    return int(logits.argmax())


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """The first index where two lists differ; the shorter one's length if it is a prefix; None if they are equal."""
    if tuple(a) == tuple(b):
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _text(tokenizer: Tokenizer, token: int) -> str:
    return repr(tokenizer.decode([token]))
