"""The guided tour in a real browser: a button sets up the pages, and every step leads to the next."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from dashboard.cli import serve
from dashboard.panels import tour
from dashboard.session.settings import Settings
from evals.results.runs import list_runs
from tests.browser.conftest import Tab, World
from tests.browser.test_pages import query
from tests.dashboard.world import write_answers
from workbench import load_model

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, chromium: str | None) -> Iterator[World]:
    """The demo checkpoint, with answers of its own to a quiz that goes by the embedded one's name."""
    root = tmp_path_factory.mktemp("guide")
    results, log = write_answers(root / "results", "demo", quiz=tour.TASK), root / "server.log"
    with serve(Settings("demo", results), log=log, cwd=root) as url:
        yield World(url, log, Path("demo"), results)


def step(tab: Tab, name: str, number: int) -> None:
    expect(tab.page.get_by_text(re.compile(f"{name}, step {number} of 3:"))).to_be_visible()
    tab.settle()


def test_the_induction_head_is_found_seen_and_taken_out(tab: Tab) -> None:
    tab.open("attention", prompt="Something else", token=1)  # what was there before is no part of the example
    tab.page.get_by_role("link", name="Overview", exact=True).click()
    tab.page.get_by_role("button", name="An induction head").click()
    step(tab, "An induction head", 1)
    at = query(tab)
    assert at["guide"] == "induction.1" and at["colour"] == "Induction" and "token" not in at
    first = tab.chart("head_map")
    # What the text says is so: after the end of the first copy came its beginning, and the last token looks there.
    expect(tab.page.locator(".readout")).to_contain_text("“·se” (1.00)")
    tab.page.get_by_role("button", name="Next: Attention").click()
    step(tab, "An induction head", 2)
    assert query(tab)["colour"] == "Previous"
    tab.wait_for_chart("head_map", layer=4, head=0)
    tab.page.get_by_role("button", name="Next: Intervene").click()
    step(tab, "An induction head", 3)
    taken = [change["target"] for change in json.loads(query(tab)["changes"])]
    assert f"L{first['layer']}H{first['head']}" in taken
    tab.chart("shift")
    tab.page.get_by_role("button", name="Done").click()
    expect(tab.page.get_by_text("step 3 of 3")).to_have_count(0)
    assert "guide" not in query(tab.settle())
    tab.page.get_by_role("link", name="Attention", exact=True).click()
    expect(tab.page.get_by_role("heading", name="Attention", exact=True)).to_be_visible()
    expect(tab.page.get_by_text("of 3:")).to_have_count(0)


def test_the_rope_example_sets_up_its_three_views(tab: Tab, new_tab: Callable[..., Tab]) -> None:
    tab.open()
    tab.page.get_by_role("button", name="The RoPE invariance").click()
    for number, figure in enumerate(["relative_invariance", "band_contribution", "what_if"], 1):
        step(tab, "The RoPE invariance", number)
        tab.chart(figure)
        if number < 3:
            tab.page.get_by_role("button", name="Next: RoPE").click()
    assert query(tab)["view"] == "What if" and "theta" in query(tab)
    other = new_tab(stranger=True)  # a step's address is a link like any other
    other.page.goto(tab.page.url)
    step(other, "The RoPE invariance", 3)
    assert other.chart("what_if") == tab.chart("what_if")


def test_the_wrong_answer_leads_to_a_head_and_to_the_model_without_it(tab: Tab, world: World) -> None:
    tab.open()
    tab.page.get_by_role("button", name="A wrong quiz answer").click()
    step(tab, "A wrong quiz answer", 1)
    expect(tab.page.get_by_role("heading", name=re.compile("Sample \\d: wrong"))).to_be_visible()
    expect(tab.page.get_by_text("Replay: matches the stored log-probabilities")).to_be_visible()
    doc = query(tab)["doc"]
    tab.page.get_by_role("button", name="Next: Attention").click()
    step(tab, "A wrong quiz answer", 2)
    at = query(tab)
    assert at["sample"] == f"{list_runs(world.results)[0].name}/{tour.TASK}/{doc}"
    shown = tab.chart("head_map")
    tab.page.get_by_role("button", name="Next: Intervene").click()
    step(tab, "A wrong quiz answer", 3)
    assert json.loads(query(tab)["changes"]) == [{"kind": "ablate", "target": f"L{shown['layer']}H{shown['head']}"}]
    expect(tab.page.get_by_text("Answer before:")).to_be_visible()


def test_the_heads_are_those_that_repetitions_show() -> None:
    model = load_model("demo").eval()
    heads = tour.heads_of(model, "induction")
    assert {layer for layer, _ in heads} == {5} and len(heads) >= 3  # by the checkpoint's own account
    assert tour.heads_of(model, "previous")[0] == (4, 0)
