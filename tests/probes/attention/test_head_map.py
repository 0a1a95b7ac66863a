"""A head's map: pooling by hand, blocks and windows against the pattern itself."""

import numpy as np
import pytest
import torch

from probes.attention import head_map, head_metrics
from workbench.errors import HookError, MissingHookError
from workbench.hooks.capture import Capture
from workbench.model import Transformer


def test_pool_by_hand() -> None:
    x = np.array([[1, 2, 3], [4, np.nan, 6], [7, 8, 9]])
    assert head_map.pool(x, 2).tolist() == [[4, 6], [8, 9]]
    assert head_map.pool(x, 1) is x
    signed = np.array([[1.0, -3.0], [2.0, np.nan]])
    assert head_map.pool(signed, 2, magnitude=True).tolist() == [[-3]]
    assert np.isnan(head_map.pool(np.full((2, 2), np.nan), 2)).all()


def test_the_whole_map_is_the_pattern_with_a_blank_future(captured: Capture) -> None:
    result = head_map.head_map(captured, 1, 2, row=1)
    pattern = captured.pattern(1)[1, 2].numpy()
    lower = np.tril(np.ones((24, 24), bool))
    assert (result.weights[lower] == pattern[lower]).all()
    assert np.isnan(result.weights[~lower]).all()
    assert np.nansum(result.weights, -1) == pytest.approx(np.ones(24), abs=1e-5)
    assert result.pooling == ""
    table = result.frame()
    assert len(table) == 24 * 25 // 2
    cell = table[(table["query"] == 9) & (table["key"] == 4)]["weight"].item()
    assert cell == pattern[9, 4]


@pytest.mark.parametrize("block_bytes", [1, 24 * 2 * 4 * 5, 1 << 27])
def test_pooling_does_not_depend_on_blocks(captured: Capture, monkeypatch, block_bytes: int) -> None:
    monkeypatch.setattr(head_metrics, "_BLOCK_BYTES", block_bytes)
    whole = head_map.head_map(captured, 0, 3).weights
    result = head_map.head_map(captured, 0, 3, max_cells=7)
    assert result.factor == 4
    assert np.array_equal(result.weights, head_map.pool(whole, 4), equal_nan=True)
    assert result.pooling == "largest of 4 x 4 positions"
    assert result.labels([str(i) for i in range(24)]) == ["0–3", "4–7", "8–11", "12–15", "16–19", "20–23"]


def test_a_window_is_a_part_of_the_whole(captured: Capture) -> None:
    whole = head_map.head_map(captured, 2, 0).weights
    part = head_map.head_map(captured, 2, 0, window=(5, 17))
    assert np.array_equal(part.weights, whole[5:17, 5:17], equal_nan=True)
    assert part.labels([f"{i} t" for i in range(24)]) == [f"{i} t" for i in range(5, 17)]
    pooled = head_map.head_map(captured, 2, 0, window=(5, 16), max_cells=6)
    assert pooled.labels([""] * 24)[-1] == "15–15"
    assert pooled.frame()["query"].max() == 15


def test_strongest_keys(captured: Capture) -> None:
    row = captured.pattern(1)[0, 3, 10].numpy()
    result = head_map.strongest_keys(captured, 1, 3, 10, k=4).frame()
    assert result["key"].tolist() == np.argsort(-row)[:4].tolist()
    assert result["weight"].to_numpy() == pytest.approx(np.sort(row)[::-1][:4])
    assert result["distance"].tolist() == [10 - key for key in result["key"]]
    assert len(head_map.strongest_keys(captured, 1, 3, 2, k=10).keys) == 3  # never a key after the query


def test_mistakes_say_what_was_found(captured: Capture, tiny_model: Transformer, tokens: torch.Tensor) -> None:
    with pytest.raises(HookError, match="0 to 24"):
        head_map.head_map(captured, 0, 0, window=(9, 9))
    with pytest.raises(MissingHookError):
        head_map.head_map(captured, 0, 9)
    with torch.no_grad():
        _, part = tiny_model.run_with_capture(tokens, head_map.HOOKS, positions=[3])
    with pytest.raises(HookError, match="every position"):
        head_map.head_map(part, 0, 0)
