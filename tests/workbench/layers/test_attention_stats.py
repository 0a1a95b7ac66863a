"""Summaries of patterns against the dense computation in float64, Hugging Face's attentions, and values by hand."""

import math

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests.workbench.reference import hugging_face, ours
from workbench.errors import CaptureBudgetError, CaptureError, InterventionError
from workbench.hooks import hook_points
from workbench.layers import attention_stats
from workbench.layers.attention import AttentionInputs, EditedPattern
from workbench.layers.attention_mask import Mask
from workbench.layers.attention_stats import STATS

LENGTH = 300  # more than a map's side, and two blocks of queries


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Blocks of 16 queries of one unit, so that every seam is crossed."""
    monkeypatch.setattr(attention_stats, "TILE_ELEMENTS", {"cpu": 1, "cuda": 1})
    with torch.no_grad():
        yield


def inputs(mask: Mask, *, batch: int = 2, heads: int = 6, kv_heads: int = 2, keys: int = LENGTH) -> AttentionInputs:
    torch.manual_seed(3)
    q = 3 * torch.randn(batch, heads, len(mask.positions), 8)
    return AttentionInputs.of(q, torch.randn(batch, kv_heads, keys, 8), mask)


def dense(attention: AttentionInputs) -> tuple[Tensor, Tensor]:
    """Scores and pattern in float64, each key head copied to its query heads."""
    group = attention.q.shape[1] // attention.k.shape[1]
    k = attention.k.double().repeat_interleave(group, 1)
    scores = attention.q.double() @ k.transpose(-1, -2) / math.sqrt(attention.q.shape[-1])
    scores = scores.masked_fill(~attention.mask.allowed(k.shape[2]), -torch.inf)
    return scores, scores.softmax(-1)


def expected_stats(scores: Tensor, pattern: Tensor, mask: Mask) -> dict[str, Tensor]:
    i, j = mask.positions[:, None], torch.arange(pattern.shape[-1])
    first = mask.first_key(len(pattern))[:, None, None, None]
    sinks = [(pattern * ((j >= first) & (j < first + k))).sum(-1) for k in (1, 4)]
    return {
        "entropy": torch.special.entr(pattern).sum(-1),
        "logsumexp": scores.logsumexp(-1),
        "sink_1": sinks[0],
        "sink_4": sinks[1],
        "previous": (pattern * (j == i - 1)).sum(-1),
        "distance": (pattern * (i - j)).sum(-1),
        "top_weight": pattern.max(-1).values,
        "top_position": pattern.argmax(-1).double(),
    }


def pooled(pattern: Tensor, real: Tensor, side: int) -> Tensor:
    """The definition, cell by cell. Shapes: pattern [query_pos, key_pos], real [query_pos]"""
    n_queries, n_keys = pattern.shape
    rows, columns = -(-n_queries // side), -(-n_keys // side)
    cells = []
    for start in range(0, n_queries, rows):
        block = pattern[start : start + rows][real[start : start + rows]]
        mean = block.mean(0) if len(block) else torch.zeros(n_keys, dtype=pattern.dtype)
        cells.append([mean[key : key + columns].sum() for key in range(0, n_keys, columns)])
    return torch.tensor(cells)


MASKS = {
    "plain": (Mask(torch.arange(LENGTH)), LENGTH),
    "left padding": (Mask(torch.arange(LENGTH), torch.tensor([0, 37])), LENGTH),
    "after a cache": (Mask(torch.arange(200, LENGTH)), LENGTH),
    "some rows, after a cache with padding": (Mask(torch.tensor([40, 41, 250, 90]), torch.tensor([5, 0])), 280),
    "one query": (Mask(torch.tensor([LENGTH - 1])), LENGTH),
}


@pytest.mark.parametrize("case", MASKS)
def test_all_summaries_equal_the_dense_computation(case: str) -> None:
    """To 1e-5, which float32's scores allow: they are below 30, and one bit of them is 2e-6. Distances are
    up to 300 tokens, where one bit is 3e-5: 1e-6 of that."""
    mask, n_keys = MASKS[case]
    attention = inputs(mask, keys=n_keys)
    scores, pattern = dense(attention)
    assert scores[scores > -torch.inf].abs().max() < 30 and pattern.max() > 0.9
    stats = attention.stats()
    for name, expected in expected_stats(scores, pattern, mask).items():
        off = (stats[..., STATS.index(name)].double() - expected).abs().max()
        assert off < (3e-4 if name == "distance" else 1e-5), (name, off)
    real = mask.positions >= mask.first_key(2)[:, None]  # [batch, query_pos]
    mass = (pattern * real[:, None, :, None]).sum(2)
    assert (attention.key_mass().double() - mass).abs().max() < 1e-4  # a sum of up to 300 weights
    small = attention.pooled_map()
    for row in range(2):
        for head in (0, 5):
            assert (small[row, head].double() - pooled(pattern[row, head], real[row], 256)).abs().max() < 1e-5


def test_a_map_and_the_mass_of_keys_keep_what_they_sum() -> None:
    """A row of the map is a mean of rows that sum to 1; all keys together receive one from each query."""
    mask = Mask(torch.arange(LENGTH), torch.tensor([0, 37]))
    attention = inputs(mask)
    small = attention.pooled_map()
    assert small.shape == (2, 6, 150, 150)  # 300 positions, two to a tile
    assert (small[0].sum(-1) - 1).abs().max() < 1e-5
    assert small[1, :, :18].abs().max() == 0 and (small[1, :, 18:].sum(-1) - 1).abs().max() < 1e-5
    assert (attention.key_mass().sum(-1) - torch.tensor([[300.0], [263.0]])).abs().max() < 1e-3
    assert attention.key_mass()[1, :, :37].abs().max() == 0


def test_by_hand() -> None:
    """Equal scores: row i is uniform over i + 1 keys. One dominant key: every row has all its weight there."""
    even = AttentionInputs.of(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), Mask(torch.arange(4)))
    stats = dict(zip(STATS, even.stats()[0, 0].T, strict=True))
    logs = [math.log(n) for n in (1, 2, 3, 4)]
    assert stats["entropy"].tolist() == pytest.approx(logs) == stats["logsumexp"].tolist()
    assert stats["sink_1"].tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4]) == stats["top_weight"].tolist()
    assert stats["sink_4"].tolist() == pytest.approx([1, 1, 1, 1])
    assert stats["previous"].tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 4])
    assert stats["distance"].tolist() == pytest.approx([0, 0.5, 1, 1.5])
    assert even.key_mass()[0, 0].tolist() == pytest.approx([25 / 12, 13 / 12, 7 / 12, 3 / 12])
    keys = torch.tensor([[-1.0, 0], [9, 0], [-1, 0], [-1, 0]])
    peaked = AttentionInputs.of(torch.tensor([[[[20.0, 0]] * 4]]), keys[None, None], Mask(torch.arange(4)))
    assert peaked.stats()[0, 0, 1:, STATS.index("top_position")].tolist() == [1, 1, 1]
    assert peaked.stats()[0, 0, :, STATS.index("entropy")].abs().max() < 1e-5
    assert peaked.key_mass()[0, 0].tolist() == pytest.approx([1, 3, 0, 0])


def test_a_late_query_on_near_keys_keeps_its_digits() -> None:
    """At position 30,000 one bit of a position is 0.002: distances are not differences of positions."""
    n_keys = 30_016
    mask = Mask(torch.arange(n_keys - 16, n_keys))
    k = torch.zeros(1, 1, n_keys, 2)
    k[..., 0] = torch.arange(n_keys) / 10  # nearer keys win, by a factor of e every ten positions
    attention = AttentionInputs.of(torch.full((1, 1, 16, 2), math.sqrt(2)), k, mask)
    _, pattern = dense(attention)
    distance = (pattern * (mask.positions[:, None] - torch.arange(n_keys))).sum(-1)
    assert 9 < distance.min() < 10
    # The scores themselves are about 3,000, one bit 2e-4; the distance follows them.
    assert (attention.stats()[..., STATS.index("distance")] - distance).abs().max() < 5e-3


def test_bfloat16_is_that_of_its_q_and_k_in_float32() -> None:
    attention = inputs(Mask(torch.arange(LENGTH)))
    half = AttentionInputs.of(attention.q.bfloat16(), attention.k.bfloat16(), attention.mask)
    wide = AttentionInputs.of(half.q.float(), half.k.float(), attention.mask)
    for name in ("stats", "pooled_map", "key_mass"):
        assert torch.equal(getattr(half, name)(), getattr(wide, name)()), name


def test_the_size_of_tiles_changes_nothing(monkeypatch) -> None:
    attention = inputs(Mask(torch.arange(LENGTH), torch.tensor([0, 37])))
    small = [attention.stats(), attention.pooled_map(), attention.key_mass()]
    monkeypatch.setattr(attention_stats, "TILE_ELEMENTS", {"cpu": 1 << 25, "cuda": 1 << 25})
    for a, b in zip(small, [attention.stats(), attention.pooled_map(), attention.key_mass()], strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-4)


def test_an_edited_pattern_is_summarised_like_the_inputs_that_make_it() -> None:
    attention = inputs(Mask(torch.arange(40), torch.tensor([0, 7])), keys=40)
    edited = EditedPattern(attention.pattern(), attention.mask)
    assert torch.allclose(edited.key_mass(), attention.key_mass(), atol=1e-5)
    assert torch.allclose(edited.pooled_map(), attention.pooled_map(), atol=1e-6)
    same = [i for i, name in enumerate(STATS) if name != "logsumexp"]  # for weights it is the logarithm of their sum
    assert torch.allclose(edited.stats()[..., same], attention.stats()[..., same], atol=1e-4)
    halved = EditedPattern(attention.pattern() / 2, attention.mask)
    assert torch.allclose(halved.stats()[..., STATS.index("logsumexp")], torch.tensor(0.5).log(), atol=1e-5)
    assert torch.allclose(halved.key_mass(), attention.key_mass() / 2, atol=1e-5)
    assert EditedPattern(torch.zeros(1, 1, 2, 2), Mask(torch.arange(2))).stats().isnan().all()


def test_gradients_pass_through_statistics(tiny_model) -> None:
    tokens = torch.randint(0, 96, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.enable_grad():
        names = ["blocks.1.attn.hook_stats", "blocks.1.attn.hook_pattern"]
        _, cap = tiny_model.run_with_capture(tokens, names, grad=True)
        streamed = cap["blocks.1.attn.hook_stats"][..., STATS.index("entropy")]
        plain = torch.special.entr(cap["blocks.1.attn.hook_pattern"] + 1e-30).sum(-1)
        weight = tiny_model.layers[0].attention.wq.weight
        both = [torch.autograd.grad(x.sum(), weight, retain_graph=True)[0] for x in (streamed, plain)]
    assert both[1].abs().max() > 1e-3
    assert torch.allclose(*both, atol=1e-5)


def test_summaries_equal_those_of_hugging_face_s_attentions() -> None:
    """To 1e-5, as their patterns and ours: float32 through three layers."""
    reference = hugging_face(heads=8, kv_heads=2, head_dim=16, scaled=True)
    tokens = torch.randint(0, 120, (2, 40), generator=torch.Generator().manual_seed(1))
    theirs = reference(tokens, output_attentions=True).attentions
    _, cap = ours(reference).run_with_capture(tokens, [f"blocks.*.{name}" for name in hook_points.SUMMARIES])
    for layer in range(3):
        pattern = theirs[layer].double()
        expected = expected_stats(pattern.log(), pattern, Mask(torch.arange(40)))
        stats = cap[f"blocks.{layer}.attn.hook_stats"]
        for name in set(STATS) - {"logsumexp", "top_position"}:
            off = (stats[..., STATS.index(name)] - expected[name]).abs().max()
            assert off < (1e-4 if name == "distance" else 2e-5), (layer, name, off)
        assert (cap[f"blocks.{layer}.attn.hook_key_mass"] - pattern.sum(2)).abs().max() < 1e-4
        assert (cap[f"blocks.{layer}.attn.hook_map"] - pattern).abs().max() < 1e-5  # no tile holds two positions


@pytest.mark.parametrize("scaling", [None, wb.RopeScaling(yarn=4.0)])
def test_summaries_of_padded_rows_after_a_cache_are_those_of_the_pattern(tiny_model, scaling) -> None:
    tokens = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(0))
    cache = tiny_model.empty_cache(2, 20, pad=torch.tensor([0, 3]))
    names = [f"blocks.1.{name}" for name in (*hook_points.SUMMARIES, hook_points.PATTERN)]
    with tiny_model.intervene(*([] if scaling is None else [scaling])):
        tiny_model(tokens[:, :10], cache)
        _, cap = tiny_model.run_with_capture(tokens[:, 10:], names, heads=[1, 3], positions=[12, 19], cache=cache)
    pattern = cap[names[-1]]
    edited = EditedPattern(pattern, Mask(torch.tensor([12, 19]), torch.tensor([0, 3])))
    same = [i for i, name in enumerate(STATS) if name != "logsumexp"]
    assert torch.allclose(cap[names[0]][..., same], edited.stats()[..., same], atol=1e-5)
    assert torch.allclose(cap[names[1]], edited.pooled_map(), atol=1e-6)
    assert torch.allclose(cap[names[2]], edited.key_mass(), atol=1e-6)


def test_under_an_intervention_they_are_of_the_changed_pattern(tiny_model) -> None:
    tokens = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(0))
    names = [f"blocks.1.{name}" for name in hook_points.SUMMARIES]
    with tiny_model.intervene(wb.Scale("blocks.1.attn.hook_pattern", 0.5, heads=(2,))):
        _, cap = tiny_model.run_with_capture(tokens, names)
        with pytest.raises(CaptureError, match="Capture it without positions="):
            tiny_model.run_with_capture(tokens, names, positions=[3])
    assert torch.allclose(cap[names[2]].sum(-1), torch.tensor([20.0, 20, 10, 20]), atol=1e-4)
    with (
        pytest.raises(InterventionError, match="change attn.hook_pattern instead"),
        tiny_model.intervene(wb.Ablate(names[1])),
    ):
        pass


def test_a_budget_knows_what_a_materialised_summary_holds(tiny_model) -> None:
    tokens = torch.zeros(1, 60, dtype=torch.int64)
    for name, cells in (("stats", 60 * 8), ("map", 60 * 60), ("key_mass", 60)):
        hook, needed = f"blocks.1.attn.hook_{name}", 4 * 4 * cells
        _, cap = tiny_model.run_with_capture(tokens, hook, budget=needed, materialize=True, logits=None)
        assert cap.n_bytes == needed
        with pytest.raises(CaptureBudgetError, match=f"hook_{name}"):
            tiny_model.run_with_capture(tokens, hook, budget=needed - 1, materialize=True, logits=None)
