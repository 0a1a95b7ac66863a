"""Entry point for `streamlit run`: the server with its checks of requests, and the navigation of its pages."""

from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware

from dashboard.request_guard import RequestGuard

PAGES = {
    "overview": "Overview",
    "attention": "Attention",
    "rope": "RoPE",
    "norms": "Norms",
    "lens": "Lens",
    "neurons": "Neurons",
    "intervene": "Intervene",
    "generate": "Generate",
    "compare": "Compare",
    "benchmarks": "Benchmarks",
    "samples": "Samples",
    "runs": "Runs",
}

_here = Path(__file__).resolve().parent / "dashboard"


def draw() -> None:
    """Draw the page of this session's address."""
    page = st.navigation(
        [
            st.Page(_here / "pages" / f"{name}.py", title=title, url_path=name, default=name == "overview")
            for name, title in PAGES.items()
        ],
        position="top",
    )
    # A local file, because a `:material/` icon would be loaded from another host.
    st.set_page_config(f"{page.title} · Llama workbench", page_icon=str(_here / "assets" / "icon.png"), layout="wide")
    page.run()


if __name__ == "__main__":
    draw()  # Streamlit runs this file as the script of a session
else:
    app = st.App(__file__, middleware=[Middleware(RequestGuard)])  # and imports it as the server
