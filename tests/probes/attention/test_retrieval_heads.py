"""Retrieval heads: a needle that a known circuit copies, and the same count by whole runs without a cache."""

import numpy as np
import pytest
import torch

import workbench as wb
from probes.attention import head_types, retrieval_heads, toy_induction_model
from probes.attention.head_metrics import PATTERN
from workbench.errors import DataError
from workbench.model import Transformer


def needle_case(seed: int) -> retrieval_heads.Haystack:
    """Thirty different tokens; positions 10 to 15 are the needle, and its first token is said again at the end."""
    tokens = torch.randperm(32, generator=torch.Generator().manual_seed(seed))[:30].tolist()
    return retrieval_heads.Haystack([*tokens, tokens[10]], 10, 16)


def test_the_hand_set_induction_head_retrieves() -> None:
    """It copies five of the needle's six tokens, all but the first, which the prompt gave; no other head does."""
    cases = [needle_case(seed) for seed in range(4)]
    result = retrieval_heads.retrieval_scores(toy_induction_model.induction_model(), cases, max_new_tokens=5)
    mean = result.mean
    assert mean[toy_induction_model.INDUCTION] == pytest.approx(5 / 6)
    assert np.delete(mean.ravel(), 5).max() < 0.1
    assert result.recall == pytest.approx(np.full(4, 5 / 6))
    table = result.frame()
    assert table["n_prompts"].unique() == table["n_retrieved"].unique() == [4]
    assert table["recall"].to_numpy() == pytest.approx(np.full(8, 5 / 6))
    assert table[table["retrieval_head"]][["layer", "head"]].to_numpy().tolist() == [
        list(toy_induction_model.INDUCTION)
    ]
    fig = result.figure(stamp={"model": "specimen"})
    assert np.array(fig.data[0].z) == pytest.approx(mean, abs=1e-6)
    assert fig.layout.meta == {"kind": "atlas", "model": "specimen"} and "1 of 8 heads" in fig.layout.title.text


def test_the_scores_make_a_type_of_the_catalogue() -> None:
    result = retrieval_heads.retrieval_scores(toy_induction_model.induction_model(), [needle_case(0)], max_new_tokens=5)
    rules = {"retrieval": head_types.Rule("retrieval", retrieval_heads.THRESHOLD)}
    assert head_types.catalogue(result.as_head_scores, rules=rules).of("retrieval") == [toy_induction_model.INDUCTION]


def test_a_haystack_hides_its_needle_between_sentences() -> None:
    tokenizer = wb.load_model("demo", device="cpu").tokenizer
    text = "The cat sat. The dog ran. It was late."
    for depth, before, after in (
        (0, "", " The cat sat. The dog ran. It was late."),
        (0.4, "The cat sat.", " The dog ran. It was late."),
        (1, text, ""),
    ):
        hay = retrieval_heads.haystack(tokenizer, text, "A key.", "Where?", depth=depth)
        pieces = hay.tokens[1 : hay.start], hay.tokens[hay.start : hay.stop], hay.tokens[hay.stop :]
        assert [tokenizer.decode(piece) for piece in pieces] == [before, " A key.", f"{after} Where?"]
        assert hay.tokens[0] == tokenizer.bos_id
    with pytest.raises(DataError, match="empty"):
        retrieval_heads.haystack(tokenizer, text, " ", "Where?")
    with pytest.raises(DataError, match="found 2"):
        retrieval_heads.haystack(tokenizer, text, "A key.", "Where?", depth=2)


def test_scores_are_those_of_whole_runs(tiny_model: Transformer) -> None:
    """Without a cache, step by step; a random model retrieves little, so every token of the prompt is the needle."""
    tokens = torch.randint(96, (12,), generator=torch.Generator().manual_seed(3)).tolist()
    hay = retrieval_heads.Haystack(tokens, 0, 12)
    result = retrieval_heads.retrieval_scores(tiny_model, [hay], max_new_tokens=40, least_recall=0).scores[0]
    hits = [[set() for _ in range(4)] for _ in range(3)]
    ids = list(tokens)
    for _ in range(40):
        with torch.no_grad():
            logits, cap = tiny_model.run_with_capture(torch.tensor([ids]), f"blocks.*.{PATTERN}")
        emitted = int(logits[0, -1].argmax())
        for layer in range(3):
            for head in range(4):
                key = int(cap[f"blocks.{layer}.{PATTERN}"][0, head, -1].argmax())
                if key < 12 and tokens[key] == emitted:
                    hits[layer][head].add(key)
        ids.append(emitted)
    assert result.sum() > 0
    assert result == pytest.approx(np.array([[len(keys) / 12 for keys in row] for row in hits]))


def test_where_nothing_was_retrieved_nothing_is_said(tiny_model: Transformer) -> None:
    hay = retrieval_heads.Haystack(list(range(20)), 3, 9)
    result = retrieval_heads.retrieval_scores(tiny_model, [hay], least_recall=1)
    assert np.isnan(result.scores).all() and np.isnan(result.mean).all()
    assert result.recall[0] < 1 and result.frame()["n_retrieved"].unique() == [0]
    assert "nothing was retrieved" in result.figure().layout.title.text


def test_mistakes_say_what_to_do(tiny_model: Transformer) -> None:
    with pytest.raises(DataError, match="within the prompt's 8 tokens and not empty; found 5 to 9"):
        retrieval_heads.retrieval_scores(tiny_model, [retrieval_heads.Haystack(list(range(8)), 5, 9)])
    with pytest.raises(DataError, match="context of 128"):
        retrieval_heads.retrieval_scores(tiny_model, [retrieval_heads.Haystack([1] * 126, 0, 5)])
    with pytest.raises(DataError, match="there are no haystacks"):
        retrieval_heads.retrieval_scores(tiny_model, [])
