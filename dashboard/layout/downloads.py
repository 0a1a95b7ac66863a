"""What a page offers to download: tables as Parquet, figures as HTML, and names that say what is in a file."""

import io
import re
from collections.abc import Mapping
from urllib.parse import urlencode

import pandas as pd
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.parquet as pq
import streamlit as st

from dashboard.session import computed, models
from dashboard.token_text import plotly_plain
from probes.base.drawing import html_page

HTML, PARQUET = "text/html", "application/vnd.apache.parquet"
_LONGEST = 120  # characters of a part of an HTML file's subtitle


def source() -> dict[str, str]:
    """Where a page's numbers come from, for its downloads: page, model, its path, URL parameters and prompt."""
    served = computed.selected_model()
    view = urlencode(st.query_params.to_dict(), errors="replace")
    about = {"page": str(st.session_state.get("_page", "")), "model": served.id, "path": served.path, "view": view}
    prompt = st.session_state.get("prompt")
    return about | ({"prompt": str(prompt)} if prompt else {})


def _with_checkpoint(about: Mapping[str, str]) -> dict[str, str]:
    """`source`, with the checkpoint's hash if the model is loaded: large files are hashed when a file is requested."""
    path = about.get("path", "")
    loaded = path in models.pool().loaded_bytes()
    return {**about, **({"checkpoint": computed.fingerprint(models.pool().get(path))} if loaded else {})}


def file_name(name: str, meta: Mapping[str, object]) -> str:
    """Name of a downloaded file without its ending: page, model, what it shows, and the layer and head of a figure."""
    place = "".join(f"-{key}{meta[key]}" for key in ("layer", "head") if key in meta)
    words = f"{st.session_state.get('_page', 'page')}-{computed.selected_model().id}-{name}{place}"
    return re.sub(r"[^\w.-]+", "-", words.lower())


def parquet(table: pd.DataFrame, about: Mapping[str, str] | None = None) -> bytes:
    """A table as a Parquet file, with `about` as its metadata.

    A column with several types, which Parquet does not support, becomes text.
    """
    table = table.rename(columns=str)
    for name in table.select_dtypes("object").columns:
        if table[name].dropna().map(type).nunique() > 1:
            table[name] = table[name].map(str, na_action="ignore")
    made = pa.Table.from_pandas(table, preserve_index=False)
    plain_about = {key: value.encode(errors="replace") for key, value in _with_checkpoint(about or {}).items()}
    with io.BytesIO() as buffer:
        pq.write_table(made.replace_schema_metadata({**(made.schema.metadata or {}), **plain_about}), buffer)
        return buffer.getvalue()


def figure_html(title: str, fig: go.Figure, about: Mapping[str, str]) -> str:
    """The figure with its title, and what it was made of, as an HTML file that works without a network."""
    shown = {key: value for key, value in _with_checkpoint(about).items() if key not in ("view", "path")}
    words = [f"{key}: {' '.join(value.split())}" for key, value in shown.items()]
    made_of = " · ".join(word if len(word) <= _LONGEST else f"{word[:_LONGEST]}…" for word in words)
    heading = {"text": title, "subtitle": {"text": plotly_plain(made_of)}}
    return html_page(go.Figure(fig).update_layout(title=heading, margin={"t": 90}))
