"""Lens, Neurons and Intervene in a real browser: from a head to its pattern, and to the model without it."""

import json
from urllib.parse import urlencode

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Tab
from tests.browser.test_pages import WITHOUT_A_HEAD, query

pytestmark = pytest.mark.browser


def test_a_head_of_the_lens_opens_in_attention_and_is_taken_out_in_intervene(tab: Tab) -> None:
    tab.open("lens", prompt="The cat sat on the mat", position=4, targets="#65 #66")
    assert tab.chart("attribution")["position"] == 4
    link = tab.page.get_by_role("link", name="in Attention")
    name = link.inner_text().split()[0]
    layer, head = map(int, name[1:].split("H"))
    link.click()
    tab.wait_for_chart("head_map", layer=layer, head=head)
    tab.settle().page.get_by_role("link", name="Lens", exact=True).click()
    tab.chart("attribution")
    tab.settle().page.get_by_role("link", name=f"Without {name} in Intervene").click()
    tab.chart("shift")
    tab.settle()
    expect(tab.page.get_by_text(f"1. ablate {name}")).to_be_visible()
    expect(tab.page.get_by_role("textbox", name="Prompt")).to_have_value("The cat sat on the mat")
    expect(tab.page.get_by_text("KL after position 4")).to_be_visible()
    assert json.loads(query(tab)["changes"]) == [{"kind": "ablate", "target": name}]
    tab.page.get_by_role("button", name="Remove").click()
    expect(tab.page.get_by_text("No interventions yet")).to_be_visible()
    tab.settle()
    assert "changes" not in query(tab)


def test_another_position_leaves_the_grid_as_it_was_drawn(tab: Tab) -> None:
    data = "kind => [...document.querySelectorAll('.js-plotly-plot')].find(p => p.layout.meta.kind === kind).data"
    tab.open("lens", prompt="The cat sat on the mat", position=1)
    tab.chart("lens_grid")
    tab.wait_for_chart("attribution", position=1)
    before = {kind: tab.settle().page.evaluate_handle(data, kind) for kind in ("lens_grid", "attribution")}
    tab.page.get_by_label("Position", exact=True).fill("3")
    tab.page.keyboard.press("Enter")
    tab.wait_for_chart("attribution", position=3)
    tab.wait_for_chart("token_curves", position=3)
    tab.settle()
    same = {
        kind: tab.page.evaluate("([then, now]) => then === now", [then, tab.page.evaluate_handle(data, kind)])
        for kind, then in before.items()
    }
    assert same == {"lens_grid": True, "attribution": False}


def test_another_neuron_is_drawn_anew(tab: Tab) -> None:
    tab.open("neurons", prompt="The cat sat on the mat", layer=1)
    assert tab.chart("activations")["neuron"] != 17
    tab.page.get_by_label("Neuron", exact=True).fill("17")
    tab.page.keyboard.press("Enter")
    tab.wait_for_chart("activations", layer=1, neuron=17)
    tab.wait_for_chart("neuron_tokens", layer=1, neuron=17)
    assert query(tab.settle())["neuron"] == "17"
    row = tab.page.locator(".st-key-layers_card tbody tr").nth(1)
    other = int(row.locator("td").first.inner_text())
    row.click()
    tab.wait_for_chart("activations", layer=1, neuron=other)
    expect(row).to_have_attribute("aria-selected", "true")
    assert query(tab.settle())["neuron"] == str(other)


@pytest.mark.parametrize("path", ["lens", "neurons", f"intervene?{urlencode({'changes': WITHOUT_A_HEAD})}"])
def test_figures_of_a_long_prompt_keep_within_their_budget(tab: Tab, path: str) -> None:
    words = " cat sat on the mat and the dog ran to the park" * 59  # 651 tokens
    tab.open(f"{path}{'&' if '?' in path else '?'}{urlencode({'prompt': words})}")
    expect(tab.page.locator(".js-plotly-plot").first).to_be_visible()
    sizes = tab.page.evaluate(
        """() => [...document.querySelectorAll('.js-plotly-plot')].map(
            plot => JSON.stringify([plot.data, plot.layout],
                (key, value) => key === '_inputArray' ? undefined : value).length)"""
    )
    assert sizes and max(sizes) < 1.5e6, sizes
