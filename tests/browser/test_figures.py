"""Figures in a real browser: labels fit, squares are clicked, the drawing follows its place and the page's theme."""

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import expect

from dashboard.layout.figure import CODE
from tests.browser.conftest import Tab
from tests.browser.drawn import ATLAS, click_square, map_values, ring, square
from tests.browser.fitting import cut_off

pytestmark = pytest.mark.browser

WITHOUT_A_HEAD = '[{"kind": "ablate", "target": "L1H2"}]'
MAP = "[...document.querySelectorAll('.js-plotly-plot')].find(p => p.layout.meta.kind === 'head_map')"


def test_labels_fit_their_figures_whatever_they_are(tab: Tab) -> None:
    """No browser measures them: their margins are worked out beforehand."""
    wide = "WWWWWWWWWWWW MMMMMMMMMMMM 漢字漢字漢字漢字 😀😀😀😀 supercalifragilistic <b>bold</b> " * 2
    for path in ("attention", "lens", "norms", "neurons", "intervene", "compare", "rope"):
        more = {"rope": {"view": "What if"}, "compare": {"changes": WITHOUT_A_HEAD}}.get(path, {})
        tab.open(path, prompt=wide, **more)
        tab.page.locator(".js-plotly-plot .main-svg").first.wait_for()
        assert cut_off(tab) == [], path


def test_a_page_without_figures_has_the_rest_read_ahead_and_drawn_unseen(tab: Tab) -> None:
    tab.page.add_init_script(
        """window.drawn = [];
        let plotly;
        Object.defineProperty(window, 'Plotly', {get: () => plotly, set: loaded => {
            const {newPlot} = loaded;
            loaded.newPlot = (...given) => newPlot(...given).then(plot => window.drawn.push(plot.data[0].type));
            plotly = loaded;
        }});"""
    )
    tab.open("")
    tab.page.wait_for_function("() => window.drawn.length === 6")
    assert tab.page.evaluate("() => window.drawn") == 2 * ["heatmap", "bar", "scatter"]
    read = tab.page.evaluate("() => performance.getEntriesByType('resource').map(file => file.name)")
    assert {"DataFrame", "NumberInput"} <= {Path(file).name.partition(".")[0] for file in read}
    assert f"static/{Path(CODE).name}" in {"/".join(file.split("/")[-2:]) for file in read}
    assert tab.page.locator(".js-plotly-plot").count() == 0


def test_clicking_a_head_opens_its_map_and_moves_the_ring(tab: Tab) -> None:
    tab.open("attention", layer=0, head=0)
    tab.wait_for_chart("head_map", layer=0, head=0)
    before = map_values(tab)
    tab.page.evaluate(f"() => {{ window.squares = {ATLAS}.data[0]; }}")
    click_square(tab, 2, 5)
    tab.wait_for_chart("head_map", layer=2, head=5)
    assert map_values(tab.settle()) != before
    assert ring(tab) == [2, 5]
    expect(tab.page.get_by_role("heading", name="Layer 2 · Head 5")).to_be_visible()
    assert parse_qs(urlsplit(tab.page.url).query) == {"layer": ["2"], "head": ["5"]}

    assert tab.page.evaluate(f"() => window.squares === {ATLAS}.data[0]"), "only the ring is drawn anew"

    # A second click on the same square changes nothing.
    click_square(tab, 2, 5)
    tab.settle()
    tab.page.wait_for_timeout(200)
    assert ring(tab.settle()) == [2, 5]
    click_square(tab, 3, 1)
    tab.wait_for_chart("head_map", layer=3, head=1)
    assert ring(tab.settle()) == [3, 1]

    tab.page.get_by_label("Layer", exact=True).first.fill("0")
    tab.page.keyboard.press("Enter")
    tab.wait_for_chart("head_map", layer=0, head=1)
    assert ring(tab.settle()) == [0, 1]


def test_squares_clicked_in_quick_succession_are_no_double_click(tab: Tab) -> None:
    tab.open("attention", layer=0, head=0)
    for cell in [(1, 1), (2, 3), (3, 6)]:
        click_square(tab, *cell)
    tab.wait_for_chart("head_map", layer=3, head=6)
    assert ring(tab.settle()) == [3, 6]


def test_the_atlas_is_taken_away_as_a_picture(tab: Tab) -> None:
    tab.open("attention", layer=0, head=0)
    x, y = square(tab, 2, 2)
    tab.page.mouse.move(x, y)
    with tab.page.expect_download() as download:
        tab.page.locator(".modebar-btn[data-title='Save as PNG']").first.click()
    assert download.value.suggested_filename.startswith("attention-tiny-")
    assert download.value.suggested_filename.endswith("-atlas.png")
    data = download.value.path().read_bytes()
    shown = tab.page.evaluate(f"() => {ATLAS}.clientWidth")
    assert data.startswith(b"\x89PNG") and int.from_bytes(data[16:20], "big") == 2 * shown
    tab.page.mouse.move(x, y)
    with tab.page.expect_download() as download:
        tab.page.locator(".modebar-btn[data-title='Save as SVG']").first.click()
    assert download.value.suggested_filename.endswith("-atlas.svg")
    assert "of every head" in download.value.path().read_text()


def test_a_figure_is_as_wide_and_high_as_its_place(tab: Tab) -> None:
    fits = f"() => {MAP}._fullLayout.width === {MAP}.clientWidth && {MAP}._fullLayout.height === {MAP}.clientHeight"
    tab.open("attention")
    width, card = tab.page.evaluate(f"() => [{MAP}.clientWidth, {MAP}.closest('[data-testid=stColumn]').clientWidth]")
    assert 0.9 * card < width < card and tab.page.evaluate(fits)
    for window in (1000, 1920):
        tab.page.set_viewport_size({"width": window, "height": 900})
        tab.page.wait_for_function(f"() => {MAP}.clientWidth !== {width}")
        tab.page.wait_for_function(fits)
        width = tab.page.evaluate(f"() => {MAP}.clientWidth")
    assert cut_off(tab) == []


def test_a_figure_fills_the_screen_and_comes_back(tab: Tab) -> None:
    tab.open("attention")
    plot = tab.page.locator(".js-plotly-plot").nth(1)
    height = plot.bounding_box()["height"]  # type: ignore[index]
    plot.hover()
    plot.locator(".modebar-btn[data-title=Fullscreen]").click()
    tab.page.wait_for_function(f"() => document.fullscreenElement === {MAP}")
    tab.page.wait_for_function(f"() => {MAP}._fullLayout.height === window.innerHeight")
    tab.page.evaluate("() => document.exitFullscreen()")
    tab.page.wait_for_function(f"() => {MAP}._fullLayout.height === {height}")


def test_what_is_in_sight_is_painted_first_and_the_rest_without_scrolling(tab: Tab) -> None:
    tab.page.set_viewport_size({"width": 1280, "height": 800})
    tab.page.add_init_script(
        """window.drawn = [];
        let frame = 0;
        const count = () => { frame += 1; requestAnimationFrame(count); };
        count();
        new MutationObserver(changes => {
            for (const {target} of changes) {
                if (target.ariaBusy !== 'false' || drawn.some(([place]) => place === target)) continue;
                const {top, bottom} = target.getBoundingClientRect();
                drawn.push([target, bottom > 0 && top < innerHeight, frame]);
            }
        }).observe(document, {subtree: true, attributes: true, attributeFilter: ['aria-busy']});"""
    )
    tab.open("neurons")
    tab.page.wait_for_function("() => window.drawn.length === 3")
    drawn = tab.page.evaluate("() => window.drawn.map(([, inSight, frame]) => [inSight, frame])")
    first, rest = ([frame for shown, frame in drawn if shown is inside] for inside in (True, False))
    assert first and rest and max(first) < min(rest)
    assert tab.page.locator(".js-plotly-plot").count() == 3


def test_figures_follow_the_theme(tab: Tab) -> None:
    tab.open("attention")
    for scheme in ("dark", "light"):
        tab.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        tab.page.wait_for_function(
            f"""() => {{
                const colour = drawn => getComputedStyle(drawn).backgroundColor;
                const paper = {MAP}?.querySelector('.main-svg');
                return paper && colour(paper) === colour(document.querySelector('[data-testid=stApp]'));
            }}"""
        )


def test_a_figure_whose_code_is_not_to_be_had_says_so(tab: Tab) -> None:
    tab.page.route(f"**/{CODE}", lambda route: route.abort())
    tab.open("norms")
    expect(tab.page.locator(".workbench-figure")).to_contain_text("This figure could not be drawn")
    expect(tab.page.locator(".workbench-figure")).to_contain_text("Reload the page.")
    assert all("ERR_FAILED" in complaint or "dynamically imported module" in complaint for complaint in tab.complaints)
    tab.complaints.clear()
