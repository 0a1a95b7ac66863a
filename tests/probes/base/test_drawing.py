"""Figures: what is drawn is what was found, within the budget, and a click on a head says which head it was."""

import base64
import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probes.attention import head_map, head_metrics, head_types, kv_groups
from probes.base import drawing as figures
from probes.comparison.compare_runs import LogitDifferences
from probes.norms import rms_norms
from probes.patching import ablation
from probes.rope import head_scores
from workbench.hooks.capture import Capture

BUDGET = 1_500_000
LABELS = [f"{i} ·t" for i in range(24)]


def test_dark_and_light_are_neutral_templates(captured: Capture) -> None:
    result = head_scores.decay(captured.config)
    light, dark = result.figure(theme="light"), result.figure(theme="dark")
    assert light.layout.template.layout.paper_bgcolor != dark.layout.template.layout.paper_bgcolor
    assert light.data == dark.data


def test_atlas_draws_the_values_and_a_ring() -> None:
    values = np.arange(6.0).reshape(3, 2)
    fig = figures.atlas(values, title="T", unit="u", layers=(0, 2, 5), heads=(4, 7), group_size=4, selected=(2, 7))
    heatmap, ring = fig.data
    assert np.array_equal(heatmap.z, values)
    assert (list(heatmap.y), list(heatmap.x)) == ([0, 2, 5], [4, 7])
    assert (ring.y, ring.x) == ((2,), (7,))


def test_brackets_join_the_heads_that_share_keys() -> None:
    def brackets(heads: range, group_size: int) -> list[tuple[float, float]]:
        zeros = np.zeros((1, len(heads)))
        fig = figures.atlas(zeros, title="T", unit="u", layers=(0,), heads=heads, group_size=group_size)
        return [(shape.x0, shape.x1) for shape in fig.layout.shapes]

    assert brackets(range(8), 4) == [(-0.4, 3.4), (3.6, 7.4)]
    assert brackets(range(2, 8), 4) == [(1.6, 3.4), (3.6, 7.4)]
    assert brackets(range(8), 1) == []  # nothing is shared


def test_differences_are_centred_on_zero() -> None:
    values = np.array([[-1.0, 3.0], [np.nan, 0.0]])
    places: dict[str, Any] = {"title": "T", "unit": "u", "layers": (0, 1), "heads": (0, 1)}
    heatmap = figures.atlas(values, difference=True, **places).data[0]
    assert (heatmap.zmin, heatmap.zmax) == (-3, 3)
    assert heatmap.colorscale[0] != figures.atlas(values, **places).data[0].colorscale[0]


def test_head_map_is_blank_after_the_query(captured: Capture) -> None:
    result = head_map.head_map(captured, 0, 1)
    fig = result.figure(labels=LABELS)
    z = fig.data[0].z
    assert z.dtype == np.float32
    assert np.array_equal(np.isnan(z), np.triu(np.ones((24, 24), bool), 1))
    assert (fig.layout.xaxis.type, fig.layout.yaxis.type) == ("category", "category")
    assert fig.layout.yaxis.autorange == "reversed"
    hidden = result.figure(labels=LABELS, hide_first=2)
    assert np.isnan(hidden.data[0].z[:, :2]).all() and "first 2 keys hidden" in hidden.layout.title.text
    assert np.array_equal(hidden.data[0].z[:, 2:], z[:, 2:], equal_nan=True)
    logs = result.figure(labels=LABELS, log=True).data[0]
    assert np.nanmax(np.abs(logs.z - np.log10(np.maximum(z, 1e-6)))) == 0
    assert "log10" in logs.colorbar.title.text


def test_pooled_map_says_so_and_fits_the_budget() -> None:
    side = head_map.MAX_CELLS
    weights = np.random.default_rng(0).random((side, side)).astype(np.float32)  # the worst case: nothing to blank
    result = head_map.HeadMap(0, 0, 0, 4 * side, 4, weights)
    fig = result.figure()
    assert "largest of 4 x 4 positions" in fig.layout.title.text
    assert len(fig.to_json()) <= BUDGET
    # The other worst case: the blank half's bits and wide labels, which JSON escapes at length.
    blank = head_map.HeadMap(0, 0, 0, side, 1, np.where(np.tri(side, dtype=bool), weights, np.nan).astype(np.float32))
    assert len(blank.figure(labels=[f"{i} {'⟨E2⟩' * 3}" for i in range(side)]).to_json()) <= BUDGET


def test_positions_are_the_labels_where_tokens_are_not_known(captured: Capture) -> None:
    window = head_map.head_map(captured, 0, 1, window=(3, 7))
    assert list(window.figure().data[0].x) == ["3", "4", "5", "6"]
    assert list(rms_norms.input_rms(captured).figure().data[0].x) == [str(i) for i in range(24)]


def test_what_moves_is_drawn_as_a_difference(captured: Capture) -> None:
    result = head_scores.what_if(captured, 1, 2, 2 * head_scores.what_if_frequencies(captured.config))
    cells = result.figure(labels=LABELS).data[0].z
    seen = np.tri(24, dtype=bool)
    assert cells[seen] == pytest.approx((result.after - result.before)[seen]) and np.isnan(cells[~seen]).all()


def test_labels_must_tell_positions_apart(captured: Capture) -> None:
    result = head_map.head_map(captured, 0, 1)
    with pytest.raises(AssertionError, match="unique"):
        result.figure(labels=["same"] * 24)


def test_dots_stand_at_the_means_with_their_intervals() -> None:
    """The strongest head on top; without a second prompt there is no interval to draw."""
    values = np.array([[[0.1, 0.9]], [[0.3, 0.7]], [[0.2, 0.8]]])  # [prompt, layer, head]
    scores = head_types.HeadScores({"s": values})
    dots, (low, high) = scores.figure().data[0], scores.interval("s")
    assert list(dots.y) == ["L0H1", "L0H0"] and dots.x == pytest.approx([0.8, 0.2])
    assert dots.x + dots.error_x.array == pytest.approx(high[0, ::-1])
    assert dots.x - dots.error_x.arrayminus == pytest.approx(low[0, ::-1])
    alone = head_types.HeadScores({"s": values[:1]}).figure()
    assert alone.data[0].error_x.array is None and "no interval" in alone.layout.title.text
    sets = (((0, 1),), ((0, 0), (0, 1)))
    effect = ablation.AblationEffect(sets, np.ones(3), np.array([[2.0, 3, 4], [1, 1, 1]]), "zero")
    dots = effect.figure().data[0]
    assert list(dots.y) == ["0: L0H1", "1: L0H0 L0H1"] and list(dots.x) == [2, 0]
    assert dots.error_x.array[1] == 0 < dots.error_x.array[0] <= 1


def test_medians_come_with_quartiles(captured: Capture) -> None:
    result = rms_norms.contribution_ratios(captured)
    mlp = result.figure().data[1]
    low, middle, high = np.quantile(result.ratio[:, 1], [0.25, 0.5, 0.75], axis=(1, 2))
    assert mlp.name == "mlp" and mlp.y == pytest.approx(middle)
    assert mlp.y + mlp.error_y.array == pytest.approx(high) and mlp.y - mlp.error_y.arrayminus == pytest.approx(low)


def test_what_stands_out_is_drawn_apart(captured: Capture) -> None:
    result = rms_norms.outlier_dimensions(captured, magnitude=3.0, position_share=0.1, absolute=True)
    others, outliers = result.figure().data
    assert 0 < len(result.dims) < 32 and tuple(outliers.x) == result.dims
    assert outliers.y == pytest.approx(result.largest[list(result.dims)]) and len(others.x) == 32 - len(result.dims)
    alike = kv_groups.group_similarity(captured)
    assert [list(bars.y) for bars in alike.figure().data] == [alike.within.tolist(), alike.across.tolist()]
    rows = head_metrics.query_metrics(captured, 1)
    cells = rows.figure(name="distance", row=1).data[0].z
    assert cells == pytest.approx(rows.values["distance"][1])
    keys = head_map.strongest_keys(captured, 1, 3, 10, k=4)
    bars = keys.figure(labels=LABELS).data[0]
    assert list(bars.x) == [LABELS[key] for key in keys.keys] and list(bars.y) == keys.weights.tolist()


def test_numbers_travel_as_binary(captured: Capture) -> None:
    """Plotly's typed arrays keep a map's payload at a few bytes a cell."""
    spec = json.loads(head_map.head_map(captured, 1, 2).figure().to_json())["data"][0]["z"]
    assert spec["dtype"] == "f4" and len(base64.b64decode(spec["bdata"])) == 24 * 24 * 4


def test_wavelengths_show_scaling_only_where_there_is_some(captured: Capture) -> None:
    from dataclasses import replace

    from workbench.config import Llama3Scaling

    plain = head_scores.wavelengths(captured.config).figure()
    assert [trace.name for trace in plain.data] == ["wavelength", "context: 128 tokens"]
    config = replace(captured.config, rope_scaling=Llama3Scaling(original_context=64))
    scaled = head_scores.wavelengths(config).figure()
    assert [trace.name for trace in scaled.data][:2] == ["as scaled", "before scaling"]


@pytest.mark.browser
def test_a_click_on_a_head_says_which_head(chromium: str | None, tmp_path: Path) -> None:
    """Also where heads are not counted from 0 on."""
    from playwright.sync_api import sync_playwright

    values = np.random.default_rng(0).random((6, 8))
    shape: dict[str, Any] = {"group_size": 4, "layers": range(6), "heads": range(8, 16)}
    fig = figures.atlas(values, title="Atlas", unit="nats", **shape, selected=(0, 8))
    page_file = tmp_path / "atlas.html"
    watch = "const g = document.querySelector('.js-plotly-plot'); g.on('plotly_click', e => {window.hit = e.points[0]})"
    body = fig.to_html(full_html=False, include_plotlyjs=True, default_width="600px", post_script=watch)
    page_file.write_text(f"<!doctype html><meta charset=utf-8>{body}", encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        try:
            page = browser.new_page()
            errors: list[str] = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(page_file.as_uri())
            page.wait_for_selector(".js-plotly-plot .scatterlayer .point")
            place = page.evaluate(
                """() => { const g = document.querySelector('.js-plotly-plot'), l = g._fullLayout;
                const box = g.getBoundingClientRect();
                return [box.x + l._size.l + l.xaxis.d2p(13), box.y + l._size.t + l.yaxis.d2p(3)] }"""
            )
            page.mouse.move(*place)
            page.wait_for_selector(".hoverlayer .hovertext")
            hover = page.text_content(".hoverlayer .hovertext")
            page.mouse.click(*place)
            page.wait_for_function("window.hit !== undefined")
            assert page.evaluate("[window.hit.y, window.hit.x]") == [3, 13]
            assert "layer 3" in hover and "head 13" in hover and f"{values[3, 5]:.4g}" in hover
            assert page.locator(".scatterlayer .point").count() == 1
            assert errors == []
        finally:
            browser.close()


def test_labels_are_shown_as_text(captured: Capture) -> None:
    """Escaped labels reach the figure unchanged: nothing unescapes them, and none is taken for markup."""
    hostile = [f"{i} {html.escape('<b>x</b>&', quote=False)}" for i in range(24)]
    result = head_map.head_map(captured, 0, 1)
    fig = result.figure(labels=hostile)
    assert list(fig.data[0].x) == hostile
    assert torch.tensor(fig.data[0].z).isnan().any()


def test_pairs_and_their_shares_stand_in_panels_of_their_own(captured: Capture) -> None:
    """Two scales over each other would have two zero lines, and a tick of the one between two of the other."""
    result = head_scores.band_contribution(captured, 1, 2)
    fig = result.figure()
    signed, share = fig.data
    assert signed.y == pytest.approx(result.signed) and share.y == pytest.approx(result.share)
    assert (share.yaxis, fig.layout.yaxis2.overlaying) == ("y2", None)
    assert fig.layout.yaxis2.domain[1] < fig.layout.yaxis.domain[0] and fig.layout.xaxis.anchor == "y2"
    assert not fig.layout.showlegend  # no swatch can say what two colours mean


def test_small_amounts_have_exponents_and_no_prefixes() -> None:
    """A scale of 500 µ nats is read as 500 of something."""
    tiny = figures.atlas(np.full((2, 2), 5e-4), title="", unit="nats", heads=range(2), layers=range(2))
    assert tiny.data[0].colorbar.exponentformat == "power"
    value = np.array([[5e-4]])
    predictions = LogitDifferences(np.arange(1), kl=value, rank=value.astype(int), agree=value > 0)
    assert predictions.figure().layout.yaxis.exponentformat == "power"


def test_shares_have_one_scale_and_a_single_value_is_no_range() -> None:
    places: dict[str, Any] = {"title": "T", "unit": "u", "layers": (0, 1), "heads": (0, 1)}

    def limits(values: list[list[float]], **options: Any) -> tuple[float | None, float | None]:
        heatmap = figures.atlas(np.array(values), **places, **options).data[0]
        return heatmap.zmin, heatmap.zmax

    assert limits([[0.0, 0.05], [0.01, 0.02]], share=True) == (0, 1)
    assert limits([[0.0, 0.05], [0.01, 0.02]]) == (None, None)
    assert limits([[0.0, 0.0], [0.0, 0.0]]) == (0, 1)
    assert limits([[3.0, 3.0], [3.0, np.nan]]) == (0, 3)
    assert limits([[-2.0, -2.0], [-2.0, -2.0]]) == (-2, 0)


def test_plus_is_red_and_minus_is_blue_in_bars_as_on_the_scale() -> None:
    assert figures.sign_colours([0.5, -0.5, 0.0]) == [figures.PLUS, figures.MINUS, figures.PLUS]
    heatmap = figures.atlas(np.array([[-1.0, 1.0]]), title="T", unit="u", layers=(0,), heads=(0, 1), difference=True)
    low, high = heatmap.data[0].colorscale[0][1], heatmap.data[0].colorscale[-1][1]
    assert low == "rgb(5,48,97)" and high == "rgb(103,0,31)"  # dark blue and dark red
