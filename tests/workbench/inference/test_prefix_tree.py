"""The prefix tree: every prefix is in it once, every position is found, and nothing is shared that does not pay."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.inference import prefix_tree
from workbench.inference.prefix_tree import Node, Tree

few_letters = st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple)


def grown(*inputs: tuple[int, ...], min_tokens_saved: int = 256, pack: bool = True) -> Tree:
    return prefix_tree.grow([prefix_tree.key(ids) for ids in inputs], min_tokens_saved=min_tokens_saved, pack=pack)


def all_nodes(tree: Tree) -> list[Node]:
    """Nodes of the shared prefixes and of their suffixes in the order of the plan, without the root."""
    nodes = []
    for prefix in tree.plan():
        nodes += [prefix.node, *(node for suffix in prefix.suffixes for node in suffix.nodes)]
    return nodes[1:]


def test_a_hand_drawn_tree() -> None:
    tree = grown((1, 2, 3, 4), (1, 2, 5), (1, 2), (7,), (1, 2, 3, 4))
    assert tree.minimum == 6  # 1, 1 2, 1 2 3, 1 2 3 4, 1 2 5, 7
    (top,) = tree.plan()
    assert [[node.ids.tolist() for node in suffix.nodes] for suffix in top.suffixes] == [[[1, 2], [5], [3, 4]], [[7]]]
    assert [(node.ids.tolist(), low, high) for node, low, high in tree.along(0, 1, 4)] == [
        ([3, 4], 2, 4),
        ([1, 2], 1, 2),
    ]
    assert [(node.ids.tolist(), low, high) for node, low, high in tree.along(2, 1, 2)] == [([1, 2], 1, 2)]


def test_a_long_prefix_is_shared_and_its_forks_are_packed() -> None:
    subject = tuple(range(100, 400))
    questions = [(*subject, q, *range(40)) for q in range(20)]
    tree = grown(*[(*question, answer, 7) for question in questions for answer in range(4)])
    root, prefix = tree.plan()
    assert (root.suffixes, prefix.node.ids.tolist()) == ((), list(subject))
    assert [len(suffix.nodes) for suffix in prefix.suffixes] == [5] * 20
    assert sum(suffix.total for suffix in prefix.suffixes) + len(subject) == tree.minimum == 300 + 20 * (41 + 4 * 2)


def test_without_packing_each_suffix_is_one_branch() -> None:
    tree = grown(*[(*range(60), answer, 7) for answer in range(4)], pack=False)
    (top,) = tree.plan()
    assert [len(suffix.nodes) for suffix in top.suffixes] == [1] * 4, "sharing 60 tokens saves less than it costs"
    assert (sum(suffix.total for suffix in top.suffixes), tree.minimum) == (4 * 62, 60 + 4 * 2)


def test_a_begin_token_alone_is_not_a_shared_prefix() -> None:
    tree = grown(*[(0, *range(10 * i + 1, 10 * i + 700)) for i in range(50)])
    (top,) = tree.plan()
    assert len(top.suffixes) == 50 and all(len(suffix.nodes) == 1 for suffix in top.suffixes)


def test_a_tree_may_be_deeper_than_the_interpreter_s_stack() -> None:
    inputs = [(*range(i), 9_999) for i in range(1, 1_500)]
    tree = grown(*inputs, min_tokens_saved=16)
    assert tree.minimum == 2 * 1_499
    computed = sum(len(node.ids) for node in all_nodes(tree))
    assert computed < 32 * 1_499, "a shared prefix every thirty forks: only then it saves enough tokens"
    assert sum(map(len, inputs)) > 20 * computed


@settings(max_examples=200, deadline=None)
@given(st.lists(few_letters, min_size=1, max_size=25), st.integers(0, 20), st.booleans())
def test_every_position_of_every_input_is_where_the_tree_says(inputs, packed, pack) -> None:
    before = prefix_tree.MAX_PACKED_TOKENS
    prefix_tree.MAX_PACKED_TOKENS = packed  # small enough for every kind of node to occur
    try:
        tree = grown(*inputs, min_tokens_saved=packed // 4, pack=pack)
    finally:
        prefix_tree.MAX_PACKED_TOKENS = before
    assert tree.minimum == len({ids[: n + 1] for ids in inputs for n in range(len(ids))})
    nodes = all_nodes(tree)
    assert len(set(map(id, nodes))) == len(nodes)
    ends: dict[int, int] = {}
    for prefix in tree.plan():  # the parent of each shared prefix is still in the cache
        assert prefix.node.start == 0 or ends[id(prefix.node.parent)] == prefix.node.start
        ends = {key: end for key, end in ends.items() if end <= prefix.node.start} | {id(prefix.node): prefix.node.end}
        for suffix in prefix.suffixes:
            assert suffix.total == sum(len(node.ids) for node in suffix.nodes)
            assert suffix.nodes[0].start == prefix.node.end and (pack or len(suffix.nodes) == 1)
            assert [suffix.total for suffix in prefix.suffixes] == sorted(
                (suffix.total for suffix in prefix.suffixes), reverse=True
            )
    for which, ids in enumerate(inputs):
        parts = list(tree.along(which, 0, len(ids)))[::-1]
        assert [low for _, low, _ in parts] == [0, *(high for _, _, high in parts[:-1])] and parts[-1][2] == len(ids)
        assert np.concatenate([node.path[low:high] for node, low, high in parts]).tolist() == list(ids)
        assert all(node in nodes and node.start <= low and high <= node.end for node, low, high in parts)


def test_a_batch_holds_little_padding_and_at_least_one_sequence() -> None:
    tree = grown(
        *[(i, *range(length)) for i, length in enumerate((99, 98, 90, 49, 49, 9))], min_tokens_saved=0, pack=False
    )
    (top,) = tree.plan()
    assert [suffix.total for suffix in top.batch(0, budget=1000, waste=20)] == [100, 99, 91]
    assert [suffix.total for suffix in top.batch(3, budget=1000, waste=20)] == [50, 50]
    assert [suffix.total for suffix in top.batch(0, budget=200, waste=20)] == [100, 99]
    assert [suffix.total for suffix in top.batch(5, budget=1, waste=0)] == [10]
