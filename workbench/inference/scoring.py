"""Log-probabilities of given continuations, with every shared beginning computed once.

Requests become a tree of their inputs. A shared run of tokens is computed once and its keys and values are read by
all that go on from it; the rest is batched by a budget of tokens that gives way when memory runs out. The output
layer runs at scored positions only, and its softmax in float32. Knows nothing of benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.hooks import hook_points
from workbench.inference import prefix_tree
from workbench.inference.scoring_batches import Answers, Forwards, Read, forward_cost

if TYPE_CHECKING:
    from workbench.model import Transformer

Ids = Sequence[int]
BATCH_TOKENS = 4_096  # tokens of one forward, padding included


@dataclass(frozen=True)
class Scored:
    """Log-probabilities (nats) of a continuation's tokens, and whether greedy decoding would give each.

    Shapes: logprobs [continuation] float32, greedy [continuation] bool; both on the CPU.
    """

    logprobs: Tensor
    greedy: Tensor

    @property
    def total(self) -> float:
        """Sum of the log-probabilities, in nats."""
        return float(self.logprobs.double().sum())

    @property
    def is_greedy(self) -> bool:
        return bool(self.greedy.all())


@dataclass(frozen=True)
class Step:
    """One forward: the requests that it finished, by their place in the order given, and the tokens it computed."""

    done: tuple[tuple[int, Scored], ...]
    tokens: int


@dataclass(frozen=True)
class Counted:
    """Tokens that went through the model, padding included, and the least that scores the same requests.

    `minimum` counts each distinct beginning once; `forwards` are the runs that it took.
    """

    computed: int
    minimum: int
    forwards: int

    @property
    def fraction(self) -> float:
        """Tokens computed over the least possible: 1 at best."""
        return self.computed / self.minimum if self.minimum else 1.0


def score(
    model: Transformer, requests: Sequence[tuple[Ids, Ids]], *, batch_tokens: int = BATCH_TOKENS
) -> list[tuple[float, bool]]:
    """For each (context ids, continuation ids): the sum of log-probabilities in nats, and whether it is greedy.

    The order of the requests is kept. An input longer than the context loses tokens at its left, as in lm-eval.
    batch_tokens: tokens of one forward, padding included; halved when memory runs out. It changes a float32 sum by no
    more than 1e-4; in bfloat16 by its rounding of the logits, some hundredths where they are of size one to ten.
    Raises: WorkbenchError for an empty context or continuation, or a continuation longer than the context window.
    """
    return [(s.total, s.is_greedy) for s in score_tokens(model, requests, batch_tokens=batch_tokens)]


def score_tokens(
    model: Transformer, requests: Sequence[tuple[Ids, Ids]], *, batch_tokens: int = BATCH_TOKENS
) -> list[Scored]:
    """As `score`, with the log-probability of every token of the continuations."""
    return score_counted(model, requests, batch_tokens=batch_tokens)[0]


def score_counted(
    model: Transformer, requests: Sequence[tuple[Ids, Ids]], *, batch_tokens: int = BATCH_TOKENS
) -> tuple[list[Scored], Counted]:
    """As `score_tokens`, and what it took."""
    answers, running = _steps(model, requests, batch_tokens)
    steps = list(running)
    results = dict(pair for step in steps for pair in step.done)
    counted = Counted(sum(step.tokens for step in steps), answers.tree.minimum, len(steps))
    return [results[i] for i in range(len(requests))], counted


def score_steps(
    model: Transformer, requests: Sequence[tuple[Ids, Ids]], *, batch_tokens: int = BATCH_TOKENS
) -> Iterator[Step]:
    """As `score_tokens`, forward by forward: results come in the order in which they are finished."""
    return _steps(model, requests, batch_tokens)[1]


def score_rolling(
    model: Transformer,
    texts: Sequence[Ids],
    *,
    prefix: int,
    stride: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> list[float]:
    """Log-probability in nats of whole texts, in windows as long as the context.

    The first window begins behind the token `prefix`; each later one scores `stride` new tokens (default: as many as
    the context holds) behind as many old ones as fit. With the default these are lm-eval's rolling windows.
    Raises: WorkbenchError if stride is not between 1 and the context length.
    """
    size = model.config.max_seq_len
    stride = size if stride is None else stride
    if not 1 <= stride <= size:
        raise WorkbenchError(f"stride must be between 1 and the context of {size}, found {stride}.")
    requests: list[tuple[Ids, Ids]] = []
    owner: list[int] = []
    for i, text in enumerate(texts):
        start = 0
        while start < len(text):
            end = min(start + (stride if start else size), len(text))
            before = [prefix] if start == 0 else text[max(0, end - size - 1) : start]
            requests.append((before, text[start:end]))
            owner.append(i)
            start = end
    totals = [0.0] * len(texts)
    for i, (total, _) in zip(owner, score(model, requests, batch_tokens=batch_tokens), strict=True):
        totals[i] += total
    return totals


def _steps(
    model: Transformer, requests: Sequence[tuple[Ids, Ids]], batch_tokens: int
) -> tuple[Answers, Iterator[Step]]:
    owners: dict[tuple[bytes, tuple[int, ...]], list[int]] = {}  # (input, continuation) -> requests
    for i, (context, continuation) in enumerate(requests):
        seen = _input_of(context, continuation, model.config.max_seq_len)
        owners.setdefault((prefix_tree.key(seen), tuple(continuation)), []).append(i)
    # A hook knows a token by its position, and in a row with forks several stand at the same.
    answers = Answers(list(owners), min_tokens_saved=forward_cost(model.device), pack=not hook_points.active(model))
    reads = Forwards(model, answers, batch_tokens).run() if owners else iter(())
    return answers, _finished(answers, list(owners.values()), reads)


def _finished(answers: Answers, owners: list[list[int]], reads: Iterator[Read]) -> Iterator[Step]:
    """Hand out each answer when the last of its tokens has been read."""
    logprobs = torch.empty(len(answers.targets))
    greedy = torch.empty(len(answers.targets), dtype=torch.bool)
    missing = [part.stop - part.start for part in answers.slots]
    for read in reads:
        logprobs[read.slots], greedy[read.slots] = read.logprobs, read.greedy
        done: list[tuple[int, Scored]] = []
        for span in read.spans:
            missing[span.answer] -= span.end - span.begin
            if not missing[span.answer]:
                part = answers.slots[span.answer]
                scored = Scored(logprobs[part].clone(), greedy[part].clone())
                done += [(i, scored) for i in owners[span.answer]]
        yield Step(tuple(done), read.tokens)


def _input_of(context: Ids, continuation: Ids, size: int) -> Ids:
    """What the model is given: all but the last token, as many as the context holds."""
    if not len(context) or not len(continuation):
        raise WorkbenchError("a context and its continuation need at least one token each; begin with the begin token.")
    if len(continuation) > size:
        raise WorkbenchError(f"a continuation of {len(continuation)} tokens is longer than the context of {size}.")
    return [*context, *continuation[:-1]][-size:]
