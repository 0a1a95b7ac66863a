"""Screenshots of the dashboard's pages for the docs: python tools/screenshots.py [PAGE ...]

Pages about the inside of a model show SmolLM2 (`workbench fetch smollm2`). For the others it runs two embedded suites
on the embedded checkpoint, once unchanged and once without its previous-token head. Writes docs/images/PAGE.png, 1,280
pixels wide, for all pages or the named ones.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dashboard.cli import serve  # noqa: E402
from dashboard.session.settings import Settings  # noqa: E402
from evals.results.runs import list_runs  # noqa: E402
from workbench.checkpoint.sources.names import resolve  # noqa: E402

IMAGES = ROOT / "docs" / "images"
ABLATED = json.dumps([{"kind": "ablate", "target": "L4H0"}])
REPEATED = "The river Rhine flows through Basel, Cologne and Rotterdam. The river Rhine flows through"
CAPITAL = "The capital of France is Paris. The capital of Italy is"
INSIDE: dict[str, dict[str, object]] = {
    "attention": {"prompt": REPEATED, "layer": 18, "head": 6, "colour": "Induction"},
    "rope": {"prompt": REPEATED, "view": "This head", "layer": 16, "head": 0},
    "norms": {"prompt": CAPITAL},
    "lens": {"prompt": CAPITAL},
    "neurons": {"prompt": CAPITAL, "layer": 20},
}
PAGES: dict[str, dict[str, object]] = {
    "overview": {},
    "intervene": {"changes": ABLATED},
    "generate": {"new": 40},
    "compare": {"changes": ABLATED},
    "benchmarks": {},
    "samples": {"task": "demo_mmlu", "show": "Wrong", "order": "Confident wrong"},
    "runs": {},
}
READY = "[data-testid=stApp][data-test-connection-state=CONNECTED][data-test-script-state=notRunning]"
UNFINISHED = "[data-stale=true], [data-testid=stSkeleton], [data-testid=stSpinner], [aria-busy=true]"


def settle(page: Page) -> None:
    for _ in range(2):
        page.wait_for_selector(READY, timeout=120_000)
        expect(page.locator(UNFINISHED)).to_have_count(0, timeout=120_000)
        page.wait_for_timeout(600)


def take(pages: Mapping[str, Mapping[str, object]], settings: Settings, log: Path) -> None:
    """Serve the dashboard, and write one picture for each page."""
    with serve(settings, log=log) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, parameters in pages.items():
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(f"{url}/{'' if name == 'overview' else name}?{urlencode(parameters)}")
            settle(page)
            if name == "generate":
                page.get_by_role("button", name="Generate").click()
                settle(page)
            height = page.evaluate("() => document.querySelector('[data-testid=stMain]').scrollHeight")
            page.set_viewport_size({"width": 1280, "height": min(1700, int(height) + 60)})
            settle(page)
            page.screenshot(path=IMAGES / f"{name}.png")
            page.close()
        browser.close()


def main() -> None:
    wanted = sys.argv[1:] or [*PAGES, *INSIDE]
    inside, pages = ({name: table[name] for name in wanted if name in table} for table in (INSIDE, PAGES))
    with tempfile.TemporaryDirectory() as folder:
        results, log = Path(folder, "results"), Path(folder, "log")
        if inside:
            take(inside, Settings(str(resolve("smollm2")), results), log)
        if not pages:
            return
        run = [sys.executable, "-m", "workbench", "eval", "run", "--model", "demo", "--tasks", "demo_mmlu,demo_gsm8k"]
        subprocess.run([*run, "--output", str(results / "without-L4H0"), "--ablate", "L4H0"], check=True)
        subprocess.run([*run, "--output", str(results / "demo")], check=True)
        newest, other = (entry.name for entry in list_runs(results))
        (results / "captures").mkdir()  # otherwise the page shows a command with a folder of this machine
        runs: dict[str, object] = {"run": newest, "baseline": other}
        pages |= {name: pages[name] | runs for name in ("benchmarks", "samples") if name in pages}
        take(pages, Settings("demo", results), log)


if __name__ == "__main__":
    main()
