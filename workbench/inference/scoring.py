"""Log-probabilities of given continuations; every shared prefix is computed once.

Requests become a prefix tree of their inputs. A shared prefix is computed once, and all its suffixes read its keys and
values. The suffixes are batched by token count; the batches get smaller when memory runs out. The output layer runs at
scored positions only, and its softmax in float32. This module knows nothing of benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.hooks import hook_points
from workbench.inference import prefix_tree
from workbench.inference.counts import whole_number
from workbench.inference.not_finite import Handling, check_handling, not_finite_error
from workbench.inference.scoring_batches import BatchScores, ScoringTargets, TreeScorer, forward_cost

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
    def is_finite(self) -> bool:
        """Whether the logits were finite; a token of probability 0 has -inf and counts as finite."""
        return not bool(self.logprobs.isnan().any())

    @property
    def is_greedy(self) -> bool:
        return self.is_finite and bool(self.greedy.all())


@dataclass(frozen=True)
class ScoredBatch:
    """One forward: the requests that it finished, as (index of the request, scores), and the tokens it computed."""

    finished: tuple[tuple[int, Scored], ...]
    tokens: int


@dataclass(frozen=True)
class Counted:
    """Tokens processed (including padding), and the minimum possible for these requests.

    `minimum` counts each distinct prefix once; `forwards` is the number of forward passes.
    """

    computed: int
    minimum: int
    forwards: int

    @property
    def fraction(self) -> float:
        """Tokens processed over the minimum: 1 at best."""
        return self.computed / self.minimum if self.minimum else 1.0


def score(
    model: Transformer,
    requests: Sequence[tuple[Ids, Ids]],
    *,
    batch_tokens: int = BATCH_TOKENS,
    not_finite: Handling = "raise",
) -> list[tuple[float, bool]]:
    """For each (context ids, continuation ids): the sum of log-probabilities in nats, and whether it is greedy.

    The order of the requests is kept. A longer input than the context is truncated at its left, as in lm-eval.
    batch_tokens: tokens of one forward, padding included; halved when memory runs out. It changes a float32 sum by at
    most 1e-4. In bfloat16 it changes the rounding of the logits: some hundredths for logits between one and ten.
    not_finite: "keep" gives NaN for a request whose logits are not finite, where "raise" raises an error.
    Raises: WorkbenchError for an empty context or continuation, or a continuation longer than the context window;
            NotFiniteError.
    """
    scored = score_tokens(model, requests, batch_tokens=batch_tokens, not_finite=not_finite)
    return [(s.total, s.is_greedy) for s in scored]


def score_tokens(
    model: Transformer,
    requests: Sequence[tuple[Ids, Ids]],
    *,
    batch_tokens: int = BATCH_TOKENS,
    not_finite: Handling = "raise",
) -> list[Scored]:
    """As `score`, with the log-probability of every token of the continuations."""
    check_handling(not_finite, WorkbenchError)
    scored = score_counted(model, requests, batch_tokens=batch_tokens)[0]
    for i, request in enumerate(requests):
        if scored[i].is_finite:
            continue
        if len(requests) > 1:
            # A masked NaN times its weight of 0 is NaN: it may have come from another request, or from the padding.
            scored[i] = score_counted(model, [request], batch_tokens=batch_tokens)[0][0]
        if not scored[i].is_finite and not_finite == "raise":
            raise not_finite_error(model, _input_ids(*request, model.config.max_seq_len))
    return scored


def score_counted(
    model: Transformer, requests: Sequence[tuple[Ids, Ids]], *, batch_tokens: int = BATCH_TOKENS
) -> tuple[list[Scored], Counted]:
    """As `score_tokens`, with the number of tokens and forwards; log-probabilities may be NaN."""
    targets, batch_iterator = _batches(model, requests, batch_tokens)
    batches = list(batch_iterator)
    results = dict(pair for batch in batches for pair in batch.finished)
    counted = Counted(sum(batch.tokens for batch in batches), targets.tree.minimum, len(batches))
    return [results[i] for i in range(len(requests))], counted


def score_steps(
    model: Transformer, requests: Sequence[tuple[Ids, Ids]], *, batch_tokens: int = BATCH_TOKENS
) -> Iterator[ScoredBatch]:
    """As `score_counted`, forward by forward: results come in the order in which they are finished."""
    return _batches(model, requests, batch_tokens)[1]


def score_rolling(
    model: Transformer,
    texts: Sequence[Ids],
    *,
    prefix: int,
    stride: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    not_finite: Handling = "raise",
) -> list[float]:
    """Log-probability in nats of whole texts, in rolling windows as long as the context.

    The first window follows the token `prefix`. Each later one scores `stride` new tokens (default: the context
    length) after as many earlier ones as fit. With the default these are lm-eval's rolling windows.
    not_finite: as in `score`; a text is NaN if one of its windows is.
    Raises: WorkbenchError if stride is not between 1 and the context length; NotFiniteError.
    """
    size = model.config.max_seq_len
    stride = size if stride is None else whole_number("stride", stride, error=WorkbenchError)
    if not 1 <= stride <= size:
        raise WorkbenchError(f"stride must be between 1 and the context length {size}, found {stride}.")
    requests: list[tuple[Ids, Ids]] = []
    owner: list[int] = []
    for i, text in enumerate(texts):
        start = 0
        while start < len(text):
            end = min(start + (stride if start else size), len(text))
            context = [prefix] if start == 0 else text[max(0, end - size - 1) : start]
            requests.append((context, text[start:end]))
            owner.append(i)
            start = end
    totals = [0.0] * len(texts)
    scores = score(model, requests, batch_tokens=batch_tokens, not_finite=not_finite)
    for i, (total, _) in zip(owner, scores, strict=True):
        totals[i] += total
    return totals


def _batches(
    model: Transformer, requests: Sequence[tuple[Ids, Ids]], batch_tokens: int
) -> tuple[ScoringTargets, Iterator[ScoredBatch]]:
    batch_tokens = whole_number("batch_tokens", batch_tokens, least=1, error=WorkbenchError)
    owners: dict[tuple[bytes, tuple[int, ...]], list[int]] = {}  # (input, continuation) -> requests
    for i, (context, continuation) in enumerate(requests):
        _check_ids(context, model.config.vocab_size)
        _check_ids(continuation, model.config.vocab_size)
        input_ids = _input_ids(context, continuation, model.config.max_seq_len)
        owners.setdefault((prefix_tree.key(input_ids), tuple(continuation)), []).append(i)
    # A hook identifies a token by its position, and in a packed sequence several tokens have the same position.
    hook_points.refuse_rows(model, "score")
    pack = not hook_points.active(model)
    targets = ScoringTargets(list(owners), min_tokens_saved=forward_cost(model.device), pack=pack)
    scores = TreeScorer(model, targets, batch_tokens).run() if owners else iter(())
    return targets, _collect(targets, list(owners.values()), scores)


def _collect(targets: ScoringTargets, owners: list[list[int]], scores: Iterator[BatchScores]) -> Iterator[ScoredBatch]:
    """Yield each request's scores with the batch that completes them."""
    logprobs = torch.empty(len(targets.tokens))
    greedy = torch.empty(len(targets.tokens), dtype=torch.bool)
    missing = [part.stop - part.start for part in targets.slots]
    for batch in scores:
        logprobs[batch.slots], greedy[batch.slots] = batch.logprobs, batch.greedy
        finished: list[tuple[int, Scored]] = []
        for span in batch.spans:
            missing[span.continuation] -= span.end - span.begin
            if not missing[span.continuation]:
                part = targets.slots[span.continuation]
                scored = Scored(logprobs[part].clone(), greedy[part].clone())
                finished += [(i, scored) for i in owners[span.continuation]]
        yield ScoredBatch(tuple(finished), batch.tokens)


def _check_ids(ids: Ids, vocab_size: int) -> None:
    """Raises: WorkbenchError for what is not an id of the vocabulary; -1 would score the vocabulary's last token."""
    values = np.asarray(ids)
    if values.size and (values.ndim != 1 or values.dtype.kind not in "iu"):
        raise WorkbenchError(f"context and continuation must be lists of token ids, found {str(ids)[:80]}.")
    if values.size and not 0 <= values.min() <= values.max() < vocab_size:
        wrong = values.min() if values.min() < 0 else values.max()
        raise WorkbenchError(f"token id {wrong} is outside the vocabulary of {vocab_size}.")


def _input_ids(context: Ids, continuation: Ids, size: int) -> Ids:
    """Input of the model: all but the last token, truncated at the left to the context length."""
    if not len(context) or not len(continuation):
        raise WorkbenchError(
            "context and continuation need at least one token each; start the context with the begin token."
        )
    if len(continuation) > size:
        raise WorkbenchError(f"a continuation of {len(continuation)} tokens is longer than the context of {size}.")
    return [*context, *continuation[:-1]][-size:]
