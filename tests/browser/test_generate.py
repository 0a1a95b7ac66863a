"""The Generate page in a real browser: tokens that say what they were drawn from, and links that write a text again."""

from collections.abc import Callable
from urllib.parse import urlencode

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Tab
from tests.browser.test_pages import harmless, query
from tests.dashboard.world import NASTY

pytestmark = pytest.mark.browser

SETTINGS = {"prompt": "The cat sat on the mat", "temperature": 0.9, "seed": 4, "new": 12}


def generate(tab: Tab) -> None:
    tab.page.locator(".st-key-generate button").click()
    tab.chart("surprise")
    tab.settle()


def written(tab: Tab) -> list[str]:
    return tab.page.locator(".choices .token").all_text_contents()


def test_tokens_say_what_they_were_drawn_from_and_open_their_step(tab: Tab) -> None:
    tab.open("generate", **SETTINGS)
    expect(tab.page.get_by_text("Press Generate")).to_be_visible()
    generate(tab)
    about, tokens = tab.page.locator(".choices .about"), tab.page.locator(".choices .token")
    expect(tokens).to_have_count(12)
    expect(about).to_contain_text("Step 1:")
    tokens.nth(4).hover()
    expect(about).to_contain_text("Step 5:")
    for name in ("Probability", "Log-probability (nats)", "Entropy (nats)", "Rank", "Likeliest", "drawn from"):
        expect(about).to_contain_text(name)
    assert about.locator(".likely tr").count() == 9  # a head and eight alternatives
    assert about.get_by_text("left out").count() == 0  # nothing is, without top-k and top-p
    # By keyboard: one token is in the tab order, arrows move the focus, Enter opens the step.
    tokens.nth(0).focus()
    tab.page.keyboard.press("ArrowRight")
    tab.page.keyboard.press("ArrowRight")
    expect(about).to_contain_text("Step 3:")
    tab.page.keyboard.press("Enter")
    expect(tab.page.get_by_role("heading", name="Attention of step 3")).to_be_visible()
    assert query(tab.settle())["step"] == "3"
    tokens.nth(8).click()
    expect(tab.page.get_by_role("heading", name="Attention of step 9")).to_be_visible()
    slider = tab.page.get_by_role("slider", name="Step")
    expect(slider).to_have_value("9")
    slider.press("ArrowRight")
    expect(tab.page.get_by_role("heading", name="Attention of step 10")).to_be_visible()
    expect(tokens.nth(9)).to_have_attribute("aria-pressed", "true")


def test_a_link_writes_the_same_text_for_somebody_else(tab: Tab, new_tab: Callable[..., Tab]) -> None:
    tab.open("generate", **SETTINGS)
    generate(tab)
    other = new_tab(stranger=True)
    other.page.goto(tab.page.url)
    other.settle()
    expect(other.page.locator(".choices .token")).to_have_count(12)
    assert written(other) == written(tab)
    stranger = new_tab(stranger=True).open("generate", prompt="the dog")
    expect(stranger.page.get_by_text("Press Generate")).to_be_visible()
    assert written(stranger) == []


@pytest.mark.parametrize("mode", ["Plain text", "Chat"])
def test_hostile_text_is_shown_as_text(tab: Tab, mode: str) -> None:
    tab.open(
        f"generate?{urlencode({'prompt': NASTY, 'mode': mode, 'system': NASTY if mode == 'Chat' else '', 'new': 20})}"
    )
    generate(tab)
    if mode == "Chat":
        tab.page.get_by_role("button", name="Continue the conversation").click()
        expect(tab.page.get_by_text("Type the next message")).to_be_visible()
        tab.settle()
    harmless(tab)


def test_the_page_keeps_within_its_budget(tab: Tab) -> None:
    tab.open("generate", prompt="sunsun", temperature=0, new=450)
    generate(tab)
    assert len(written(tab)) > 400  # greedy, so the same everywhere
    assert tab.page.locator(".js-plotly-plot").count() <= 3
    tab.page.get_by_role("slider", name="Step").press("End")
    expect(tab.page.get_by_role("heading", name=f"Attention of step {len(written(tab))}")).to_be_visible()
    tab.settle()
    for strip, chosen in ((".choices .text", ".choices .chosen"), (".strip", ".strip .chosen")):
        outer, inner = (tab.page.locator(name).bounding_box() for name in (strip, chosen))
        assert outer and inner and outer["y"] <= inner["y"] <= outer["y"] + outer["height"]
    sizes = tab.page.evaluate(
        """() => [...document.querySelectorAll('.js-plotly-plot')].map(
            plot => JSON.stringify([plot.data, plot.layout],
                (key, value) => ArrayBuffer.isView(value) ? 'x'.repeat(value.byteLength * 4 / 3) : value).length)"""
    )
    assert sizes and max(sizes) < 1.5e6, sizes
