"""Where an answer was decided: the first token at which the answer given and the right one part.

Knows of samples and token ids; runs no model but to ask for the likeliest other token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from evals.compare import matching
from evals.compare.matching import Row
from evals.explain.replay import Replay
from workbench.errors import DataError
from workbench.model import Transformer
from workbench.text.tokenizer import Tokenizer

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Decision:
    """Two tokens that could follow `ids`: that of the right answer, and that of the answer given.

    Where the answer given is right, `minus` is its likeliest rival. `also` are the other choices' tokens; `says` is the
    decision in words.
    """

    ids: tuple[int, ...]
    token: int
    contrast_token: int
    other_tokens: tuple[int, ...]
    says: str

    @property
    def position(self) -> int:
        return len(self.ids) - 1


def decision(model: Transformer, replayed: Replay, *, position: int | None = None) -> Decision:
    """Where a replayed answer was decided; or what was written behind `position` against the likeliest other token.

    Of multiple choice: the first token at which the right choice and the chosen one differ. Of a generated number: the
    first token at which it differs from the target's. The model runs as it is, under whatever intervenes just now.
    Raises: DataError where that cannot be said, as of a program: name a position then.
    """
    tokenizer = model.tokenizer
    assert tokenizer is not None, "benchmarks need a tokenizer"
    if position is not None:
        return _at(model, tokenizer, replayed, position)
    decidable(replayed.row)
    size = model.config.max_seq_len
    found = _of_choices(replayed) if replayed.choice_ids is not None else _of_number(model, tokenizer, replayed)
    # A prompt that fills the context leaves the answer room as scoring does: at its left.
    return found if len(found.ids) <= size else Decision(found.ids[-size:], *_rest(found))


def decidable(row: Row) -> None:
    """Return if an answer may have been decided at one token.

    Raises: DataError for a program: its numbers are no answers, and it fails as a whole.
    """
    if isinstance(row.get("verdict"), str) or str(row.get("metric")).startswith("pass@"):
        raise DataError(
            f"question {row['doc_id']}: its answer is a program, which no single token decides; "
            "give the --position whose next token is to be explained."
        )


def right_choice(row: Row) -> int:
    """Which choice of a sample is right. Raises: DataError where its target names none."""
    right = matching.gold(row)
    if right is None:
        raise DataError(f"question {row['doc_id']}: its target {row['target']!r} is none of the choices.")
    return right


def _rest(found: Decision) -> tuple[int, int, tuple[int, ...], str]:
    return found.token, found.contrast_token, found.other_tokens, found.says


def _of_choices(replayed: Replay) -> Decision:
    row, choices = replayed.row, replayed.choice_ids or ()
    right, other = right_choice(row), int(row["answer"])
    given = "the right one" if right == other else ""
    if right == other:
        rivals = [i for i in range(len(choices)) if i != right]
        other = max(rivals, key=lambda i: float(row["logprobs"][i]))
    names = [str(choice).strip() for choice in row["choices"]]
    first, second = choices[right], choices[other]
    at = _parting(first, second)
    if at is None or at >= min(len(first), len(second)):
        raise DataError(f"the choices {names[right]!r} and {names[other]!r} part at no token; give a --position.")
    also = [choice[at] for choice in choices if choice[:at] == first[:at] and len(choice) > at]
    also = [token for token in dict.fromkeys(also) if token not in (first[at], second[at])]
    said = f"right is {names[right]!r}, and " + (f"{given} was chosen, before" if given else "chosen was")
    ids = (*replayed.prompt_ids, *first[:at])
    return Decision(ids, first[at], second[at], tuple(also), f"{said} {names[other]!r}")


def _of_number(model: Transformer, tokenizer: Tokenizer, replayed: Replay) -> Decision:
    """At the number that was read out of a generated answer."""
    row, generated = replayed.row, replayed.generated_ids or ()
    response, start, said = _number(row)
    target = _target(str(row["target"]))
    plain = {token for token in generated if token not in set(tokenizer.special_tokens.values())}
    pieces = [tokenizer.token_bytes(token) if token in plain else b"" for token in generated]
    if not b"".join(pieces).startswith(response.encode()):
        raise DataError(f"question {row['doc_id']}: its tokens do not spell the stored response; was the file changed?")
    ends = list(accumulate(map(len, pieces)))
    here = next(i for i, end in enumerate(ends) if end > len(response[:start].encode()))
    if said.replace(",", "") == target.replace(",", ""):
        ids = (*replayed.prompt_ids, *generated[:here])
        rival = _likeliest(model, ids, generated[here])
        words = (
            f"the answer {said!r} is right; its token {_text(tokenizer, generated[here])} before the likeliest other"
        )
        return Decision(ids, generated[here], rival, (), f"{words}, {_text(tokenizer, rival)}")
    # The same text with the target's number in place of the one that was given, from the token on that holds its start.
    before = b"".join(pieces[:here])
    middle = response[:start].encode()[len(before) :]
    wanted = tokenizer.encode_bytes(middle + target.encode() + response[start + len(said) :].encode())
    at = _parting(wanted, generated[here:])
    if at is None or at >= min(len(wanted), len(generated) - here):
        raise DataError(f"question {row['doc_id']}: {said!r} and {target!r} part at no token; give a --position.")
    ids = (*replayed.prompt_ids, *generated[: here + at])
    token, minus = wanted[at], generated[here + at]
    words = f"right is {target!r}, and given was {said!r}: {_text(tokenizer, token)} against {_text(tokenizer, minus)}"
    first = re.search(rf"(?<![\d.,]){re.escape(said)}(?![\d])", response)
    if first is not None and first.start() < start:
        # The last one may be a copy, and the mistake lie here.
        earlier = next(i for i, end in enumerate(ends) if end > len(response[: first.start()].encode()))
        words += f"; {said!r} is first written behind position {len(replayed.prompt_ids) + earlier - 1}"
    return Decision(ids, token, minus, (), words)


def _number(row: Row) -> tuple[str, int, str]:
    """The response, where the number starts that is its answer, and that number."""
    response, answer = str(row["response"]), str(row["answer"])
    found = _NUMBER.search(answer)
    if found is None or answer not in response or _NUMBER.search(str(row["target"])) is None:
        raise DataError(
            f"question {row['doc_id']}: it cannot be told where the answer {answer[:40]!r} was decided; "
            "give the --position whose next token is to be explained."
        )
    # A filter reads the number behind the mark, or else the last one.
    marked = response.find(f"#### {answer}")
    start = marked + 5 if marked >= 0 else response.rfind(answer)
    return response, start + found.start(), found.group()


def _target(text: str) -> str:
    """The number that a target names: behind the mark where it has one, else its last."""
    numbers: list[str] = _NUMBER.findall(text.rpartition("####")[2])
    return numbers[-1] if numbers else text.strip()


def _at(model: Transformer, tokenizer: Tokenizer, replayed: Replay, position: int) -> Decision:
    ids = (*replayed.prompt_ids, *(replayed.generated_ids or ()))
    if not 0 <= position < len(ids) - 1:
        raise DataError(f"--position is 0 to {len(ids) - 2} in this sample, whose next token is known; not {position}.")
    written = ids[position + 1]
    rival = _likeliest(model, ids[: position + 1], written)
    words = f"behind position {position} stands {_text(tokenizer, written)}"
    return Decision(
        ids[: position + 1], rival, written, (), f"{words}; the likeliest other was {_text(tokenizer, rival)}"
    )


@torch.no_grad()
def _likeliest(model: Transformer, ids: Sequence[int], but: int) -> int:
    """The likeliest next token but one."""
    hidden = model.hidden(torch.tensor([list(ids)], device=model.device))[:, -1:]
    logits = model.unembed(hidden, start=len(ids) - 1)[0, -1]
    logits[but] = -torch.inf
    return int(logits.argmax())


def _parting(a: Sequence[int], b: Sequence[int]) -> int | None:
    """The first place where two lists differ; the shorter one's length where it begins the other; None if equal."""
    if tuple(a) == tuple(b):
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _text(tokenizer: Tokenizer, token: int) -> str:
    return repr(tokenizer.decode([token]))
