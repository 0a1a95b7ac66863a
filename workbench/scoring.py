"""Log-probabilities of given continuations.

Requests with the same input share one forward (answers of one token all do); the output layer is computed only at
scored positions and its softmax in float32. Knows nothing of benchmarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from workbench.model import Transformer

Ids = Sequence[int]
BATCH_TOKENS = 4_096  # tokens of one forward, padding included
SCORED_AT_ONCE = 256  # positions whose logits are held at once


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


def score(
    model: Transformer, requests: Sequence[tuple[Ids, Ids]], *, batch_tokens: int = BATCH_TOKENS
) -> list[tuple[float, bool]]:
    """For each (context ids, continuation ids): the sum of log-probabilities in nats, and whether it is greedy.

    The order of the requests is kept. An input longer than the context loses tokens at its left, as in lm-eval.
    Raises: WorkbenchError for an empty context or continuation, or a continuation longer than the context window.
    """
    return [(s.total, s.is_greedy) for s in score_tokens(model, requests, batch_tokens=batch_tokens)]


def score_tokens(
    model: Transformer, requests: Sequence[tuple[Ids, Ids]], *, batch_tokens: int = BATCH_TOKENS
) -> list[Scored]:
    """As `score`, with the log-probability of every token of the continuations."""
    inputs: dict[tuple[int, ...], list[int]] = {}  # input ids -> the requests that it serves
    for i, (context, continuation) in enumerate(requests):
        inputs.setdefault(_input_of(model, context, continuation), []).append(i)
    results: list[Scored | None] = [None] * len(requests)
    ordered = sorted(inputs, key=len, reverse=True)
    first = 0
    while first < len(ordered):
        rows = max(1, batch_tokens // len(ordered[first]))
        batch = ordered[first : first + rows]
        wanted = [[(i, requests[i][1]) for i in inputs[ids]] for ids in batch]
        _score_batch(model, batch, wanted, results)
        first += rows
    return [s for s in results if s is not None]


def score_rolling(
    model: Transformer, texts: Sequence[Ids], *, prefix: int, batch_tokens: int = BATCH_TOKENS
) -> list[float]:
    """Log-probability in nats of whole texts, in windows as long as the context.

    Each window is conditioned on the token before it (the first on `prefix`), as lm-eval's rolling windows are.
    """
    size = model.config.max_seq_len
    requests: list[tuple[Ids, Ids]] = []
    owner: list[int] = []
    for i, text in enumerate(texts):
        for start in range(0, len(text), size):
            before = prefix if start == 0 else text[start - 1]
            requests.append(([before], text[start : start + size]))
            owner.append(i)
    totals = [0.0] * len(texts)
    for i, (total, _) in zip(owner, score(model, requests, batch_tokens=batch_tokens), strict=True):
        totals[i] += total
    return totals


def _input_of(model: Transformer, context: Ids, continuation: Ids) -> tuple[int, ...]:
    if not len(context) or not len(continuation):
        raise WorkbenchError("a context and its continuation need at least one token each; begin with the begin token.")
    size = model.config.max_seq_len
    if len(continuation) > size:
        raise WorkbenchError(f"a continuation of {len(continuation)} tokens is longer than the context of {size}.")
    return (*context, *continuation[:-1])[-size:]


@torch.no_grad()
def _score_batch(
    model: Transformer,
    batch: Sequence[tuple[int, ...]],
    wanted: Sequence[Sequence[tuple[int, Ids]]],
    results: list[Scored | None],
) -> None:
    """Fill in the results of the requests that some inputs serve. Right padding needs no mask: nobody looks ahead."""
    longest = len(batch[0])
    tokens = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in batch], device=model.device)
    hidden = model.hidden(tokens)  # [batch, pos, dim]
    # An input's last k positions predict a continuation of k tokens; requests of one input share their positions.
    depth = [max(len(continuation) for _, continuation in served) for served in wanted]
    rows = torch.tensor([r for r, n in enumerate(depth) for _ in range(n)], device=model.device)
    places = torch.tensor(
        [p for ids, n in zip(batch, depth, strict=True) for p in range(len(ids) - n, len(ids))], device=model.device
    )
    starts = [sum(depth[:r]) for r in range(len(depth))]
    flat = hidden[rows, places]  # [scored position, dim]
    ask: list[tuple[int, int, Ids]] = [  # first scored position, request, continuation
        (starts[r] + depth[r] - len(continuation), i, continuation)
        for r, served in enumerate(wanted)
        for i, continuation in served
    ]
    at = torch.tensor([a + j for a, _, ids in ask for j in range(len(ids))], device=model.device)
    targets = torch.tensor([t for _, _, ids in ask for t in ids], device=model.device)
    found = torch.empty(len(at), device=model.device)
    greedy = torch.empty(len(at), dtype=torch.bool, device=model.device)
    for begin in range(0, len(flat), SCORED_AT_ONCE):
        logits = model.unembed(flat[begin : begin + SCORED_AT_ONCE].unsqueeze(0))[0]  # [scored position, vocab]
        mine = ((at >= begin) & (at < begin + SCORED_AT_ONCE)).nonzero().squeeze(-1)
        here = at[mine] - begin
        found[mine] = logits.log_softmax(-1)[here, targets[mine]]
        greedy[mine] = logits.argmax(-1)[here] == targets[mine]
    found, greedy = found.cpu(), greedy.cpu()
    begin = 0
    for _, i, ids in ask:
        end = begin + len(ids)
        results[i] = Scored(found[begin:end].clone(), greedy[begin:end].clone())
        begin = end
