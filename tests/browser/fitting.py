"""What of a page does not fit its place, as a browser lays it out."""

from tests.browser.conftest import Tab


def cut_off(tab: Tab) -> list[str]:
    """Tables wider than their place, as their columns; text over the edge of a figure, and titles on labels."""
    return tab.page.evaluate(
        """() => {
            const tables = [...document.querySelectorAll('[data-testid=stDataFrame], .read-table')].flatMap(table => {
                const inside = table.matches('.read-table') ? table : table.querySelector('.dvn-scroller');
                const heads = [...table.querySelectorAll('th')].map(head => head.textContent);
                return inside && inside.scrollWidth > inside.clientWidth ? [heads.join()] : [];
            });
            const figures = [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => {
                const edge = plot.getBoundingClientRect();
                const of = parts => [...plot.querySelectorAll(parts)].filter(text => text.textContent)
                    .map(text => [text, text.getBoundingClientRect()]);
                const [ticks, titles] = [of('[class$=tick] text'), of('.infolayer [class$=title]')];
                const over = [...ticks, ...titles].filter(([text, box]) => box.left < edge.left - 1
                    || box.right > edge.right + 1 || box.top < edge.top - 1 || box.bottom > edge.bottom + 1);
                const on = titles.filter(([title, one]) => ticks.some(([tick, two]) => one.left < two.right - 1
                    && two.left < one.right - 1 && one.top < two.bottom - 1 && two.top < one.bottom - 1));
                return [...over, ...on].map(([text]) => `${plot.layout.meta.kind}: ${text.textContent}`);
            });
            return [...tables, ...figures];
        }"""
    )
