"""Entry point for `streamlit run`: page configuration and navigation."""

from pathlib import Path

import streamlit as st

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
