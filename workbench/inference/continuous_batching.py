"""Which rows run together while they are generated: rows that end leave, waiting ones enter, nothing is run twice.

What many prompts begin with is run once. Where it stands before enough rows, they also read one copy of it at every
step; where only before a few, each gets its own. Knows nothing of stop rules and of how a token is drawn.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.hooks import hook_points
from workbench.inference import prefix_tree
from workbench.inference.batch_kv_cache import BatchKVCache
from workbench.inference.prefix_tree import Node
from workbench.inference.scoring_batches import forward_cost, out_of_memory
from workbench.layers import tensor_parallel

if TYPE_CHECKING:
    from workbench.inference.sequence import GenerationState
    from workbench.model import Transformer

BATCH_TOKENS = 4_096  # of the first runs of rows that enter together, padding included
FEW = 2  # batches of rows, at least, for which a common beginning is kept once

# Draws the next token of each row by its last logits [batch, vocab], and gives it to the row.
Draw = Callable[[Sequence["GenerationState"], Tensor], None]


@dataclass(frozen=True)
class QueuedSequence:
    """A row that is not in the batch: its first `stem` tokens are run once for all that share them."""

    row: GenerationState
    prefix_length: int = 0

    @property
    def prefix(self) -> tuple[int, ...]:
        return self.row.prompt[: self.prefix_length]

    @property
    def suffix_length(self) -> int:
        """Tokens that it brings."""
        return len(self.row.prompt) + len(self.row.tokens) - self.prefix_length


def run(model: Transformer, rows: Sequence[GenerationState], draw: Draw, *, batch_size: int) -> None:
    """Generate until every row has ended.

    Raises: WorkbenchError where memory does not hold a single row.
    """
    if hook_points.position_independent(model):
        herds = _prefix_groups(rows, batch_size, min_tokens_saved=forward_cost(model.device))
        for base, members in herds:
            _Batch(model, draw, base, batch_size).run(members)
        return
    # Someone may ask for positions: each prompt is run whole, beside rows that are as long.
    by_length: dict[int, list[QueuedSequence]] = {}
    for row in sorted(rows, key=lambda row: -len(row.prompt)):
        by_length.setdefault(len(row.prompt), []).append(QueuedSequence(row))
    for alike in by_length.values():
        for first in range(0, len(alike), batch_size):
            _Batch(model, draw, 0, batch_size, together=True).run(alike[first : first + batch_size])


def _prefix_groups(
    rows: Sequence[GenerationState], batch_size: int, *, min_tokens_saved: int
) -> Iterable[tuple[int, list[QueuedSequence]]]:
    """Rows that share one base, and how long it is; within a herd, those behind one stem follow each other."""
    # The last token is always the row's own: its logits begin the row.
    keys = [prefix_tree.key(row.prompt[:-1]) for row in rows]
    tree = prefix_tree.grow(keys, min_tokens_saved=min_tokens_saved, pack=False)
    repeats = Counter(keys)
    stems: list[list[int]] = []  # of each row, where the stems on its way end, the deepest first
    for i, row in enumerate(rows):
        node: Node | None = tree.deepest[i]
        assert node is not None
        ends: list[int] = []
        own = len(row.prompt) - 1 - (node.start if node.is_row else 0)
        if repeats[keys[i]] > 1 and own * (repeats[keys[i]] - 1) >= min_tokens_saved:
            ends.append(len(row.prompt) - 1)
        while node is not None:
            if not node.is_row and node.end < len(row.prompt) and node.end not in ends:
                ends.append(node.end)
            node = node.parent
        stems.append([end for end in ends if end])
    beginnings = Counter(keys[i][: end * prefix_tree.ID_BYTES] for i, ends in enumerate(stems) for end in ends)
    herds: dict[bytes, list[tuple[bytes, QueuedSequence]]] = {}
    for i, ends in enumerate(stems):
        many = (keys[i][: end * prefix_tree.ID_BYTES] for end in ends)
        base = next((b for b in many if beginnings[b] >= min(FEW * batch_size, len(rows))), b"")
        stem = max(ends, default=0)
        herds.setdefault(base, []).append((keys[i][: stem * prefix_tree.ID_BYTES], QueuedSequence(rows[i], stem)))
    for base, members in sorted(herds.items()):
        members.sort(key=lambda member: (member[0], -member[1].suffix_length))
        yield len(base) // prefix_tree.ID_BYTES, [waiting for _, waiting in members]


class _Batch:
    """The rows at work, and the beginning that the next ones go on from.

    together: new rows wait until all have ended.
    """

    def __init__(self, model: Transformer, draw: Draw, base: int, batch_size: int, *, together: bool = False) -> None:
        self._model, self._draw, self._base = model, draw, base
        self._limit, self._together = batch_size, together
        self._rows: list[QueuedSequence] = []
        self._begun: tuple[int, ...] = ()  # what the stem's cache holds, or held

    @torch.no_grad()
    def run(self, members: Sequence[QueuedSequence]) -> None:
        self._stem = self._model.empty_cache(1, max(member.prefix_length for member in members))
        self._cache = BatchKVCache.after_prefix(self._stem, self._base)
        waiting = deque(members)
        while waiting or self._rows:
            open_to_all = not self._rows or not self._together
            while open_to_all and waiting and len(self._rows) < self._limit:
                group = self._next(waiting)
                if self._fits(partial(self._enter, group), len(self._rows) + len(group)):
                    for _ in group:
                        waiting.popleft()
                else:  # what runs already does fit
                    self._limit = len(self._rows) + len(group) // 2
            if self._rows and not self._fits(self._step, len(self._rows)):
                waiting.extendleft(reversed(self._rows))
                self._limit = len(self._rows) // 2
                self._rows, self._cache = [], BatchKVCache.after_prefix(self._stem, self._base)

    def _fits(self, act: Callable[[], None], n: int) -> bool:
        """Do it, and say whether memory held out for these `n` rows."""
        try:
            act()
            return True
        except RuntimeError as error:
            # Processes that share a model must run the same forwards, and the others may have had room.
            if not out_of_memory(error) or tensor_parallel.size() > 1:
                raise
            if n == 1:
                raise WorkbenchError("memory does not hold one row; take a smaller model or dtype.") from error
        if torch.cuda.is_available():  # outside the handler: the error holds the failed run's tensors
            torch.cuda.empty_cache()
        return False

    def _next(self, waiting: Sequence[QueuedSequence]) -> list[QueuedSequence]:
        """Rows that enter in one run: behind one stem, nearly equally long, and no more than there is room for."""
        first = waiting[0]
        group, padding = [first], 0
        for other in islice(waiting, 1, self._limit - len(self._rows)):
            padding += first.suffix_length - other.suffix_length
            if (len(group) + 1) * first.suffix_length > BATCH_TOKENS or other.suffix_length > first.suffix_length:
                break
            if padding > forward_cost(self._model.device) or other.prefix != first.prefix:
                break
            group.append(other)
        return group

    def _enter(self, group: Sequence[QueuedSequence]) -> None:
        self._begin(group[0].prefix)
        lengths = [waiting.suffix_length for waiting in group]
        tokens = np.zeros((len(group), max(lengths)), np.int64)
        for i, waiting in enumerate(group):
            tokens[i, : lengths[i]] = (*waiting.row.prompt, *waiting.row.tokens)[waiting.prefix_length :]
        device = self._model.device
        cache = self._cache.enter(*tokens.shape)
        hidden = self._model.hidden(torch.from_numpy(tokens).to(device), cache)
        last = torch.tensor(lengths, device=device) - 1
        ends = hidden[torch.arange(len(group), device=device), last].unsqueeze(1)
        logits = self._model.unembed(ends, start=cache.length + max(lengths) - 1)[:, 0]
        self._cache.admit(lengths)
        self._rows += group
        self._take(group, logits)

    def _begin(self, beginning: tuple[int, ...]) -> None:
        """Have the stem's cache hold just this; what it holds of it already stays."""
        held = 0
        for mine, wanted in zip(self._begun[: self._stem.length], beginning, strict=False):
            if mine != wanted:
                break
            held += 1
        self._stem.truncate(held)
        self._begun = beginning
        while self._stem.length < len(beginning):
            part = beginning[self._stem.length : self._stem.length + BATCH_TOKENS]
            self._model.hidden(torch.tensor([part], device=self._model.device), self._stem)

    def _step(self) -> None:
        tokens = torch.tensor([[waiting.row.tokens[-1]] for waiting in self._rows], device=self._model.device)
        hidden = self._model.hidden(tokens, self._cache)
        self._take(self._rows, self._model.unembed(hidden, start=self._cache.length - 1)[:, 0])

    def _take(self, group: Sequence[QueuedSequence], logits: Tensor) -> None:
        self._draw([waiting.row for waiting in group], logits)
        for i in reversed(range(len(self._rows))):
            if self._rows[i].row.finish_reason is not None:
                self._cache.leave(i)
                self._rows[i] = self._rows[-1]
                self._rows.pop()
