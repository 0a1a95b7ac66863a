"""The furniture of every page: its head with help, code and data, cards, and errors that say what to do."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dashboard.layout import preload
from dashboard.layout.figure import figure
from dashboard.layout.figure_help import FIGURE_HELP
from dashboard.session import computed, gc_freeze, models, shared_cache, url_state
from dashboard.session.settings import ROOT
from dashboard.token_text import plain
from workbench.errors import CaptureBudgetError, WorkbenchError
from workbench.inference.scoring_batches import out_of_memory

HTML, PARQUET = "text/html", "application/vnd.apache.parquet"
STYLE = (ROOT / "dashboard" / "assets" / "page.css").read_text(encoding="utf-8")
# Streamlit writes white on a theme's primary colour, which on a dark page has to be a bright one.
ON_DARK = """
[data-testid^=stBaseButton-primary] p, [data-testid=stMultiSelectTagsContainer] span { color: #0b0d12 !important }
"""


@dataclass(frozen=True)
class Help:
    """What the "?" of a page says: what is shown, how it is read, and where it was first described."""

    shows: str
    reads: Sequence[str] = ()
    sources: Mapping[str, str] = field(default_factory=dict)  # name -> address


@contextmanager
def page(title: str, subtitle: str, about: Help) -> Iterator["Head"]:
    """A page's head and error boundary; `yield`s the head, to which the page adds its data and code at its end."""
    url_state.begin_page(title)
    st.session_state["_figures"] = {}
    with st.container(horizontal=True, vertical_alignment="center", key="page_head"):
        with st.container(gap=None, width="stretch"):
            st.header(title, anchor=False)
            st.caption(subtitle)
        tools = st.container(horizontal=True, width="content", vertical_alignment="center", key="page_tools")
    shared_cache.mount_spinner()
    st.html(f"<style>{_style()}</style>")
    _pick_model(tools)
    with tools.popover("?", help="What this page shows, and its sources"):
        st.markdown(about.shows)
        st.markdown("\n".join(f"- {line}" for line in about.reads))
        if about.sources:
            st.markdown("**Sources:** " + ", ".join(f"[{name}]({url})" for name, url in about.sources.items()))
        st.caption("The address bar is a permalink: it reproduces this view.")
    unread = st.container(key="unread")
    try:
        yield Head(tools)
        if not st.session_state["_figures"]:
            preload.mount()
        gc_freeze.freeze_objects(title)
    except CaptureBudgetError as error:
        show_error("What this view needs to keep does not fit. Shorten the prompt.", str(error))
    except WorkbenchError as error:
        show_error("This view cannot be shown.", str(error))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not out_of_memory(error):
            raise
        gc.collect()
        what = "There is not enough memory for this view. Shorten the prompt, or unload a model on Overview."
        show_error(what, str(error) or "out of memory")
    finally:
        shared_cache.unmount_spinner()
        with unread:
            _show_url_problems()


def _style() -> str:
    if st.context.theme.type != "dark":
        return STYLE
    return f"{STYLE}{ON_DARK}:root {{ --paper: {st.get_option('theme.dark.backgroundColor')} }}"


def _show_url_problems() -> None:
    """What the address asks for in vain, and what it cannot hold."""
    misread, long = url_state.unavailable_values()
    if misread:
        show_error("The address asks for what is not here. The rest is shown.", "\n".join(map(str, misread)))
    for label in long:
        st.warning(f"{label}: too long for the address, so that a link or a reload will not have it. It is used here.")


def _pick_model(tools: DeltaGenerator) -> None:
    ids = [known.id for known in models.served()]
    named = st.query_params.get("model")
    if named is not None and named not in ids:
        advice = "Add its folder on Overview, or start the server with it."
        url_state.note_unavailable("model", named, computed.selected_model().id, advice)
    if len(ids) > 1:
        with tools:
            url_state.url_widget(
                st.selectbox, "Model", ids, key="model", width=190, label_visibility="collapsed",
                help="Which of the server's models the pages look at.",
            )  # fmt: skip


@dataclass(frozen=True)
class Head:
    """The right side of a page's head."""

    tools: DeltaGenerator

    def code(self, source: str) -> None:
        """The view as a notebook cell."""
        with self.tools.popover("Notebook code", help="The same numbers in a notebook"):
            st.code(source.strip(), language="python")

    def data(self, tables: Mapping[str, Callable[[], pd.DataFrame]]) -> None:
        """The page's tables as CSV and Parquet, its figures as HTML; each is made when its button is pressed."""
        with self.tools.popover("Download", help="The numbers behind this page, and its figures"):
            for name, table in tables.items():
                title = name.replace("_", " ").capitalize()
                with st.container(horizontal=True):
                    _download_button(
                        f"{title} (CSV)", lambda table=table: table().to_csv(index=False), f"{name}.csv", "text/csv"
                    )
                    _download_button(
                        f"{title} (Parquet)", lambda table=table: parquet(table()), f"{name}.parquet", PARQUET
                    )
            for name, (said, make) in st.session_state.get("_figures", {}).items():
                title = name.replace("_", " ").capitalize()
                _download_button(
                    f"{title} (HTML)",
                    lambda said=said, make=make: _figure_html(said, make()),
                    f"{name}.html",
                    "text/html",
                )
            st.caption("A figure as PNG: the camera that appears over it.")


def _download_button(label: str, make: Callable[[], str | bytes], name: str, kind: str) -> None:
    st.download_button(label, make, file_name=name, mime=kind, on_click="ignore", width="stretch", key=f"file_{name}")


def parquet(table: pd.DataFrame) -> bytes:
    """A table as a Parquet file; a column of several types, which the format does not know, becomes text."""
    table = table.rename(columns=str)
    for name in table.select_dtypes("object").columns:
        if table[name].dropna().map(type).nunique() > 1:
            table[name] = table[name].map(str, na_action="ignore")
    return bytes(table.to_parquet(index=False))


def show_error(summary: str, detail: str) -> None:
    """A mistake that a person can repair: one sentence of ours, then the message as plain text."""
    st.error(summary)
    st.code(plain(detail), language=None, wrap_lines=True)


def command_line(line: str) -> None:
    """A line for a terminal, behind a button: what shows it in colours is 1.5 MB, which a first visit waits for."""
    with st.popover("Command", help="The same in a terminal"):
        st.code(plain(line), language=None, wrap_lines=True)


def empty(sentence: str, command: str | None = None) -> None:
    """Nothing to show yet: why, and the command that changes it."""
    st.info(sentence)
    if command:
        st.code(plain(command), language=None, wrap_lines=True)


@contextmanager
def card(
    title: str, *, help: str | None = None, key: str | None = None, height: int | str = "content"
) -> Iterator[None]:
    """A bordered part of a page. The title is ours: it is read as Markdown."""
    with st.container(border=True, key=key, height=height):
        st.subheader(title, anchor=False, help=help)
        yield


def table_height(rows: int, *, max_height: int = 440) -> int:
    """Pixels for a table of so many rows, so that a short one shows no empty rows and a long one scrolls."""
    return min(max_height, 35 * (rows + 1) + 3)


def chart(fig: go.Figure, *, key: str, height: int | None = None) -> None:
    """A figure with its title above it, in the page's own type, where it cannot collide with a legend or be cut off;
    beside it a "?" says what it shows.

    The title is ours: it is read as Markdown.
    """
    title = fig.layout.title.text
    heading(title, fig.layout.meta["kind"])
    legend = any(trace.type in ("scatter", "bar") and trace.name for trace in fig.data)
    fig.update_layout(title=None, margin={"t": 36 if legend else 12}, height=height or fig.layout.height)
    _draw(fig, key, title)


def heading(title: str, kind: str) -> None:
    """A figure's title, with a "?" that says what it shows. The title is ours: it is read as Markdown."""
    st.markdown(f"**{title}**", help=FIGURE_HELP[kind])


def draw_figure(fig: go.Figure, *, key: str, stretch: bool = False) -> None:
    """A figure whose card has said already what it is; `stretch` lets it fill a card that is taller."""
    _draw(fig, key, key.replace("_", " ").capitalize(), stretch)


def _draw(fig: go.Figure, key: str, title: str, stretch: bool = False) -> None:
    figure(fig, key=key, title=title, stretch=stretch)
    add_download(key, title, lambda: fig)


def add_download(name: str, title: str, make: Callable[[], go.Figure]) -> None:
    """Put a figure among the downloads at the end of the page."""
    st.session_state.setdefault("_figures", {})[name] = (title, make)


def _figure_html(title: str, fig: go.Figure) -> str:
    """The figure as drawn, with its title inside, in a file that needs no network."""
    return str(go.Figure(fig).update_layout(title=title, margin={"t": 80}).to_html(include_plotlyjs=True))
