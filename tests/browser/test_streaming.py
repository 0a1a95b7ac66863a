"""A long text in a real browser: it streams, stops, and holds up nobody else."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import expect

from dashboard.cli import serve
from dashboard.session.settings import Settings
from tests.browser.conftest import Tab, World
from tests.browser.test_generate import written
from tests.browser.test_pages import query
from tests.dashboard.world import write_checkpoint

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, chromium: str | None) -> Iterator[World]:
    """A checkpoint without a tokenizer: it has no end-of-text token, and writes as much as it is asked for."""
    root = tmp_path_factory.mktemp("bare")
    model, log = write_checkpoint(root / "bare"), root / "server.log"
    (model / "tokenizer.model").unlink()
    with serve(Settings(str(model), root / "results"), log=log) as url:
        yield World(url, log, model, root / "results")


def test_a_long_text_streams_stops_and_blocks_nobody(tab: Tab, new_tab: Callable[..., Tab]) -> None:
    other = new_tab(stranger=True).open("norms", prompt="1 2 3")
    tab.open("generate", prompt="5 6 7", new=2000)
    tab.page.locator(".st-key-generate button").click()
    stream, stop = tab.page.locator(".st-key-text_stream [data-testid=stText]"), tab.page.locator(".st-key-stop button")
    expect(stream).not_to_be_empty()
    seen = len(stream.inner_text())
    other.page.get_by_role("link", name="Overview").click()
    expect(other.page.get_by_role("heading", name="Likeliest next tokens")).to_be_visible()
    expect(stop).to_be_visible()  # the other's page came while this text was still being written
    tab.page.wait_for_function(
        "seen => document.querySelector('.st-key-text_stream [data-testid=stText]').innerText.length > seen", arg=seen
    )
    stop.click()
    expect(tab.page.get_by_text("Generation was stopped")).to_be_visible()
    tab.settle()
    assert 0 < len(written(tab)) < 2000 and "written" not in query(tab)
