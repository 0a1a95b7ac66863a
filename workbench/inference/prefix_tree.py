"""Prefix tree of inputs: every shared token is in it once; `Tree.plan` says in which order to compute it.

A `Node` is a run of tokens without a fork. A shared run that saves enough tokens is computed once and its keys and
values are kept (a shared prefix). What follows a shared prefix is cut into packed sequences, which run together in a
batch. This module knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
MAX_PACKED_TOKENS = 512  # a subtree of up to so many tokens is packed: attention is cheap there, a forward is not
MIN_PREFIX_SHARE = 0.02  # least length of a shared prefix over the longest path from its start: it costs attention
ID_BYTES = 8  # of one id in a key


@dataclass(eq=False, repr=False, slots=True)
class Node:
    """Tokens `start` to `end` of every input that passes through it; `path` is one of those inputs."""

    path: Ids
    start: int
    end: int
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)
    total: int = 0  # tokens of the node and its descendants
    longest: int = 0  # tokens from the node's first to the deepest of its descendants
    is_packed: bool = False  # the node and its descendants run as one packed sequence

    @property
    def ids(self) -> Ids:
        return self.path[self.start : self.end]


@dataclass(frozen=True)
class PackedSequence:
    """A node and its descendants, parents first, packed into one sequence."""

    nodes: tuple[Node, ...]

    @property
    def total(self) -> int:
        """Length of the sequence in tokens."""
        return self.nodes[0].total


@dataclass(frozen=True)
class SharedPrefix:
    """A node whose keys and values are cached, after those of its parents, while its suffixes run (longest first)."""

    node: Node
    suffixes: tuple[PackedSequence, ...]

    def batch(self, first: int, *, budget: int, waste: int) -> tuple[PackedSequence, ...]:
        """Suffixes from `first` on for one batch: at least one, at most `budget` tokens, at most `waste` padding."""
        longest = self.suffixes[first].total
        end, padding = first + 1, 0
        while end < len(self.suffixes) and (end + 1 - first) * longest <= budget:
            padding += longest - self.suffixes[end].total
            if padding > waste:
                break
            end += 1
        return self.suffixes[first:end]


@dataclass(frozen=True)
class Tree:
    """All inputs; `deepest` is the node in which each of them ends.

    `minimum` is the number of tokens with distinct prefixes: no way to run all inputs computes fewer.
    """

    root: Node
    deepest: tuple[Node, ...]
    minimum: int

    def along(self, which: int, first: int, last: int) -> Iterator[tuple[Node, int, int]]:
        """The nodes that hold positions `first` to `last` of an input, with the positions in each; the last first."""
        node: Node | None = self.deepest[which]
        while node is not None and last > first:
            if last > node.start:
                begin = max(first, node.start)
                yield node, begin, last
                last = begin
            node = node.parent

    def plan(self) -> Iterator[SharedPrefix]:
        """Shared prefixes in depth-first order: a stack of cached nodes holds the parents of each one."""
        stack = [self.root]
        while stack:
            node = stack.pop()
            suffixes = [PackedSequence(tuple(_subtree(child))) for child in node.children if child.is_packed]
            yield SharedPrefix(node, tuple(sorted(suffixes, key=lambda suffix: -suffix.total)))
            stack.extend(child for child in reversed(node.children) if not child.is_packed)


def key(ids: Sequence[int] | Ids) -> bytes:
    """Token ids as bytes that sort and compare as the ids do, at the speed of memory."""
    return np.asarray(ids, dtype=">i8").tobytes()


def grow(inputs: Sequence[bytes], *, min_tokens_saved: int, pack: bool = True) -> Tree:
    """The tree of some inputs, given as keys (see `key`); they may repeat, and one may be a prefix of another.

    min_tokens_saved: tokens that a shared prefix must save, because it takes a forward of its own. pack: False makes
    every packed sequence a single branch.
    """
    root, deepest = _radix_tree(inputs)
    minimum = sum(node.end - node.start for node in _subtree(root))
    _choose_shared_prefixes(root, MAX_PACKED_TOKENS if pack else 0, min_tokens_saved)
    return Tree(root, tuple(deepest[text] for text in inputs), minimum)


def _radix_tree(inputs: Sequence[bytes]) -> tuple[Node, dict[bytes, Node]]:
    """The tree with a node for every fork, and where each input ends."""
    root = Node(np.empty(0, np.int64), 0, 0)
    deepest: dict[bytes, Node] = {}
    branch = [root]  # the nodes from the root to the last leaf
    previous = root.path
    # In reverse order, so that an input comes before its own prefixes, which need no node of their own.
    for text in sorted(set(inputs), reverse=True):
        path = np.frombuffer(text, dtype=">i8").astype(np.int64)
        shared = _common_prefix_length(previous, path)
        if shared == len(path):
            deepest[text] = branch[-1]
            continue
        below = None
        while branch[-1].end > shared:
            below = branch.pop()
        top = branch[-1]
        if below is not None and top.end < shared:
            middle = Node(below.path, top.end, shared, top, [below])
            top.children[-1] = middle
            below.start, below.parent = shared, middle
            branch.append(middle)
            top = middle
        leaf = Node(path, shared, len(path), top)
        top.children.append(leaf)
        branch.append(leaf)
        deepest[text], previous = leaf, path
    return root, deepest


def _choose_shared_prefixes(root: Node, max_packed: int, min_tokens_saved: int) -> None:
    """Mark the subtrees to pack, and dissolve the other forks that save too few tokens for a shared prefix."""
    for node in reversed(list(_subtree(root))):
        length = node.end - node.start
        node.total = length + sum(child.total for child in node.children)
        node.longest = length + max((child.longest for child in node.children), default=0)
        # In a packed sequence every token is masked against every other: it must be short, or close to one branch.
        node.is_packed = not node.children or (max_packed > 0 and node.total <= max(max_packed, 1.5 * node.longest))
    prefixes = [root]
    while prefixes:
        prefix = prefixes.pop()
        children: list[Node] = []
        stack = list(reversed(prefix.children))
        while stack:
            node = stack.pop()
            length = node.end - node.start
            saved = length * (len(node.children) - 1)
            if node.is_packed:
                children.append(node)
            elif saved >= min_tokens_saved and length >= MIN_PREFIX_SHARE * node.longest:
                children.append(node)
                prefixes.append(node)
            else:  # its tokens go in front of each child, so that the child saves more as a shared prefix
                for child in node.children:
                    child.start, child.parent = node.start, prefix
                    child.total, child.longest = child.total + length, child.longest + length
                stack.extend(reversed(node.children))
        prefix.children = children


def _common_prefix_length(a: Ids, b: Ids) -> int:
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(differs.argmax()) if differs.any() else n


def _subtree(node: Node) -> Iterator[Node]:
    """The node and its descendants, parents first; a loop, because a tree may be deeper than Python's call stack."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(node.children))
