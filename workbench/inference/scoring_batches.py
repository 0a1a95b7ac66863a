"""The forwards that score answers over a tree of inputs: what runs together, and what to do when memory runs out.

The keys and values of a stem stay in a cache of one row, which works as a stack down the tree; rows behind it read
them and leave nothing. Knows nothing of requests and their order.
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
from workbench.inference.prefix_tree import Node, Row, Tree
from workbench.layers import tensor_parallel
from workbench.layers.attention_mask import TreeMask
from workbench.layers.kv_cache import KVCache, SharedPrefixCache

if TYPE_CHECKING:
    from workbench.model import Transformer

FORWARD_COST = {"cpu": 64, "cuda": 512}  # tokens that take as long as what every forward costs beside its tokens
LOGIT_BYTES = 1 << 26  # float32 logits held at once
CALM = 8  # forwards that must go well before a budget that gave way grows again


@dataclass(frozen=True)
class Span:
    """Tokens of one answer that positions `begin` to `end` of one node predict; `slot` is the first one's place among
    all answers' tokens."""

    answer: int
    slot: int
    begin: int
    end: int


class Answers:
    """Distinct (input, continuation) pairs, the tree of their inputs, and which node predicts which of their tokens.

    An input is a `prefix_tree.key`; its last positions predict the continuation.
    """

    def __init__(self, pairs: Sequence[tuple[bytes, tuple[int, ...]]], *, min_tokens_saved: int, pack: bool) -> None:
        self.tree: Tree = prefix_tree.grow([text for text, _ in pairs], min_tokens_saved=min_tokens_saved, pack=pack)
        self.targets = torch.tensor([token for _, continuation in pairs for token in continuation], dtype=torch.int64)
        self.spans: dict[Node, list[Span]] = {}
        self.slots: list[slice] = []  # of each answer's tokens
        slot = 0
        for answer, (text, continuation) in enumerate(pairs):
            end = len(text) // prefix_tree.ID_BYTES
            first = end - len(continuation)
            for node, low, high in self.tree.along(answer, first, end):
                self.spans.setdefault(node, []).append(Span(answer, slot + low - first, low, high))
            self.slots.append(slice(slot, slot + len(continuation)))
            slot += len(continuation)


@dataclass(frozen=True)
class Read:
    """One forward: the tokens that it computed, padding included, and what was read of which answers' tokens.

    Shapes: slots [read] int64, logprobs [read] float32 in nats, greedy [read] bool; on the CPU.
    """

    tokens: int
    spans: tuple[Span, ...]
    slots: Tensor
    logprobs: Tensor
    greedy: Tensor


@dataclass(frozen=True)
class Piece:
    """Positions `begin` to `end` of a node, whose first stands at `place` among all columns of all rows."""

    node: Node
    begin: int
    end: int
    place: int


@dataclass(frozen=True)
class Batch:
    """What one forward is given. Shapes: tokens [batch, pos] int64"""

    tokens: Tensor
    pieces: tuple[Piece, ...]
    cache: KVCache | None


class Forwards:
    """Runs a tree within a budget of tokens a forward: half of it after memory ran out, doubled after a calm while."""

    def __init__(self, model: Transformer, answers: Answers, batch_tokens: int) -> None:
        self._model, self._answers = model, answers
        self._budget = self._limit = max(1, batch_tokens)
        self._calm = 0

    def run(self) -> Iterator[Read]:
        plan = list(self._answers.tree.plan())
        cache = self._model.empty_cache(1, max(stem.node.end for stem in plan))
        for stem in plan:
            cache.truncate(stem.node.start)
            while cache.length < stem.node.end:
                yield from self._try(_part(stem.node, cache, self._budget, self._model.device))
            first = 0
            while first < len(stem.rows):
                rows = stem.batch(first, budget=self._budget, waste=forward_cost(self._model.device))
                for read in self._try(_side_by_side(rows, cache, self._model.device)):
                    first += len(rows)
                    yield read

    def _try(self, batch: Batch) -> Iterator[Read]:
        """What a forward gives; nothing where it asks for more memory than there is, which lowers the budget."""
        try:
            read = self._forward(batch)
        except RuntimeError as error:
            # Processes that share a model must run the same forwards, and the others may have had room.
            if not out_of_memory(error) or tensor_parallel.size() > 1:
                raise
            if len(batch.tokens) == 1 and (
                batch.tokens.shape[1] == 1 or isinstance(batch.cache, SharedPrefixCache | None)
            ):
                raise WorkbenchError(
                    f"memory does not hold the run of one input of {batch.tokens.shape[1]} tokens; "
                    "take a smaller model or dtype."
                ) from error
            self._budget, self._calm = max(1, batch.tokens.numel() // 2), 0
        else:
            self._calm += 1
            if self._calm >= CALM:
                self._budget, self._calm = min(self._limit, 2 * self._budget), 0
            yield read
            return
        if torch.cuda.is_available():  # outside the handler: the error holds the failed run's tensors
            torch.cuda.empty_cache()

    @torch.no_grad()
    def _forward(self, batch: Batch) -> Read:
        hidden = self._model.hidden(batch.tokens, batch.cache).flatten(0, 1)  # [batch * pos, dim]
        spans: list[Span] = []
        places: list[int] = []
        slots: list[int] = []
        for piece in batch.pieces:
            for span in self._answers.spans.get(piece.node, ()):
                low, high = max(span.begin, piece.begin), min(span.end, piece.end)
                if low < high:
                    slot = span.slot + low - span.begin
                    spans.append(Span(span.answer, slot, low, high))
                    slots.extend(range(slot, slot + high - low))
                    places.extend(range(piece.place + low - piece.begin, piece.place + high - piece.begin))
        asked = torch.tensor(slots, dtype=torch.int64)
        targets = self._answers.targets[asked].to(hidden.device)
        logprobs, greedy = read_logits(self._model, hidden, torch.tensor(places, device=hidden.device), targets)
        return Read(batch.tokens.numel(), tuple(spans), asked, logprobs.cpu(), greedy.cpu())


def forward_cost(device: torch.device) -> int:
    """Tokens that are worth one forward less."""
    return FORWARD_COST.get(device.type, FORWARD_COST["cuda"])


def read_logits(model: Transformer, hidden: Tensor, places: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability (nats) of each target at its place, and whether it is the most likely token there.

    A place that is asked for several times is computed once; the logits of few places exist at a time.
    Shapes: hidden [n, dim], places, targets [read] int64 -> [read] float32, [read] bool
    """
    logprobs = torch.empty(len(places), device=hidden.device)
    greedy = torch.empty(len(places), dtype=torch.bool, device=hidden.device)
    if not len(places):
        return logprobs, greedy
    distinct, which = torch.unique(places, return_inverse=True)
    at_once = max(1, LOGIT_BYTES // (4 * model.config.vocab_size))
    for begin in range(0, len(distinct), at_once):
        logits = model.unembed(hidden[distinct[begin : begin + at_once]].unsqueeze(0))[0]  # [place, vocab] float32
        mine = ((which >= begin) & (which < begin + at_once)).nonzero().squeeze(-1)
        here = which[mine] - begin
        logprobs[mine] = logits[here, targets[mine]] - logits.logsumexp(-1)[here]
        greedy[mine] = logits.argmax(-1)[here] == targets[mine]
    return logprobs, greedy


def _part(node: Node, cache: KVCache, budget: int, device: torch.device) -> Batch:
    """The next tokens of a stem that the cache does not hold yet."""
    begin, end = cache.length, min(node.end, cache.length + budget)
    tokens = torch.from_numpy(node.path[begin:end]).to(device)[None]
    return Batch(tokens, (Piece(node, begin, end, 0),), cache)


def _side_by_side(rows: Sequence[Row], cache: KVCache, device: torch.device) -> Batch:
    """Rows behind the cache, the longest first; right padding needs no mask, because nobody looks ahead."""
    longest = rows[0].total
    tokens = np.zeros((len(rows), longest), np.int64)
    forked = any(len(row.nodes) > 1 for row in rows)
    depth = np.zeros_like(tokens) if forked else None
    # What sees nothing else sees itself: a softmax over nothing is NaN.
    sees = np.eye(longest, dtype=bool)[None].repeat(len(rows), 0) if forked else None
    pieces: list[Piece] = []
    for r, row in enumerate(rows):
        ends: dict[Node, int] = {}
        begin = 0
        for node in row.nodes:
            end = ends[node] = begin + node.end - node.start
            tokens[r, begin:end] = node.ids
            pieces.append(Piece(node, node.start, node.end, r * longest + begin))
            if depth is not None and sees is not None:
                depth[r, begin:end] = np.arange(node.start, node.end)
                if node.parent in ends:
                    sees[r, begin:end] |= sees[r, ends[node.parent] - 1]
                sees[r, begin:end, begin:end] = np.tri(end - begin, dtype=bool)
            begin = end
    forks = None
    if depth is not None and sees is not None:
        forks = TreeMask(torch.from_numpy(depth).to(device), torch.from_numpy(sees).to(device))
    behind = SharedPrefixCache.of(cache, len(rows), forks) if cache.length or forked else None
    return Batch(torch.from_numpy(tokens).to(device), tuple(pieces), behind)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that a device, or the machine, has no more memory."""
    said = ("not enough memory", "can't allocate memory")  # the CPU's allocator has no exception of its own
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)
