"""The Runs page in a real browser: a benchmark goes on through a reload, a second browser and the server's end."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed")
from playwright.sync_api import Browser, expect

from dashboard.cli import serve
from dashboard.jobs import jobs
from dashboard.session.settings import Settings
from evals.results.runs import list_runs
from tests.browser.conftest import ERRORS, PATIENCE, Tab, World
from tests.dashboard.world import write_checkpoint

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, chromium: str | None) -> Iterator[World]:
    """A server of its own, whose data folder holds enough questions to be watched at."""
    root = tmp_path_factory.mktemp("runs")
    model, log, data = write_checkpoint(root / "tiny"), root / "server.log", root / "data" / "gsm8k"
    data.mkdir(parents=True)
    for split, rows in {"test": 2000, "train": 10}.items():
        lines = [json.dumps({"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"}) for i in range(rows)]
        (data / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_DATA", str(data.parent))
        with serve(Settings(str(model), root / "results"), log=log) as url:
            yield World(url, log, model, root / "results")


def ask(tab: Tab, name: str, questions: int) -> None:
    page = tab.page
    page.get_by_role("textbox", name="Name", exact=True).fill(name)
    page.get_by_role("spinbutton", name="Questions per task").fill(str(questions))
    page.get_by_role("button", name="Start", exact=True).click()


def test_a_run_is_started_watched_through_a_reload_and_opened(new_tab: Callable[..., Tab], world: World) -> None:
    tab = new_tab().open("runs", tasks="gsm8k", ablate="L1H2")
    ask(tab, "browser", 200)
    # Written each second, without anybody's click.
    expect(tab.page.get_by_text("answers generated: ")).to_be_visible()
    expect(tab.page).to_have_url(re.compile("job=browser"))
    tab.page.reload()
    expect(tab.page.get_by_text("answers generated: ")).to_be_visible()
    stranger = new_tab(stranger=True)
    stranger.page.goto(f"{world.url}/runs?job=browser")
    for each_tab in (tab, stranger):
        expect(each_tab.page.get_by_text("The job finished (exit code 0).")).to_be_visible(timeout=10 * PATIENCE)
    run = next(run for run in list_runs(world.results) if run.path.parent.name == "browser")
    tab.settle().page.get_by_role("link", name="Open in Benchmarks").click()
    expect(tab.page.get_by_role("heading", name="Benchmarks")).to_be_visible()
    tab.settle()
    expect(tab.page.get_by_role("combobox", name="Run", exact=True)).to_have_value(f"{run.name} · ablate L1H2")
    tab.chart("forest")


def test_it_survives_the_server_and_is_cancelled_from_the_next(browser: Browser, world: World, tmp_path: Path) -> None:
    results = tmp_path / "results"
    page = browser.new_page()
    tab = Tab(page, "")
    with serve(Settings(str(world.model), results), log=tmp_path / "first.log") as tab.url:
        ask(tab.open("runs", tasks="gsm8k"), "long", 2000)
        expect(page.get_by_text("answers generated: ")).to_be_visible()
        page.goto("about:blank")
    assert jobs.find(results, "long").status == jobs.RUNNING  # the server's whole process group is gone
    with serve(Settings(str(world.model), results), log=tmp_path / "second.log") as tab.url:
        tab.open("runs", job="long")
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_text("The job was cancelled")).to_be_visible()
        assert not jobs.find(results, "long").active
        page.get_by_role("button", name="Delete").click()
        page.get_by_role("button", name="Delete the record").click()
        expect(page.get_by_text("No benchmark was started here yet.")).to_be_visible()
        assert tab.settle().page.locator(ERRORS).count() == 0
        page.close()
    for log in ("first.log", "second.log"):
        assert "Traceback" not in (tmp_path / log).read_text()
