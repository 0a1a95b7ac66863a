"""Load times of the dashboard's pages in a real browser: python -m benchmarks.bench_dashboard

Two servers, one after the other: the embedded checkpoint, and random weights with 32 layers of 32 heads. A press is
timed until the script has run, nothing on the page is stale, and the figure that it changes holds new data and is
painted. Each press asks for something that was not shown before, so no result comes from an earlier press. Beside
each cold load stands that of a bare page of Streamlit's with as many small charts, loaded in turn with it. Prints
Markdown tables: median and 95th percentile against the target, largest figure in bytes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import torch
from playwright.sync_api import Browser, Page, TimeoutError, sync_playwright

import workbench as wb
from benchmarks.timing import machine
from dashboard.cli import serve
from dashboard.session.settings import Settings

BARE = Path(__file__).with_name("bare_page.py")
# Playwright has the browser keep the stack of each error, also of those that scripts throw to learn what it can do. V8
# has no source positions at hand and parses all of plotly again for them: its code takes 370 ms to read, 200 in a
# browser that nobody drives, and 215 where V8 keeps positions from the start.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--js-flags=--no-enable-lazy-source-positions"]  # fmt: skip
TEXT = "The capital of Peru is Lima. The capital of Spain is Madrid. "
PATIENCE = 30_000
COLD, SWITCH, HOVER = 2000, 800, 50  # targets in milliseconds
PAYLOAD = 1_500_000

# Counts the runs of the script that ended. MARK keeps what each figure and table hold: a run of few milliseconds may
# end before the page has shown that it began.
WATCH = """() => {
    window.__ended = 0;
    const app = document.querySelector('[data-testid=stApp]');
    new MutationObserver(() => {
        if (app.dataset.testScriptState === 'notRunning') window.__ended += 1;
    }).observe(app, {attributes: true, attributeFilter: ['data-test-script-state']});
}"""
PLOTS = "[...document.querySelectorAll('.js-plotly-plot')]"
TABLES = "[...document.querySelectorAll('.read-table')].map(table => table.textContent).join()"
MARK = f"""() => {{
    {PLOTS}.forEach(plot => plot.__seen = plot.data);
    window.__tables = {TABLES};
    return window.__ended;
}}"""
READY_BUT_FIGURES = """
    const app = document.querySelector('[data-testid=stApp]');
    if (!app || app.dataset.testConnectionState !== 'CONNECTED' || app.dataset.testScriptState !== 'notRunning')
        return false;
    if (document.querySelector('[data-stale=true], [data-testid=stSkeleton], [data-testid=stSpinner]')) return false;
"""
READY = f"{READY_BUT_FIGURES} if (document.querySelector('[aria-busy=true]')) return false;"
DRAWN = f"""kind => {PLOTS}.some(plot => plot.layout && plot.layout.meta && plot.layout.meta.kind === kind
    && plot.data !== plot.__seen && plot._fullLayout && plot._fullLayout._size)"""
CHANGED = f"""([ended, kind]) => {{
    {READY}
    return kind ? ({DRAWN})(kind) : window.__ended > ended || {TABLES} !== window.__tables;
}}"""
TITLED = "if (![...document.querySelectorAll('h2')].some(h => h.innerText.trim() === title)) return false;"
# What stands in the window before anybody scrolled. Figures further down may still be in the making.
IN_SIGHT = f"""([title, figures]) => {{
    {READY_BUT_FIGURES}
    {TITLED}
    const places = [...document.querySelectorAll('.workbench-figure')];
    const boxes = places.filter(place => place.ariaBusy === 'true').map(place => place.getBoundingClientRect());
    return places.length === figures && !boxes.some(box => box.bottom > 0 && box.top < innerHeight);
}}"""
SHOWN = f"""([title, kind]) => {{
    {READY}
    {TITLED}
    return !kind || {PLOTS}.some(plot => plot.layout && plot.layout.meta && plot.layout.meta.kind === kind);
}}"""
BARE_SHOWN = f"""charts => {{
    {READY}
    const drawn = {PLOTS}.filter(plot => plot._fullLayout && plot._fullLayout._size).length;
    return document.querySelector('h2') && drawn === charts;
}}"""
# A text may be whole before its first piece was painted; then the end of its run is the sign, for a text that is the
# same as the one before has the same figure.
STREAMING = f"""ended => {{
    const shown = document.querySelector('.st-key-text_stream [data-testid=stText]');
    if (shown && shown.innerText.length) return true;
    {READY}
    return window.__ended > ended;
}}"""
STILL = f"() => {{ {READY} return !document.querySelector('.st-key-text_stream'); }}"
PAINTED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
# As sent: beside each packed array plotly keeps what it read out of it.
SIZES = f"""() => {PLOTS}.map(plot => JSON.stringify([plot.data, plot.layout],
    (key, value) => key === '_inputArray' ? undefined : value).length)"""
SQUARE = f"""([layer, head]) => {{
    const plot = {PLOTS}.find(p => p.layout.meta && p.layout.meta.kind === 'atlas');
    const {{xaxis, yaxis}} = plot._fullLayout, box = plot.getBoundingClientRect();
    return [box.left + xaxis._offset + xaxis.d2p(head), box.top + yaxis._offset + yaxis.d2p(layer)];
}}"""


@dataclass(frozen=True)
class Press:
    """One kind of press on one page: `ready` moves to the control, and what it gives back is the press itself."""

    page: str
    title: str
    what: str
    target: int  # milliseconds
    ready: Callable[[Page, Numbers], Callable[[], object]]
    figure: str | None = None  # the `meta.kind` of the figure that it draws anew
    address: tuple[tuple[str, str], ...] = ()
    streams: bool = False  # the first text that it streams is waited for, not its end


@dataclass(frozen=True)
class Wanted:
    """A page that is waited for: its path and title, the `meta.kind` of a figure that it has, and how many figures."""

    path: str
    title: str
    kind: str | None
    figures: int


@dataclass(frozen=True)
class Numbers:
    """The values that presses set next, each only once."""

    heads: Iterator[tuple[int, int]]
    positions: Iterator[int]
    neurons: Iterator[int]


def type_in(label: str, value: Callable[[Numbers], object]) -> Callable[[Page, Numbers], Callable[[], object]]:
    """Fill a field; the press is Enter."""

    def ready(page: Page, numbers: Numbers) -> Callable[[], object]:
        page.get_by_label(label, exact=True).first.fill(str(value(numbers)))
        return lambda: page.keyboard.press("Enter")

    return ready


def another_prompt(page: Page, numbers: Numbers) -> Callable[[], object]:
    """One that the model has not read yet; the press is Ctrl and Enter."""
    page.get_by_role("textbox", name="Prompt").fill(f"{next(numbers.positions)} {TEXT}")
    return lambda: page.keyboard.press("Control+Enter")


def turn(*labels: str) -> Callable[[Page, Numbers], Callable[[], object]]:
    """Press the radio buttons in turn."""
    turns = itertools.cycle(labels)

    def ready(page: Page, _: Numbers) -> Callable[[], object]:
        return page.get_by_role("radio", name=next(turns), exact=True).click

    return ready


def square(page: Page, numbers: Numbers) -> Callable[[], object]:
    """A head of the atlas; plotly acts on the point that it last hovered."""
    x, y = hover(page, *next(numbers.heads))
    return lambda: page.mouse.click(x, y)


def hover(page: Page, layer: int, head: int) -> tuple[float, float]:
    page.evaluate(f"() => {PLOTS}[0].scrollIntoView({{block: 'center'}})")
    x, y = page.evaluate(SQUARE, [layer, head])
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y, steps=3)
    page.locator(".hoverlayer .hovertext").filter(has_text=f"layer {layer} · head {head}").wait_for()
    return x, y


def beforehand(page: Page, label: str, value: int) -> None:
    """Fill a field, which is not the press yet, and wait for its run."""
    ended = page.evaluate(MARK)
    page.get_by_label(label, exact=True).first.fill(str(value))
    page.keyboard.press("Enter")
    with suppress(TimeoutError):  # a run of few milliseconds may end before the page has shown that it began
        page.wait_for_function(CHANGED, arg=[ended, None], timeout=2000)
    page.wait_for_function(STILL)


def another_head(page: Page, numbers: Numbers) -> Callable[[], object]:
    """The layer is set first and its run waited for; the press is Enter after the head's number."""
    shown = {name: page.get_by_label(name, exact=True).first for name in ("Layer", "Head")}
    layer, head = next(pair for pair in numbers.heads if pair[1] != int(shown["Head"].input_value()))
    if layer != int(shown["Layer"].input_value()):
        beforehand(page, "Layer", layer)
    shown["Head"].fill(str(head))
    return lambda: page.keyboard.press("Enter")


def without(page: Page, numbers: Numbers) -> Callable[[], object]:
    """The model without another head: a run of its own."""
    layer, head = next(numbers.heads)
    page.get_by_role("textbox", name="As JSON").fill(json.dumps([{"kind": "ablate", "target": f"L{layer}H{head}"}]))
    return lambda: page.keyboard.press("Control+Enter")


def another_text(page: Page, numbers: Numbers) -> Callable[[], object]:
    """Text of another seed; the press is Generate."""
    beforehand(page, "Seed", next(numbers.neurons) + 1)
    return page.locator(".st-key-generate button").click


TASKS = itertools.cycle(["mmlu", "gsm8k"])
ABLATED = json.dumps([{"kind": "ablate", "target": "L1H2"}])
PRESSES = (
    Press("", "Overview", "another prompt", 500, another_prompt),
    Press("attention", "Attention", "a head of the atlas", 700, square, "head_map"),
    Press("rope", "RoPE", "another head", 300, another_head, "band_contribution",
          (("view", "This head"),)),
    Press("rope", "RoPE", "another theta", 300, type_in("Theta", lambda n: 1000 + 10 * next(n.positions)), "what_if",
          (("view", "What if"),)),
    Press("norms", "Norms", "another norm", 300, turn("Before the MLP (ln2)", "Before attention (ln1)"), "input_rms"),
    Press("lens", "Lens", "another position", 600, type_in("Position", lambda n: next(n.positions)), "token_curves"),
    Press("neurons", "Neurons", "another neuron", 500, type_in("Neuron", lambda n: next(n.neurons)), "activations"),
    Press("intervene", "Intervene", "without another head", 1000, without, "shift"),
    Press("generate", "Generate", "first text", 500, another_text, None,
          (("new", "12"), ("temperature", "1.5")), streams=True),
    Press("compare", "Compare", "a head of the atlas", 1000, square, "side_by_side", (("changes", ABLATED),)),
    Press("benchmarks", "Benchmarks", "a task's scores alone", 400, type_in("Filter", lambda _: next(TASKS)), "forest"),
    Press("samples", "Samples", "right or wrong", 400, turn("Wrong", "Right")),
)  # fmt: skip
OVERVIEW = Wanted("", "Overview", None, 0)
PAGES = (
    ("", "Overview", None), ("attention", "Attention", "head_map"), ("rope", "RoPE", "wavelengths"),
    ("norms", "Norms", "input_rms"), ("lens", "Lens", "lens_grid"), ("neurons", "Neurons", "activations"),
    ("intervene", "Intervene", "shift"), ("generate", "Generate", None), ("compare", "Compare", None),
    ("benchmarks", "Benchmarks", "forest"), ("samples", "Samples", None), ("runs", "Runs", None),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presses", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=128, help="length of the prompt")
    parser.add_argument("--only", choices=["pages", "presses"], help="one half of it")
    parser.add_argument("--models", nargs="+", choices=["demo", "32x32"], default=["demo", "32x32"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results")
        run = [sys.executable, "-m", "workbench", "eval", "run", "--model", "demo", "--tasks", "demo_mmlu,demo_gsm8k"]
        subprocess.run([*run, "--limit", "100", "--output", str(results / "demo")], check=True, capture_output=True)
        print(f"Machine: {machine()}; prompt of {options.tokens} tokens, {options.presses} presses each.")
        for name in options.models:
            model = "demo" if name == "demo" else str(_checkpoint(Path(folder, name)))
            settings = Settings(model, results)
            with (
                serve(settings, log=Path(folder, "log"), timeout=180) as url,
                serve(settings, log=Path(folder, "bare.log"), app=BARE) as bare,
                sync_playwright() as playwright,
            ):
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
                loaded = wb.load_model(model)
                prompt = _prompt(loaded.tokenizer, options.tokens)
                print(f"\n## {name}\n")
                if options.only != "presses":
                    _pages(browser, url, bare, prompt, options.presses)
                if options.only != "pages":
                    _presses(browser, url, prompt, loaded.config, options)
                browser.close()


def _checkpoint(folder: Path) -> Path:
    """Random weights in bfloat16, 32 layers of 32 heads over 8, with the embedded checkpoint's tokenizer."""
    config = wb.ModelConfig(
        dim=1024, n_layers=32, n_heads=32, n_kv_heads=8, ffn_dim=2816, vocab_size=1280, norm_eps=1e-5,
        rope_theta=500_000.0, max_seq_len=8192,
    )  # fmt: skip
    torch.manual_seed(0)
    model = wb.Transformer(config)
    weights = {}
    for name, parameter in model.named_parameters():
        scale = parameter.shape[-1] ** -0.5
        values = torch.ones_like(parameter) if parameter.ndim == 1 else torch.randn_like(parameter) * scale
        weights[name] = values.to(torch.bfloat16)
    folder.mkdir()
    torch.save(weights, folder / "consolidated.00.pth")
    (folder / "params.json").write_text(json.dumps(config.to_meta()))
    shutil.copy(wb.load_model("demo").source.path / "tokenizer.model", folder / "tokenizer.model")
    return folder


def _prompt(tokenizer: wb.Tokenizer, tokens: int) -> str:
    """Text of a given number of tokens, the beginning-of-text token included."""
    ids = tokenizer.encode(TEXT * (tokens // 8 + 1), bos=True)[1:tokens]
    return tokenizer.decode(ids)


def _pages(browser: Browser, url: str, bare: str, prompt: str, presses: int) -> None:
    _head("page", "cold load, in sight: median ms", "p95 (goal 2,000)", "all figures: median", "p95 (goal 2,000)",
          "a bare page with as many charts", "all figures, times as long", "charts",
          "largest figure, bytes")  # fmt: skip
    pages = []
    for path, title, kind in PAGES:
        address = f"{url}/{path}?{urlencode({'prompt': prompt})}"
        with _tab(browser) as page:  # makes the capture and the results that the server then holds
            page.goto(address)
            _shown(page, title, kind)
            sizes = page.evaluate(SIZES)
        wanted = Wanted(path, title, kind, len(sizes))
        pages.append(wanted)
        cold, floor = [], []
        for _ in range(max(4, presses // 3)):
            with _tab(browser) as page:
                begin = time.perf_counter()
                page.goto(address)
                cold.append(_until(page, wanted, begin))
            with _tab(browser) as page:
                begin = time.perf_counter()
                page.goto(f"{bare}/?charts={len(sizes)}")
                page.wait_for_function(BARE_SHOWN, arg=len(sizes))
                page.evaluate(PAINTED)
                floor.append(time.perf_counter() - begin)
        seen, whole = zip(*cold, strict=True)
        ratio = f"{statistics.median(floor) * 1e3:,.0f} | {statistics.median(whole) / statistics.median(floor):.2f}"
        _row(title, _times(seen, COLD), _times(whole, COLD), ratio, str(len(sizes)), _bytes(sizes))
    print()
    _head("switch to", "first, from Overview, in sight: median ms", "p95 (goal 800)", "all figures: median",
          "p95 (goal 800)", "later ones, in sight: median", "p95 (goal 800)", "all figures: median",
          "p95 (goal 800)")  # fmt: skip
    for wanted in pages:
        times = []
        for switches in _first_switches(browser, url, prompt, wanted), _switches(browser, url, prompt, wanted, presses):
            seen, whole = zip(*switches, strict=True)
            times += [_times(seen, SWITCH), _times(whole, SWITCH)]
        _row(wanted.title, *times)


def _switches(browser: Browser, url: str, prompt: str, wanted: Wanted, count: int) -> list[tuple[float, float]]:
    """From Benchmarks, or from Overview to it, in a browser that was on both pages before."""
    start = OVERVIEW if wanted.title == "Benchmarks" else Wanted("benchmarks", "Benchmarks", "forest", 1)
    times = []
    with _tab(browser) as page:
        page.goto(f"{url}/{start.path}?{urlencode({'prompt': prompt})}")
        _until(page, start)
        for _ in range(1 + count):
            times.append(_switch(page, wanted))
            _switch(page, start)
    return times[1:]


def _first_switches(browser: Browser, url: str, prompt: str, wanted: Wanted) -> list[tuple[float, float]]:
    """From Overview, of browsers that have been there for two seconds, and nowhere before; to it from Runs.

    One more goes before them, so that the server holds what the page needs, as in cold loads.
    """
    start = OVERVIEW if wanted != OVERVIEW else Wanted("runs", "Runs", None, 0)
    times = []
    for _ in range(1 + 4):
        with _tab(browser) as page:
            page.goto(f"{url}/{start.path}?{urlencode({'prompt': prompt})}")
            _until(page, start)
            page.wait_for_timeout(1800)
            times.append(_switch(page, wanted))
    return times[1:]


@contextmanager
def _tab(browser: Browser) -> Iterator[Page]:
    """A page of a browser with an empty cache."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        yield page


def _switch(page: Page, wanted: Wanted) -> tuple[float, float]:
    page.wait_for_timeout(200)
    begin = time.perf_counter()
    page.get_by_role("link", name=wanted.title, exact=True).first.click()
    return _until(page, wanted, begin)


def _until(page: Page, wanted: Wanted, begin: float = 0.0) -> tuple[float, float]:
    """Seconds from `begin` until the visible part is painted, and until all figures are."""
    page.wait_for_function(IN_SIGHT, arg=[wanted.title, wanted.figures])
    page.evaluate(PAINTED)
    seen = time.perf_counter() - begin
    page.wait_for_function(SHOWN, arg=[wanted.title, wanted.kind])
    page.evaluate(PAINTED)
    return seen, time.perf_counter() - begin


def _presses(browser: Browser, url: str, prompt: str, config: wb.ModelConfig, options: argparse.Namespace) -> None:
    numbers = _numbers(config, options.tokens)
    print()
    _head("page", "press", "median ms", "p95 (goal)", "largest figure, bytes")
    for press in PRESSES:
        times = []
        with _tab(browser) as page:
            address = {"prompt": prompt, "layer": 0, "head": 0, **dict(press.address)}
            page.goto(f"{url}/{press.page}?{urlencode(address)}")
            _shown(page, press.title, press.figure)
            page.evaluate(WATCH)
            for i in range(2 + options.presses):
                act = press.ready(page, numbers)
                ended = page.evaluate(MARK)
                begin = time.perf_counter()
                act()
                if press.streams:
                    page.wait_for_function(STREAMING, arg=ended)
                else:
                    page.wait_for_function(CHANGED, arg=[ended, press.figure])
                page.evaluate(PAINTED)
                if i >= 2:
                    times.append(time.perf_counter() - begin)
                page.wait_for_function(STILL)
                page.wait_for_timeout(100)
            sizes = page.evaluate(SIZES)
        _row(press.title, press.what, _times(times, press.target), _bytes(sizes))
    hovers = _hovers(browser, url, prompt, numbers, options.presses)
    _row("Attention", "label under the pointer", _times(hovers, HOVER), "")


def _hovers(browser: Browser, url: str, prompt: str, numbers: Numbers, count: int) -> list[float]:
    """From the pointer's last move to the label of the square below it."""
    times = []
    with _tab(browser) as page:
        page.goto(f"{url}/attention?{urlencode({'prompt': prompt})}")
        _shown(page, "Attention", "head_map")
        for _ in range(count):
            layer, head = next(numbers.heads)
            x, y = page.evaluate(SQUARE, [layer, head])
            page.mouse.move(x - 3, y)
            page.wait_for_timeout(100)
            page.mouse.move(2, 2)
            page.wait_for_timeout(100)
            begin = time.perf_counter()
            page.mouse.move(x, y)
            page.locator(".hoverlayer .hovertext").filter(has_text=f"layer {layer} · head {head}").wait_for()
            times.append(time.perf_counter() - begin)
    return times


def _numbers(config: wb.ModelConfig, tokens: int) -> Numbers:
    """Every head, position and neuron in a random order with a fixed seed."""
    chance = random.Random(0)
    heads = list(itertools.product(range(config.n_layers), range(config.n_heads)))
    positions, neurons = list(range(1, tokens - 1)), list(range(config.ffn_dim))
    for each in (heads, positions, neurons):
        chance.shuffle(each)
    heads.remove((0, 0))  # what the pages are opened with
    return Numbers(itertools.cycle(heads), itertools.cycle(positions), itertools.cycle(neurons))


def _shown(page: Page, title: str, figure: str | None) -> None:
    page.wait_for_function(SHOWN, arg=[title, figure])
    page.evaluate(PAINTED)


def _head(*titles: str) -> None:
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")


def _row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def _times(seconds: Sequence[float], goal: int) -> str:
    """Median | 95th percentile, marked if it misses the goal."""
    ordered = sorted(seconds)
    p95 = statistics.quantiles(ordered, n=20, method="inclusive")[-1] * 1e3
    return f"{statistics.median(ordered) * 1e3:,.0f} | {p95:,.0f} ({goal:,}{'' if p95 <= goal else ', missed'})"


def _bytes(sizes: list[int]) -> str:
    return "none" if not sizes else f"{max(sizes):,}{'' if max(sizes) <= PAYLOAD else ' (over 1,500,000)'}"


if __name__ == "__main__":
    main()
