"""Batches that score continuations over a prefix tree: what runs together, and what to do when memory runs out.

The keys and values of a shared prefix stay in a cache of batch size 1, used as a stack down the tree. The suffixes read
it and write nothing. This module knows nothing of requests or their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.inference import prefix_tree
from workbench.inference.prefix_tree import Node, PackedSequence, Tree
from workbench.layers import tensor_parallel
from workbench.layers.attention_mask import TreeMask
from workbench.layers.kv_cache import KVCache, SharedPrefixCache
from workbench.layers.memory import out_of_memory

if TYPE_CHECKING:
    from workbench.model import Transformer

FORWARD_COST = {"cpu": 64, "cuda": 512}  # fixed cost of a forward, as a number of tokens that take as long
LOGIT_BYTES = 1 << 26  # most bytes of float32 logits in memory at once
GROW_AFTER = 8  # forwards in a row that must fit before a lowered budget grows again


@dataclass(frozen=True)
class Span:
    """Tokens of one continuation that positions `begin` to `end` of one node predict.

    `slot` is the index of the first one among the tokens of all continuations.
    """

    continuation: int
    slot: int
    begin: int
    end: int


class ScoringTargets:
    """Distinct (input, continuation) pairs, the tree of their inputs, and which node predicts which tokens.

    An input is a `prefix_tree.key`; its last positions predict the continuation.
    """

    def __init__(self, pairs: Sequence[tuple[bytes, tuple[int, ...]]], *, min_tokens_saved: int, pack: bool) -> None:
        self.tree: Tree = prefix_tree.grow([text for text, _ in pairs], min_tokens_saved=min_tokens_saved, pack=pack)
        self.tokens = torch.tensor([token for _, continuation in pairs for token in continuation], dtype=torch.int64)
        self.spans: dict[Node, list[Span]] = {}
        self.slots: list[slice] = []  # of each continuation's tokens
        slot = 0
        for i, (text, continuation) in enumerate(pairs):
            end = len(text) // prefix_tree.ID_BYTES
            first = end - len(continuation)
            for node, low, high in self.tree.along(i, first, end):
                self.spans.setdefault(node, []).append(Span(i, slot + low - first, low, high))
            self.slots.append(slice(slot, slot + len(continuation)))
            slot += len(continuation)


@dataclass(frozen=True)
class BatchScores:
    """Result of one forward: tokens computed (padding included), and the scores of the targets that it predicts.

    Shapes: slots [target] int64, logprobs [target] float32 in nats, greedy [target] bool; on the CPU.
    """

    tokens: int
    spans: tuple[Span, ...]
    slots: Tensor
    logprobs: Tensor
    greedy: Tensor


@dataclass(frozen=True)
class Segment:
    """Positions `begin` to `end` of a node; `offset` is the index of the first one in the flattened batch."""

    node: Node
    begin: int
    end: int
    offset: int


@dataclass(frozen=True)
class Batch:
    """Input of one forward. Shapes: tokens [batch, pos] int64"""

    tokens: Tensor
    segments: tuple[Segment, ...]
    cache: KVCache | None


class TreeScorer:
    """Runs a tree with at most `batch_tokens` tokens per forward.

    This budget is halved when memory runs out, and doubled again after GROW_AFTER forwards that fitted.
    """

    def __init__(self, model: Transformer, targets: ScoringTargets, batch_tokens: int) -> None:
        self._model, self._targets = model, targets
        self._budget = self._limit = max(1, batch_tokens)
        self._fitted = 0  # forwards since memory last ran out

    def run(self) -> Iterator[BatchScores]:
        plan = list(self._targets.tree.plan())
        cache = self._model.empty_cache(1, max(prefix.node.end for prefix in plan))
        for prefix in plan:
            cache.truncate(prefix.node.start)
            while cache.length < prefix.node.end:
                yield from self._try(_prefix_chunk(prefix.node, cache, self._budget, self._model.device))
            first = 0
            while first < len(prefix.suffixes):
                suffixes = prefix.batch(first, budget=self._budget, waste=forward_cost(self._model.device))
                for scores in self._try(_suffix_batch(suffixes, cache, self._model.device)):
                    first += len(suffixes)
                    yield scores

    def _try(self, batch: Batch) -> Iterator[BatchScores]:
        """The result of one forward; nothing if memory ran out, and then the budget is lowered."""
        try:
            scores = self._forward(batch)
        except RuntimeError as error:
            # Processes that share a model must run the same forwards, and the others may have had enough memory.
            if not out_of_memory(error) or tensor_parallel.size() > 1:
                raise
            if len(batch.tokens) == 1 and (
                batch.tokens.shape[1] == 1 or isinstance(batch.cache, SharedPrefixCache | None)
            ):
                raise WorkbenchError(
                    f"memory is too small for one input of {batch.tokens.shape[1]} tokens; "
                    "use a smaller model or dtype."
                ) from error
            self._budget, self._fitted = max(1, batch.tokens.numel() // 2), 0
        else:
            self._fitted += 1
            if self._fitted >= GROW_AFTER:
                self._budget, self._fitted = min(self._limit, 2 * self._budget), 0
            yield scores
            return
        if torch.cuda.is_available():  # outside the handler: the error holds the failed run's tensors
            torch.cuda.empty_cache()

    @torch.no_grad()
    def _forward(self, batch: Batch) -> BatchScores:
        hidden = self._model.hidden(batch.tokens, batch.cache).flatten(0, 1)  # [batch * pos, dim]
        spans: list[Span] = []
        positions: list[int] = []  # in the flattened batch
        slots: list[int] = []
        for segment in batch.segments:
            for span in self._targets.spans.get(segment.node, ()):
                low, high = max(span.begin, segment.begin), min(span.end, segment.end)
                if low < high:
                    slot = span.slot + low - span.begin
                    spans.append(Span(span.continuation, slot, low, high))
                    slots.extend(range(slot, slot + high - low))
                    offset = segment.offset - segment.begin
                    positions.extend(range(offset + low, offset + high))
        slot_index = torch.tensor(slots, dtype=torch.int64)
        targets = self._targets.tokens[slot_index].to(hidden.device)
        position_index = torch.tensor(positions, device=hidden.device)
        logprobs, greedy = target_logprobs(self._model, hidden, position_index, targets)
        return BatchScores(batch.tokens.numel(), tuple(spans), slot_index, logprobs.cpu(), greedy.cpu())


def forward_cost(device: torch.device) -> int:
    """Tokens that must be saved to make one more forward worthwhile."""
    return FORWARD_COST.get(device.type, FORWARD_COST["cuda"])


def target_logprobs(model: Transformer, hidden: Tensor, positions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability (nats) of each target at its position, and whether it is the most likely token there.

    The log-probability is NaN if the logits there are not finite; a logit of -inf alone gives -inf.
    A repeated position is computed once. Logits are computed in blocks of at most LOGIT_BYTES.
    Shapes: hidden [n, dim], positions, targets [target] int64 -> [target] float32, [target] bool
    """
    logprobs = torch.empty(len(positions), device=hidden.device)
    greedy = torch.empty(len(positions), dtype=torch.bool, device=hidden.device)
    if not len(positions):
        return logprobs, greedy
    distinct, inverse = torch.unique(positions, return_inverse=True)
    block = max(1, LOGIT_BYTES // (4 * model.config.vocab_size))
    for begin in range(0, len(distinct), block):
        logits = model.unembed(hidden[distinct[begin : begin + block]].unsqueeze(0))[0]  # [position, vocab] float32
        in_block = ((inverse >= begin) & (inverse < begin + block)).nonzero().squeeze(-1)
        row = inverse[in_block] - begin
        normalizer = logits.logsumexp(-1)[row]  # not finite if a logit is NaN or +inf, or all are -inf
        logprobs[in_block] = (logits[row, targets[in_block]] - normalizer).where(normalizer.isfinite(), torch.nan)
        greedy[in_block] = logits.argmax(-1)[row] == targets[in_block]
    return logprobs, greedy


def _prefix_chunk(node: Node, cache: KVCache, budget: int, device: torch.device) -> Batch:
    """The next tokens of a shared prefix that are not in the cache yet."""
    begin, end = cache.length, min(node.end, cache.length + budget)
    tokens = torch.from_numpy(node.path[begin:end]).to(device)[None]
    return Batch(tokens, (Segment(node, begin, end, 0),), cache)


def _suffix_batch(suffixes: Sequence[PackedSequence], cache: KVCache, device: torch.device) -> Batch:
    """Suffixes after the cached prefix, the longest first; right padding needs no mask, because attention is causal."""
    longest = suffixes[0].total
    tokens = np.zeros((len(suffixes), longest), np.int64)
    branched = any(len(suffix.nodes) > 1 for suffix in suffixes)
    depth = np.zeros_like(tokens) if branched else None
    # Padding sees itself: a softmax over nothing is NaN.
    sees = np.eye(longest, dtype=bool)[None].repeat(len(suffixes), 0) if branched else None
    segments: list[Segment] = []
    for row, suffix in enumerate(suffixes):
        ends: dict[Node, int] = {}
        begin = 0
        for node in suffix.nodes:
            end = ends[node] = begin + node.end - node.start
            tokens[row, begin:end] = node.ids
            segments.append(Segment(node, node.start, node.end, row * longest + begin))
            if depth is not None and sees is not None:
                depth[row, begin:end] = np.arange(node.start, node.end)
                if node.parent in ends:
                    sees[row, begin:end] |= sees[row, ends[node.parent] - 1]
                sees[row, begin:end, begin:end] = np.tri(end - begin, dtype=bool)
            begin = end
    tree = None
    if depth is not None and sees is not None:
        tree = TreeMask(torch.from_numpy(depth).to(device), torch.from_numpy(sees).to(device))
    prefix_cache = SharedPrefixCache.of(cache, len(suffixes), tree) if cache.length or branched else None
    return Batch(torch.from_numpy(tokens).to(device), tuple(segments), prefix_cache)
