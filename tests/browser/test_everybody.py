"""Every page for everybody: names for screen readers, the keyboard alone, both themes, two widths, hostile results."""

from collections.abc import Iterator
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, Page, expect

from dashboard.jobs import jobs, supervisor
from tests.browser.conftest import PATIENCE, Tab, World
from tests.browser.test_pages import WITHOUT_A_HEAD, harmless
from tests.dashboard.world import NASTY

pytestmark = pytest.mark.browser

PAGES = (
    "", "attention", "rope", "rope?view=What+if&theta=500", "norms", "lens", "neurons", "generate?new=6",
    f"intervene?{urlencode({'changes': WITHOUT_A_HEAD})}", f"compare?{urlencode({'changes': WITHOUT_A_HEAD})}",
    "compare?compare=Runs", "benchmarks", "samples", "runs",
)  # fmt: skip

# What can be operated and has no name: neither a label, nor text, nor a title.
NAMELESS = """() => {
    const labelled = e => (e.getAttribute('aria-labelledby') || '').split(' ')
        .map(id => document.getElementById(id)?.innerText).join('');
    const labels = e => [...(e.labels || [])].map(l => l.innerText || l.getAttribute('aria-label')).join('');
    const inside = e => e.querySelector('[aria-label], title')?.outerHTML;
    const name = e => (e.getAttribute('aria-label') || e.title || e.innerText || e.placeholder || labelled(e)
        || labels(e) || inside(e) || '').trim();
    const operated = 'input, textarea, button, select, a[href], [role=combobox], [role=slider]';
    return [...document.querySelectorAll(operated)]
        .filter(e => e.checkVisibility() && !e.closest('[aria-hidden=true]') && !name(e))
        .map(e => e.outerHTML.slice(0, 200));
}"""

# Text whose contrast against what is behind it is too small after WCAG 2 (AA). A slider's number is drawn beside what
# is behind it in the document, and a disabled control may be faint.
FAINT = """() => {
    const parse = colour => (colour.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
    const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
    const over = (top, below) => {
        const alpha = top.length > 3 ? top[3] : 1;
        return [0, 1, 2].map(i => alpha * top[i] + (1 - alpha) * below[i]);
    };
    const up = n => n.parentElement || n.getRootNode().host;
    const outward = e => e ? [getComputedStyle(e), ...outward(up(e))] : [];
    const behind = e => outward(e).reduceRight((below, s) => over(parse(s.backgroundColor), below), [255, 255, 255]);
    const everything = root => [...root.querySelectorAll('*')]
        .flatMap(e => e.shadowRoot ? [e, ...everything(e.shadowRoot)] : [e]);
    // Words in a heatmap's cells stand on the cells, an image, against which plotly chooses their colour.
    const left = ':disabled, [disabled], [aria-disabled=true], .hoverlayer, .modebar, [data-testid=stSlider], '
        + '.heatmap-label, .heatmaplayer';
    const found = [];
    for (const e of everything(document.querySelector('[data-testid=stApp]'))) {
        const own = [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join('').trim();
        const text = own || (e.matches('input, textarea') ? e.value : ''), box = e.getBoundingClientRect();
        if (!text || e.matches('style, script, option') || e.closest(left) || box.width < 2 || box.height < 2) continue;
        if (!e.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
        const style = getComputedStyle(e), back = behind(e), size = parseFloat(style.fontSize);
        const [r, g, b, alpha = 1] = parse(e instanceof SVGElement ? style.fill : style.color);
        const opacity = outward(e).reduce((product, s) => product * Number(s.opacity), 1);
        const [high, low] = [light(over([r, g, b, alpha * opacity], back)), light(back)].sort((x, y) => y - x);
        const ratio = (high + 0.05) / (low + 0.05);
        const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) || e.dataset.testid === 'stIconMaterial';
        if (ratio < (large ? 3 : 4.5)) found.push(`${ratio.toFixed(2)}: ${text.slice(0, 40)}`);
    }
    return found;
}"""


@pytest.mark.parametrize("path", PAGES)
def test_everything_that_can_be_operated_has_a_name(tab: Tab, path: str) -> None:
    tab.open(path)
    assert tab.page.evaluate(NAMELESS) == []


def test_a_head_is_opened_by_the_keyboard_alone(tab: Tab) -> None:
    tab.open("attention", layer=1, head=1)
    tab.wait_for_chart("head_map", layer=1, head=1)
    for _ in range(60):
        tab.page.keyboard.press("Tab")
        if tab.page.evaluate("() => document.activeElement.getAttribute('aria-label')") == "Head":
            break
    else:
        pytest.fail("Tab never came to the head")
    tab.page.keyboard.press("ArrowUp")
    tab.page.keyboard.press("Enter")
    tab.wait_for_chart("head_map", layer=1, head=2)


@pytest.fixture(params=["light", "dark"])
def themed(request: pytest.FixtureRequest, browser: Browser, world: World) -> Iterator[Page]:
    with browser.new_context(color_scheme=request.param, viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        yield page


def test_text_can_be_read_in_both_themes(themed: Page, world: World) -> None:
    tab = Tab(themed, world.url)
    for path in (*PAGES, "generate?new=6&written=1&temperature=0"):
        tab.open(path)
        tab.page.wait_for_timeout(300)  # controls fade into their colours
        assert themed.evaluate(FAINT) == [], path


@pytest.mark.parametrize("width", [1280, 1920])
@pytest.mark.parametrize("path", PAGES)
def test_nothing_is_cut_off_at_the_side(tab: Tab, path: str, width: int) -> None:
    tab.page.set_viewport_size({"width": width, "height": 1000})
    tab.open(path)
    main = "document.querySelector('[data-testid=stMain]')"
    assert tab.page.evaluate(f"() => {main}.scrollWidth - {main}.clientWidth") <= 0


@pytest.mark.parametrize(
    ("path", "heading"),
    [
        ("benchmarks", "Scores"),
        ("compare?compare=Runs", "Scores and paired differences"),
        ("samples?task=tiny_quiz", "Sample 0: right"),
        ("samples?task=tiny_sums", "Sample 0: right"),
    ],
)
def test_hostile_results_are_shown_as_text(tab: Tab, path: str, heading: str) -> None:
    tab.open(path)
    expect(tab.page.get_by_role("heading", name=heading, exact=True)).to_be_visible()
    harmless(tab)


def test_a_hostile_log_is_shown_as_text(tab: Tab, world: World) -> None:
    folder = world.results / jobs.FOLDER / "hostile"
    folder.mkdir(parents=True)
    about = {
        "tasks": [NASTY], "model": NASTY, "changes": NASTY, "limit": None, "num_fewshot": None, "chat": False,
        "preset": NASTY, "seed": 1,
    }  # fmt: skip
    job = {"attempt": 1, "command": ["true", NASTY], "about": about, "created": 1.0, "host": "", "output": "/tmp/none"}
    supervisor.write(folder / supervisor.JOB, job)
    (folder / supervisor.LOG).write_text(NASTY)
    try:
        tab.open("runs", job="hostile")
        expect(tab.page.get_by_test_id("stMain")).to_contain_text("<script>alert(1)</script>")
        harmless(tab)
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
