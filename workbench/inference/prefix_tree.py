"""Inputs that begin alike, as a tree in which every shared token stands once; and in which order to compute it.

A `Node` is a run of tokens without a fork. A shared run that is worth it is computed once and kept (a stem); what hangs
off a stem is cut into rows, which a batch computes side by side. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
PACKED = 512  # a fork of up to so many tokens is one row: attention is cheap there, another forward is not
WORTH_SHARE = 0.02  # length of a stem over that of what hangs off it, at least: attention pays for a stem, too
ID_BYTES = 8  # of one id in a key


@dataclass(eq=False, repr=False, slots=True)
class Node:
    """Tokens `start` to `end` of every input that goes through it; `path` is one of those inputs."""

    path: Ids
    start: int
    end: int
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)
    total: int = 0  # tokens of the node and of all below it
    longest: int = 0  # tokens from the node's first to the deepest below it
    is_row: bool = False  # the node and all below it run in one row

    @property
    def ids(self) -> Ids:
        return self.path[self.start : self.end]


@dataclass(frozen=True)
class Row:
    """A node and all below it, parents first, side by side in one sequence."""

    nodes: tuple[Node, ...]

    @property
    def total(self) -> int:
        return self.nodes[0].total


@dataclass(frozen=True)
class SharedPrefix:
    """A node whose keys and values are kept, behind those of its parents, while its rows run (the longest first)."""

    node: Node
    rows: tuple[Row, ...]

    def batch(self, first: int, *, budget: int, waste: int) -> tuple[Row, ...]:
        """Rows from `first` on that run together: at least one, within a budget of tokens, of which few are padding."""
        longest = self.rows[first].total
        end, padding = first + 1, 0
        while end < len(self.rows) and (end + 1 - first) * longest <= budget:
            padding += longest - self.rows[end].total
            if padding > waste:
                break
            end += 1
        return self.rows[first:end]


@dataclass(frozen=True)
class Tree:
    """All inputs; `deepest` is the node in which each of them ends.

    `minimum` counts the tokens of which each stands behind another beginning: no way to run all inputs takes less.
    """

    root: Node
    deepest: tuple[Node, ...]
    minimum: int

    def along(self, which: int, first: int, last: int) -> Iterator[tuple[Node, int, int]]:
        """The nodes that hold positions `first` to `last` of an input, each with its part of them, the last first."""
        node: Node | None = self.deepest[which]
        while node is not None and last > first:
            if last > node.start:
                begin = max(first, node.start)
                yield node, begin, last
                last = begin
            node = node.parent

    def plan(self) -> Iterator[SharedPrefix]:
        """Stems in an order in which each one's parents are the last ones computed at shallower depths."""
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            rows = [Row(tuple(_below(child))) for child in node.children if child.is_row]
            yield SharedPrefix(node, tuple(sorted(rows, key=lambda row: -row.total)))
            waiting.extend(child for child in reversed(node.children) if not child.is_row)


def key(ids: Sequence[int] | Ids) -> bytes:
    """Bytes that sort and compare as the ids do, as fast as memory is read."""
    return np.asarray(ids, dtype=">i8").tobytes()


def grow(inputs: Sequence[bytes], *, min_tokens_saved: int, pack: bool = True) -> Tree:
    """The tree of some inputs, given by `key`; they may repeat and be beginnings of each other.

    worth: tokens that a stem must save, because it takes a forward of its own. pack: False keeps forks out of rows, so
    that each row is one unbroken sequence behind its stem.
    """
    root, deepest = _fork(inputs)
    minimum = sum(node.end - node.start for node in _below(root))
    _arrange(root, PACKED if pack else 0, min_tokens_saved)
    return Tree(root, tuple(deepest[text] for text in inputs), minimum)


def _fork(inputs: Sequence[bytes]) -> tuple[Node, dict[bytes, Node]]:
    """The tree with a node for every fork, and where each input ends."""
    root = Node(np.empty(0, np.int64), 0, 0)
    deepest: dict[bytes, Node] = {}
    branch = [root]  # the nodes from the root to the last leaf
    previous = root.path
    # From the back, so that an input comes before its own beginnings, which need no node of their own.
    for text in sorted(set(inputs), reverse=True):
        path = np.frombuffer(text, dtype=">i8").astype(np.int64)
        shared = _shared(previous, path)
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


def _arrange(root: Node, packed: int, min_tokens_saved: int) -> None:
    """Choose what runs in one row, and take back the forks that are neither that nor worth a stem."""
    for node in reversed(list(_below(root))):
        own = node.end - node.start
        node.total = own + sum(child.total for child in node.children)
        node.longest = own + max((child.longest for child in node.children), default=0)
        # In one row every token is masked against every other: a fork must be small, or little more than one branch.
        node.is_row = not node.children or (packed > 0 and node.total <= max(packed, 1.5 * node.longest))
    stems = [root]
    while stems:
        stem = stems.pop()
        kept: list[Node] = []
        waiting = list(reversed(stem.children))
        while waiting:
            node = waiting.pop()
            own = node.end - node.start
            saved = own * (len(node.children) - 1)
            if node.is_row:
                kept.append(node)
            elif saved >= min_tokens_saved and own >= WORTH_SHARE * node.longest:
                kept.append(node)
                stems.append(node)
            else:  # its tokens go in front of each child, which makes a stem of the child worth more
                for child in node.children:
                    child.start, child.parent = node.start, stem
                    child.total, child.longest = child.total + own, child.longest + own
                waiting.extend(reversed(node.children))
        stem.children = kept


def _shared(one: Ids, other: Ids) -> int:
    """Length of the common beginning."""
    n = min(len(one), len(other))
    differs = one[:n] != other[:n]
    return int(differs.argmax()) if differs.any() else n


def _below(node: Node) -> Iterator[Node]:
    """The node and all below it, parents first; a loop, because trees may be deeper than the interpreter's stack."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(reversed(node.children))
