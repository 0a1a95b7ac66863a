"""Head metrics: numbers worked out by hand, bounds that always hold, and Hugging Face's attentions."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from probes.attention import head_metrics as probe
from workbench.errors import HookError, MissingHookError
from workbench.hooks.capture import Capture
from workbench.layers.kv_cache import KVCache
from workbench.model import Transformer

# One head over four tokens; every row sums to 1 and looks at nothing after itself.
PATTERN = torch.tensor(
    [
        [1.0, 0.0, 0.0, 0.0],
        [0.5, 0.5, 0.0, 0.0],
        [0.25, 0.5, 0.25, 0.0],
        [0.25, 0.25, 0.25, 0.25],
    ]
)
QUERIES = torch.arange(4)


def test_entropy_by_hand() -> None:
    expected = [0, math.log(2), 1.5 * math.log(2), math.log(4)]
    assert probe.entropy(PATTERN).tolist() == pytest.approx(expected)
    share = probe.normalised_entropy(probe.entropy(PATTERN), QUERIES)
    assert share[0].isnan()
    assert share[1:].tolist() == pytest.approx([1, 1.5 * math.log(2) / math.log(3), 1])


def test_sink_previous_and_distance_by_hand() -> None:
    assert probe.sink_mass(PATTERN).tolist() == [1, 0.5, 0.25, 0.25]
    assert probe.sink_mass(PATTERN, 4).tolist() == [1, 1, 1, 1]
    previous = probe.offset_mass(PATTERN, QUERIES, 1)
    assert previous[0].isnan()
    assert previous[1:].tolist() == [0.5, 0.5, 0.25]
    assert probe.expected_distance(PATTERN, QUERIES).tolist() == pytest.approx([0, 0.5, 1.0, 1.5])


def test_rows_keep_their_absolute_positions() -> None:
    late = QUERIES[2:]
    assert probe.offset_mass(PATTERN[2:], late, 2).tolist() == [0.25, 0.25]
    assert probe.expected_distance(PATTERN[2:], late).tolist() == pytest.approx([1.0, 1.5])


def test_duplicates_by_hand() -> None:
    tokens = torch.tensor([[7, 8, 7, 7]])
    result = probe.duplicate_mass(PATTERN[None, None], tokens, QUERIES)[0, 0]
    assert result[:2].isnan().all()
    assert result[2:].tolist() == [0.25, 0.5]


def test_induction_by_hand() -> None:
    """A head that always looks at what followed the same token the last time scores 1, and no other score does."""
    block, total = 4, 8
    pattern = torch.eye(total)
    for query in range(block, total):
        pattern[query] = 0
        pattern[query, query - block + 1] = 1
    queries = torch.arange(total)
    assert probe.offset_mass(pattern, queries, block - 1)[block:].tolist() == [1, 1, 1, 1]
    assert probe.offset_mass(pattern, queries, block)[block:].tolist() == [0, 0, 0, 0]


def test_bounds_hold_for_every_head(captured: Capture) -> None:
    values = probe.head_metrics(captured).values
    for name in ("entropy_norm", "sink_1", "sink_4", "previous", "duplicate"):
        assert (values[name] >= 0).all() and (values[name] <= 1 + 1e-6).all(), name
    assert (values["sink_4"] >= values["sink_1"]).all()
    assert (values["entropy"] >= 0).all() and (values["distance"] >= 0).all()
    assert (values["distance"] <= (captured.tokens.shape[1] - 1) / 2).all()  # the mean of i


def test_uniform_attention_is_the_known_extreme(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    """Without queries every row is uniform: entropy ln(i + 1), mean distance i / 2, first token 1 / (i + 1)."""
    with torch.no_grad():
        for block in tiny_model.layers:
            block.attention.wq.weight.zero_()
        _, cap = tiny_model.run_with_capture(tokens, probe.HOOKS)
    values = probe.head_metrics(cap).values
    i = np.arange(tokens.shape[1])
    assert values["entropy"] == pytest.approx(np.full((3, 4), np.log(i + 1).mean()), abs=1e-5)
    assert values["entropy_norm"] == pytest.approx(np.ones((3, 4)), abs=1e-5)
    assert values["distance"] == pytest.approx(np.full((3, 4), (i / 2).mean()), abs=1e-5)
    assert values["sink_1"] == pytest.approx(np.full((3, 4), (1 / (i + 1)).mean()), abs=1e-5)
    scores = probe.induction_scores(tiny_model, block=8, batch=2)
    assert scores.induction == pytest.approx(np.full((3, 4), scores.chance), abs=1e-6)


def test_metrics_agree_with_hugging_face(captured: Capture, reference: Any, tokens: torch.Tensor) -> None:
    """The same metrics by plain loops over the attentions that transformers returns."""
    result = probe.head_metrics(captured)
    for layer, attentions in enumerate(reference.attentions):
        a = attentions.double().numpy()  # [batch, head, query_pos, key_pos]
        n = a.shape[-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            h = -np.where(a > 0, a * np.log(a), 0).sum(-1)
        expected = {
            "entropy": h.mean((0, 2)),
            "entropy_norm": (h[..., 1:] / np.log(np.arange(2, n + 1))).mean((0, 2)),
            "sink_1": a[..., 0].mean((0, 2)),
            "sink_4": a[..., :4].sum(-1).mean((0, 2)),
            "previous": np.mean([a[:, :, i, i - 1] for i in range(1, n)], axis=(0, 1)),
            "distance": np.mean([(a[:, :, i] * (i - np.arange(n))).sum(-1) for i in range(n)], axis=(0, 1)),
        }
        copies = []
        for row, ids in enumerate(tokens.tolist()):
            for i in range(n):
                earlier = [j for j in range(i) if ids[j] == ids[i]]
                if earlier:
                    copies.append(a[row, :, i, earlier].sum(0))
        expected["duplicate"] = np.mean(copies, axis=0)
        for name, values in expected.items():
            assert result.values[name][layer] == pytest.approx(values, abs=1e-5), (layer, name)


def test_blocks_of_queries_change_nothing(captured: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = probe.head_metrics(captured).values
    monkeypatch.setattr(probe, "_BLOCK_BYTES", 1)  # one query at a time
    pieces = probe.head_metrics(captured).values
    for name, values in whole.items():
        assert pieces[name] == pytest.approx(values, abs=1e-6), name


def test_frames_are_tidy(captured: Capture) -> None:
    metrics = probe.head_metrics(captured)
    table = metrics.frame()
    assert list(table.columns) == ["layer", "head", *probe.METRICS, "sink_head"]
    assert len(table) == 3 * 4
    cell = table[(table["layer"] == 2) & (table["head"] == 1)]
    assert cell["entropy"].item() == metrics.values["entropy"][2, 1]
    rows = probe.query_metrics(captured, 1).frame()
    assert list(rows.columns) == ["layer", "batch", "head", "query", *probe.METRICS]
    assert len(rows) == 2 * 4 * 24
    first = rows[rows["query"] == 0]
    assert first["previous"].isna().all() and (first["entropy"] == 0).all()
    assert metrics.values["entropy"][1] == pytest.approx(rows.groupby("head")["entropy"].mean().to_numpy(), abs=1e-6)


def test_results_are_read_only(captured: Capture) -> None:
    metrics = probe.head_metrics(captured)
    with pytest.raises(ValueError, match="read-only"):
        metrics.values["entropy"][0, 0] = 0


def test_sink_rate_counts_heads_over_the_threshold(captured: Capture) -> None:
    metrics = probe.head_metrics(captured)
    sink = np.zeros((3, 4))
    sink[0, :3] = 0.9
    sink[1, 0] = probe.SINK_THRESHOLD  # not over it
    assert replace(metrics, values={**metrics.values, "sink_1": sink}).sink_rate == pytest.approx(3 / 12)


def test_narrowed_captures_name_their_heads_and_rows(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        _, whole = tiny_model.run_with_capture(tokens, probe.HOOKS)
        _, part = tiny_model.run_with_capture(tokens, probe.HOOKS, layers=[1], heads=[2, 3], positions=[5, 9])
    table = probe.query_metrics(part, 1).frame()
    assert sorted(table["query"].unique()) == [5, 9]
    reference = probe.query_metrics(whole, 1).frame()
    both = reference.merge(table, on=["layer", "batch", "head", "query"], suffixes=("", "_part"))
    assert len(both) == len(table) == 2 * 2 * 2
    for name in probe.METRICS:
        assert both[f"{name}_part"].to_numpy() == pytest.approx(both[name].to_numpy(), abs=1e-6, nan_ok=True)
    assert probe.head_metrics(part).layers == (1,)
    with pytest.raises(MissingHookError):
        probe.query_metrics(part, 0)


def test_a_step_after_a_cache_is_the_last_row_of_the_whole(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    config = tiny_model.config
    with torch.no_grad():
        _, whole = tiny_model.run_with_capture(tokens, probe.HOOKS)
        cache = KVCache.empty(config, 2, 24, dtype=torch.float32, device="cpu")
        tiny_model(tokens[:, :-1], cache)
        _, step = tiny_model.run_with_capture(tokens[:, -1:], probe.HOOKS, cache=cache)
    last, row = probe.query_metrics(whole, 2).values, probe.query_metrics(step, 2).values
    for name in set(probe.METRICS) - {"duplicate"}:
        assert row[name][..., 0] == pytest.approx(last[name][..., -1], abs=1e-5), name
    assert np.isnan(row["duplicate"]).all()  # the tokens before the cache are not in the capture


def test_an_induction_head_is_found(tiny_model: Transformer) -> None:
    """The scores are those of the model's own patterns on the blocks, read off by loops."""
    block = 8
    result = probe.induction_scores(tiny_model, block=block, batch=2, seed=3)
    tokens = probe.repeated_blocks(tiny_model, block=block, batch=2, seed=3)
    assert (tokens[:, :block] == tokens[:, block:]).all()
    assert all(len(set(row[:block])) == block for row in tokens.tolist())
    with torch.no_grad():
        _, cap = tiny_model.run_with_capture(tokens, probe.HOOKS)
    for layer in range(3):
        a = cap.pattern(layer)
        each = torch.stack([a[:, :, i, i - block + 1] for i in range(block, 2 * block)], -1).mean(-1)  # [prompt, head]
        assert result.induction[layer] == pytest.approx(each.mean(0).numpy(), abs=1e-6)
        assert result.induction_stderr[layer] == pytest.approx((each[0] - each[1]).abs().numpy() / 2, abs=1e-6)
    names = ["induction", "duplicate", "induction_stderr", "duplicate_stderr"]
    assert list(result.frame().columns) == ["layer", "head", *names]
    assert np.isnan(probe.induction_scores(tiny_model, block=block, batch=1).induction_stderr).all()


def test_mistakes_say_what_to_do(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        _, empty = tiny_model.run_with_capture(tokens, "hook_embed")
    with pytest.raises(MissingHookError, match="hook_pattern"):
        probe.head_metrics(empty)
    with pytest.raises(HookError, match="context is 128"):
        probe.induction_scores(tiny_model, block=100)
    cache = KVCache.empty(tiny_model.config, 2, 24, dtype=torch.float32, device="cpu", pad=torch.tensor([0, 3]))
    with torch.no_grad():
        _, padded = tiny_model.run_with_capture(tokens, probe.HOOKS, cache=cache)
    with pytest.raises(HookError, match="padded"):
        probe.head_metrics(padded)
