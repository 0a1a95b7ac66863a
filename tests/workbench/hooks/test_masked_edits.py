"""Edits of scores and patterns: no query attends to a later token or to padding, whatever the edit."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench.layers.attention import weights

TOKENS = torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(0))
SCORES, PATTERN = "blocks.1.attn.hook_attn_scores", "blocks.1.attn.hook_pattern"


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def pattern_under(model: wb.Transformer, *changes: wb.Ablate) -> torch.Tensor:
    with model.intervene(*changes):
        return model.run_with_capture(TOKENS, PATTERN)[1][PATTERN]


def test_zeroed_scores_attend_evenly_to_what_the_query_may_see(tiny_model) -> None:
    even = torch.ones(9, 9).tril() / torch.arange(1, 10).unsqueeze(-1)
    for change in (wb.Ablate(SCORES), wb.Scale(SCORES, 0.0), wb.Patch(SCORES, 0.0)):
        assert torch.allclose(pattern_under(tiny_model, change), even.expand(2, 4, 9, 9), atol=1e-6)
    one = pattern_under(tiny_model, wb.Ablate(SCORES, heads=[1]))
    assert torch.allclose(one[:, 1], even.expand(2, 9, 9), atol=1e-6)
    assert torch.allclose(one[:, 0], pattern_under(tiny_model)[:, 0], atol=1e-6)


def test_negated_scores_are_the_softmax_of_the_negated_seen_ones(tiny_model) -> None:
    scores = tiny_model.run_with_capture(TOKENS, SCORES)[1][SCORES]
    negated = pattern_under(tiny_model, wb.Scale(SCORES, -1.0))
    for row in range(9):
        expected = (-scores[..., row, : row + 1]).softmax(-1)
        assert torch.allclose(negated[..., row, : row + 1], expected, atol=1e-6)
    assert negated.triu(1).abs().max() == 0


numbers = st.floats(-50, 50) | st.sampled_from([0.0, -0.0, -1.0])
targets = st.sampled_from([SCORES, PATTERN])
heads = st.none() | st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True)
positions = st.none() | st.lists(st.integers(0, 8), min_size=1, max_size=9, unique=True)


@st.composite
def edits(draw: st.DrawFn) -> wb.Ablate:
    kind, target = draw(st.sampled_from([wb.Ablate, wb.Scale, wb.Add, wb.Patch])), draw(targets)
    arguments = () if kind is wb.Ablate else (draw(numbers),)
    return kind(target, *arguments, heads=draw(heads), positions=draw(positions))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(edits(), min_size=1, max_size=3), last=st.integers(0, 95))
def test_no_edit_of_scores_or_pattern_lets_a_query_see_the_future(tiny_model, changes, last) -> None:
    with torch.no_grad(), tiny_model.intervene(*changes):
        logits, cap = tiny_model.run_with_capture(TOKENS, [SCORES, PATTERN])
        changed = TOKENS.clone()
        changed[:, -1] = last
        earlier = tiny_model(changed)[:, :-1]
    assert cap[PATTERN].isfinite().all() and cap[PATTERN].triu(1).abs().max() == 0
    after = torch.ones(9, 9, dtype=torch.bool).triu(1)
    assert (cap[SCORES][..., after] == -math.inf).all() and cap[SCORES][..., ~after].isfinite().all()
    assert torch.equal(earlier, logits[:, :-1])  # the last token changes nothing before it


@pytest.mark.parametrize(
    "change",
    [
        wb.Ablate(SCORES), wb.Ablate(SCORES, heads=[1]), wb.Scale(SCORES, -1.0, heads=[0, 3]), wb.Scale(SCORES, 2.0),
        wb.Ablate(SCORES, positions=[2, 6]), wb.Add(PATTERN, 0.1, heads=[2]), wb.Patch(SCORES, torch.zeros(1, 1, 1, 1)),
    ],
    ids=lambda change: f"{change.kind}-{change.target.rsplit('_', 1)[-1]}-{change.heads}-{change.positions}",
)  # fmt: skip
def test_whole_run_steps_and_scoring_agree(tiny_model, change) -> None:
    row = TOKENS[:1]
    with tiny_model.intervene(change):
        whole, cache = tiny_model(row), tiny_model.empty_cache(1, 9)
        steps = torch.cat([tiny_model(row[:, i : i + 1], cache) for i in range(9)], 1)
        ids = row[0].tolist()
        ((scored, _),) = wb.score(tiny_model, [(ids[:6], ids[6:])])
        (together, *_) = wb.score(tiny_model, [(ids[:6], ids[6:]), (ids[:6], ids[5:]), (ids[:4], ids[6:])])
    assert torch.allclose(steps, whole, atol=1e-5)
    expected = sum(whole[0, i - 1].log_softmax(-1)[ids[i]].item() for i in range(6, 9))
    assert scored == pytest.approx(expected, abs=1e-4) and together[0] == pytest.approx(expected, abs=1e-4)
    assert not torch.allclose(whole, tiny_model(row), atol=1e-4)


def test_left_padding_stays_unseen(tiny_model) -> None:
    pad = torch.tensor([3, 0])
    for change in (wb.Ablate(SCORES), wb.Add(PATTERN, 0.2)):
        with tiny_model.intervene(change):
            cache = tiny_model.empty_cache(2, 9, pad=pad)
            padded = tiny_model(TOKENS, cache)
            alone = tiny_model(TOKENS[:1, 3:])
        assert torch.allclose(padded[:1, 3:], alone, atol=1e-5)


def test_a_query_that_may_see_nothing_has_weight_zero_and_a_gradient(tiny_model) -> None:
    minus = torch.full((1, 1, 1, 9), -math.inf)
    pattern = pattern_under(tiny_model, wb.Patch(SCORES, minus, heads=[1], positions=[4]), wb.Scale(SCORES, 0.0))
    assert (pattern[:, 1, 4] == 0).all()
    assert torch.allclose(pattern[:, 1, 5, :6], torch.full((2, 6), 1 / 6))
    scores = torch.tensor([[[[-math.inf, -math.inf], [1.0, -math.inf]]]], requires_grad=True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(weights(scores).square().sum(), scores)
    assert gradient.isfinite().all()


def test_a_knocked_out_edge_is_that_row_without_the_key(tiny_model) -> None:
    """Attention knockout: -inf at one edge is the softmax over the other keys."""
    edge = torch.zeros(9)
    edge[2] = -math.inf
    scores = tiny_model.run_with_capture(TOKENS, SCORES)[1][SCORES]
    pattern = pattern_under(tiny_model, wb.Add(SCORES, edge, heads=[0], positions=[7]))
    expected = torch.cat([scores[:, 0, 7, :2], scores[:, 0, 7, 3:8]], -1).softmax(-1)
    assert torch.allclose(torch.cat([pattern[:, 0, 7, :2], pattern[:, 0, 7, 3:8]], -1), expected, atol=1e-6)
    assert (pattern[:, 0, 7, 2] == 0).all()
