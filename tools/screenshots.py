"""Screenshots of the dashboard's pages for the docs: python tools/screenshots.py [PAGE ...]

Runs two embedded suites on the embedded checkpoint, once unchanged and once without its previous-token head, serves the
dashboard, and writes docs/images/PAGE.png, 1,280 pixels wide, for all pages or the named ones.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dashboard.cli import serve  # noqa: E402
from dashboard.session.settings import Settings  # noqa: E402
from evals.results.runs import list_runs  # noqa: E402

IMAGES = ROOT / "docs" / "images"
ABLATED = json.dumps([{"kind": "ablate", "target": "L4H0"}])
PAGES: dict[str, dict[str, object]] = {
    "overview": {},
    "attention": {"layer": 5, "head": 3, "colour": "Induction"},
    "rope": {"view": "This head", "layer": 4, "head": 0},
    "norms": {},
    "lens": {},
    "neurons": {"layer": 3},
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


def main() -> None:
    wanted = sys.argv[1:] or list(PAGES)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results")
        run = [sys.executable, "-m", "workbench", "eval", "run", "--model", "demo", "--tasks", "demo_mmlu,demo_gsm8k"]
        subprocess.run([*run, "--output", str(results / "without-L4H0"), "--ablate", "L4H0"], check=True)
        subprocess.run([*run, "--output", str(results / "demo")], check=True)
        newest, other = (entry.name for entry in list_runs(results))
        (results / "captures").mkdir()  # otherwise the page shows a command with a folder of this machine
        runs: dict[str, object] = {"run": newest, "baseline": other}
        with serve(Settings("demo", results), log=Path(folder, "log")) as url, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for name in wanted:
                page = browser.new_page(viewport={"width": 1280, "height": 900})
                parameters = PAGES[name] | (runs if name in ("benchmarks", "samples") else {})
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


if __name__ == "__main__":
    main()
