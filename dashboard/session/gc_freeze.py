"""Excludes long-lived objects from garbage collection with `gc.freeze`.

Streamlit collects garbage after every run of a page (`runner.postScriptGC`). Meanwhile no other Python thread runs:
with torch, plotly and pandas loaded this takes 0.2 s, which delays the last part of the page.
"""

import gc
from functools import cache


@cache
def freeze_objects(page: str) -> None:
    """Exclude all current objects, mainly code, from later collections; once for each page in this process.

    Objects without reference cycles are still freed as usual; the others wait for `collect_all`.
    """
    gc.freeze()


def collect_all() -> None:
    """Collect garbage among the frozen objects too, then freeze the rest again."""
    frozen = gc.get_freeze_count()
    gc.unfreeze()
    gc.collect()
    if frozen:
        gc.freeze()
