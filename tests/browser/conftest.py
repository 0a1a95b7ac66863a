"""A dashboard server on a small checkpoint, and a Chromium whose tabs report everything that went wrong."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import pytest

from dashboard.cli import serve
from dashboard.session.settings import Settings
from tests.dashboard.world import write_answers, write_checkpoint, write_results

pytest.importorskip("playwright", reason="playwright is not installed (extra: dev)")
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright  # noqa: E402

PATIENCE = 60_000  # milliseconds; a ceiling for busy machines, not a cost
expect.set_options(timeout=PATIENCE)

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ARTIFACTS = Path(__file__).resolve().parents[2] / "test-artifacts"  # pictures, which no commit takes
READY = "[data-testid=stApp][data-test-connection-state=CONNECTED][data-test-script-state=notRunning]"
UNFINISHED = "[data-stale=true], [data-testid=stSkeleton], [data-testid=stSpinner], [aria-busy=true]"
ERRORS = "[data-testid=stException], [data-testid=stDialog]"


@dataclass(frozen=True)
class World:
    """A running server and what it serves."""

    url: str
    log: Path
    model: Path
    results: Path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, chromium: str | None) -> Iterator[World]:
    """Started from a folder that has nothing of ours in it, as a user may do."""
    root = tmp_path_factory.mktemp("dashboard")
    model, log = write_checkpoint(root / "tiny"), root / "server.log"
    results = write_results(write_answers(root / "results", model))  # the newest run, which pages open on, is the last
    (root / "elsewhere").mkdir()
    with serve(Settings(str(model), results), log=log, cwd=root / "elsewhere") as url:
        yield World(url, log, model, results)


# Not for the session: while playwright runs, this thread has an event loop, and no other test may start its own.
@pytest.fixture(scope="module")
def browser(chromium: str | None) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Tab:
    """One browser tab on the dashboard, and everything it complained of."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)

    def open(self, path: str = "", **params: object) -> "Tab":
        self.page.goto(f"{self.url}/{path}?{urlencode(params)}" if params else f"{self.url}/{path}")
        return self.settle()

    def settle(self) -> "Tab":
        """Wait until the script has run and every element on the page is of that run."""
        self.page.wait_for_selector(READY)
        expect(self.page.locator(UNFINISHED)).to_have_count(0)
        # A click's rerun starts a moment after it; a page that is ready twice in a row has had its run.
        self.page.wait_for_timeout(60)
        self.page.wait_for_selector(READY)
        expect(self.page.locator(UNFINISHED)).to_have_count(0)
        return self

    def chart(self, name: str) -> dict[str, object]:
        """The `layout.meta` of a drawn figure, found by its `meta.figure`; waits until it is there."""
        handle = self.page.wait_for_function(
            """name => [...document.querySelectorAll('.js-plotly-plot')]
                .map(plot => plot.layout && plot.layout.meta).find(meta => meta && meta.kind === name)""",
            arg=name,
        )
        return dict(handle.json_value())

    def wait_for_chart(self, name: str, **expected: object) -> None:
        """Until the figure carries these values in its `layout.meta`."""
        self.page.wait_for_function(
            """([name, expected]) => [...document.querySelectorAll('.js-plotly-plot')].some(plot => {
                const meta = plot.layout && plot.layout.meta;
                return meta && meta.kind === name && Object.entries(expected).every(([k, v]) => meta[k] === v);
            })""",
            arg=[name, expected],
        )

    def sound(self) -> None:
        """Nothing went wrong on this tab so far."""
        assert self.page.locator(ERRORS).count() == 0, self.page.locator(ERRORS).first.inner_text()
        assert self.complaints == []


@pytest.fixture(scope="module")
def regular(browser: Browser) -> Iterator[BrowserContext]:
    """The context of most tabs: its cache spares each of them the loading of Streamlit's and plotly's code."""
    with browser.new_context() as context:
        yield context


@pytest.fixture
def new_tab(
    request: pytest.FixtureRequest, browser: Browser, regular: BrowserContext, world: World
) -> Iterator[Callable[..., Tab]]:
    """Makes tabs, each a session of its own; a stranger's shares no cookies either. All are checked at the end, and a
    picture of each is left in test-artifacts/."""
    strangers: list[BrowserContext] = []
    tabs: list[Tab] = []

    def make(*, width: int = 1280, height: int = 900, stranger: bool = False) -> Tab:
        if stranger:
            strangers.append(browser.new_context())
        page = (strangers[-1] if stranger else regular).new_page()
        page.set_default_timeout(PATIENCE)
        page.set_viewport_size({"width": width, "height": height})
        tab = Tab(page, world.url)
        tabs.append(tab)
        complaints = tab.complaints
        page.on("console", lambda message: _console(message, complaints))
        page.on("pageerror", lambda error: complaints.append(f"page error: {error}"))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: _request(request.url, world.url, complaints))
        page.on("response", lambda response: _response(response.status, response.url, complaints))
        return tab

    yield make
    for number, tab in enumerate(tabs):
        name = re.sub(r"[^\w.=-]+", "-", request.node.name)[:120]
        tab.page.screenshot(path=ARTIFACTS / f"{name}-{number}.png")
        tab.sound()
        tab.page.close()
    for context in strangers:
        context.close()
    log = world.log.read_text(errors="replace")
    assert "Traceback" not in log, log[-4000:]


@pytest.fixture
def tab(new_tab: Callable[..., Tab]) -> Tab:
    return new_tab()


# Opened at /attention, Streamlit first asks whether the server lives below that path, and then at the root.
_SEARCH = re.compile(r"/\w+/_stcore/(health|host-config)$")


def _console(message: ConsoleMessage, complaints: list[str]) -> None:
    if message.type == "error" and not _SEARCH.search(message.location["url"]):
        complaints.append(f"console: {message.text}")


def _response(status: int, address: str, complaints: list[str]) -> None:
    if status >= 400 and not _SEARCH.search(address):
        complaints.append(f"{status} {address}")


def _request(address: str, home: str, complaints: list[str]) -> None:
    local = (home, home.replace("http", "ws", 1), "data:", "blob:")
    if not address.startswith(local):
        complaints.append(f"request to another host: {address}")
