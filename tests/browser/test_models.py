"""Two models and a capture on disk in a real browser: switched, kept, opened, deleted."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from dashboard.cli import serve
from dashboard.session.settings import Settings
from tests.browser.conftest import Tab, World
from tests.browser.test_pages import query
from tests.dashboard.world import write_checkpoint

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, chromium: str | None) -> Iterator[World]:
    root = tmp_path_factory.mktemp("two")
    first, second = write_checkpoint(root / "first"), write_checkpoint(root / "second", layers=6)
    settings = Settings(str(first), root / "results", (str(second),))
    with serve(settings, log=root / "server.log") as url:
        yield World(url, root / "server.log", first, root / "results")


def test_another_model_is_looked_at_on_every_page(tab: Tab) -> None:
    tab.open("attention", prompt="the cat sat", layer=3, head=2)
    tab.wait_for_chart("head_map", layer=3, head=2)
    tab.page.get_by_role("combobox", name="Model").click()
    tab.page.get_by_role("option", name="second").click()
    tab.page.wait_for_url("**model=second-**")
    tab.settle().page.get_by_label("Layer", exact=True).fill("5")
    tab.page.keyboard.press("Enter")
    tab.wait_for_chart("head_map", layer=5, head=2)
    assert query(tab.settle())["model"].startswith("second-")
    tab.page.get_by_role("link", name="Neurons").click()
    tab.chart("activations")
    assert query(tab.settle())["model"].startswith("second-")


def test_a_capture_is_kept_opened_and_deleted(tab: Tab) -> None:
    tab.open(prompt="the cat sat on the mat")
    tab.page.get_by_role("textbox", name="Name").fill("cat")
    tab.page.keyboard.press("Enter")
    tab.settle().page.get_by_role("button", name="Save this prompt's capture").click()
    expect(tab.page.get_by_role("button", name="Open it")).to_be_visible()
    tab.settle().page.get_by_role("button", name="Open it").click()
    expect(tab.page.get_by_text("read from its file")).to_be_visible()
    tab.settle().page.get_by_role("link", name="Norms", exact=True).click()
    tab.chart("input_rms")
    expect(tab.page.get_by_text("Capture cat:")).to_be_visible()
    assert query(tab.settle())["capture"] == "cat"
    tab.page.get_by_role("link", name="Overview", exact=True).click()
    tab.settle().page.get_by_role("button", name="Delete …").click()
    tab.page.get_by_role("button", name="Delete it").click()
    expect(tab.page.get_by_text("No capture is saved yet.")).to_be_visible()
    tab.settle()
    assert "capture" not in query(tab)
