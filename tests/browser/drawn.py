"""What figures show, and the squares of the atlas, as a hand and an eye find them."""

from contextlib import suppress

from playwright.sync_api import Page
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from tests.browser.conftest import Tab

ATLAS = "[...document.querySelectorAll('.js-plotly-plot')].find(p => p.layout.meta.kind === 'atlas')"


HARMLESS = {"Save as PNG", "Save as SVG", "Zoom", "Pan", "Zoom in", "Zoom out", "Autoscale", "Reset axes", "Fullscreen"}
"""What the buttons over a figure may do: nothing that leaves this machine."""


def toolbar(page: Page) -> set[str]:
    """The titles of all buttons over the figures of a page."""
    titles = page.eval_on_selector_all(".modebar-btn", "buttons => buttons.map(b => b.dataset.title)")
    return set(titles)


def square(tab: Tab, layer: int, head: int) -> tuple[float, float]:
    """Where the atlas shows a head, in pixels of the window."""
    x, y = tab.page.evaluate(
        """([layer, head]) => {
            const plot = """
        + ATLAS
        + """;
            plot.scrollIntoView({block: 'center'});
            const {xaxis, yaxis} = plot._fullLayout, box = plot.getBoundingClientRect();
            return [box.left + xaxis._offset + xaxis.d2p(head), box.top + yaxis._offset + yaxis.d2p(layer)];
        }""",
        [layer, head],
    )
    return x, y


def click_square(tab: Tab, layer: int, head: int) -> None:
    """Plotly acts on the point that it last hovered: move, wait for its label, press.

    A figure that is drawn anew under a resting mouse takes its label away; a hand moves on and has it back.
    """
    label = tab.page.locator(".hoverlayer .hovertext").filter(has_text=f"layer {layer} · head {head}")
    for _ in range(60):
        x, y = square(tab, layer, head)
        tab.page.mouse.move(x - 3, y)
        tab.page.mouse.move(x, y, steps=3)
        with suppress(PlaywrightTimeout):
            label.wait_for(timeout=1000)
            return tab.page.mouse.click(x, y)
    raise AssertionError(f"the atlas shows no label for layer {layer}, head {head}")


def ring(tab: Tab) -> list[int]:
    """Layer and head of the one square that the browser draws a ring around."""
    return tab.page.evaluate(
        """() => {
            const plot = """
        + ATLAS
        + """;
            const {xaxis, yaxis} = plot._fullLayout, box = plot.getBoundingClientRect();
            const [point, ...more] = plot.querySelectorAll('.scatterlayer .point');
            if (!point || more.length) return [];
            const {left, width, top, height} = point.getBoundingClientRect();
            const x = xaxis.p2d(left + width / 2 - box.left - xaxis._offset);
            return [yaxis.p2d(top + height / 2 - box.top - yaxis._offset), x].map(Math.round);
        }"""
    )


def map_values(tab: Tab) -> str:
    return tab.page.evaluate(
        """() => {
            const plot = [...document.querySelectorAll('.js-plotly-plot')].find(p => p.layout.meta.kind === 'head_map');
            const z = plot._fullData[0].z;
            return JSON.stringify(Array.from(z, row => Array.from(row)));
        }"""
    )
