"""Continuous batching: finished sequences leave the batch, queued ones join; shared prefixes are computed once.

A prefix that enough sequences share is also stored once, and every decode step reads that one copy; if only a few
share it, each gets its own copy. This module knows nothing of stop rules or of how a token is sampled.
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
from workbench.inference.scoring_batches import forward_cost
from workbench.layers import tensor_parallel
from workbench.layers.memory import out_of_memory

if TYPE_CHECKING:
    from workbench.inference.generation_state import GenerationState
    from workbench.model import Transformer

PREFILL_TOKENS = 4_096  # most tokens of one prefill, padding included
MIN_BATCHES = 2  # a prefix is stored once if the sequences that share it fill at least so many batches

# Samples the next token of each sequence from its last logits [batch, vocab], and appends it to the sequence.
Sampler = Callable[[Sequence["GenerationState"], Tensor], None]


@dataclass(frozen=True)
class QueuedSequence:
    """A sequence that waits for a place in the batch; its first `prefix_length` tokens are computed once for all."""

    sequence: GenerationState
    prefix_length: int = 0

    @property
    def prefix(self) -> tuple[int, ...]:
        return self.sequence.prompt[: self.prefix_length]

    @property
    def suffix_length(self) -> int:
        """Number of tokens after the prefix."""
        return len(self.sequence.prompt) + len(self.sequence.tokens) - self.prefix_length


def run(model: Transformer, sequences: Sequence[GenerationState], sampler: Sampler, *, batch_size: int) -> None:
    """Generate until every sequence has ended.

    Raises: WorkbenchError if memory is too small for a single sequence; InterventionError for one with a value for each
            row of a batch.
    """
    hook_points.refuse_rows(model, "generate")
    if hook_points.position_independent(model):
        groups = _prefix_groups(sequences, batch_size, min_tokens_saved=forward_cost(model.device))
        for shared_length, queued in groups:
            _Batch(model, sampler, shared_length, batch_size).run(queued)
        return
    # A subscription may depend on positions: each prompt is run whole, together with prompts of the same length.
    by_length: dict[int, list[QueuedSequence]] = {}
    for sequence in sorted(sequences, key=lambda sequence: -len(sequence.prompt)):
        by_length.setdefault(len(sequence.prompt), []).append(QueuedSequence(sequence))
    for queued in by_length.values():
        for first in range(0, len(queued), batch_size):
            _Batch(model, sampler, 0, batch_size, static=True).run(queued[first : first + batch_size])


def _prefix_groups(
    sequences: Sequence[GenerationState], batch_size: int, *, min_tokens_saved: int
) -> Iterable[tuple[int, list[QueuedSequence]]]:
    """The sequences that share one stored prefix, and its length; those with the same longer prefix are neighbours."""
    # The last token of a prompt is never in a prefix: its logits give the first new token.
    keys = [prefix_tree.key(sequence.prompt[:-1]) for sequence in sequences]
    tree = prefix_tree.grow(keys, min_tokens_saved=min_tokens_saved, pack=False)
    repeats = Counter(keys)
    prefix_lengths: list[list[int]] = []  # of each sequence, the longest first
    for i, sequence in enumerate(sequences):
        prompt_length = len(sequence.prompt)
        node: Node | None = tree.deepest[i]
        assert node is not None
        lengths: list[int] = []
        suffix_length = prompt_length - 1 - (node.start if node.is_packed else 0)
        if repeats[keys[i]] > 1 and suffix_length * (repeats[keys[i]] - 1) >= min_tokens_saved:
            lengths.append(prompt_length - 1)
        while node is not None:
            if not node.is_packed and node.end < prompt_length and node.end not in lengths:
                lengths.append(node.end)
            node = node.parent
        prefix_lengths.append([length for length in lengths if length])
    shared_by = Counter(
        _key_prefix(key, length) for key, lengths in zip(keys, prefix_lengths, strict=True) for length in lengths
    )
    groups: dict[bytes, list[tuple[bytes, QueuedSequence]]] = {}
    for sequence, key, lengths in zip(sequences, keys, prefix_lengths, strict=True):
        prefixes = (_key_prefix(key, length) for length in lengths)
        shared = next((p for p in prefixes if shared_by[p] >= min(MIN_BATCHES * batch_size, len(sequences))), b"")
        longest = max(lengths, default=0)
        groups.setdefault(shared, []).append((_key_prefix(key, longest), QueuedSequence(sequence, longest)))
    for shared, members in sorted(groups.items()):
        members.sort(key=lambda member: (member[0], -member[1].suffix_length))
        yield len(shared) // prefix_tree.ID_BYTES, [queued for _, queued in members]


def _key_prefix(key: bytes, length: int) -> bytes:
    """The key of the first `length` ids."""
    return key[: length * prefix_tree.ID_BYTES]


class _Batch:
    """The running sequences, and the cache of the prefix that the next ones continue.

    static: new sequences join only after all running ones have ended.
    """

    def __init__(
        self, model: Transformer, sampler: Sampler, shared_length: int, batch_size: int, *, static: bool = False
    ) -> None:
        self._model, self._sampler, self._shared_length = model, sampler, shared_length
        self._max_sequences, self._static = batch_size, static
        self._running: list[QueuedSequence] = []
        self._prefix: tuple[int, ...] = ()  # tokens whose keys and values were last written to the prefix cache

    @torch.no_grad()
    def run(self, queued: Sequence[QueuedSequence]) -> None:
        self._prefix_cache = self._model.empty_cache(1, max(entry.prefix_length for entry in queued))
        self._cache = BatchKVCache.after_prefix(self._prefix_cache, self._shared_length)
        queue = deque(queued)
        while queue or self._running:
            accepts_new = not self._running or not self._static
            while accepts_new and queue and len(self._running) < self._max_sequences:
                group = self._next_group(queue)
                if self._fits_in_memory(partial(self._prefill, group), len(self._running) + len(group)):
                    for _ in group:
                        queue.popleft()
                else:  # the running sequences do fit
                    self._max_sequences = len(self._running) + len(group) // 2
            if self._running and not self._fits_in_memory(self._decode_step, len(self._running)):
                queue.extendleft(reversed(self._running))
                self._max_sequences = len(self._running) // 2
                self._running, self._cache = [], BatchKVCache.after_prefix(self._prefix_cache, self._shared_length)

    def _fits_in_memory(self, forward: Callable[[], None], n: int) -> bool:
        """Run a forward of `n` sequences; False if memory ran out."""
        try:
            forward()
            return True
        except RuntimeError as error:
            # Processes that share a model must run the same forwards, and the others may have had enough memory.
            if not out_of_memory(error) or tensor_parallel.size() > 1:
                raise
            if n == 1:
                raise WorkbenchError(
                    "memory is too small for a single sequence; use a smaller model or dtype."
                ) from error
        if torch.cuda.is_available():  # outside the handler: the error holds the failed run's tensors
            torch.cuda.empty_cache()
        return False

    def _next_group(self, queue: Sequence[QueuedSequence]) -> list[QueuedSequence]:
        """Queued sequences for one prefill: the same prefix, nearly equal lengths, and no more than there is room."""
        first = queue[0]
        group, padding = [first], 0
        for other in islice(queue, 1, self._max_sequences - len(self._running)):
            padding += first.suffix_length - other.suffix_length
            if (len(group) + 1) * first.suffix_length > PREFILL_TOKENS or other.suffix_length > first.suffix_length:
                break
            if padding > forward_cost(self._model.device) or other.prefix != first.prefix:
                break
            group.append(other)
        return group

    def _prefill(self, group: Sequence[QueuedSequence]) -> None:
        self._prefill_prefix(group[0].prefix)
        lengths = [queued.suffix_length for queued in group]
        tokens = np.zeros((len(group), max(lengths)), np.int64)
        for i, queued in enumerate(group):
            tokens[i, : lengths[i]] = queued.sequence.ids[queued.prefix_length :]
        device = self._model.device
        cache = self._cache.prefill(*tokens.shape)
        hidden = self._model.hidden(torch.from_numpy(tokens).to(device), cache)
        last = torch.tensor(lengths, device=device) - 1
        ends = hidden[torch.arange(len(group), device=device), last].unsqueeze(1)
        logits = self._model.unembed(ends, start=cache.length + max(lengths) - 1)[:, 0]
        self._cache.add(lengths)
        self._running += group
        self._sample(group, logits)

    def _prefill_prefix(self, prefix: tuple[int, ...]) -> None:
        """Make the prefix cache hold exactly this prefix; the part that is already there is reused."""
        reused = 0
        for cached, token in zip(self._prefix[: self._prefix_cache.length], prefix, strict=False):
            if cached != token:
                break
            reused += 1
        self._prefix_cache.truncate(reused)
        self._prefix = prefix
        while self._prefix_cache.length < len(prefix):
            chunk = prefix[self._prefix_cache.length : self._prefix_cache.length + PREFILL_TOKENS]
            self._model.hidden(torch.tensor([chunk], device=self._model.device), self._prefix_cache)

    def _decode_step(self) -> None:
        tokens = torch.tensor([[queued.sequence.tokens[-1]] for queued in self._running], device=self._model.device)
        hidden = self._model.hidden(tokens, self._cache)
        self._sample(self._running, self._model.unembed(hidden, start=self._cache.length - 1)[:, 0])

    def _sample(self, group: Sequence[QueuedSequence], logits: Tensor) -> None:
        """Sample one token for each sequence of the group, and remove the finished ones from the batch."""
        self._sampler([queued.sequence for queued in group], logits)
        for slot in reversed(range(len(self._running))):
            if self._running[slot].sequence.finish_reason is not None:
                self._cache.remove(slot)
                self._running[slot] = self._running[-1]
                self._running.pop()
