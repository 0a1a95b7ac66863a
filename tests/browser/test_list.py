"""A list of more questions than are shown at once, in a real browser: its pages are turned and its rows opened."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from dashboard.cli import serve
from dashboard.components.row_picker import PAGE_SIZE
from dashboard.session.settings import Settings
from tests.browser.conftest import Tab, World
from tests.browser.test_pages import query
from tests.dashboard.world import write_checkpoint, write_many

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("list")
    model, results = write_checkpoint(root / "tiny"), write_many(root / "results", 2 * PAGE_SIZE + 20)
    with serve(Settings(str(model), results), log=root / "server.log") as url:
        yield World(url, root / "server.log", model, results)


def test_pages_are_turned_and_a_row_of_another_page_is_opened(tab: Tab) -> None:
    page = tab.open("samples").page
    rows, back, on = page.locator(".st-key-questions tbody tr"), "Previous rows", "Next rows"
    expect(rows).to_have_count(PAGE_SIZE)
    expect(page.get_by_text(f"1 to {PAGE_SIZE} of {2 * PAGE_SIZE + 20}. Choose a row to open it;")).to_be_visible()
    expect(page.get_by_role("button", name=back)).to_be_disabled()
    page.get_by_role("button", name=on).click()
    expect(page.get_by_text(f"{PAGE_SIZE + 1} to {2 * PAGE_SIZE} of")).to_be_visible()
    expect(rows.first.locator("td").first).to_have_text(str(PAGE_SIZE))
    tab.settle()
    expect(page.get_by_role("heading", name=re.compile("^Sample 0: "))).to_be_visible()  # the open one stays
    expect(page.locator(".st-key-questions tr[aria-selected=true]")).to_have_count(0)
    rows.nth(3).click()
    expect(page.get_by_role("heading", name=re.compile(f"^Sample {PAGE_SIZE + 3}: "))).to_be_visible()
    expect(rows.nth(3)).to_have_attribute("aria-selected", "true")
    parameters = query(tab.settle())
    assert parameters["doc"] == str(PAGE_SIZE + 3) and "from" not in parameters
    page.get_by_role("button", name=on).focus()
    page.keyboard.press("Enter")
    expect(rows).to_have_count(20)
    expect(page.get_by_role("button", name=on)).to_be_disabled()
    assert query(tab.settle())["from"] == str(2 * PAGE_SIZE + 1)
    rows.first.focus()  # where none is open, the first one is where the keyboard arrives
    expect(rows.first).to_have_attribute("tabindex", "0")
    page.get_by_role("radio", name="Right", exact=True).click()  # another list: it begins at its open row
    expect(page.get_by_text("1 to 50 of 80")).to_be_visible()
    assert "from" not in query(tab.settle())
