"""The frame of every page: header with help, code and downloads, cards, figures and error messages."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dashboard.layout import history, preload, table_sort
from dashboard.layout.downloads import HTML, PARQUET, figure_html, file_name, parquet, source
from dashboard.layout.figure import figure
from dashboard.layout.figure_help import FIGURE_HELP
from dashboard.session import computed, gc_freeze, models, shared_cache, url_state
from dashboard.session.settings import ROOT
from dashboard.token_text import plain
from workbench.errors import CaptureBudgetError, WorkbenchError
from workbench.layers.memory import out_of_memory

STYLE = (ROOT / "dashboard" / "assets" / "page.css").read_text(encoding="utf-8")
# Streamlit writes white on the primary colour, but in the dark theme this colour must be bright.
ON_DARK = """
[data-testid^=stBaseButton-primary] p, [data-testid=stMultiSelectTagsContainer] span { color: #0b0d12 !important }
"""


@dataclass(frozen=True)
class Help:
    """Help text for the "?" of a page: what it shows, how to read it, and the papers that describe it."""

    shows: str
    reads: Sequence[str] = ()
    sources: Mapping[str, str] = field(default_factory=dict)  # name -> URL


@contextmanager
def page(title: str, subtitle: str, about: Help) -> Iterator["Head"]:
    """A page's header and error boundary; yields the header, to which the page adds its data and code at its end."""
    url_state.begin_page(title)
    st.session_state["_figures"] = {}
    with st.container(horizontal=True, vertical_alignment="center", key="page_head"):
        with st.container(gap=None, width="stretch"):
            st.header(title, anchor=False)
            st.caption(subtitle)
        tools = st.container(horizontal=True, width="content", vertical_alignment="center", key="page_tools")
    history.mount()
    table_sort.mount()
    shared_cache.mount_spinner()
    st.html(f"<style>{_style()}</style>")
    _pick_model(tools)
    with tools.popover("?", help="What this page shows, and its sources"):
        st.markdown(about.shows)
        st.markdown("\n".join(f"- {line}" for line in about.reads))
        if about.sources:
            st.markdown("**Sources:** " + ", ".join(f"[{name}]({url})" for name, url in about.sources.items()))
        st.caption("The URL is a permalink: it reproduces this view.")
    url_problems = st.container(key="unread")
    try:
        yield Head(tools)
        if not st.session_state["_figures"]:
            preload.mount()
        gc_freeze.freeze_objects(title)
    except CaptureBudgetError as error:
        show_error("The capture for this view is too large. Shorten the prompt.", str(error))
    except WorkbenchError as error:
        show_error("This view cannot be shown.", str(error))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not out_of_memory(error):
            raise
        gc.collect()
        summary = "There is not enough memory for this view. Shorten the prompt, or unload a model on Overview."
        show_error(summary, str(error) or "out of memory")
    finally:
        shared_cache.unmount_spinner()
        with url_problems:
            _show_url_problems()


def _style() -> str:
    if st.context.theme.type != "dark":
        return STYLE
    return f"{STYLE}{ON_DARK}:root {{ --paper: {st.get_option('theme.dark.backgroundColor')} }}"


def _show_url_problems() -> None:
    """Report URL values that are not available, and texts that are too long for the URL."""
    unavailable, too_long = url_state.unavailable_values()
    if unavailable:
        summary = "Some values in the URL are not available; defaults are shown instead."
        show_error(summary, "\n".join(map(str, unavailable)))
    for label in too_long:
        st.warning(f"{label} is too long for the URL. It is used now, but a link or reload will lose it.")


def _pick_model(tools: DeltaGenerator) -> None:
    ids = [served.id for served in models.served()]
    named = st.query_params.get("model")
    if named is not None and named not in ids:
        advice = "Add its folder on Overview, or start the server with it."
        url_state.note_unavailable("model", named, computed.selected_model().id, advice)
    if len(ids) > 1:
        with tools:
            url_state.url_widget(
                st.selectbox, "Model", ids, key="model", width=190, label_visibility="collapsed",
                help="The model that all pages use.",
            )  # fmt: skip


@dataclass(frozen=True)
class Head:
    """The right side of a page's header: notebook code and downloads."""

    tools: DeltaGenerator

    def code(self, source: str) -> None:
        """Add the view as a notebook cell."""
        with self.tools.popover("Notebook code", help="The same numbers in a notebook"):
            st.code(source.strip(), language="python")

    def data(self, tables: Mapping[str, Callable[[], pd.DataFrame]]) -> None:
        """Add downloads of the page's tables (CSV, Parquet) and figures (HTML); each file is made when requested."""
        about = source()
        with self.tools.popover("Download", help="The numbers behind this page, and its figures"):
            for name, table in tables.items():
                title = name.replace("_", " ").capitalize()
                with st.container(horizontal=True):
                    file = file_name(name, {})
                    _download_button(
                        f"{title} (CSV)", lambda table=table: table().to_csv(index=False), f"{file}.csv", "text/csv"
                    )
                    _download_button(
                        f"{title} (Parquet)",
                        lambda table=table, about=about: parquet(table(), about),
                        f"{file}.parquet",
                        PARQUET,
                    )
            for name, (title, make) in st.session_state.get("_figures", {}).items():
                label = name.replace("_", " ").capitalize()
                _download_button(
                    f"{label} (HTML)",
                    lambda title=title, make=make, about=about: figure_html(title, make(), about),
                    f"{file_name(name, {})}.html",
                    HTML,
                )
            st.caption("To save a figure as PNG or SVG, point at it and click the camera or the curve.")


def _download_button(label: str, make: Callable[[], str | bytes], name: str, kind: str) -> None:
    st.download_button(label, make, file_name=name, mime=kind, on_click="ignore", width="stretch", key=f"file_{name}")


def show_error(summary: str, detail: str) -> None:
    """An error that the user can fix: a summary of ours, read as Markdown, then the message as plain text."""
    st.error(summary)
    st.code(plain(detail), language=None, wrap_lines=True)


def command_line(line: str) -> None:
    """A shell command in a popover. Without syntax colours: their code is 1.5 MB, which delays the first visit."""
    with st.popover("Command", help="The same as a shell command"):
        st.code(plain(line), language=None, wrap_lines=True)


def empty(sentence: str, command: str | None = None) -> None:
    """A message that there is nothing to show yet, with the reason and the command that changes it."""
    st.info(sentence)
    if command:
        st.code(plain(command), language=None, wrap_lines=True)


@contextmanager
def card(
    title: str, *, help: str | None = None, key: str | None = None, height: int | str = "content"
) -> Iterator[None]:
    """A bordered part of a page. The title is read as Markdown, so it must not contain tokens or user text."""
    with st.container(border=True, key=key, height=height):
        st.subheader(title, anchor=False, help=help)
        yield


def table_height(rows: int, *, max_height: int = 440) -> int:
    """Height in pixels of a table with this many rows: a short table has no empty rows, a long one scrolls."""
    return min(max_height, 35 * (rows + 1) + 3)


def chart(fig: go.Figure, *, key: str, height: int | None = None) -> None:
    """Draw a figure with its title and help text above it, where the title cannot overlap a legend or be cut off.

    The title is read as Markdown, so it must not contain tokens or user text.
    """
    title = fig.layout.title.text
    heading(title, fig.layout.meta["kind"])
    legend = any(trace.type in ("scatter", "bar") and trace.name for trace in fig.data)
    fig.update_layout(title=None, margin={"t": 36 if legend else 12}, height=height or fig.layout.height)
    _draw(fig, key, title)


def heading(title: str, kind: str) -> None:
    """A figure's title with its help text. The title is read as Markdown: no tokens, no user text."""
    st.markdown(f"**{title}**", help=FIGURE_HELP[kind])


def draw_figure(fig: go.Figure, *, key: str, stretch: bool = False) -> None:
    """Draw a figure without a title, for a card that has one; `stretch` lets the figure fill a taller card."""
    _draw(fig, key, key.replace("_", " ").capitalize(), stretch)


def _draw(fig: go.Figure, key: str, title: str, stretch: bool = False) -> None:
    meta = fig.layout.meta
    figure(fig, key=key, title=title, stretch=stretch, file=file_name(key, meta if isinstance(meta, dict) else {}))
    add_download(key, title, lambda: fig)


def add_download(name: str, title: str, make: Callable[[], go.Figure]) -> None:
    """Add a figure to the downloads of the page."""
    st.session_state.setdefault("_figures", {})[name] = (title, make)
