"""The Compare page in a real browser: a head in two captures, and a question that two runs part at."""

import pytest
from playwright.sync_api import expect

from evals.results.runs import list_runs
from tests.browser.conftest import Tab, World
from tests.browser.test_pages import harmless, query
from tests.dashboard.world import NASTY
from workbench.hooks.interventions import Ablate, to_json

pytestmark = pytest.mark.browser


def test_a_head_is_shown_in_both_captures(tab: Tab) -> None:
    tab.open("compare", prompt=f"the cat {NASTY}", changes=to_json([Ablate("L1H2")]))
    for kind in ("atlas", "side_by_side", "logit_differences"):
        tab.chart(kind)
    assert tab.page.locator(".js-plotly-plot").count() == 3
    expect(tab.page.get_by_text("blocks.1.attn.hook_z").first).to_be_visible()
    tab.page.get_by_role("button", name="Swap interventions").click()
    assert "a_changes" in query(tab.settle())
    harmless(tab)


def test_runs_open_from_benchmarks_and_a_question_from_them(tab: Tab, world: World) -> None:
    first, second = (next(run.name for run in list_runs(world.results) if run.path.parent.name == name)
                     for name in ("first", "second"))  # fmt: skip
    tab.open("benchmarks", run=second, baseline=first)
    tab.page.get_by_role("link", name="Side by side in Compare").click()
    tab.chart("differences")
    tab.settle()
    tab.page.get_by_role("link", name="Question 2 in Samples").first.click()
    tab.settle()
    expect(tab.page.get_by_role("heading", name="Samples", exact=True)).to_be_visible()
    assert query(tab)["doc"] == "2" and query(tab)["baseline"] == first
    harmless(tab)
